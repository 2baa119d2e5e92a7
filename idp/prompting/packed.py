"""One forward pass over rows of different lengths, branches and prefixes, without padding.

Every part of a decoder but attention treats tokens one by one, so the rows of a batch stand end to end in one
sequence, and each layer's products run over all of them at once. Attention goes through transformers' own registry of
attention functions: ours lets each row see its prefix, its trunk and its own branch, by a fused kernel where the device
has one that computes the same (`attention/fused.py`), by plain products elsewhere (`attention/plain.py`).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.prompting import experts
from idp.prompting.attention import fused, plain
from idp.prompting.attention.weighing import Weighing
from idp.prompting.following import following
from idp.prompting.frequencies import frequencies
from idp.prompting.packing import Packed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes

PACKED = "idp_packed"


@dataclass(frozen=True)
class Pass:
    """What the attention of one forward pass needs to know. It names no model: see `_current`.

    Args:
        packed: the rows.
        prefixes: what they follow, `whole`; None for nothing.
        stop_at: the layer at whose attention the pass ends, by `Reached`; None for none.
        name: of the model's class, for what is said of it.
        replaced: the name of the attention in whose place ours stands.
        kinds: of the model's layers; empty where it does not say.
        chunk: tokens of the chunks of those that have them.
    """

    packed: Packed
    prefixes: Prefixes | None
    stop_at: int | None
    name: str
    replaced: str | None
    kinds: Sequence[str]
    chunk: int | None


# transformers' registry lives as long as the process: the function that stands in it may hold no model and no tensor.
_current: contextvars.ContextVar[Pass | None] = contextvars.ContextVar("idp_packed_pass", default=None)


@contextlib.contextmanager
def packed_attention(
    model: PreTrainedModel, packed: Packed, prefixes: Prefixes | None, stop_at: int | None = None
) -> Iterator[dict[str, Any]]:
    """Within the block, the model takes packed rows; yields what to pass to it.

    Args:
        model: a causal language model.
        packed: the rows.
        prefixes: what they follow; None for nothing.
        stop_at: the layer at whose attention the forward pass ends, by `Reached`; None for none.

    Raises:
        UserError: the model's attention does not go through transformers' registry.
    """
    import torch
    from transformers import AttentionInterface

    if not getattr(model, "_supports_attention_backend", True):
        raise UserError(
            f"{type(model).__name__}: its attention cannot be replaced, so it cannot be scored with prompts; use a"
            " model whose attention goes through transformers' AttentionInterface"
        )
    config = model.config.get_text_config()
    before, outer = config._attn_implementation, _current.get()
    AttentionInterface.register(PACKED, attend)
    _current.set(
        Pass(
            packed,
            prefixes.whole if prefixes is not None else None,
            stop_at,
            type(model).__name__,
            before,
            getattr(config, "layer_types", None) or (),
            getattr(config, "attention_chunk_size", None),
        )
    )
    config._attn_implementation = PACKED
    try:
        # A mask of four dimensions is handed on as it is; ours is made from the groups.
        mask = torch.zeros(1, 1, 1, 1, device=packed.tokens.device)
        mixture = experts.of_tokens(packed.groups, prefixes.whole.experts if prefixes is not None else None)
        with following(mixture), frequencies(model, packed.long):
            yield {
                "input_ids": packed.tokens,
                "position_ids": packed.positions,
                "attention_mask": mask,
                "use_cache": False,
            }
    finally:
        config._attn_implementation = before
        _current.set(outer)


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, scaling: Any = None, **rest: Any
) -> tuple[torch.Tensor, None]:
    """The attention function of the current packed pass, as transformers calls them.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim]; `value` likewise.
        value: see `key`.
        attention_mask: the one number that `packed_attention` hands on.
        scaling: of the scores; None: 1 / sqrt(head_dim).
        rest: what else a model hands on.

    Returns:
        [1, tokens, heads, head_dim], and None for the weights.

    Raises:
        UserError: the layer adds a bias of its own to the scores.
        Reached: the pass ends here.
    """
    this = _current.get()
    if this is None:
        raise RuntimeError(f"{PACKED} attends within `packed_attention` only")
    layer = module.layer_idx
    if attention_mask is not None and attention_mask.numel() != 1:
        raise UserError(
            f"{this.name}: {type(module).__name__} adds a bias of its own to its attention, which packed rows would"
            " lose; use another model"
        )
    weighing = Weighing(
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        rest.get("sliding_window"),
        this.chunk if this.kinds and this.kinds[layer] == "chunked_attention" else None,
        # Gemma-2's bound on scores, as the model's own implementation heeds it: torch's fused attention does not.
        None if this.replaced == "sdpa" else rest.get("softcap"),
        rest.get("s_aux"),
    )
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if layer == this.stop_at:
        raise Reached(query, key, weighing)
    prefix = (this.prefixes.keys[layer], this.prefixes.values[layer]) if this.prefixes is not None else None
    output, kernel = None, fused.kernel_for(this.packed, query, value, prefix, weighing)
    if kernel is not None:
        output = fused.attend(kernel, this.packed, query, key, value, prefix, weighing)
    if output is None:
        output = plain.attend(this.packed, query, key, value, prefix, weighing)
    return output[None], None


class Reached(Exception):
    """Ends a forward pass at a layer's attention, and carries its queries, keys and how it weighs them."""


def queries_and_keys(
    model: PreTrainedModel, packed: Packed, prefixes: Prefixes | None, layer: int
) -> tuple[torch.Tensor, torch.Tensor, Weighing]:
    """What the attention of a layer is given: projected, normalised, rotated, whatever the architecture does.

    Returns:
        queries [tokens, heads, head_dim], the rows' own keys [tokens, kv_heads, head_dim], and how the layer weighs
        their products. The layers above do not run.
    """
    with packed_attention(model, packed, prefixes, stop_at=layer) as inputs:
        try:
            model.base_model(**inputs)
        except Reached as reached:
            return reached.args
    raise RuntimeError(f"{type(model).__name__} has no layer {layer}")
