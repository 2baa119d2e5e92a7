"""Batched greedy decoding behind each row's own prompt, each row ending at its stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text

from idp.errors import UserError
from idp.progress import progress
from idp.prompting.prefix import attention_mask, cache_of
from idp.prompting.repaired import head_only_at

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from transformers import DynamicCache

    from idp.evaluate.scorer import Scorer
    from idp.prompting.repaired import RepairedModel

IGNORED = ("do_sample", "temperature", "until", "max_gen_toks")


def generate(scorer: Scorer, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """The greedy continuation of every request's context, cut at its first stop string.

    Raises:
        UserError: a task asks for sampling, or for an option that greedy decoding does not have.
    """
    texts = [""] * len(requests)
    eos = scorer.tokenizer.decode([scorer.eot_token_id], skip_special_tokens=False)
    groups: dict[Any, list[int]] = {}
    settings: dict[Any, tuple[list[str], int]] = {}
    for number, request in enumerate(requests):
        options = normalize_gen_kwargs(request.args[1], scorer.max_gen_toks)
        if options.get("do_sample") or set(options) - set(IGNORED):
            raise UserError(f"{request.task_name}: generation options {request.args[1]} are not greedy decoding")
        stops = handle_stop_sequences(options["until"], eos=eos)
        key = (tuple(stops), options["max_gen_toks"])
        groups.setdefault(key, []).append(number)
        settings[key] = (stops, options["max_gen_toks"])
    with progress(len(requests), f"generate {scorer.label}", unit="documents", disable=disable_tqdm) as bar:
        for key, numbers in groups.items():
            stops, longest = settings[key]
            contexts = {number: _context(scorer, requests[number].args[0], longest) for number in numbers}
            for batch in _batches(contexts, scorer.batch_tokens):
                rows = [contexts[number] for number in batch]
                choice = scorer.repaired.choose(rows)
                outputs = decode(scorer.repaired, rows, choice, stops, longest, scorer)
                for number, text in zip(batch, outputs, strict=True):
                    texts[number] = text
                if choice is not None:
                    for number, prompt in zip(batch, choice.tolist(), strict=True):
                        scorer.choices[requests[number].task_name, requests[number].doc_id] = prompt
                bar.update(len(batch))
    return texts


def decode(
    repaired: RepairedModel,
    contexts: list[list[int]],
    choice: torch.Tensor | None,
    stops: list[str],
    max_new_tokens: int,
    scorer: Scorer | None = None,
) -> list[str]:
    """Greedy continuations of one batch, each cut before the first of `stops`; rows leave the batch as they end.

    Args:
        repaired: the model.
        contexts: token ids, none of them empty.
        choice: [contexts], the prompt of each row, as `RepairedModel.choose` gave it.
        stops: stop strings.
        max_new_tokens: tokens at most.
        scorer: whose count of tokens run is kept.
    """
    import torch

    device, tokenizer = repaired.device, repaired.tokenizer
    width = max(map(len, contexts))
    tokens = torch.zeros(len(contexts), width, dtype=torch.long)
    real = torch.zeros(len(contexts), width, dtype=torch.bool)
    for row, context in enumerate(contexts):  # padded on the left, so that every row's next token is in one column
        tokens[row, width - len(context) :] = torch.tensor(context)
        real[row, width - len(context) :] = True
    tokens, real = tokens.to(device), real.to(device)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    itself = torch.eye(width, dtype=torch.bool, device=device)
    visible = (real[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()) | itself

    with torch.inference_mode():
        inputs = repaired.attention_inputs(visible, positions, choice)
        if choice is None:
            inputs |= {"past_key_values": cache_of_nothing(repaired), "use_cache": True}
            seen, seen_positions = real, positions
        else:
            prefix = repaired.prefixes.valid(choice)
            seen = torch.cat([prefix, real], dim=1)
            before = torch.arange(prefix.shape[1], device=device).expand(len(contexts), -1)
            positions = positions + repaired.prefixes.lengths[choice][:, None]
            seen_positions = torch.cat([before, positions], dim=1)
        last = torch.arange(1, len(contexts) + 1, device=device) * width - 1
        with head_only_at(repaired.model, last):
            output = repaired.model(input_ids=tokens, **inputs)
        logits, cache = output.logits[0], output.past_key_values
        generated: list[list[int]] = [[] for _ in contexts]
        alive = list(range(len(contexts)))
        next_position = positions[:, -1:] + 1
        while alive:
            newest = logits.argmax(dim=-1)
            going = []
            for place, (row, token) in enumerate(zip(alive, newest.tolist(), strict=True)):
                generated[row].append(token)
                if len(generated[row]) < max_new_tokens and not _stopped(tokenizer, generated[row], stops):
                    going.append(place)
            if not going:
                break
            if len(going) < len(alive):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                seen, seen_positions, next_position = seen[keep], seen_positions[keep], next_position[keep]
                newest, alive = newest[keep], [alive[place] for place in going]
            seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
            seen_positions = torch.cat([seen_positions, next_position], dim=1)
            output = repaired.model(
                input_ids=newest[:, None],
                attention_mask=attention_mask(repaired.model, seen[:, None, :], next_position, seen_positions),
                position_ids=next_position,
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
            next_position = next_position + 1
    if scorer is not None:
        scorer.tokens_run += tokens.numel() + sum(map(len, generated))
    texts = (tokenizer.decode(row, skip_special_tokens=True) for row in _without_end(generated, tokenizer.eos_token_id))
    return [postprocess_generated_text(text, stop=stops, think_end_token=None) for text in texts]


def cache_of_nothing(repaired: RepairedModel) -> DynamicCache:
    """An empty cache whose layers are all full ones."""
    from transformers.cache_utils import DynamicLayer

    cache = cache_of([])
    cache.layers.extend(DynamicLayer() for _ in range(repaired.model.config.get_text_config().num_hidden_layers))
    return cache


def _context(scorer: Scorer, text: str, longest: int) -> list[int]:
    """Token ids as HFLM makes them for generation, cut on the left to leave room for `longest` new tokens."""
    room = scorer.max_length - longest
    if room <= 0:
        raise UserError(
            f"a task wants to generate {longest} tokens, and the model's window behind the prompt holds"
            f" {scorer.max_length}; use a shorter prompt"
        )
    special = {} if scorer.add_bos_token is None else {"add_special_tokens": scorer.add_bos_token}
    if has_bos_prefix(text, getattr(scorer.tokenizer, "bos_token", None)):
        special = {"add_special_tokens": False}
    tokens = scorer.tokenizer(text, **special)["input_ids"] or [scorer.prefix_token_id]
    if len(tokens) > room:
        scorer.truncated += 1
    return tokens[-room:]


def _batches(contexts: dict[int, list[int]], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for number in sorted(contexts, key=lambda number: (-len(contexts[number]), number)):
        if batches and (len(batches[-1]) + 1) * len(contexts[batches[-1][0]]) <= batch_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _stopped(tokenizer: Any, tokens: list[int], stops: list[str]) -> bool:
    if tokens[-1] == tokenizer.eos_token_id:
        return True
    # A stop string may end inside the newest token and begin a few tokens before it.
    tail = tokenizer.decode(tokens[-(max(map(len, stops)) + 2) :])
    return any(stop and stop in tail for stop in stops)


def _without_end(generated: list[list[int]], end: int | None) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in generated]
