"""How much there is to choose between the prompts of a bank, for selectors that know more and more.

A selector earns what it finds out about an input, and at most what there is to find. So the run's own selector is held
beside ways to choose that may read what it may not: the answers of *other* documents. The best prompt of each task, and
a router that is trained on outcomes, are fitted on one half of the documents and tried on the other, over and over.
What even these do not earn no selector will find in the same text; what only the oracle has is mostly the luck of the
best of several draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idp.beginning import Beginning, Encoder
from idp.errors import UserError, out_of_memory_is_explained
from idp.store import digest
from idp.store.scratch import ReaderStore

if TYPE_CHECKING:
    from idp.finished import Finished

SCHEMA, VERSION = 1, 1
FILE = "embeddings.safetensors"
HALVES = 2  # with more and smaller parts the tests reject too often where there is nothing to find
REPEATS = 20
COMPONENTS = 128  # of the texts' embeddings that the router reads
PENALTIES = tuple(10.0**power for power in range(-1, 8))

READS = {
    "best": "held-out text",
    "random": "nothing",
    "chosen": "the input",
    "one prompt": "answers of other documents",
    "by task": "the task; answers of other documents",
    "router": "the input, the task; answers of other documents",
    "oracle": "its own answer",
}


@dataclass
class ChoiceOutcomes:
    """What each prompt alone scored on a task's documents.

    `scores` is [documents, prompts], the greater the better; `chosen` [documents] is what the run's selector took;
    `contexts` are the documents' texts, in the same order.
    """

    scores: np.ndarray
    chosen: np.ndarray
    contexts: list[str]


def choice(run: Finished, folder: Path) -> dict[str, Any]:
    """What each way to choose among a run's prompts scores, and its difference to the best one by held-out loss.

    Args:
        run: the run; its repair has several prompts, each of which was measured alone.
        folder: of its record.

    Returns:
        JSON: `documents`; `differ`, the share of each task's documents on which prompts score differently; and of each
        of `ways` what it `reads`, its score on each of `tasks`, their `mean`, the `difference` to `best`, its 95 %
        interval (`low`, `high`) and `p`, Holm's over the ways but the oracle, an upper bound; of that `by_luck`, what
        it would score over equal prompts, and `beyond_luck` with its interval (`idp.stats.luck`).

    Raises:
        UserError: the run has no bank or did not measure its prompts alone, or what was stored of it is gone.
    """
    from idp.stats.significance import holm

    best, prompts, tasks = find_outcomes(run, folder)
    ways = of_answers({name: task.scores for name, task in tasks.items()}, _embeddings(run, tasks), best)
    for name, task in tasks.items():
        documents = np.arange(len(task.scores))
        ways["best"][name] = task.scores[None, :, best]
        ways["random"][name] = task.scores.mean(1)[None]
        ways["chosen"][name] = task.scores[None, documents, task.chosen]
        ways["oracle"][name] = task.scores.max(1)[None]
    found: dict[str, Any] = {}
    selector = run.recovery.selector
    assert selector is not None  # `choice` asks for a run that chose among prompts
    uses_labels = selector.uses_labels
    reads_of = READS | ({"chosen": READS["oracle"]} if uses_labels else {})
    for way, reads in reads_of.items():
        if (
            way == "chosen"
            and uses_labels
            and all(np.array_equal(ways[way][task], ways["oracle"][task]) for task in tasks)
        ):
            continue  # it is the oracle
        means = {name: float(values.mean()) for name, values in ways[way].items()}
        found[way] = {"reads": reads, "tasks": means, "mean": float(np.mean(list(means.values())))}
        if way != "best":
            found[way] |= _difference(ways["best"], ways[way])
    judged = [way for way in found if way != "best" and reads_of[way] != READS["oracle"]]
    for way, p in zip(judged, holm([found[way]["p"] for way in judged]), strict=True):
        found[way]["p"] = p
    for way in found.keys() - {"best", *judged}:
        found[way]["p"] = None
    found["oracle"] |= _luck([task.scores for task in tasks.values()])
    return {
        "schema": SCHEMA,
        "run": run.name,
        "selector": selector.kind,
        "prompts": prompts,
        "best": prompts[best],
        "documents": sum(len(task.scores) for task in tasks.values()),
        "differ": {name: float((np.ptp(task.scores, axis=1) > 0).mean()) for name, task in tasks.items()},
        "repeats": REPEATS,
        "ways": found,
    }


def _luck(tasks: list[np.ndarray]) -> dict[str, Any]:
    """What equal prompts would give the oracle, and what it has beyond that."""
    from idp.evaluate.selection import interval
    from idp.stats.luck import luck

    found = luck(tasks)
    beyond = interval([each.beyond for each in found], 0)
    flips = [each.flips for each in found if each.flips is not None]
    return {
        "by_luck": float(np.mean([scores.mean() + each.expected for scores, each in zip(tasks, found, strict=True)])),
        "beyond_luck": float(np.mean([each.lead - each.expected for each in found])),
        "beyond_luck_low": beyond[0],
        "beyond_luck_high": beyond[1],
        "flips": float(np.mean(flips)) if flips else None,
        "luck": found[0].model,
    }


def find_outcomes(run: Finished, folder: Path) -> tuple[int, list[str], dict[str, ChoiceOutcomes]]:
    """The best prompt by held-out loss, the prompts' names, and each task's outcomes, from the files beside a record.

    Raises:
        UserError: as said above.
    """
    from pyarrow import parquet

    from idp.evaluate.selection import OUTCOMES, greater
    from idp.records.record import SAMPLES

    about = run.record["idp"]
    controls = about.get("controls")
    if not controls or controls["heldout_loss"] is None:
        raise UserError(
            f"{run.label}: the run has not measured each prompt of a bank alone; make one with several prompts and"
            " recovery.controls=true, such as recovery=idp"
        )
    files = [folder / OUTCOMES, folder / SAMPLES]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: it is gone; run the record's command again")
    texts = {
        (row["asked_for"], row["doc_id"]): row["context"]
        for row in parquet.read_table(files[1], columns=["asked_for", "doc_id", "model", "context"]).to_pylist()
        if row["model"] == about["row"]
    }
    prompts = controls["prompts"]
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in parquet.read_table(files[0]).to_pylist():
        if row["chosen"] is not None:
            rows[row["task"]].append(row)
    tasks = {}
    for name, task_rows in rows.items():
        runs = about["data"][name]["stand_in"] or name
        higher = run.record["higher_is_better"][runs].get(task_rows[0]["metric"].split(",")[0]) is not False
        scores = np.array([[row[prompt] for prompt in prompts] for row in task_rows], float)
        tasks[name] = ChoiceOutcomes(
            greater(scores, higher),
            np.array([row["chosen"] for row in task_rows]),
            [texts[name, row["doc_id"]] for row in task_rows],
        )
    return int(np.argmin(controls["heldout_loss"])), prompts, tasks


def of_answers(
    scores: Mapping[str, np.ndarray], embeddings: Mapping[str, np.ndarray], best: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """What a choice scores that is made with the answers of other documents: never with a document's own.

    The documents of each task are cut in halves; what is learned on one is tried on the other, and all of it is done
    `REPEATS` times with other halves. Tasks weigh alike. Ties go to the best prompt by held-out loss.

    - `one prompt`: the prompt with the best mean over tasks.
    - `by task`: the prompt with the best mean on the document's task.
    - `router`: ridge regression of each prompt's outcome, minus the mean of all prompts on that document, on the
      embedding of the text and its task; the penalty is that of the least leave-one-out error.

    Args:
        scores: of each task [documents, prompts], the greater the better.
        embeddings: of each task's texts [documents, numbers].
        best: the best prompt by held-out loss.
        seed: of the halves.

    Returns:
        of each way and task [repeats, documents]; of the other ways empty.
    """
    generator = np.random.default_rng(seed)
    names, m = list(scores), next(iter(scores.values())).shape[1]
    order = [best, *(prompt for prompt in range(m) if prompt != best)]  # the first of equals is taken
    all_scores = np.concatenate([scores[name][:, order] for name in names])
    task_of = np.repeat(np.arange(len(names)), [len(scores[name]) for name in names])
    features = _features(np.concatenate([embeddings[name] for name in names]), task_of, len(names))
    weights = 1 / np.bincount(task_of)[task_of]
    rows = np.arange(len(all_scores))
    totals = {way: np.zeros((REPEATS, len(all_scores))) for way in ("one prompt", "by task", "router")}
    for repeat in range(REPEATS):
        half = np.concatenate([generator.permutation(len(scores[name])) % HALVES for name in names])
        for part in range(HALVES):
            test, train = rows[half == part], half != part
            means = np.stack(
                [
                    all_scores[train & (task_of == task)].mean(0) if (train & (task_of == task)).any() else np.zeros(m)
                    for task in range(len(names))
                ]
            )
            picks = {
                "one prompt": np.full(len(test), means.mean(0).round(12).argmax()),
                "by task": means.round(12).argmax(1)[task_of[test]],
                "router": _routed(features, all_scores, weights, train, test),
            }
            for way, picked in picks.items():
                totals[way][repeat, test] = all_scores[test, picked]
    ways: dict[str, dict[str, np.ndarray]] = {way: {} for way in READS}
    for way, values in totals.items():
        ways[way] = {name: values[:, task_of == task] for task, name in enumerate(names)}
    return ways


def _difference(best: Mapping[str, np.ndarray], way: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By how much a way is better: the mean over repeats, their median interval, and twice their median p-value.

    Twice the median keeps its level however the repeats depend on one another (Meinshausen, Meier and Buehlmann,
    2009). A way without repeats has its own interval and p-value.
    """
    from idp.stats.significance import paired_interval

    repeats = len(next(iter(way.values())))
    pairs = [{name: (best[name][0], values[repeat]) for name, values in way.items()} for repeat in range(repeats)]
    intervals = [paired_interval(each) for each in pairs]
    p = float(np.median([each.p for each in intervals]))
    return {
        "difference": float(np.mean([each.difference for each in intervals])),
        "low": float(np.median([each.low for each in intervals])),
        "high": float(np.median([each.high for each in intervals])),
        "p": p if repeats == 1 else min(1.0, 2 * p),
    }


