"""Divergences from the dense model are those of a plain forward pass, and a run measures them once for all its rows."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from idp.beginning import PLACES, Beginning
from idp.errors import UserError
from idp.evaluate import contexts, divergence
from idp.evaluate.divergence import DivergenceObserver, Keep, Kept, figures
from idp.evaluate.engine import LocalEngine
from idp.evaluate.fidelity import DIVERGENCES, FIDELITY, WINDOWS, Comparing, flips
from idp.evaluate.measured import Fidelity, Measured
from idp.evaluate.perplexity import window_losses
from idp.evaluate.written import write_task
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.store import Store

from ..conftest import FAMILIES
from ..prompting.test_prefix import ByFirstToken
from .test_bos import BOS, ahead_of
from .test_scorer import scorer_of, text

WINDOWS_OF_TEXT = torch.randint(1, 250, (5, 28), generator=torch.Generator().manual_seed(0))


def damaged(loaded, scale=0.1):
    """The same model with noise on its weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += scale * parameter.std(correction=0) * torch.randn_like(parameter)
    return loaded


def plain(loaded, tokens, ahead=None):
    """Log-probabilities behind each of the tokens, [tokens, vocabulary] float64, by the model's own forward pass."""
    model = loaded.model
    given = model.get_input_embeddings()(torch.tensor(tokens))
    given = given if ahead is None else torch.cat([ahead, given])
    with torch.no_grad():
        return model(inputs_embeds=given[None]).logits[0, -len(tokens) :].double().log_softmax(-1)


def kl_of(p, q):
    return (p.exp() * (p - q)).sum(-1)


def on_text(root, dense, other, windows=WINDOWS_OF_TEXT, batch_tokens=100):
    """The products of both models on windows: the reference and the divergences."""
    store = Store(root)
    first = Comparing("dense", "dense", {}, lambda: scorer_of(dense, batch_tokens), store, None)
    kept = first.of_corpus("text", {}, lambda _: windows)
    of_dense = Measured("dense", fidelity=Fidelity(corpora={"text": kept}))
    second = Comparing("row", "row", {}, lambda: scorer_of(other, batch_tokens), store, of_dense)
    return kept, second.of_corpus("text", {}, lambda _: windows)


def kl_in(product):
    from safetensors.numpy import load_file

    return load_file(product.path / DIVERGENCES)["kl"]


@pytest.fixture
def exactly(monkeypatch):
    """All tokens of the tiny vocabularies are kept."""
    monkeypatch.setattr(divergence, "TOP", 1024)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_text_it_is_the_plain_forward_pass_s(family, exactly, open_tiny, make_bank, tmp_path):
    dense, compressed = open_tiny(family), damaged(open_tiny(family))
    bank = make_bank(compressed, [4, 7])
    rows = {"plain": RepairedModel(compressed), "idp": RepairedModel(compressed, bank, ByFirstToken())}
    for name, row in rows.items():
        _, product = on_text(tmp_path / name, RepairedModel(dense), row)
        expected, same = [], []
        for window in WINDOWS_OF_TEXT.tolist():
            ahead = bank.prompts[window[0] % 2] if name == "idp" else None
            p, q = plain(dense, window)[:-1], plain(compressed, window, ahead)[:-1]
            expected.append(kl_of(p, q))
            same.append(p.argmax(-1) == q.argmax(-1))
        expected, same = torch.cat(expected).numpy(), torch.cat(same).numpy()
        assert kl_in(product) == pytest.approx(expected, abs=1e-5)
        found = product.read(FIDELITY)
        assert found["mean_kl"] == pytest.approx(expected.mean(), abs=1e-5) and expected.mean() > 1e-3
        assert found["p99_kl"] == pytest.approx(np.percentile(expected, 99), abs=1e-5)
        assert found["same_top"] == pytest.approx(same.mean()) and found["tokens"] == 5 * 27
        assert product.read(WINDOWS) == window_losses(scorer_of(row, 100), WINDOWS_OF_TEXT)


