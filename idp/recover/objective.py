"""What training lowers: the text's own next tokens (`lm`), or the distance to the dense model (`distill`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.beginning import begun
from idp.config import Training
from idp.errors import UserError
from idp.models import LoadedModel
from idp.prompting.repaired import head_is_bare, hidden_at_head

if TYPE_CHECKING:
    import torch
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
        self.teacher = teacher.model if options.objective == "distill" else None
        self.teacher_bos = list(teacher.bos) if options.objective == "distill" else []
        # A soft cap or a scale behind the head: then all logits are held at once, as the model gives them.
        self.bare = head_is_bare(loaded.model) and (self.teacher is None or head_is_bare(self.teacher))
        if self.teacher is not None:
            sizes = [model.get_output_embeddings().weight.shape[0] for model in (loaded.model, self.teacher)]
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

        from idp.recover.nets.attention import plain_attention
        from idp.recover.nets.head_loss import head_loss, logits_loss

        head = model.get_output_embeddings()
        with plain_attention(model):
            if not (self.bare and isinstance(head, nn.Linear)):  # LoRA in the head makes it another module
                logits = model(**inputs).logits[:, -tokens.shape[1] : -1].flatten(0, 1)
                return logits_loss(logits, self._loss(tokens, logits.device))
            hidden = hidden_at_head(model, inputs)
        hidden = hidden.view(len(tokens), -1, hidden.shape[-1])[:, -tokens.shape[1] : -1].flatten(0, 1)
        return head_loss(hidden, head, self._loss(tokens, hidden.device))

    def _loss(self, tokens: torch.Tensor, device: torch.device) -> Any:
        from idp.recover.nets.head_loss import distill, lm, mixture

        options = self.options
        wished = lm(tokens[:, 1:].flatten().to(device))
        if self.teacher is None:
            return wished
        told = distill(self._teacher_logits(tokens, device), options.temperature)
        return mixture(told, wished, options.lm_weight) if options.lm_weight else told

    def _teacher_logits(self, tokens: torch.Tensor, device: torch.device) -> Any:
        """The teacher's logits of all places but each row's last, given a slice of them.

        It reads what the dense model reads: the text behind its BOS, wherever the repaired model has that.
        """
        import torch

        teacher, width = self.teacher, tokens.shape[1]
        read = begun(tokens, self.teacher_bos).to(teacher.get_input_embeddings().weight.device)
        inputs = {"input_ids": read, "use_cache": False}
        with torch.no_grad():
            if not self.bare:
                logits = teacher(**inputs).logits[:, -width:-1].flatten(0, 1)
                return lambda places: logits[places].to(device)
            hidden = hidden_at_head(teacher, inputs).view(*read.shape, -1)[:, -width:-1].flatten(0, 1)

        def logits_at(places: slice) -> torch.Tensor:
            with torch.no_grad():
                return teacher.get_output_embeddings()(hidden[places]).to(device)

        return logits_at
