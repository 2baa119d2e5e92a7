"""A router that learns from graded outcomes of tasks that are not evaluated: its fit, and whole runs."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from idp.errors import UserError
from idp.export.checkpoint import export
from idp.export.options import ExportOptions
from idp.plan.preflight import preflight
from idp.prompting.selectors.learned import Learned
from idp.recover import graded, selection
from idp.recover.graded import Documents
from idp.store import Store
from tests.recover.test_selection import SMALL, where  # noqa: F401

ROUTER = ("recovery/selector=router", "recovery.selector.tasks=[copa,openbookqa]", "recovery.selector.documents=12")
BOS = "model.bos=always"
WIDTH = 6


class Embeddings:
    """A model as `Learned` reads it: its input embeddings."""

    def __init__(self, vocabulary: int = 40):
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(vocabulary, WIDTH)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.table


def documents(count: int = 48, seed: int = 0) -> Documents:
    """Prompt 0 is right on texts of low tokens, prompt 1 on the others, prompt 2 half so on all."""
    draw = np.random.default_rng(seed)
    contexts, outcomes, tasks = [], [], []
    for number in range(count):
        low = draw.random() < 0.5
        contexts.append(draw.integers(0, 20, 9).tolist() if low else draw.integers(20, 40, 7).tolist())
        noise = draw.normal(0, 0.05, 3)
        outcomes.append(np.clip((np.array([0.8, 0.3, 0.5]) if low else np.array([0.3, 0.8, 0.5])) + noise, 0, 1))
        tasks.append(("one", "two", "three")[number % 3])
    return Documents(contexts, torch.tensor(np.array(outcomes)), tasks)


def options(objective: str = "expected", penalty: float = 0.01):
    return SimpleNamespace(kind="router", build=lambda: Learned(objective, penalty))


def loss(weight, bias, features, outcomes, objective, penalty):
    """What the page says, in numpy: the embeddings standardised, outcomes by their deviation between prompts."""
    scores = features @ weight.T + bias
    log_p = (
        scores
        - np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1, keepdims=True))
        - scores.max(1, keepdims=True)
    )
    if objective == "best":
        value = -log_p[np.arange(len(outcomes)), outcomes.argmax(1)].mean()
    else:
        centred = outcomes - outcomes.mean(1, keepdims=True)
        value = -(np.exp(log_p) * centred / centred.std(ddof=1)).sum(1).mean()
    return value + penalty / 2 * ((weight**2).sum() + (bias**2).sum())


@pytest.mark.parametrize("objective", ["expected", "best"])
def test_the_fit_is_the_one_that_a_plain_descent_finds(objective):
    model, given = Embeddings(), documents()
    selector, _ = graded.fit(options(objective), SimpleNamespace(model=model), None, given)
    table = model.table.weight.detach().double().numpy()
    means = np.array([table[context].mean(0) for context in given.contexts])
    centre, deviation = means.mean(0), means.std(0, ddof=1) * math.sqrt(WIDTH)
    features, outcomes = (means - centre) / deviation, given.outcomes.numpy()
    weight, bias = np.zeros((3, WIDTH)), np.zeros(3)
    parameters = np.concatenate([weight.ravel(), bias])

    def value(flat):
        return loss(flat[:-3].reshape(3, WIDTH), flat[-3:], features, outcomes, objective, 0.01)

    for _ in range(4000):  # central differences: nothing of torch, nothing of the fit's own gradients
        gradient = np.array(
            [(value(parameters + step) - value(parameters - step)) / 2e-5 for step in 1e-5 * np.eye(len(parameters))]
        )
        parameters -= 2.0 * gradient
        if np.abs(gradient).max() < 1e-6:
            break
    folded = parameters[:-3].reshape(3, WIDTH) / deviation
    expected = means @ folded.T + (parameters[-3:] - folded @ centre)
    found = selector.scores(given.contexts).double().numpy()
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_what_is_said_of_a_fit_is_of_documents_that_it_has_not_seen():
    given = documents(60)
    _, about = graded.fit(options(), SimpleNamespace(model=Embeddings()), None, given)
    outcomes = given.outcomes.numpy()
    assert about["documents"] == 60 and about["tasks"] == {"one": 20, "two": 20, "three": 20}
    assert about["outcome"] == pytest.approx(outcomes.mean(0))
    assert about["random_outcome"] == pytest.approx(outcomes.mean())
    assert about["oracle_outcome"] == pytest.approx(outcomes.max(1).mean())
    halves = [outcomes[0::2], outcomes[1::2]]
    best = [other[:, mine.mean(0).argmax()].sum() for mine, other in (halves, halves[::-1])]
    assert about["best_outcome_unseen"] == pytest.approx(sum(best) / 60)
    parts = [outcomes[place::3] for place in range(3)]
    rest = [np.concatenate(parts[:place] + parts[place + 1 :]) for place in range(3)]
    best = sum(part[:, other.mean(0).argmax()].sum() for part, other in zip(parts, rest, strict=True))
    assert about["best_outcome_other_tasks"] == pytest.approx(best / 60)
    # The kinds of text can be told apart, so a choice is worth nearly all that there is.
    for name in ("chosen_outcome", "chosen_outcome_unseen", "chosen_outcome_other_tasks"):
        assert about[name] > about["best_outcome_unseen"] + 0.15 and about[name] <= about["oracle_outcome"] + 1e-9

    shuffled = given.outcomes[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    _, about = graded.fit(
        options(), SimpleNamespace(model=Embeddings()), None, Documents(given.contexts, shuffled, given.tasks)
    )
    assert about["chosen_outcome_unseen"] < about["chosen_outcome"], "what is learned by heart is not there elsewhere"
    assert about["chosen_outcome_unseen"] < about["best_outcome_unseen"] + 0.1


def test_a_run_with_a_router(run_here, where, tmp_path):  # noqa: F811
    """It is fitted to what each prompt scores on the router's tasks, by a softmax that is computed here anew."""
    import idp

    record = run_here(*SMALL, *where, *ROUTER)
    about, store = record["idp"], Store(record["idp"]["config"]["store"])
    fitted = store.get("select", about["stages"]["select"]["key"])
    described = fitted.read(selection.DESCRIPTION)
    assert described["documents"] == 24 and described["tasks"] == {"copa": 12, "openbookqa": 12}
    assert set(record["results"]) == {"arc_easy"} == set(about["data"])
    assert not about["selector"]["peeks"] and about["selector"]["kind"] == "router"
    assert about["selector"]["chosen_outcome_unseen"] == described["chosen_outcome_unseen"]
    assert about["parameters"]["trainable"] == 16 * 64 + 3 * 65

    measured = [store.get("measure", key) for key in fitted.manifest["config"]["outcomes"]]
    assert [len(each.read("results.json")["results"]) for each in measured] == [1] * 6
    outcomes = [[_probability(row, task) for task in (0, 1) for row in _rows(measured[2 * n + task])] for n in range(3)]
    assert described["outcome"] == pytest.approx(np.mean(outcomes, axis=1), rel=1e-6)
    assert described["oracle_outcome"] == pytest.approx(np.max(outcomes, axis=0).mean(), rel=1e-6)

    model, state = idp.load(tmp_path / "outputs" / "runs" / about["name"]), load_file(fitted.path / selection.STATE)
    texts, repaired = ["The bridge over the river", "two seven and"], model._engine.repaired
    table = repaired.model.get_input_embeddings().weight
    means = [table[torch.tensor(repaired.tokenizer.encode(text))].mean(0) for text in texts]
    expected = [int((state["weight"] @ mean + state["bias"]).argmax()) for mean in means]
    assert model.choose(texts) == [about["controls"]["prompts"][number] for number in expected]

    export(ExportOptions(str(tmp_path / "outputs" / "runs" / about["name"]), str(tmp_path / "export")))
    bank = json.loads((tmp_path / "export" / "prompts" / "bank.json").read_text())
    assert bank["fitted"]["tasks"] == described["tasks"] and bank["selector"]["kind"] == "router"
    assert idp.load(tmp_path / "export").choose(texts) == model.choose(texts)


