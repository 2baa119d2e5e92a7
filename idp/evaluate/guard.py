"""Whether a model is computed here as it computes itself, tried out before any work on a small one of its class.

The packed pass, prefixes and decoding believe that tokens meet in attention alone, that masks are what this project
makes them, and that positions are what they are told. A model for which that is not so would give numbers that look
like any others. So a small model of the same class and layer pattern, with random weights, runs a few rows each way,
and is held to its own plain forward pass over each row alone.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.hub import first_line
from idp.store import Store, digest, hash_file, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from idp import config as schema
    from idp.models import Source
    from idp.prompting.repaired import RepairedModel

log = logging.getLogger(__name__)

VERSION = 1
ANSWER = "forward.json"
TOLERANCE = 1e-4  # of the logits' spread, in float32
PACKED, PROMPTED, GENERATION, GENERATION_PROMPTED, TRAINING = PARTS = (
    "packed rows",
    "rows behind prompts",
    "generation",
    "generation behind prompts",
    "the training of a prompt",
)
# Rows as (tokens of the trunk, tokens of each branch): shorter and longer than a window, and on both sides of the
# length at which frequencies change, also branches of one trunk.
ROWS = ((5, (3, 2)), (60, (7, 2, 2)), (29, (1,)), (20, (1, 1)), (45, (2, 9)), (9, (1,)))
SHARED = 19  # tokens of a text that all rows begin with
PROMPTS = (3, 31)  # tokens
STEPS = 6  # of generation
NAMES = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures")  # decide nothing
OWN = ("guard.py", "shrink.py", "engine.py", "batching.py", "generation.py")
STATEFUL = ("linear", "mamba", "conv", "recurrent", "rwkv", "lstm", "ssm", "delta", "hybrid", "moe_mamba")


def check(config: PretrainedConfig, store: Store, parts: Sequence[str] = PARTS, remote_code: bool = False) -> None:
    """Refuses a model that this project would compute otherwise than the model itself does.

    The answer is kept in the store, by the model's class, the config's pattern (sizes aside), and the versions.

    Args:
        config: the model's.
        store: where the answer is kept.
        parts: those of `PARTS` that a run needs.
        remote_code: whether a model's own code may be run.

    Raises:
        UserError: one line that names the class, what differs, by how much, and what to do.
    """
    if class_of(config) is None and not remote_code:
        return  # no causal language model at all: loading it says so
    known = refused_by_class(config)
    if known is not None:
        raise UserError(known)
    identity = _identity(config)

    def make(folder: Path) -> None:
        key = digest(identity)
        if key not in _answered:
            _answered[key] = answers(config, remote_code)
        write_json(folder / ANSWER, _answered[key])

    product = store.get_or_make("guard", parent=None, config=identity, version=VERSION, make=make, label=_name(config))
    found = product.read(ANSWER)
    for part in parts:
        if found[part] is not None:
            raise UserError(found[part])


_answered: dict[str, dict[str, Any]] = {}  # in this process, for whichever store


def config_of(source: Source, model: schema.Model, folder: Path | None = None) -> PretrainedConfig | None:
    """A model's config, without its weights; None for a GGUF file, whose config is in its product once it is read.

    Args:
        source: what `models.find` found.
        model: the model's options.
        folder: of the loaded model, where there is one already.

    Raises:
        UserError: it has none that transformers can read.
    """
    from transformers import AutoConfig

    options = {"trust_remote_code": model.trust_remote_code}
    try:
        if folder is not None:
            return AutoConfig.from_pretrained(folder, **options)
        if source.kind == "random":
            values = dict(source.identity["architecture"])
            return AutoConfig.for_model(values.pop("model_type"), **values)
        if source.kind == "hub":
            return AutoConfig.from_pretrained(model.path, revision=source.identity["commit"], **options)
        return AutoConfig.from_pretrained(source.place, **options) if source.kind == "folder" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = "model.architecture" if source.kind == "random" else str(folder or source.place or model.path)
        raise UserError(f"{where}: not a causal language model: {first_line(error)}") from error


def refused_by_class(config: PretrainedConfig) -> str | None:
    """Why a model cannot be right, where its class and config say so by themselves; else None."""
    model_class = class_of(config)
    if model_class is None:
        return None
    name = model_class.__name__
    kinds = layer_kinds(config)
    stateful = sorted(kind for kind in kinds if any(word in kind for word in STATEFUL))
    if getattr(model_class, "_is_stateful", False) or stateful:
        what = f"its layers of type {', '.join(stateful)}" if stateful else "its recurrent layers"
        return (
            f"{name}: {what} pass state from token to token outside attention, which rows that share a pass, and"
            " prompts kept as keys and values, would lose; use a model whose layers mix tokens by attention alone"
        )
    if not getattr(model_class, "_supports_attention_backend", True):
        return (
            f"{name}: its attention does not go through transformers' AttentionInterface, so it cannot be replaced to"
            " score packed rows; use a model whose attention does"
        )
    return None


def class_of(config: PretrainedConfig) -> type | None:
    """The causal language model's class that transformers makes of a config; None where only remote code knows it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        return None


