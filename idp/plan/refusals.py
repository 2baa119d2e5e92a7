"""All that a run is refused for before anything is computed, each in one line: what, where, and what to do."""

from __future__ import annotations

from typing import Any

from idp import fetched, models
from idp.compress import stage as compressing
from idp.config import GRAPH, GRID, Config
from idp.errors import UserError
from idp.evaluate import guard, trial
from idp.models import LoadedModel
from idp.plan.inputs import ResolvedInputs, Shape
from idp.recover import stage as recovering
from idp.recover.identity import needs
from idp.store import Store


def refuse(config: Config, inputs: ResolvedInputs, shape: Shape, store: Store) -> Any:
    """Refuses what can be told from configs, headers and texts; nothing is computed, and no weight fetched.

    Returns:
        what the compressor's options come to with the model, such as a group size.

    Raises:
        UserError: the first of what is wrong.
    """
    empty, dense = shape.empty, models.identity(config.model, inputs.source)
    _refuse_class(config, shape, store)
    models.device_map(shape.folder, config.model)
    resolved = None
    if inputs.external is None or _is_here(config, inputs.external, store):
        resolved = _check_compressor(config, inputs, empty, store)
    recovering.check(config.recovery, empty, inputs.corpus, inputs.calibration_of(config))
    if inputs.external is None:  # else it is asked once they are measured
        claims = config.compressor.claims(resolved)
        config.recovery.check_weights(claims.sparsity, claims.bits)
    check_grid(config, resolved)
    recovering.check_given(inputs.given, config.model, dense, empty, config.recovery)
    for text in inputs.texts:
        if text.made is not None:
            text.made.source.check_model(empty)
    check_perplexity(config, empty, inputs)
    check_latency(config, empty)
    check_generation(config, empty, inputs)
    return resolved


def hold(config: Config, inputs: ResolvedInputs, shape: Shape, store: Store) -> None:
    """Refuses what takes a download or a pass of a small model to tell: before hours of work, after `refuse`.

    Raises:
        UserError: this project would compute the model otherwise than it computes itself, or a checkpoint of others
            does not compute what the model does.
    """
    guard.check(shape.empty.model.config, store, forward_parts(config), config.model.trust_remote_code)
    if inputs.external is not None and not _is_here(config, inputs.external, store):
        _check_compressor(config, inputs, shape.empty, store)


def _check_compressor(config: Config, inputs: ResolvedInputs, empty: LoadedModel, store: Store) -> Any:
    return compressing.check(config.compressor, empty, inputs.calibration, config.model, inputs.external, store)


def forward_parts(config: Config) -> list[str]:
    """What of a model is held to its own forward pass, on a small one of its class."""
    parts = [trial.PACKED, trial.GENERATION]
    if config.recovery.prompts:
        parts += [trial.PROMPTED, trial.GENERATION_PROMPTED]
    if config.recovery.prompts and config.recovery.trains:
        parts.append(trial.TRAINING)
    return parts


def _refuse_class(config: Config, shape: Shape, store: Store) -> None:
    """Refuses a model whose class is known to be computed otherwise, by itself or by an answer that the store has."""
    guard.check_known(shape.empty.model.config, store, forward_parts(config), config.model.trust_remote_code)


def _is_here(config: Config, source: models.ModelSource, store: Store) -> bool:
    """Whether a checkpoint of others can be read without a download."""
    if source.kind != "hub":
        return True
    return fetched.downloaded(config.compressor.origin, source.identity["commit"], store, pickles=False) is not None


def check_grid(config: Config, resolved: Any) -> None:
    """A recovery that changes the grid of quantised weights must find one."""
    if GRID in needs(config.recovery) and config.compressor.claims(resolved).bits is None:
        raise UserError(
            f"recovery={config.recovery.kind} changes the grid of quantised weights, and compressor="
            f"{config.compressor.label} leaves none that is known here; quantise here, such as with compressor=gptq4"
        )


def check_perplexity(config: Config, empty: LoadedModel, inputs: ResolvedInputs) -> None:
    """Perplexity counts the same tokens for every method, so a window must leave room for the prompt before it."""
    from idp.corpora.corpus import check_blocks

    window, (prompt, bos) = config.evaluation.perplexity_window, ahead_of_text(config, empty)
    room = window_of(empty)
    if inputs.perplexity and window + prompt + bos > room:
        before = f"a prompt of {prompt} tokens{f' and {bos} of BOS' if bos else ''}"
        raise UserError(
            f"evaluation.perplexity_window={window}: with {before} it does not fit in the model's window of {room}; use"
            f" {room - prompt - bos} or less for every run that you compare"
        )
    for text in inputs.perplexity.values():
        check_blocks(text, "perplexity", empty.tokenizer, window, 1, 0)


def check_latency(config: Config, empty: LoadedModel) -> None:
    """Every row must fit in the model's window, and its decoding be one that the machine can time."""
    latency, (prompt, bos) = config.latency, ahead_of_text(config, empty)
    if not latency.enabled:
        return
    room = window_of(empty)
    needed = prompt + bos + max(latency.input_tokens) + latency.new_tokens
    if needed > room:
        before = f"a prompt of {prompt} tokens{f', {bos} of BOS' if bos else ''}"
        raise UserError(
            f"latency.input_tokens={max(latency.input_tokens)}: with {before} and"
            f" latency.new_tokens={latency.new_tokens} that makes {needed}, and the model's window is {room}"
        )
    if latency.decode == GRAPH:
        from idp.evaluate import graph

        graph.check(empty.model, models.device_of(config.model))


def check_generation(config: Config, empty: LoadedModel, inputs: ResolvedInputs) -> None:
    """What a task lets a model write must fit in its window behind the prompt."""
    from lm_eval.models.utils import resolve_max_length

    prompt, bos = ahead_of_text(config, empty)
    room = resolve_max_length(empty.model.config, empty.tokenizer, default=2048) - prompt - bos
    for task in inputs.tasks:
        if task.generates and task.longest_answer >= room:
            raise UserError(
                f"task.names: {task.runs} lets a model generate {task.longest_answer} tokens, and the window holds"
                f" {room} behind a prompt of {prompt}; leave the task out, or use a shorter prompt"
            )


def ahead_of_text(config: Config, empty: LoadedModel) -> tuple[int, int]:
    """Tokens of the longest prompt, and of the BOS beside it: the baselines' texts have it also where theirs do not."""
    prompt = recovering.longest_prompt(config.recovery, empty)
    return prompt, max(len(config.recovery.beginning(empty.bos)), len(empty.bos) - prompt)


def window_of(empty: LoadedModel) -> int:
    """The most tokens that the model reads."""
    return empty.model.config.get_text_config().max_position_embeddings