@pytest.mark.parametrize("place", PLACES)
def test_with_a_bos_the_same_tokens_are_compared(place, exactly, open_bos, make_bank, tmp_path):
    dense, compressed = open_bos(), damaged(open_bos())
    prompt = make_bank(compressed, [4]).prompts[0]
    bank = PromptBank([prompt], ["one"], beginning=Beginning((BOS,), place))
    kept, product = on_text(tmp_path, RepairedModel(dense), RepairedModel(compressed, bank))
    ahead = ahead_of(compressed, prompt, place)
    expected = [
        kl_of(plain(dense, [BOS, *window])[1:-1], plain(compressed, window, ahead)[:-1])
        for window in WINDOWS_OF_TEXT.tolist()
    ]
    assert kl_in(product) == pytest.approx(torch.cat(expected).numpy(), abs=1e-5)
    assert kept.read("reference.json")["positions"] == 5 * 27


def test_a_model_is_not_at_all_from_itself(open_tiny, tmp_path):
    loaded = open_tiny("llama")
    kept, product = on_text(tmp_path, RepairedModel(loaded), RepairedModel(loaded))
    found = product.read(FIDELITY)
    assert found["mean_kl"] == found["p99_kl"] == found["stderr"] == 0.0 and found["same_top"] == 1.0
    about = kept.read("reference.json")
    assert (about["top"], about["drawn"], about["vocabulary"]) == (96, 32, 257) and 0.4 < about["mass"] < 1


def of_logits(p, q, seed):
    """The divergence of one pair of distributions, as it is found from what is kept of the first."""
    at, mine = torch.tensor([0]), torch.tensor([0])
    keeper = DivergenceObserver([Keep(seed)], [1])
    keeper.see(p[None].clone(), p.argmax()[None], at, mine)
    kept = Kept.decoded(json.loads(json.dumps(keeper.results()[0])))
    other = DivergenceObserver([kept], [1])
    other.see(q[None].clone(), q.argmax()[None], at, mine)
    return other.results()[0]["kl"][0]


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_the_tail_is_estimated_without_bias(scale):
    draw = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(3000, generator=draw)
    p = logits.log_softmax(-1)
    q = (logits + scale * torch.randn(3000, generator=draw)).log_softmax(-1)
    exact = float(kl_of(p.double(), q.double()))
    found = np.array([of_logits(p, q, seed) for seed in range(300)])
    error = found.std() / 300**0.5
    assert abs(found.mean() - exact) < 4 * error and error < 0.02 * exact
    assert (found >= 0).all() and of_logits(p, p, 0) == 0.0
    # The most likely tokens and one bin for the others alone would miss most of it: it is a bound, far below.
    kept = p.topk(96).indices
    rest = [torch.log1p(-x[kept].double().exp().sum()) for x in (p, q)]
    bound = float(kl_of(p[kept].double(), q[kept].double()) + rest[0].exp() * (rest[0] - rest[1]))
    assert bound < 0.8 * exact < 0.95 * found.mean()


def test_tokens_that_the_dense_model_rules_out_count_nothing():
    p = torch.full((300,), -math.inf)
    p[:5] = math.log(0.2)
    q = torch.full((300,), -math.log(300.0))
    assert of_logits(p, q, 0) == pytest.approx(math.log(60.0), abs=1e-5)
    assert of_logits(q, p, 0) == math.inf


def test_another_vocabulary_is_refused():
    p = torch.zeros(300).log_softmax(-1)
    with pytest.raises(UserError, match="a vocabulary of 301 tokens, the dense one 300; use evaluation.fidelity=false"):
        of_logits(p, torch.zeros(301).log_softmax(-1), 0)


def test_other_tokens_are_not_compared(open_tiny, tmp_path):
    dense = RepairedModel(open_tiny("llama"))
    kept, _ = on_text(tmp_path, dense, dense)
    of_dense = Measured("dense", fidelity=Fidelity(corpora={"text": kept}))
    row = Comparing("row", "other", {}, lambda: scorer_of(dense, 100), Store(tmp_path), of_dense)
    with pytest.raises(UserError, match="reads other tokens of a text than the dense one"):
        row.of_corpus("text", {}, lambda _: WINDOWS_OF_TEXT + 1)


def test_numbers_that_are_not_finite_are_said_in_one_line(open_tiny, tmp_path):
    dense, broken = open_tiny("llama"), open_tiny("llama")
    broken.model.model.layers[1].mlp.up_proj.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="neither is its weight model.layers.1.mlp.up_proj.weight"):
        on_text(tmp_path, RepairedModel(dense), RepairedModel(broken))