def layer_kinds(config: PretrainedConfig) -> set[str]:
    """What kinds of layers a config names: `full_attention`, `conv`, `mamba` and the like."""
    config = config.get_text_config()
    kinds: set[str] = set()
    for name in ("layer_types", "layers_block_type", "block_types"):
        stated = getattr(config, name, None)
        if isinstance(stated, (list, tuple)):
            kinds |= {str(kind) for kind in stated}
    return kinds


def answers(config: PretrainedConfig, remote_code: bool = False) -> dict[str, Any]:
    """What differs in each of `PARTS`, as the line to raise; None where nothing does. `seconds` says how long it took.

    A class of which no small model can be built is refused in every part: nobody knows then.
    """
    from idp.evaluate.shrink import random_model

    started, name = time.perf_counter(), _name(config)
    try:
        model = random_model(config, remote_code=remote_code)
    except Exception as error:
        line = (
            f"{name}: no small model of its class could be built to hold this project's forward pass to its own"
            f" ({first_line(error)}); use another model"
        )
        return dict.fromkeys(PARTS, line)
    found: dict[str, Any] = {part: _line(model, part, difference) for part, difference in differences(model).items()}
    found["seconds"] = time.perf_counter() - started
    log.info("%s: held to its own forward pass in %.1f s", name, found["seconds"])
    return found


def differences(model: PreTrainedModel) -> dict[str, float | str]:
    """How far each of `PARTS` is from the model's plain forward pass, in units of its logits' spread.

    Args:
        model: a small one, float32.

    Returns:
        by part the largest difference, or what went wrong, in words.
    """
    trial = Trial(model)
    ways: dict[str, Callable[[], float]] = {
        PACKED: lambda: trial.scoring(prompted=False),
        PROMPTED: lambda: trial.scoring(prompted=True),
        GENERATION: lambda: trial.generating(prompted=False),
        GENERATION_PROMPTED: lambda: trial.generating(prompted=True),
        TRAINING: trial.training,
    }
    found: dict[str, float | str] = {}
    for part, way in ways.items():
        try:
            found[part] = way()
        except Exception as error:  # whatever the architecture makes of it
            log.debug("%s: %s", type(model).__name__, part, exc_info=True)
            found[part] = first_line(error) if isinstance(error, UserError) else _described(error)
    return found