def _rows(product):
    return parquet.read_table(product.path / "samples.parquet").to_pylist()


def _probability(row, by_length):
    nats = np.array(row["loglikelihoods"])
    if by_length:  # openbookqa's main metric is acc_norm, copa's acc
        lengths = np.array([len(choice.removeprefix(" ")) for choice in row["choices"]])
        nats = nats / lengths * lengths.mean()
    return float(np.exp(nats[row["choices"].index(row["target"])]) / np.exp(nats).sum())


def test_it_reads_in_its_fit_what_it_reads_in_scoring(run_here, where, monkeypatch):  # noqa: F811
    read, scored = [], []
    fit, scores = graded.fit, Learned.scores

    def fitted(options, loaded, prefixes, documents):
        read.extend(map(tuple, documents.contexts))
        return fit(options, loaded, prefixes, documents)

    def noted(self, contexts):
        scored.extend(map(tuple, contexts))
        return scores(self, contexts)

    quick = ("recovery.controls=false", "evaluation.perplexity=[]", BOS)
    monkeypatch.setattr(graded, "fit", fitted)
    run_here(*SMALL, *where, *ROUTER, *quick)
    monkeypatch.setattr(Learned, "scores", noted)
    run_here(*SMALL, *where, "recovery/selector=learned", "task.names=[copa,openbookqa]", "task.documents=12", *quick)
    assert len(read) == 24 and set(read) <= set(scored)


