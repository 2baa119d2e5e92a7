"""What a recovery takes from elsewhere, such as prompts that exist or the repair of another run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.beginning import Beginning

if TYPE_CHECKING:
    from idp.config import Model
    from idp.models import LoadedModel
    from idp.tasks.tasks import TaskSource


class Given:
    """Nothing, unless a kind's own says more."""

    def check(self, model: Model, dense: str, empty: LoadedModel, beginning: Beginning) -> None:
        """Holds it against the run's model.

        Args:
            model: the run's model.
            dense: the key of its dense product.
            empty: the model without weights.
            beginning: the BOS of every input, and the place about a prompt that the recovery gives it.

        Raises:
            UserError: it belongs to another model, both are named; or it was made with another BOS.
        """

    def refuse_evaluated(self, tasks: list[TaskSource]) -> None:
        """Raises a UserError where it was trained on text of a task that is evaluated, as far as that is known."""

    def provenance(self) -> dict[str, Any] | None:
        """What the record says of where a whole repair was learned; None where it is made in this run."""
        return None
