"""What is composed of each prompt's own scores is what scoring the choice gives, document for document."""

import shutil
from types import SimpleNamespace

import pytest
from pyarrow import parquet

from idp import pipeline
from idp.evaluate.benchmark import composable

RUN = (
    "model=tiny_llama",
    "model.device=cpu",
    "compressor=rtn3",
    "recovery=idp",
    "recovery.lengths=[3,5,8]",
    "recovery.training.learning_rate=0.1",
    "budget=smoke",
    "budget.steps=2",
    "task=custom",
    "task.names=[arc_easy,winogrande,lambada_openai,triviaqa]",
    "task.documents=8",
    "tracker=none",
    "evaluation.perplexity_window=64",
)
SELECTORS = {
    "attention": ("recovery.selector.softmax=pre",),
    "likelihood": ("recovery/selector=likelihood", "evaluation.fidelity=false"),
}


@pytest.fixture(scope="module")
def made(compose, bridges, tmp_path_factory):
    """`made(selector, controls)`: record and folder of a run, its scores in a store that has those of no other."""
    folder = tmp_path_factory.mktemp("composed")

    def run(selector, controls):
        output = folder / f"{selector}-{controls}"
        if (trained := folder / "trained").is_dir():  # what was made before anything was measured
            shutil.copytree(trained, output / "store")
        words = (*RUN, *bridges, *SELECTORS[selector], f"recovery.controls={str(controls).lower()}")
        record, place = pipeline.run(compose(*words, f"output={output}"))
        if not trained.is_dir():
            without = shutil.ignore_patterns("measure", "reference", "fidelity")
            shutil.copytree(output / "store", trained, ignore=without)
        return record, place.parent

    return run


def documents(folder):
    """The documents of the repaired model, with the tasks that they are of."""
    rows = parquet.read_table(folder / "samples.parquet").to_pylist()
    return [row for row in rows if row["model"] == "repaired"]


@pytest.mark.parametrize("selector", SELECTORS)
def test_composed_is_scored(selector, made, monkeypatch):
    composed, folder = made(selector, True)
    with monkeypatch.context() as patched:
        patched.setattr("idp.evaluate.composition.compose_task", None)  # nothing is composed without controls
        patched.setattr("idp.evaluate.composition.compose_corpus", None)
        scored, other = made(selector, False)
    assert composed["idp"]["stages"]["measure"]["key"] == scored["idp"]["stages"]["measure"]["key"], "the same products"
    assert composed["idp"]["selection"] == scored["idp"]["selection"]
    spread = [sum(map(bool, counts.values())) for counts in scored["idp"]["selection"].values()]
    assert max(spread) > 1, "several prompts are chosen, or this would show nothing"
    left, right = documents(folder), documents(other)
    assert len(left) == 32 and [row.keys() for row in left] == [row.keys() for row in right]
    for mine, its in zip(left, right, strict=True):
        assert mine.pop("loglikelihoods") == pytest.approx(its.pop("loglikelihoods"), abs=1e-4)
        floats = {name for name, value in its.items() if isinstance(value, float)}
        assert {name: mine.pop(name) for name in floats} == pytest.approx({name: its.pop(name) for name in floats})
        assert mine == its, "choice, greedy, generation and all else"
    for task, results in scored["results"].items():
        assert composed["results"][task] == pytest.approx(results, rel=1e-5, abs=1e-6), task
    for part in ("versions", "n-shot", "n-samples", "higher_is_better", "configs", "task_hashes"):
        assert composed[part] == scored[part]
    assert composed["idp"]["perplexity"] == pytest.approx(scored["idp"]["perplexity"])
    assert composed["idp"]["truncated"] == scored["idp"]["truncated"]


def test_whole_texts_are_scored():
    assert composable(SimpleNamespace(scores_whole_texts=False))
    assert not composable(SimpleNamespace(scores_whole_texts=True))
