"""Rotary frequencies that change at a length: LongRoPE has one set for inputs up to it, and another beyond it.

transformers takes the length from the largest position of a forward pass. Rows that share a pass, and prompts whose
keys are computed before the input is known, would so get the frequencies of others. Here every token gets those of the
input that it belongs to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

LONG = "longrope"


def switch_of(config: PretrainedConfig) -> int | None:
    """Tokens of the longest input with the first set of frequencies; None where there is only one set.

    Frequencies of `dynamic` RoPE change beyond the model's window, where nothing is ever run.

    Raises:
        UserError: kinds of layers change at lengths of their own.
    """
    stated = getattr(config.get_text_config(), "rope_parameters", None) or {}
    every = [stated, *(inner for inner in stated.values() if isinstance(inner, dict))]
    found = {rope["original_max_position_embeddings"] for rope in every if rope.get("rope_type") == LONG}
    if len(found) > 1:
        raise UserError(
            f"{type(config).__name__}: its layers change their rotary frequencies at different lengths"
            f" ({', '.join(map(str, sorted(found)))}), which is not supported; use another model"
        )
    return int(found.pop()) if found else None


@contextlib.contextmanager
def frequencies(model: PreTrainedModel, long: torch.Tensor | bool | None) -> Iterator[None]:
    """Within the block, each token gets the frequencies of the input that it belongs to.

    Args:
        model: the model.
        long: whether that input is longer than `switch_of` says, for all tokens or, broadcast, [rows, tokens]; None,
            as for models with one set of frequencies, leaves everything as it is.
    """
    import torch

    switch = switch_of(model.config) if long is not None else None
    if switch is None:
        yield
        return
    modules = [module for module in model.modules() if LONG in _types(module)]
    wanted = torch.as_tensor(long)

    def of(module: Any) -> Any:
        original = module.forward

        def forward(x: torch.Tensor, position_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
            within = original(x, position_ids.clamp(max=switch - 1), *rest, **named)
            if not bool(wanted.any()):
                return within
            last = position_ids.new_full((*position_ids.shape[:-1], 1), switch)
            beyond = original(x, torch.cat([position_ids, last], dim=-1), *rest, **named)
            where = wanted.to(x.device)[..., None]
            return tuple(torch.where(where, b[..., :-1, :], w) for b, w in zip(beyond, within, strict=True))

        return forward

    for module in modules:
        module.forward = of(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _types(module: Any) -> tuple[str, ...]:
    """The kinds of frequencies that a module computes: one, or one for each kind of layer."""
    stated = getattr(module, "rope_type", None)
    return tuple(stated.values()) if isinstance(stated, dict) else (stated,) if isinstance(stated, str) else ()