def test_a_plan_has_the_keys_of_what_a_router_is_shown(compose, where, tmp_path):  # noqa: F811
    from idp import pipeline
    from tests.test_plan import products, wanted

    words = (*SMALL, *where, *ROUTER, "recovery.selector.penalty=0.5", f"output={tmp_path}")
    config = compose(*words, "recovery.selector.documents=5")
    before, plan = products(config.store), preflight(config)
    ahead = wanted(plan)
    shown = [step for step in plan.steps if step.stage == "measure" and step.documents == 5]
    assert len(shown) == 6 and all(step.works for step in shown)
    assert [step.stage for step in plan.steps].index("select") > plan.steps.index(shown[-1])
    pipeline.run(config)
    assert products(config.store) - before == ahead
    assert all(step.reused for step in preflight(config).steps)
    shutil.rmtree(Path(config.store) / "measure" / shown[0].key)
    assert wanted(preflight(config)) == set(), "what the router was shown is not needed once it is fitted"
    (key,) = [step.key for step in plan.steps if step.stage == "select"]
    shutil.rmtree(Path(config.store) / "select" / key)
    again = wanted(preflight(config))
    assert again == {("select", key), ("measure", shown[0].key)}
    left = products(config.store)
    pipeline.run(config)
    assert products(config.store) - left == again


@pytest.mark.parametrize("recovery", ["lora_idp", "lowrank_experts", "transfer"])
def test_other_banks_with_a_router(recovery, run_here, where, tmp_path):  # noqa: F811
    base = [word for word in SMALL if not word.startswith("recovery")]
    words = {
        "lora_idp": ("recovery.lengths=[3,5]",),
        "lowrank_experts": ("recovery.experts=2",),
    }.get(recovery, ())
    if recovery == "transfer":
        source = run_here(*SMALL, *where, "recovery.controls=false")
        words = (f"recovery.from={tmp_path / 'outputs' / 'runs' / source['idp']['name']}",)
    record = run_here(
        *base, *where, f"recovery={recovery}", *words, *ROUTER, "recovery.controls=false", "evaluation.perplexity=[]"
    )
    assert record["idp"]["selector"]["kind"] == "router" and record["idp"]["selector"]["documents"] == 24
    assert record["idp"]["controls"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recovery.selector.tasks=[]"], "recovery.selector.tasks is empty"),
        (["recovery.selector.tasks=[copa,arc_easy]"], "trained on arc_easy, which this run evaluates; leave it out"),
        (["recovery.selector.tasks=[cupa]"], "recovery.selector.tasks: lm-eval has no task named cupa; did you mean"),
        (["recovery.selector.tasks=[triviaqa]"], "recovery.selector.tasks: triviaqa has no choices"),
        (
            ["task.names=[mmlu_anatomy]", "recovery.selector.tasks=[mmlu_anatomy_continuation]"],
            "which this run evaluates as mmlu_anatomy, of the same data set",
        ),
        (["recovery.selector.documents=1"], "recovery.selector.documents=1"),
    ],
)
def test_what_a_router_may_not_see_is_refused(overrides, message, run_here, where, tmp_path):  # noqa: F811
    with pytest.raises(UserError) as caught:
        run_here(*SMALL, *where, *ROUTER, *overrides, f"store={tmp_path / 'store'}")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "store").glob("recover/*"))
