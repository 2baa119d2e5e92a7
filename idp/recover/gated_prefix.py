"""A prefix outside the softmax of the content, behind a gate that starts at zero (LLaMA-Adapter, 2303.16199).

A prefix in the softmax takes weight from the content from the first step on. This one adds to what the content gives,
and at first adds nothing: the model starts as it was, bit for bit. What is added is in `nets/gated_attention.py`.

own/gated_prefix.safetensors    keys, values [layers, tokens, kv_heads, head_dim] and gates [layers, heads], float32
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Optional

from idp import config
from idp.config import DENSE, DENSE_STATES, option, states_option
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.shapes import prefix_width
from idp.prompting.states import run_prompt
from idp.recover import prompt_states
from idp.recover.context import RepairContext, RepairResult, train_in
from idp.recover.initial import LEARNED
from idp.recover.objective import text_loss
from idp.recover.prompt import Started, init_from_option

if TYPE_CHECKING:
    import torch

FILE = "gated_prefix.safetensors"


@dataclass
class GatedPrefix(Started, config.Trained):
    length: int = option("positions of the prefix", minimum=1)
    init: str = option(
        "the tokens whose keys and values it starts as. vocabulary: random rows of the embedding; text: those of"
        " init_text; corpus: the first of a training document; learned: the prompt of init_from",
        choices=("vocabulary", "text", "corpus", LEARNED),
    )
    init_text: str = option("the text for init=text, repeated to the prefix's length")
    init_from: Optional[str] = init_from_option()
    states: str = states_option()

    method: ClassVar[str] = "gated_prefix"
    adapts: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | (frozenset({DENSE}) if self.states == DENSE_STATES else frozenset())

    def numbers(self, empty: LoadedModel) -> int:
        shape = empty.model.config.get_text_config()
        return self.length * prefix_width(shape) + shape.num_hidden_layers * shape.num_attention_heads

    def check_model(self, empty: LoadedModel) -> None:
        from idp.recover.nets.gated_attention import attentions

        attentions(empty.model)
        window = empty.model.config.get_text_config().max_position_embeddings
        if self.length > window:
            raise UserError(
                f"recovery.length={self.length}: its first keys and values are those of so many tokens, and they do not"
                f" fit in the model's window of {window}"
            )

    def make(self, context: RepairContext) -> RepairResult:
        import torch

        from idp.recover.nets.gated_attention import put_on, query_heads

        model = context.loaded.model
        keys, values = self._start(context)
        attached = put_on(model, keys, values, torch.zeros(len(keys), query_heads(model)))
        parameters = attached.parameters()
        try:
            loss = text_loss(context.loaded, self.training, context.teacher)
            named = context.named("gated_prefix", f"gated prefix of {self.length} positions")
            history = train_in(named, parameters, loss, self.training)
            _save(attached.stacked(), context.own)
        finally:
            attached.take_off()
        count = sum(parameter.numel() for parameter in parameters.values())
        return RepairResult(trainable=count, adapter=count, histories={"gated_prefix": history})

    def _start(self, context: RepairContext) -> tuple[torch.Tensor, torch.Tensor]:
        """The first keys and values, each [layers, tokens, kv_heads, head_dim]."""
        from idp.recover.nets.gated_attention import unrotated

        source = prompt_states.model_of(self.states, context)
        embedded = self.start.prompt(source, self.length, context.seed, context.beginning_of_text)
        return unrotated(source.model, lambda: run_prompt(source.model, embedded))

    @classmethod
    def attach(cls, loaded: LoadedModel, folder: Path) -> LoadedModel:
        from idp.recover.nets.gated_attention import attentions, put_on, query_heads

        saved = _load(folder)
        heads, wide = (len(attentions(loaded.model)), query_heads(loaded.model)), prefix_width(loaded.model.config)
        keys, gates = saved["keys"], saved["gates"]
        if tuple(gates.shape) != heads or 2 * keys[:, 0].numel() != wide:
            raise UserError(
                f"{folder}: a gated prefix for {tuple(gates.shape)} layers and heads, with {2 * keys[:, 0].numel()}"
                f" numbers a position; the model has {heads} and {wide}: it belongs to another model"
            )
        dtype = loaded.model.dtype
        put_on(loaded.model, keys.to(dtype), saved["values"].to(dtype), gates)
        return loaded

    @classmethod
    def export(cls, saved: Path, folder: Path) -> str:
        shutil.copy(saved / FILE, folder)
        return (
            f"`own/{FILE}` has the keys, values and gates of a prefix that stands outside the softmax of the content"
            " (LLaMA-Adapter); no other library has a format for it: `idp.load(folder)` puts it on the model."
        )


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)


def _load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(folder / FILE)
        _ = found["keys"], found["values"], found["gates"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder / FILE}: the gated prefix cannot be read: {error}") from error
    return found
