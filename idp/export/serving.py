"""A bank served by an engine that takes prompt embeddings: the prompt of each input, and the request that it makes.

    chooser = PromptChooser.open("outputs/runs/<run>")
    llm.generate(chooser.requests(["The capital of France is"]), sampling)    # vLLM with enable_prompt_embeds=True

Of the model only the embeddings are loaded, and the layers that the selector reads: the first one, of the attention
selector that is the default.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import finished, models
from idp.beginning import AUTO
from idp.config import Model, Selector
from idp.errors import UserError, out_of_memory_is_explained
from idp.evaluate.room import FEWEST
from idp.export import load as exports
from idp.export.checkpoint import PROVENANCE
from idp.export.repair import PROMPTS, weight_side
from idp.models.first_layers import open_first_layers
from idp.prompting.bank import PromptBank
from idp.recover import first_layers, selection
from idp.recover.weight_side import WeightSide

if TYPE_CHECKING:
    import torch

    from idp.prompting.repaired import RepairedModel

log = logging.getLogger(__name__)

NEW_TOKENS = 64  # for which room is left in the window, unless more or fewer are asked for


class PromptChooser:
    """Chooses a bank's prompt for each input, as `idp.load` does, and writes it and the input as embeddings.

    Attributes:
        name: the run's.
        prompts: the names of the bank's prompts, in order.
        tokenizer: the model's.
    """

    def __init__(self, repaired: RepairedModel, batch_tokens: int = FEWEST, name: str = ""):
        """Makes one of a model, of which the layers that the selector reads suffice.

        Args:
            repaired: the model with its bank and its selector.
            batch_tokens: tokens that are read at a time.
            name: what it is called.

        Raises:
            UserError: it has no prompts that are rows of embeddings.
        """
        from idp.evaluate.engine import LocalEngine
        from idp.evaluate.scorer import Scorer

        check_servable(repaired.bank, repaired.selector.temperature if repaired.selector else None, name)
        assert repaired.bank is not None
        self.name, self.repaired, self.bank = name, repaired, repaired.bank
        self.prompts = list(repaired.bank.names)
        self._scorer = Scorer(LocalEngine(repaired), batch_tokens)
        self.tokenizer: Any = self._scorer.tokenizer

    @classmethod
    def open(
        cls,
        record_or_folder: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        store: str | Path | None = None,
    ) -> PromptChooser:
        """The chooser of a finished run or of an export.

        Args:
            record_or_folder: a run's `record.json` or its folder, or a folder that `idp export` wrote.
            device: where the layers are; None: as in the run (an export: a GPU if there is one).
            dtype: float32, bfloat16 or float16; None: the one that was measured.
            store: the folder of stored products, if it was moved.

        Raises:
            UserError: there is no such run, or it has no prompts that can be served.
        """
        parts = _find(Path(record_or_folder).expanduser(), store)
        model = replace(parts.model, dtype=dtype or parts.model.dtype)
        if device is not None:
            model = replace(model, device=device, device_map=None)
        with out_of_memory_is_explained("load"):
            return cls(parts.open(model), parts.batch_tokens, parts.name)

    def choose(self, texts: Sequence[str], max_new_tokens: int = NEW_TOKENS) -> list[str]:
        """The name of each text's prompt."""
        return [self.prompts[prompt] for prompt in self._chosen(self._contexts(texts, max_new_tokens))]

    def requests(self, texts: Sequence[str], max_new_tokens: int = NEW_TOKENS) -> list[dict[str, torch.Tensor]]:
        """For each text `{"prompt_embeds": [tokens, hidden_size]}`: its prompt, and the text behind it.

        The rows are what transformers takes as `inputs_embeds`, on the CPU, in the model's dtype.

        Args:
            texts: what the model is to go on from; a chat as the tokenizer's template writes it.
            max_new_tokens: for how many room is left in the model's window; a longer text is cut on the left.
        """
        import torch

        from idp.prompting.states import embedded

        contexts = self._contexts(texts, max_new_tokens)
        weight = self.repaired.model.get_input_embeddings().weight
        ahead = self.repaired.beginning.ahead_of_prompt
        made = []
        for context, prompt in zip(contexts, self._chosen(contexts), strict=True):
            rows = [self.bank.prompts[prompt].to(weight.device, weight.dtype)]
            rows = [embedded(self.repaired.model, ahead), *rows] if ahead else rows
            made.append({"prompt_embeds": torch.cat([*rows, embedded(self.repaired.model, context)]).cpu()})
        return made

    def _contexts(self, texts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("texts: give a list of texts")
        if not 0 < max_new_tokens < self._scorer.max_length:
            raise UserError(
                f"max_new_tokens={max_new_tokens}: the model's window holds {self._scorer.max_length} tokens behind the"
                f" prompt, the text itself among them; use 1 to {self._scorer.max_length - 1}"
            )
        return [self._scorer.generation_context(text, max_new_tokens) for text in texts]

    def _chosen(self, contexts: Sequence[list[int]]) -> list[int]:
        """The number of each context's prompt."""
        from idp.evaluate.batching import plan

        chosen = [0] * len(contexts)
        for batch in plan([len(context) for context in contexts], self._scorer.batch_tokens):
            found = self._scorer.engine.choose([[contexts[place] for place in batch]])
            for _, prompts in found:
                for place, prompt in zip(batch, prompts, strict=True):
                    chosen[place] = prompt or 0
        return chosen


def as_base64(prompt_embeds: torch.Tensor) -> str:
    """Embeddings as vLLM's OpenAI-compatible server takes them as `prompt_embeds`: `torch.save` in base64."""
    import torch

    buffer = io.BytesIO()
    torch.save(prompt_embeds, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def check_servable(bank: PromptBank | None, temperature: float | None, name: str = "") -> None:
    """Refuses prompts that are no rows before the input's embeddings.

    Raises:
        UserError: as said.
    """
    where = f"{name}: " if name else ""
    if bank is None or not any(bank.lengths):
        raise UserError(f"{where}it has no prompts, so there is none to choose; serve the model itself")
    if bank.kind != "prompt":
        raise UserError(
            f"{where}its prompts are keys and values of every layer ({bank.kind}), which no request carries; use"
            " recovery=prompt, ptune or idp"
        )
    if temperature is not None:
        raise UserError(
            f"{where}recovery.selector.temperature={temperature} mixes the keys and values of prompts, which no request"
            " carries; use recovery.selector.temperature=null"
        )


@dataclass
class _Parts:
    """Where everything is that a chooser is made of."""

    name: str
    model: Model
    folder: Path  # of the model's weights
    side: WeightSide
    bank: Path
    selector: Selector | None
    fitted: Path | None
    batch_tokens: int

    def open(self, model: Model) -> RepairedModel:
        from idp.prompting.repaired import RepairedModel

        bank = PromptBank.load(self.bank)
        options = self.selector if len(bank) > 1 else None
        check_servable(bank, options.temperature if options else None, self.name)
        selector = selection.restored(options, self.fitted) if options is not None else None
        layers = options.reads_layers if options is not None else 0
        if layers is None:
            log.warning("recovery.selector=%s reads the whole model, which is loaded", options and options.kind)
            return RepairedModel(self.side.attach(models.open_model(self.folder, model)), bank, selector)
        loaded = open_first_layers(self.folder, model, max(layers, 1))
        return RepairedModel(first_layers.attach(self.side, loaded), bank, selector)


def _find(place: Path, store: str | Path | None) -> _Parts:
    """What there is of a run or of an export.

    Raises:
        UserError: neither is there, or it repaired nothing.
    """
    if (place / PROVENANCE).is_file():
        return _of_export(exports.find_export(place))
    return _of_run(finished.find_run(place, store))


def _of_run(run: finished.Finished) -> _Parts:
    run.check("repaired")
    repair, fitted = run.made("recover"), run.product("select")
    weights = run.made("compress" if "compressed" in run.variants else "load")
    if not (repair.path / "bank").is_dir():
        check_servable(None, None, run.label)
    return _Parts(
        run.name,
        run.model,
        models.model_folder(weights),
        WeightSide.of(repair.path),
        repair.path / "bank",
        run.recovery.selector,
        fitted.path if fitted is not None else None,
        run.batch_tokens,
    )


def _of_export(found: exports.Exported) -> _Parts:
    found.check("repaired")
    about = found.about
    if PROMPTS not in about["repair"]:
        check_servable(None, None, found.label)
    bos = about.get("bos", AUTO)
    model = Model(found.name, "local", str(found.folder), None, about["dtype"], "auto", None, False, bos, {})
    side = weight_side(found.folder, about["repair"], about.get("recovery", ""))
    prompts = found.folder / PROMPTS
    return _Parts(found.name, model, found.folder, side, prompts, found.selector, prompts, found.batch_tokens)
