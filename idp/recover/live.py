"""The dense model in memory, asked for its predictions; and how logits are made out of hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from idp.beginning import begun
from idp.models import LoadedModel
from idp.prompting.repaired import head_is_bare, hidden_at_head
from idp.recover.teacher import is_streamed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Live:
    """The dense model in memory, asked for its predictions.

    Args:
        loaded: the model, frozen.
    """

    def __init__(self, loaded: LoadedModel):
        self.model, self.bos = loaded.model, list(loaded.bos)
        self.heldout_states: dict[tuple, torch.Tensor] = {}

    @property
    def vocabulary(self) -> int:
        """Of its head."""
        return self.model.get_output_embeddings().weight.shape[0]

    def logits(
        self, tokens: torch.Tensor, device: torch.device, bare: bool, endings: Sequence[Any]
    ) -> Callable[[slice], torch.Tensor]:
        """Its logits of all places but each row's last, given a slice of them.

        It reads what the dense model reads: the text behind its BOS, wherever the repaired model has that.

        Args:
            tokens: [rows, tokens].
            device: where the logits are wanted.
            bare: see `ways`.
            endings: see `ways`; the last is this model's.
        """
        import torch

        teacher, width, grading = self.model, tokens.shape[1], torch.is_grad_enabled()
        read = begun(tokens, self.bos).to(teacher.get_input_embeddings().weight.device)
        inputs = from_the_start(teacher, read)
        with torch.no_grad():
            if not (bare or endings):
                logits = teacher(**inputs).logits[:, -width:-1].flatten(0, 1)
                return lambda places: logits[places].to(device)
            ending = endings[-1] if endings else None

            def states() -> torch.Tensor:
                return ending.hidden(inputs) if ending else hidden_at_head(teacher, inputs).view(*read.shape, -1)

            kept = not grading and is_streamed(teacher)
            hidden = self._kept(read, states) if kept else states()
            head = teacher.get_output_embeddings()
            hidden = hidden[:, -width:-1].flatten(0, 1).to(head.weight.device)
        given = ending.logits if ending else head
        return lambda places: _without_gradients(given, hidden[places]).to(device)

    def _kept(self, read: torch.Tensor, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `compute` gives for what a teacher reads, kept in main memory: held-out text comes again and again, and
        a streamed teacher would have to be brought over for each of its batches."""
        key = (tuple(read.shape), read.cpu().numpy().tobytes())
        if key not in self.heldout_states:
            self.heldout_states[key] = compute().cpu()
        return self.heldout_states[key]


def from_the_start(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, Any]:
    """What a model is called with for text alone, [rows, tokens]."""
    import inspect

    import torch

    inputs = {"input_ids": tokens, "use_cache": False}
    # OPT would count them by a cumulative sum of floats, which has no deterministic form on a GPU.
    if tokens.device.type == "cuda" and "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    return inputs


def ways(models: list[PreTrainedModel], device: torch.device) -> tuple[bool, list[Any]]:
    """Whether all models' logits are what their heads give, and else what makes each one's a few places at a time.

    With a soft cap or a scale behind the head, the model's own code makes logits: on a CPU all of them at once.
    """
    bare = all(map(head_is_bare, models))
    return bare, [] if bare or device.type == "cpu" else endings_of(models)


def endings_of(models: list[PreTrainedModel]) -> list[Any]:
    """What makes the models' logits out of a few places' hidden states; none, if one of them does not let it be."""
    from idp.recover.nets.ending import Ending

    found = [Ending.of(model) for model in models]
    return found if all(found) else []


def _without_gradients(function: Callable, states: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return function(states)
