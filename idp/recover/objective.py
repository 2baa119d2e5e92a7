"""What training lowers: the text's own next tokens (`lm`), or the distance to the dense model (`distill`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from idp.beginning import begun
from idp.config import Training
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.repaired import head_is_bare, hidden_at_head
from idp.recover.fitting import Loss
from idp.recover.saving import Saving
from idp.recover.teacher import is_streamed

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


class Objective:
    """The mean loss of a batch, in nats per token, of every token but the first of each row; a BOS is no token of it.

    lm:       cross-entropy of the text's next token
    distill:  (1 - lm_weight) * T^2 * KL(dense || repaired) + lm_weight * cross-entropy

    Args:
        options: objective, temperature T and lm_weight.
        loaded: the model that is repaired, before anything is put into its layers.
        teacher: the dense model, frozen; None where the objective needs none.

    Raises:
        UserError: the teacher has another vocabulary.
    """

    def __init__(self, options: Training, loaded: LoadedModel, teacher: LoadedModel | None):
        if options.objective == "distill" and teacher is None:
            raise ValueError("objective=distill without a teacher")
        self.options = options
        self.saving = Saving(options, loaded.model, teacher if options.objective == "distill" else None)
        teaches = teacher is not None and options.objective == "distill"
        self.teacher = teacher.model if teacher is not None and teaches else None
        self.teacher_bos = list(teacher.bos) if teacher is not None and teaches else []
        self.heldout_states: dict[tuple, torch.Tensor] = {}
        models = [loaded.model, *([self.teacher] if self.teacher is not None else [])]
        # With a soft cap or a scale behind the head, the model's own code makes logits: on a CPU all of them at once.
        self.bare = all(map(head_is_bare, models))
        self.endings = [] if self.bare or loaded.device.type == "cpu" else _endings(models)
        if self.teacher is not None:
            sizes = [model.get_output_embeddings().weight.shape[0] for model in models]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"recovery.training.objective=distill: the compressed model has a vocabulary of {sizes[0]}, the"
                    f" dense one {sizes[1]}; use objective=lm"
                )

    def __call__(self, model: PreTrainedModel, tokens: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch.

        Args:
            model: the repaired model.
            tokens: [rows, tokens].
            inputs: what the model is called with; the last of its tokens are `tokens`, and all before them, a BOS,
                are only read.
        """
        from torch import nn

        from idp.recover.nets.attention import unmasked
        from idp.recover.nets.ending import ending_loss
        from idp.recover.nets.head_loss import head_loss, logits_loss

        head, width = model.get_output_embeddings(), tokens.shape[1]
        with self.saving.forward():
            inputs = unmasked(model, inputs)
            if self.endings and isinstance(head, nn.Linear):
                hidden = self.endings[0].hidden(inputs)[:, -width:-1].flatten(0, 1)
                return ending_loss(hidden, self.endings[0], self._loss(tokens, head.weight.device))
            if not (self.bare and isinstance(head, nn.Linear)):  # LoRA in the head makes it another module
                logits = model(**inputs).logits[:, -width:-1].flatten(0, 1)
                return logits_loss(logits, self._loss(tokens, logits.device))
            hidden = hidden_at_head(model, inputs)
        hidden = hidden.view(len(tokens), -1, hidden.shape[-1])[:, -width:-1].flatten(0, 1)
        return head_loss(hidden, head, self._loss(tokens, head.weight.device))

    def _loss(self, tokens: torch.Tensor, device: torch.device) -> Any:
        from idp.recover.nets.head_loss import distill, lm, mixture

        options = self.options
        lm_loss = lm(tokens[:, 1:].flatten().to(device))
        if self.teacher is None:
            return lm_loss
        teacher_loss = distill(self._teacher_logits(tokens, device), options.temperature)
        return mixture(teacher_loss, lm_loss, options.lm_weight) if options.lm_weight else teacher_loss

    def _teacher_logits(self, tokens: torch.Tensor, device: torch.device) -> Any:
        """The teacher's logits of all places but each row's last, given a slice of them.

        It reads what the dense model reads: the text behind its BOS, wherever the repaired model has that.
        """
        import torch

        teacher, width, grading = self.teacher, tokens.shape[1], torch.is_grad_enabled()
        assert teacher is not None  # the objective is to distil
        read = begun(tokens, self.teacher_bos).to(teacher.get_input_embeddings().weight.device)
        inputs = from_the_start(teacher, read)
        with torch.no_grad():
            if not (self.bare or self.endings):
                logits = teacher(**inputs).logits[:, -width:-1].flatten(0, 1)
                return lambda places: logits[places].to(device)
            ending = self.endings[-1] if self.endings else None

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


def text_loss(
    loaded: LoadedModel, options: Training, teacher: LoadedModel | None, module: nn.Module | None = None
) -> Loss:
    """The loss of text alone, [rows, tokens], its BOS as the model has it: for what is trained within the layers.

    Args:
        loaded: the model.
        options: the training's.
        teacher: the dense model, for objective=distill.
        module: what is in training mode for training steps, and only then, such as layers with dropout.
    """
    import torch

    objective = Objective(options, loaded, teacher)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(loaded.device)
        if module is not None:
            module.train(torch.is_grad_enabled())
        return objective(loaded.model, batch, from_the_start(loaded.model, begun(batch, loaded.bos)))

    return Loss(loss_of, objective.saving.spare)


def from_the_start(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, Any]:
    """What a model is called with for text alone, [rows, tokens]."""
    import inspect

    import torch

    inputs = {"input_ids": tokens, "use_cache": False}
    # OPT would count them by a cumulative sum of floats, which has no deterministic form on a GPU.
    if tokens.device.type == "cuda" and "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    return inputs


def _endings(models: list[PreTrainedModel]) -> list[Any]:
    """What makes the models' logits out of a few places' hidden states; none, if one of them does not let it be."""
    from idp.recover.nets.ending import Ending

    found = [Ending.of(model) for model in models]
    return found if all(found) else []


def _without_gradients(function: Callable, states: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return function(states)