@dataclass
class Trial:
    """A few rows of random tokens and two random prompts, run each way through one model."""

    model: PreTrainedModel

    def __post_init__(self) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(0)
        embeddings = self.model.get_input_embeddings()
        self.vocabulary = min(self.model.get_output_embeddings().weight.shape[0], embeddings.weight.shape[0])
        with torch.no_grad():
            self.prompts = [embeddings(self.tokens(length)[None])[0].clone() for length in PROMPTS]

    def tokens(self, count: int) -> torch.Tensor:
        """Random token ids, [count]; none of the first few, which are special ones."""
        import torch

        return torch.randint(4, self.vocabulary, (count,), generator=self.generator)

    def plain(self, tokens: torch.Tensor, prompt: int | None) -> torch.Tensor:
        """The model's own logits for one row, alone, [tokens, vocabulary], its prompt in front as embeddings."""
        import torch

        if prompt is None:
            return self.model(input_ids=tokens[None]).logits[0]
        embedded = self.model.get_input_embeddings()(tokens[None])
        whole = torch.cat([self.prompts[prompt][None], embedded], dim=1)
        return self.model(inputs_embeds=whole).logits[0, len(self.prompts[prompt]) :]

    def repaired(self, prompted: bool) -> RepairedModel:
        """The model, behind the two prompts or none."""
        from idp.models import LoadedModel
        from idp.prompting.bank import PromptBank
        from idp.prompting.repaired import RepairedModel
        from idp.prompting.selectors.base import Selector

        class ByTurns(Selector):
            """Row 0 the first prompt, row 1 the second, and so on: rows say their numbers by what they read."""

            def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
                import torch

                turns = torch.tensor([(len(context) - 1) % len(PROMPTS) for context in contexts])
                return torch.nn.functional.one_hot(turns, len(PROMPTS)).float()

        loaded = LoadedModel(self.model, None)
        if not prompted:
            return RepairedModel(loaded)
        return RepairedModel(loaded, PromptBank(self.prompts, ["short", "long"]), ByTurns())

    def scoring(self, prompted: bool) -> float:
        """Rows packed into one pass, with branches, alone and behind a text that all share, against each one alone."""
        import torch

        from idp.evaluate.batching import Request, make_row
        from idp.evaluate.engine import LocalEngine

        pairs = []
        for shared in (self.tokens(0), self.tokens(SHARED)):
            rows, alone = [], []
            for number, (trunk, branches) in enumerate(ROWS):
                begin = self.tokens(trunk)
                whole = [torch.cat([begin, self.tokens(size)]) for size in branches]
                requests = [Request(tokens[:1].tolist(), tokens[1:].tolist()) for tokens in whole]
                rows.append(make_row(requests, range(len(requests)), [0] * (number + 1 + (len(shared) % 2))))
                alone += [(tokens, number % len(PROMPTS) if prompted else None) for tokens in whole]
            with torch.inference_mode():
                found = LocalEngine(self.repaired(prompted)).score_batch(rows, shared.tolist())["values"]
                expected = []
                for tokens, prompt in alone:
                    logits = self.plain(torch.cat([shared, tokens])[:-1], prompt)[len(shared) :]
                    expected.append(logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0])
            pairs.append((torch.tensor(found), torch.cat(expected)))
        return _apart(pairs)

    def generating(self, prompted: bool) -> float:
        """Contexts padded into one batch, then token after token, against the whole of each row alone."""
        import torch

        from idp.evaluate.generation import prefill, step

        contexts = [self.tokens(length) for length in (6, 70, 46, 17)]
        next_tokens = torch.stack([self.tokens(STEPS) for _ in contexts])
        width, pairs = max(map(len, contexts)), []
        tokens = torch.zeros(len(contexts), width, dtype=torch.long)
        real = torch.zeros(len(contexts), width, dtype=torch.bool)
        for row, context in enumerate(contexts):
            tokens[row, width - len(context) :], real[row, width - len(context) :] = context, True
        with torch.inference_mode():
            repaired = self.repaired(prompted)
            choice = torch.arange(len(contexts)) % len(PROMPTS) if prompted else None
            state = prefill(repaired, tokens, real, choice)
            logits = [state.logits]
            for number in range(STEPS):
                step(repaired, state, next_tokens[:, number])
                logits.append(state.logits)
            for row, context in enumerate(contexts):
                for number, found in enumerate(logits):  # each length anew: what a row is computed as may hang on it
                    whole = torch.cat([context, next_tokens[row, :number]])
                    alone = self.plain(whole, None if choice is None else int(choice[row]))
                    pairs.append((found[row], alone[-1]))
        return _apart(pairs)

    def training(self) -> float:
        """The gradient that a prompt gets through its keys and values, against that through the whole row."""
        import torch

        from idp.prompting.prefix import behind

        batch, apart = torch.stack([self.tokens(40), self.tokens(40)]), 0.0
        embedded = self.model.get_input_embeddings()(batch)
        weights = torch.randn(*batch.shape, self.vocabulary, generator=self.generator)
        for prompt in self.prompts:
            gradients = []
            for way in ("behind", "whole"):
                leaf = prompt.clone().requires_grad_(True)
                if way == "behind":
                    logits = self.model(**behind(self.model, leaf, batch)).logits
                else:
                    whole = torch.cat([leaf.expand(len(batch), -1, -1), embedded], dim=1)
                    logits = self.model(inputs_embeds=whole).logits[:, len(prompt) :]
                (logits[..., : self.vocabulary] * weights).sum().backward()
                gradients.append(leaf.grad)
            apart = max(apart, _apart([(gradients[0], gradients[1])]))
        return apart


