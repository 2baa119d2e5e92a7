"""How near measured divergences are to exact ones, and what measuring them costs; on the embedded model.

    idp bench fidelity

Copies of the model with weights rounded to nearest are held against it. Exact: KL(dense || copy) over the whole
vocabulary, from logits of whole windows. Cost: processor seconds that keeping and comparing add to those of the
perplexity, in rounds of alternating order, and to those of the tasks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    import torch

    from idp.evaluate.scorer import Scorer
    from idp.models import LoadedModel

FIGURES = ("mean_kl", "median_kl", "p99_kl")


def main() -> None:
    """Measures and prints two tables."""
    from idp.config import Task
    from idp.tasks.tasks import find_tasks

    options = _options()
    sources = find_tasks(Task(options.tasks, None, None, options.documents))
    dense, other = _open(options), _open(options)
    windows = _windows(dense, options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bits in options.bits:
            rows += _precision(Path(folder), dense, _rounded(other, dense, bits), windows, bits)
    print(tabulate(rows, ["weights", "", *FIGURES], tablefmt="github", floatfmt=".4g"), "\n")
    rows = _cost_of_text(dense, other, windows, options.rounds)
    rows += [_cost_of_task(dense, other, source, options.documents) for source in sources]
    print(tabulate(rows, ["", "scored, s", "kept", "compared"], tablefmt="github", floatfmt=".3g"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="a model's folder, not the embedded model")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3], help="of the copies' weights")
    parser.add_argument("--windows", type=int, default=4, help="of text")
    parser.add_argument("--window", type=int, default=512, help="tokens of each")
    parser.add_argument("--tasks", nargs="+", default=["arc_easy", "hellaswag"])
    parser.add_argument("--documents", type=int, default=100, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _open(options: argparse.Namespace) -> LoadedModel:
    from idp import models
    from idp.config import Model
    from idp.store import Store

    source = "local" if options.folder else "embedded"
    config = Model("bench", source, options.folder, None, "float32", "auto", None, False, "auto", {})
    return models.open_model(
        models.model_folder(models.load(config, models.find_model(config), Store("outputs/store"))), config
    )


def _windows(loaded: LoadedModel, options: argparse.Namespace) -> torch.Tensor:
    from idp.config import Corpus
    from idp.corpora.corpus import blocks, open_corpus
    from idp.tasks import embedded

    source = Corpus("embedded", "embedded", None, None, None, None, "text", list(embedded.PASSAGES), None)
    text = open_corpus(source, None)
    return blocks(text, "perplexity", loaded.tokenizer, options.window, options.windows, 0)


def _rounded(other: LoadedModel, dense: LoadedModel, bits: int) -> LoadedModel:
    from benchmarks.beginning import rounded_in_place

    other.model.load_state_dict(dense.model.state_dict())
    rounded_in_place(other.model, bits)
    return other


def _scorer(loaded: LoadedModel) -> Scorer:
    from idp.evaluate.engine import LocalEngine
    from idp.evaluate.scorer import Scorer
    from idp.prompting.repaired import RepairedModel

    return Scorer(LocalEngine(RepairedModel(loaded)), 4096)


def _precision(
    folder: Path, dense: LoadedModel, other: LoadedModel, windows: torch.Tensor, bits: int
) -> list[list[Any]]:
    """Exact figures, those that are measured, and those of the most likely tokens and one bin, which are a bound."""
    import numpy as np
    import torch

    from idp.evaluate.divergence import TOP, divergence, figures
    from idp.evaluate.fidelity import FIDELITY, Comparing
    from idp.evaluate.measured import Fidelity, Measured
    from idp.store import Store

    exact, bound = [], []
    for window in windows:
        p, q = (_logs(loaded, window) for loaded in (dense, other))
        exact.append((p.exp() * (p - q)).sum(dim=1))
        ids = p.topk(TOP).indices
        kept = [(logs.gather(1, ids), logs.scatter(1, ids, -torch.inf).logsumexp(dim=1)) for logs in (p, q)]
        bound.append(divergence(*kept[0], *kept[1], TOP))
    counts = [windows.shape[1] - 1] * len(windows)
    store, same = Store(folder), np.zeros(sum(counts), bool)
    dense_row = Comparing("dense", "dense", {}, lambda: _scorer(dense), store, None)
    reference = Measured(
        "dense", fidelity=Fidelity(corpora={"text": dense_row.of_corpus("text", {}, lambda _: windows)})
    )
    product = Comparing("other", str(bits), {}, lambda: _scorer(other), store, reference)
    found = {
        "exact": figures(torch.cat(exact).numpy(), same, counts),
        "measured": product.of_corpus("text", {}, lambda _: windows).read(FIDELITY),
        "top and one bin": figures(torch.cat(bound).numpy(), same, counts),
    }
    return [[f"{bits} bits", way, *(values[name] for name in FIGURES)] for way, values in found.items()]


def _logs(loaded: LoadedModel, window: torch.Tensor) -> torch.Tensor:
    import torch

    ahead = torch.tensor(loaded.bos, dtype=window.dtype)
    with torch.inference_mode():
        logits = loaded.model(torch.cat([ahead, window])[None].to(loaded.device)).logits[0, len(ahead) : -1]
    return logits.cpu().double().log_softmax(dim=-1)


def _cost_of_text(dense: LoadedModel, other: LoadedModel, windows: torch.Tensor, rounds: int) -> list[list[Any]]:
    from idp.evaluate.divergence import Keep, Kept, Watched
    from idp.evaluate.perplexity import window_losses

    scorers = [_scorer(dense), _scorer(other)]
    keeps = [Keep(number) for number in range(len(windows))]
    watched = Watched(keeps)
    window_losses(scorers[0], windows, watched)
    window_losses(scorers[1], windows)  # the first pass is slower than any other
    kept = [Kept.decoded(found) for found in watched.found]
    seconds = _in_rounds(
        {
            "scored": lambda: window_losses(scorers[1], windows),
            "kept": lambda: window_losses(scorers[0], windows, Watched(keeps)),
            "compared": lambda: window_losses(scorers[1], windows, Watched(kept)),
        },
        rounds,
    )
    return [["text, the same pass", *_ratios(seconds, 1.0)]]


def _cost_of_task(dense: LoadedModel, other: LoadedModel, source: Any, documents: int) -> list[Any]:
    from idp.evaluate.fidelity import Comparing
    from idp.evaluate.measured import Fidelity, Measured
    from idp.evaluate.written import write_task
    from idp.store import Store
    from idp.tasks.tasks import run_task

    scorers, seconds = [_scorer(dense), _scorer(other)], {}
    measured = Measured("dense", fidelity=Fidelity())

    def score(path: Path) -> None:
        results, rows = run_task(scorers[0], source, documents)
        write_task(path, results, [row | {f"metric:{key}": v for key, v in row.pop("metrics").items()} for row in rows])

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        dense_row = Comparing("dense", "dense", {}, lambda: scorers[0], store, None)
        row = Comparing("other", "other", {}, lambda: scorers[1], store, measured)
        ways = {
            "scored": lambda: store.get_or_make("measure", parent=None, config={}, version=1, make=score),
            "kept": lambda: dense_row.of_task("task", measured.tasks["task"]),
            "compared": lambda: row.of_task("task", measured.tasks["task"]),
        }
        for name, way in ways.items():
            started = time.process_time()
            made = way()
            seconds[name] = [time.process_time() - started]
            if name != "compared":
                {"scored": measured.tasks, "kept": measured.fidelity.tasks}[name]["task"] = made
    return [f"{source.runs}, {min(documents, source.documents)} documents", *_ratios(seconds, 0.0)]


def _in_rounds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            started = time.process_time()
            ways[name]()
            seconds[name].append(time.process_time() - started)
    return seconds


def _ratios(seconds: dict[str, list[float]], less: float) -> list[Any]:
    """Seconds of scoring, and what keeping and comparing add to them, as medians over rounds of ratios."""
    scored = seconds["scored"]
    added = [
        statistics.median(each / base - less for each, base in zip(seconds[name], scored, strict=True))
        for name in ("kept", "compared")
    ]
    return [statistics.median(scored), *(f"{share:+.0%}" for share in added)]


if __name__ == "__main__":
    main()
