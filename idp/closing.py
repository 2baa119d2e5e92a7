"""What ends a sweep over repairs: a table of what each brings back and costs, one sentence, and the models' answers.

An experiment asks for it by a Hydra callback:

    hydra:
      callbacks:
        closing:
          _target_: idp.closing.Closing
          questions: [Why is the sky blue?]
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from idp.errors import UserError
from idp.records.sweeps import read

if TYPE_CHECKING:
    from idp.report.view import View

log = logging.getLogger(__name__)

PLOT = "frontier"


class Closing(Callback):
    """Prints, once all cells of a sweep are done, what their repairs bring back.

    Hydra does not ask it where a cell failed: `idp report` then has the same table and plot of the others.

    Args:
        questions: what dense, compressed and best repaired model are asked, by the chat template where there is one.
        new_tokens: of an answer, at most.
    """

    def __init__(self, questions: Sequence[str] = (), new_tokens: int = 40):
        self.questions, self.new_tokens = list(questions), new_tokens

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Hydra calls it in the process that started the sweep; cells that others still work at are left out."""
        from idp.records.record import RECORD

        folders = [Path(cell.folder) for cell in read(Path(config.hydra.sweep.dir)).cells if cell.folder is not None]
        done = [folder for folder in folders if (folder / RECORD).is_file()]
        if len(done) < len(folders):
            log.warning("%d of the %d runs are not finished, and are left out", len(folders) - len(done), len(folders))
        if not done:
            return
        try:
            close(done, Path(str(config.output)).expanduser(), self.questions, self.new_tokens)
        except UserError as error:
            log.error("error: %s", error)
        except Exception as error:  # Hydra makes a warning of it, which nobody would see
            log.error(
                "error: the runs are finished, but their closing table failed: %s: %s", type(error).__name__, error
            )
            log.debug("the closing table failed", exc_info=True)


def close(runs: Sequence[Path], folder: Path, questions: Sequence[str] = (), new_tokens: int = 40) -> None:
    """Prints table, sentence and answers of some runs, and draws the plot.

    Args:
        runs: folders of finished runs.
        folder: where the plot goes.
        questions: what the models of the best repair are asked.
        new_tokens: of an answer, at most.
    """
    from idp.records.collect import collect
    from idp.report.formats import markdown
    from idp.report.frontier import best_repair, frontier_table
    from idp.report.view import views

    for view in views(collect([str(run) for run in runs])):
        table = frontier_table(view)
        if not table.rows:
            continue
        print(f"\n## {view.title}\n\n{markdown(table)}\n", flush=True)
        if (drawn := draw(view, folder)) is not None:
            print(f"plot: {drawn}\n", flush=True)
        best = best_repair(view)
        if best is not None and questions:
            print(f"The answers of {best.name}, of what it repairs, and of dense:\n", flush=True)
            print(_answers(best.first.folders[0], questions, new_tokens), flush=True)


def draw(view: View, folder: Path) -> Path | None:
    """The plot of a view, as PNG and SVG; None where it has nothing to show, or matplotlib is not installed."""
    from idp.report.frontier import frontier

    if importlib.util.find_spec("matplotlib") is None:
        return None
    from idp.report.drawing import NothingToShow, save_figure

    try:
        return save_figure(frontier, view, folder / PLOT)
    except NothingToShow:
        return None


def _answers(run: Path, questions: Sequence[str], new_tokens: int) -> str:
    from idp.api import find
    from idp.generate import Asked, answers

    source = find(run)
    return answers(source, source.variants, Asked(list(questions), new_tokens, chat=None))