def _apart(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest difference between pairs, in units of the second ones' standard deviation.

    Raises:
        UserError: the model's own logits are not finite or all the same: nothing can be told from them.
    """
    import torch

    expected = torch.cat([right.flatten() for _, right in pairs]).double()
    found = torch.cat([left.flatten() for left, _ in pairs]).double()
    spread = float(expected.std())
    if not bool(torch.isfinite(expected).all()) or spread == 0:
        raise UserError("with random weights its own outputs are not finite, or all the same")
    worst = float((found - expected).abs().max()) / spread
    return worst if worst == worst else float("inf")


def _line(model: PreTrainedModel, part: str, difference: float | str) -> str | None:
    if not isinstance(difference, str) and difference <= TOLERANCE:
        return None
    name = type(model).__name__
    kinds = sorted(layer_kinds(model.config)) or [_decoder_layer(model)]
    how = (
        f"cannot be computed ({difference})"
        if isinstance(difference, str)
        else f"differ from the model's own forward pass by {difference:.2g} of the logits' spread"
    )
    hint = "use another model" if part in (PACKED, GENERATION) else "use another model, or recovery=none or lora"
    return f"{name} (layers: {', '.join(kinds)}): {part} {how}, tried on a small random one; {hint}"


def _decoder_layer(model: PreTrainedModel) -> str:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module):
            return type(module[0]).__name__
    return type(model).__name__


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def _name(config: PretrainedConfig) -> str:
    found = class_of(config)
    return found.__name__ if found is not None else type(config).__name__


def _identity(config: PretrainedConfig) -> dict[str, Any]:
    """What decides the answer: the class and its code, the config but for its names and sizes, this code, versions."""
    import torch
    import transformers

    from idp import __version__
    from idp.evaluate.shrink import shrunken

    try:
        values = next(shrunken(config)).to_diff_dict()
    except Exception:  # a class that checks its sizes
        values = config.to_diff_dict()
    for name in NAMES:
        values.pop(name, None)
    source = inspect.getsourcefile(type(config))
    package = Path(__file__).parent.parent
    own = [*package.glob("prompting/*.py"), *(package / "evaluate" / name for name in OWN)]
    return {
        "class": f"{type(config).__module__}.{type(config).__qualname__}",
        "code": hash_file(Path(source)) if source else None,
        "config": json.loads(json.dumps(values, default=str)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "idp": [__version__, digest([hash_file(file) for file in sorted(own)])],
    }