def _routed(
    features: np.ndarray, scores: np.ndarray, weights: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """The prompt that the router gives to each document of `test`, having learned from `train`."""
    from sklearn.linear_model import RidgeCV

    above = scores - scores.mean(1, keepdims=True)
    if train.sum() < 2 or not np.ptp(above[train]):
        return np.zeros(len(test), int)
    model = RidgeCV(alphas=PENALTIES).fit(features[train], above[train], sample_weight=weights[train])
    return model.predict(features[test]).reshape(len(test), -1).round(12).argmax(1)


def _features(embeddings: np.ndarray, task_of: np.ndarray, tasks: int) -> np.ndarray:
    """What the router reads: the first principal components of the standardised embeddings, and the task."""
    from sklearn.decomposition import PCA

    standard = (embeddings - embeddings.mean(0)) / np.maximum(embeddings.std(0), 1e-6)
    components = min(COMPONENTS, len(standard) - 1, standard.shape[1])
    reduced = PCA(components, random_state=0).fit_transform(standard) if components > 0 else standard
    spread = max(float(reduced[:, 0].std()), 1e-6) if reduced.size else 1.0
    return np.concatenate([reduced / spread, np.eye(tasks)[task_of]], axis=1)


def _embeddings(run: Finished, tasks: Mapping[str, ChoiceOutcomes]) -> dict[str, np.ndarray]:
    """The mean final hidden state of each context in the model that is repaired, as cluster banks embed text."""
    from safetensors.numpy import load_file, save_file

    from idp.models import bos_of, model_folder, numerics

    weights = "compressed" if "compressed" in run.variants else "dense"
    load = run.made("load")
    store, bos = ReaderStore(load.path.parents[1]), Beginning(bos_of(model_folder(load), run.model)).identity()

    def make(place: Path) -> None:
        opened = run.open(weights)
        texts = [text for task in tasks.values() for text in task.contexts]
        save_file({"embeddings": embed(opened, texts, run.batch_tokens)}, place / FILE)

    with out_of_memory_is_explained("load"):
        product = store.get_or_make(
            "embeddings",
            parent=run.made("compress" if weights == "compressed" else "load").key,
            config={
                "texts": digest({name: task.contexts for name, task in tasks.items()}),
                **numerics(run.model),
                **bos,
            },
            version=VERSION,
            make=make,
            label=f"{sum(len(task.contexts) for task in tasks.values())} documents",
        )
    found = load_file(product.path / FILE)["embeddings"]
    ends = np.cumsum([len(task.contexts) for task in tasks.values()])[:-1]
    return dict(zip(tasks, np.split(found, ends), strict=True))


def embed(model: Any, texts: list[str], batch_tokens: int) -> np.ndarray:
    """The mean final hidden state of each text, [texts, hidden_size] float32; texts of one length go together.

    Args:
        model: a repaired model, whose repair is not used.
        texts: an empty one is embedded as zeros.
        batch_tokens: of a batch at most; the end of a text that is longer than the model's window is read. The BOS that
            texts begin with is read as well, and is no part of the mean.
    """
    import torch

    from idp.progress import progress

    config = model.model.config.get_text_config()
    bos = list(model.bos)
    encoded, room = Encoder(model.tokenizer, [], bos), config.max_position_embeddings - len(bos)
    ids = [encoded(text)[-room:] for text in texts]
    lengths: dict[int, list[int]] = defaultdict(list)
    for place, tokens in enumerate(ids):
        lengths[len(tokens)].append(place)
    found = torch.zeros(len(texts), config.hidden_size)
    with torch.inference_mode(), progress(len(texts), "text embeddings", unit="documents") as bar:
        for length, places in lengths.items():
            size = max(1, batch_tokens // max(length, 1))
            for batch in (places[start : start + size] for start in range(0, len(places), size)):
                if length:
                    tokens = torch.tensor([bos + ids[place] for place in batch], device=model.device)
                    hidden = model.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
                    found[batch] = hidden[:, len(bos) :].float().mean(1).cpu()
                bar.update(len(batch))
    return found.numpy()


def page(result: dict[str, Any]) -> str:
    """The analysis as Markdown."""
    from tabulate import tabulate

    rows = []
    for way, found in result["ways"].items():
        name = {"best": f"best by held-out loss ({result['best']})", "chosen": result["selector"]}.get(way, way)
        against, p = "", ""
        if way != "best":
            against = f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
            p = "" if found["p"] is None else f"{found['p']:.2g}"
        rows.append([name, found["reads"], f"{100 * found['mean']:.1f}", against, p])
    rows.append(["oracle of equal prompts", "nothing", f"{100 * result['ways']['oracle']['by_luck']:.1f}", "", ""])
    differ = [[task, f"{100 * share:.0f} %"] for task, share in result["differ"].items()]
    return "\n".join(
        [
            f"# What there is to choose: {result['run']}",
            "",
            f"{len(result['prompts'])} prompts, {result['documents']} documents of {len(result['differ'])} tasks;"
            " percent of the main metric, mean over tasks. What reads the answers of other documents is learned on one"
            f" half of them and tried on the other ({result['repeats']} times).",
            "",
            tabulate(
                rows,
                headers=["choice", "reads", "score", "minus the best by held-out loss (95 % CI)", "p (Holm)"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            _luck_sentence(result["ways"]["oracle"]),
            "",
            "Documents on which the prompts score differently; on the others there is nothing to choose:",
            "",
            tabulate(differ, headers=["task", "documents"], tablefmt="github", disable_numparse=True),
        ]
    )


def _luck_sentence(oracle: dict[str, Any]) -> str:
    flips = f"differ on {100 * oracle['flips']:.1f} % of documents" if oracle["flips"] is not None else "differ so"
    beyond, low, high = (100 * oracle[name] for name in ("beyond_luck", "beyond_luck_low", "beyond_luck_high"))
    return (
        f"Equal prompts of which any two {flips} would give an oracle {100 * oracle['by_luck']:.1f}. What it has beyond"
        f" that, {beyond:+.1f} ({low:+.1f} to {high:+.1f}), is what there is to choose."
    )