def test_figures():
    kl, same = np.array([0.0, 1.0, 2.0, 6.0, 1.0]), np.array([True, False, True, True, False])
    found = figures(kl, same, [2, 2, 1])
    # Sums of the blocks less what the mean of 2 would make them: -3, 4, -1.
    assert found == {
        "mean_kl": 2.0,
        "median_kl": 1.0,
        "p99_kl": pytest.approx(5.84),
        "same_top": 0.6,
        "tokens": 5,
        "stderr": pytest.approx(math.sqrt(26 * 3 / 2) / 5),
    }
    equal = figures(np.array([1.0, 2.0, 4.0]), np.ones(3, bool), [1, 1, 1])
    assert equal["stderr"] == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert figures(kl, same, [5])["stderr"] is None


def test_where_memory_does_not_suffice_it_is_halved_with_what_is_asked(open_tiny, monkeypatch, tmp_path):
    dense, row = RepairedModel(open_tiny("llama")), RepairedModel(damaged(open_tiny("llama")))
    _, expected = on_text(tmp_path / "enough", dense, row)
    real = LocalEngine._score

    def small(self, rows, *rest):
        if len(rows) > 2:
            raise RuntimeError("CUDA out of memory")
        return real(self, rows, *rest)

    monkeypatch.setattr(LocalEngine, "_score", small)
    _, found = on_text(tmp_path / "halved", dense, row, batch_tokens=1000)
    assert kl_in(found) == pytest.approx(kl_in(expected), abs=1e-5)


class Killed(Exception):
    pass


def test_a_killed_pass_goes_on_with_the_batches_that_are_left(open_tiny, make_bank, monkeypatch, tmp_path):
    dense = RepairedModel(open_tiny("llama"))
    compressed = damaged(open_tiny("llama"))
    row = RepairedModel(compressed, make_bank(compressed, [4]))
    expected = on_text(tmp_path / "undisturbed", dense, row, batch_tokens=60)
    calls, real = [], LocalEngine.score_batch

    def counted(self, batch, *rest):
        if len(calls) == limit:
            raise Killed
        calls.append((self.repaired, batch))
        return real(self, batch, *rest)

    monkeypatch.setattr(LocalEngine, "score_batch", counted)
    for limit in (1, 2, 4, 1000):
        if limit < 1000:
            with pytest.raises(Killed):
                on_text(tmp_path / "killed", dense, row, batch_tokens=60)
        else:
            found = on_text(tmp_path / "killed", dense, row, batch_tokens=60)
    assert len(calls) == 2 * 3, "a finished batch was scored again"
    assert [product.manifest["files"] for product in found] == [product.manifest["files"] for product in expected]


def measured_task(store, key, samples, kind, metric="acc"):
    """What a task's product says of documents, each (context, choices, right)."""
    about = {"output_type": kind, "generation_kwargs": {"until": ["\n"], "max_gen_toks": 9}}
    results = {
        "results": {"made_up": {f"{metric},none": 0.5, f"{metric}_stderr,none": 0.1}},
        "higher_is_better": {"made_up": {metric: True}},
        "configs": {"made_up": about},
    }
    rows = [
        {"doc_id": 3 * n, "context": context, "choices": choices, f"metric:{metric},none": right}
        for n, (context, choices, right) in enumerate(samples)
    ]

    def make(folder: Path):
        write_task(folder, results, rows)

    return store.get_or_make("measure", parent=key, config={"kind": kind}, version=1, make=make)


