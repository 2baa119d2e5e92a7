"""`hydra/sweeper=grid`: Hydra's own sweeper, for choices that have different options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins import basic_sweeper


class Grid(basic_sweeper.BasicSweeper):
    """As Hydra's own, but for words that reach only the cells that have the option: see `idp.grid`.

    Args:
        max_batch_size: cells given to the launcher at once; None: all.
        params: what is swept, by option; words of the command line take the place of these.
        where_known: words that are left out of cells whose choice has no such option.
    """

    def __init__(
        self, max_batch_size: int | None = None, params: dict[str, str] | None = None, where_known: Sequence[str] = ()
    ):
        super().__init__(max_batch_size, params)
        self.where_known = list(where_known)

    def split_arguments(  # type: ignore[override]  # a static method there, called by way of the object
        self, overrides: list[Any], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        from idp.grid import cells

        assert self.hydra_context is not None
        made = cells(overrides, self.where_known, self.hydra_context.config_loader, quiet=True)
        return [list(chunk) for chunk in self.split_overrides_to_chunks(made, max_batch_size)] if made else []
