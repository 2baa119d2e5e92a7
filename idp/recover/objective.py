"""What training lowers: the text's own next tokens (`lm`), or the distance to the dense model (`distill`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.beginning import begun
from idp.config import Training
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.repaired import hidden_at_head
from idp.recover.cached import CachedTeacher
from idp.recover.fitting import Loss
from idp.recover.live import Live, from_the_start, ways
from idp.recover.saving import Saving

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from idp.recover.context import Teacher


class Objective:
    """The mean loss of a batch, in nats per token, of every token but the first of each row; a BOS is no token of it.

    lm:       cross-entropy of the text's next token
    distill:  (1 - lm_weight) * T^2 * KL(dense || repaired) + lm_weight * cross-entropy

    Args:
        options: objective, temperature T and lm_weight.
        loaded: the model that is repaired, before anything is put into its layers.
        teacher: the dense model, frozen, or what is kept of its predictions; None where the objective needs none.

    Raises:
        UserError: the teacher has another vocabulary.
    """

    def __init__(self, options: Training, loaded: LoadedModel, teacher: Teacher | None):
        if options.objective == "distill" and teacher is None:
            raise ValueError("objective=distill without a teacher")
        teacher = teacher if options.objective == "distill" else None
        self.options = options
        self.cached = teacher if isinstance(teacher, CachedTeacher) else None
        opened = teacher if isinstance(teacher, LoadedModel) else None
        self.saving = Saving(options, loaded.model, opened)
        models = [loaded.model, *([opened.model] if opened is not None else [])]
        self.bare, self.endings = ways(models, loaded.device)
        self.live = Live(opened) if opened is not None else None
        taught = self.cached or self.live
        size = loaded.model.get_output_embeddings().weight.shape[0]
        if taught is not None and taught.vocabulary != size:
            raise UserError(
                f"recovery.training.objective=distill: the compressed model has a vocabulary of {size}, the dense one"
                f" {taught.vocabulary}; use objective=lm"
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
        from idp.recover.nets.head_loss import distill, distill_kept, lm, mixture

        options = self.options
        lm_loss = lm(tokens[:, 1:].flatten().to(device))
        if self.cached is not None:
            kept = self.cached(tokens, device)
            teacher_loss = distill_kept(
                lambda places: (kept[0][places], kept[1][places], kept[2][places]), self.cached.top, options.temperature
            )
        elif self.live is not None:
            teacher_loss = distill(self.live.logits(tokens, device, self.bare, self.endings), options.temperature)
        else:
            return lm_loss
        return mixture(teacher_loss, lm_loss, options.lm_weight) if options.lm_weight else teacher_loss


def text_loss(loaded: LoadedModel, options: Training, teacher: Teacher | None, module: nn.Module | None = None) -> Loss:
    """The loss of text alone, [rows, tokens], its BOS as the model has it: for what is trained within the layers.

    Args:
        loaded: the model.
        options: the training's.
        teacher: the dense model, or what is kept of its predictions, for objective=distill.
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