def on_task(root, dense, other, samples, kind="multiple_choice"):
    store = Store(root)
    scored = [measured_task(store, key, samples, kind) for key in ("dense", "row")]
    first = Comparing("dense", "dense", {}, lambda: scorer_of(dense, 300), store, None)
    kept = first.of_task("made_up", scored[0])
    of_dense = Measured("dense", tasks={"made_up": scored[0]}, fidelity=Fidelity(tasks={"made_up": kept}))
    second = Comparing("row", "row", {}, lambda: scorer_of(other, 300), store, of_dense)
    return kept, second.of_task("made_up", scored[1])


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until", "loglikelihood_rolling"])
@pytest.mark.parametrize("examples", ["", "Question: what floats?\nAnswer: a boat\n\n"])
def test_on_contexts_it_is_the_plain_forward_pass_s(
    kind, examples, exactly, open_tiny, make_bank, tmp_path, monkeypatch
):
    monkeypatch.setattr(contexts, "FEW", 6)
    dense, compressed = open_tiny("llama"), damaged(open_tiny("llama"))
    prompt = make_bank(compressed, [4]).prompts[0]
    rng = random.Random(0)
    samples = [(f"{examples}Question: {text(rng, 1, 9)}?\nAnswer:", [" boats", " the sun"], 1.0) for _ in range(6)]
    if kind == "generate_until":
        samples = [(context, [], right) for context, _, right in samples]
    elif kind == "loglikelihood_rolling":
        samples = [("", [context], right) for context, _, right in samples]
    _, product = on_task(
        tmp_path, RepairedModel(dense), RepairedModel(compressed, PromptBank([prompt], ["one"])), samples, kind
    )
    expected, counts = [], []
    for context, choices, _ in samples:
        tokens = dense.tokenizer.encode(context or choices[0][:32], add_special_tokens=False)
        if kind == "loglikelihood_rolling":
            assert len(tokens) == 32
        found = kl_of(plain(dense, tokens), plain(compressed, tokens, prompt))[-32:]
        expected.append(found)
        counts.append(len(found))
    whole = torch.cat(expected).numpy()
    assert kl_in(product) == pytest.approx(whole, abs=1e-5)
    about = product.read(FIDELITY)
    assert about["mean_kl"] == pytest.approx(whole.mean(), abs=1e-5) and about["tokens"] == sum(counts)
    last = np.array([float(found[-1]) for found in expected])
    assert about["last"]["mean_kl"] == pytest.approx(last.mean(), abs=1e-5) and about["last"]["tokens"] == 6


@pytest.mark.parametrize("place", PLACES)
def test_a_context_s_bos_is_no_position_of_it(place, exactly, open_bos, make_bank, tmp_path):
    """Here of choices that were scored by themselves as well, as for their mutual information."""
    dense, compressed = open_bos(), damaged(open_bos())
    prompt = make_bank(compressed, [4]).prompts[0]
    bank = PromptBank([prompt], ["one"], beginning=Beginning((BOS,), place))
    choices = [" boats", " the sun", "boats"]
    samples = [("", [*(f"What?{choice}" for choice in choices), *choices], 1.0)]
    _, product = on_task(tmp_path, RepairedModel(dense), RepairedModel(compressed, bank), samples)
    tokens = dense.tokenizer.encode("What?", add_special_tokens=False)
    p = plain(dense, [BOS, *tokens])[1:]
    q = plain(compressed, tokens, ahead_of(compressed, prompt, place))
    assert len(p) == 5 and kl_in(product) == pytest.approx(kl_of(p, q).numpy(), abs=1e-5)


def test_documents_are_few_enough_and_an_empty_context_has_one_position(open_tiny, monkeypatch, tmp_path):
    loaded = RepairedModel(open_tiny("llama"))
    samples = [("", [" boats"], 1.0) if n == 0 else ("x" * 99, [" boats"], 1.0) for n in range(200)]
    _, product = on_task(tmp_path / "all", loaded, loaded, samples)
    assert product.read(FIDELITY)["last"]["tokens"] == 32
    assert product.read(FIDELITY)["tokens"] == 31 * 32 + 1
    monkeypatch.setattr(contexts, "TOKENS", 500)
    _, product = on_task(tmp_path / "few", loaded, loaded, samples)
    assert product.read(FIDELITY)["last"]["tokens"] == 6


def test_a_context_is_cut_as_the_scorer_cuts_it(exactly, open_tiny, make_bank, tmp_path):
    dense, compressed = open_tiny("gpt2"), damaged(open_tiny("gpt2"))
    prompt = make_bank(compressed, [10]).prompts[0]
    context = text(random.Random(0), 400, 400)
    row = RepairedModel(compressed, PromptBank([prompt], ["one"]))
    _, product = on_task(tmp_path, RepairedModel(dense), row, [(context, [" boats", " a"], 1.0)])
    tokens = dense.tokenizer.encode(context, add_special_tokens=False)
    p = plain(dense, tokens[-(1024 + 1 - 6) :])[-32:]
    q = plain(compressed, tokens[-(1024 + 1 - 6 - 10) :], prompt)[-32:]
    assert kl_in(product) == pytest.approx(kl_of(p, q).numpy(), abs=1e-4)


