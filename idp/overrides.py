"""A sweep's command line as Hydra takes it."""

from __future__ import annotations

import re
from collections.abc import Sequence


def rewritten(argv: Sequence[str]) -> list[str]:
    """A sweep's command line with the words set aside that not every cell takes; any other one as it is.

    Raises:
        UserError: as of `set_aside`.
        Exception: one of Hydra's, for words that it cannot read.
    """
    from idp import grid
    from idp.composed import initialized, without_flags

    about = [word for word in argv if not word.startswith(("-", "hydra")) and re.match(r"\w+[./]|\+experiment=", word)]
    if not {"-m", "--multirun"} & set(argv) or not about:
        return list(argv)
    given = without_flags([word for word in argv if word not in ("-m", "--multirun")])
    words = [word for word in given if not word.startswith("-")]
    with initialized() as loader:
        _, aside = grid.set_aside(words, loader)
        if not aside:
            return [*argv, grid.SWEEPER] if grid.needs_own(words, loader) else list(argv)
    return [*(word for word in argv if word not in aside), grid.SWEEPER, grid.as_override(aside)]
