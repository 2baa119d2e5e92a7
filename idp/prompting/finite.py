"""What is said where a model's numbers stop being finite: which layer, in which dtype, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from idp.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check(numbers: torch.Tensor, model: PreTrainedModel, again: Callable[[], Any], what: str) -> None:
    """Raises where not all numbers are finite; costs nothing else where they are.

    Args:
        numbers: scores, logits or keys.
        model: what they come from.
        again: runs what gave them once more, to find the layer.
        what: what they are, in words.

    Raises:
        UserError: the first layer whose output is not finite, and the dtype.
    """
    import torch

    if not bool(torch.isfinite(numbers).all()):
        refuse(model, again, what)


def refuse(model: PreTrainedModel, again: Callable[[], Any], what: str) -> NoReturn:
    """Runs `again` with every module watched, and names the first whose output is not finite; see `check`."""
    import torch

    damaged = next((name for name, tensor in model.named_parameters() if not bool(torch.isfinite(tensor).all())), None)
    dtype = str(model.dtype).removeprefix("torch.")
    if damaged is not None:
        raise UserError(
            f"{type(model).__name__} in {dtype}: {what} are not finite, and neither is its weight {damaged}; load sound"
            " weights, or use model.dtype=float32 or bfloat16 where they overflowed"
        )
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, _: Any, output: Any) -> None:
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if any(isinstance(t, torch.Tensor) and not bool(torch.isfinite(t).all()) for t in tensors):
                found.append(f"{name} ({type(module).__name__})")
                raise _Seen

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            again()
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    where = f"first at {found[0]}" if found else "though every layer's output is, when it is run once more"
    todo = (
        "use model.dtype=bfloat16 or model.dtype=float32"
        if model.dtype == torch.float16
        else "use model.dtype=float32"
        if model.dtype != torch.float32
        else "its weights or prompts are damaged, or training diverged"
    )
    raise UserError(f"{type(model).__name__} in {dtype}: {what} are not finite, {where}; {todo}")


class _Seen(Exception):
    """Ends a forward pass at the layer that was looked for."""