def test_flips_are_counted_from_the_documents(tmp_path):
    store, right = Store(tmp_path), [[1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0, 0.0]]
    dense, row = (
        measured_task(store, str(n), [("", [], value) for value in values], "multiple_choice")
        for n, values in enumerate(right)
    )
    assert flips(dense, row) == {"right_to_wrong": 2, "wrong_to_right": 1, "documents": 5}
    graded = measured_task(store, "graded", [("", [], 0.25)] * 5, "multiple_choice")
    assert flips(dense, graded) is None


TINY = ("model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "compressor=rtn3")
TINY += ("evaluation.perplexity_window=64",)


def contents(store, stage):
    """What the products of a stage hold, by their keys, and when each was made."""
    found = {path.parent.name: path for path in Path(store).glob(f"{stage}/*/manifest.json")}
    return (
        {key: json.loads(path.read_text())["files"] for key, path in found.items()},
        {key: path.stat().st_mtime_ns for key, path in found.items()},
    )


def test_a_run_records_it_and_every_other_figure_stays_what_it_was(run_here, bridges, tmp_path):
    base = (*TINY, *bridges, "recovery=prompt")
    without = run_here(*base, "evaluation.fidelity=false", f"store={tmp_path / 'without'}")
    record = run_here(*base, f"store={tmp_path / 'with'}")
    assert without["idp"]["fidelity"] is None
    assert record["idp"]["perplexity"] == without["idp"]["perplexity"]
    assert contents(tmp_path / "with", "measure")[0] == contents(tmp_path / "without", "measure")[0]

    found = record["idp"]["fidelity"]
    assert list(found) == ["compressed", "repaired"]
    samples = parquet.read_table(tmp_path / "outputs" / "runs" / record["idp"]["name"] / "samples.parquet").to_pylist()
    right = {
        row: [sample["metric:acc,none"] for sample in samples if sample["model"] == row] for row in ("dense", *found)
    }
    for row, about in found.items():
        figures_of = about["texts"]["bridges"]
        assert figures_of["mean_kl"] > figures_of["median_kl"] > 0 and 0 < figures_of["same_top"] < 1
        assert figures_of["p99_kl"] > figures_of["mean_kl"] and figures_of["tokens"] == 8 * 63
        assert 0 < figures_of["stderr"] < figures_of["mean_kl"]
        task = about["tasks"]["arc_easy"]
        pairs = list(zip(right["dense"], right[row], strict=True))
        assert task["flips"] == {
            "right_to_wrong": pairs.count((1.0, 0.0)),
            "wrong_to_right": pairs.count((0.0, 1.0)),
            "documents": 8,
        }
        assert task["mean_kl"] > 0 and task["last"]["tokens"] == 2
    assert [len(contents(tmp_path / "with", stage)[0]) for stage in ("reference", "fidelity")] == [2, 4]

    # Measured without it before: the scores stay, and what the other store has is made here, byte by byte.
    _, before = contents(tmp_path / "without", "measure")
    again = run_here(*base, f"store={tmp_path / 'without'}")
    assert contents(tmp_path / "without", "measure")[1] == before and again["idp"]["fidelity"] == found
    for stage in ("reference", "fidelity"):
        assert contents(tmp_path / "without", stage)[0] == contents(tmp_path / "with", stage)[0]

    # Another repair of the same model shares what the dense and the compressed one have.
    _, kept = contents(tmp_path / "with", "reference")
    other = run_here(*TINY, *bridges, "recovery=hard_prompt", f"store={tmp_path / 'with'}")
    assert contents(tmp_path / "with", "reference")[1] == kept
    assert other["idp"]["fidelity"]["compressed"] == found["compressed"]
    assert other["idp"]["baselines"]["compressed"]["stage"]["reused"]


def test_without_a_dense_row_there_is_none_and_a_choice_that_peeks_has_flips_alone(run_here, bridges, tmp_path):
    base = (*TINY, *bridges, "recovery=idp", "recovery.lengths=[2,3]", f"store={tmp_path / 'store'}")
    assert run_here(*base, "baselines=false")["idp"]["fidelity"] is None
    assert not list((tmp_path / "store").glob("reference/*"))
    found = run_here(*base, "recovery/selector=oracle")["idp"]["fidelity"]
    assert found["compressed"]["texts"]["bridges"]["mean_kl"] > 0
    task = found["repaired"]["tasks"]["arc_easy"]
    assert found["repaired"]["texts"] == {} and task["mean_kl"] is None and task["flips"]["documents"] == 8
