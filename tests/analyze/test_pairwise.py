"""Any two runs: what is paired, what is refused by name, and what the statistics make of it."""

import csv
import json

import numpy as np
import pytest

from idp.analyze.__main__ import main
from idp.analyze.operands import are_single, open_runs
from idp.analyze.pairwise import compare_runs
from idp.errors import UserError
from idp.stats.damage import brought_back
from idp.stats.flips import flips
from idp.stats.significance import comparison, holm
from tests.analyze.lm_eval_runs import DATE, LATER, invented
from tests.report.tex import compiled


@pytest.fixture
def three(tmp_path, draw, turned):
    """Dense, compressed and repaired, as lm-eval writes them: `results/<model>/`; the folders, and what is right."""
    dense = {"a": draw(0.6), "b": draw(0.5, documents=200, seed=1)}
    compressed = {task: turned(right, gained=3, lost=60) for task, right in dense.items()}
    repaired = {"a": turned(compressed["a"], gained=50), "b": turned(compressed["b"], gained=20, lost=4)}
    right = {"dense": dense, "compressed": compressed, "repaired": repaired}
    for name, each in right.items():
        invented(tmp_path / "results" / name, each, model=name)
    return [str(tmp_path / "results" / name) for name in right], right


def compared(*places, metric=None):
    assert are_single([str(place) for place in places])
    return compare_runs(open_runs([str(place) for place in places]), metric)


def test_each_is_held_against_the_first(three):
    places, right = three
    result = compared(*places)
    assert result["baseline"]["name"] == "dense" and result["baseline"]["by"] == "lm-eval"
    for found, name in zip(result["comparisons"], ("compressed", "repaired"), strict=True):
        tests = comparison({task: (right["dense"][task], right[name][task]) for task in ("a", "b")})
        assert found["name"] == name and found["unit"] == "share" and not found["notes"]
        for task, test in tests["tasks"].items():
            known = {key: value for key, value in test.items() if key != "documents_to_decide"}
            assert {key: found["tasks"][task][key] for key in known} == known
            assert found["tasks"][task]["before"] == right["dense"][task].mean()
        assert found["mean"]["difference"] == tests["mean"]["difference"] and found["mean"]["documents"] == 600
        assert found["mean"]["after"] == pytest.approx(np.mean([each.mean() for each in right[name].values()]))
    tasks = [test for found in result["comparisons"] for test in found["tasks"].values()]
    assert [test["p_adjusted"] for test in tasks] == holm([test["p"] for test in tasks])
    a = result["comparisons"][0]["tasks"]["a"]
    assert (a["test"], a["gained"], a["lost"], a["detectable"] > 0) == ("mcnemar", 3, 60, True)


def test_of_three_the_last_brings_back_what_the_second_lost(three):
    places, right = three
    [found] = compared(*places)["brought_back"]
    share = brought_back({task: tuple(right[name][task] for name in right) for task in ("a", "b")})
    assert found["share"] == {"share": share.share, "low": share.low, "high": share.high}
    counts = [flips(*(right[name][task] for name in right)).counts for task in ("a", "b")]
    assert found["documents"] == {kind: sum(each[kind] for each in counts) for kind in found["documents"]}
    assert found["documents"]["broken"] == 120
    assert compared(*places[:2])["brought_back"] == []


def test_what_is_said(three, tmp_path, capsys):
    places, right = three
    main(["compare", *places, f"csv={tmp_path / 'out' / 'all.csv'}", f"latex={tmp_path / 'all.tex'}"])
    said = capsys.readouterr().out
    assert "baseline: dense (lm-eval, " in said and "## repaired against dense" in said
    row = next(line for line in said.splitlines() if line.startswith("| a ")).split("|")
    assert [row[4].strip(), row[5].strip()] == ["0.600", f"{right['compressed']['a'].mean():.3f}"]
    assert row[6].strip().startswith("**-14.2 (-") and row[8].strip() == "3" and row[9].strip() == "60"
    assert "mean of 2 tasks" in said and "- repaired brings back of what compressed lost: " in said
    rows = list(csv.DictReader((tmp_path / "out" / "all.csv").open()))
    assert [(row["run"], row["name"]) for row in rows] == [
        (name, what) for name in ("compressed", "repaired") for what in ("a", "b", "mean")
    ]
    test = compared(*places)["comparisons"][1]["tasks"]["b"]
    assert {key: float(rows[4][key]) for key in ("difference", "low", "high", "p", "before", "detectable")} == {
        key: test[key] for key in ("difference", "low", "high", "p", "before", "detectable")
    }
    assert (rows[4]["unit"], rows[4]["documents"], rows[4]["newly_right"]) == ("share", "200", f"{test['gained']}")
    assert "\\toprule" in (tmp_path / "all.tex").read_text()
    main(["compare", *places, "--json"])
    assert json.loads(capsys.readouterr().out) == compared(*places)


def test_a_tex_takes_the_table(tmp_path, draw, capsys):
    names = ("a_1", "b%2", "c#3")
    for number, name in enumerate(names):
        invented(tmp_path / name, {"x_y": draw(0.5, seed=number), "z": draw(0.6, seed=number)}, model=name)
    main(["compare", *(str(tmp_path / name) for name in names), f"latex={tmp_path / 'out.tex'}"])
    compiled((tmp_path / "out.tex").read_text().replace("tab:comparison", "tab:repairs"), tmp_path / "tex")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2.0}, "version: 1.0 in base, 2.0 in other"),
        ({"shots": 5}, r"few-shot\): 0 in base, 5 in other"),
        ({"metric": "f1,none"}, "acc,none in base, f1,none in other; choose one that both have with metric="),
        ({"lower": True}, "acc,none is better higher in one and lower in the other"),
        ({"questions": "query"}, "document 0 is not the same one in both, nor are 399 more of 400"),
        ({"metric": "bypass,none"}, "no metric in other"),
        ({"first": 1000}, "no document that both base and other have"),
        ({"score": {"a": 0.123}}, "acc,none is not the mean over the documents that are there"),
    ],
)
def test_what_is_not_the_same_is_refused_by_name(change, why, tmp_path, draw):
    same, task = {"b": draw(0.5)}, {"a": draw(0.5)}
    invented(tmp_path / "base", task, model="base")
    invented(tmp_path / "other", task, model="other", **change)
    with pytest.raises(UserError, match=f"no task in common to compare .a: .*{why}"):
        compared(tmp_path / "base", tmp_path / "other")
    for model in ("base", "other"):  # another task is compared all the same
        file = invented(tmp_path / model, same, model=model, date=LATER)
        values = json.loads(file.read_text())
        old = json.loads((tmp_path / model / f"results_{DATE}.json").read_text())
        for key in ("results", "configs", "versions", "n-shot", "higher_is_better"):
            values[key] |= old[key]
        file.write_text(json.dumps(values))
        (tmp_path / model / f"samples_a_{DATE}.jsonl").rename(tmp_path / model / f"samples_a_{LATER}.jsonl")
    [found] = compared(tmp_path / "base", tmp_path / "other")["comparisons"]
    assert list(found["tasks"]) == ["b"] and [each["task"] for each in found["not_compared"]] == ["a"]


def test_a_limit_a_prompt_and_a_task_of_one_alone_are_said(tmp_path, draw):
    a, b = draw(0.5), draw(0.6, seed=1)
    invented(tmp_path / "base", {"a": a, "b": b, "c": a}, model="base")
    invented(tmp_path / "other", {"a": a[:50], "b": b, "d": a}, model="other", asked="Answer briefly. ")
    [found] = compared(tmp_path / "base", tmp_path / "other")["comparisons"]
    assert found["not_compared"] == [{"task": "c", "why": "only in base"}, {"task": "d", "why": "only in other"}]
    assert found["tasks"]["a"]["documents"] == 50 and found["tasks"]["a"]["before"] == a[:50].mean()
    assert "a: the 50 documents that both have (400 in base, 50 in other)" in found["notes"]
    assert any(note.startswith("b: 400 of 400 documents were put in other words") for note in found["notes"])


def test_a_group_is_weighted_as_lm_eval_does(tmp_path, draw, turned):
    before = {"x_a": draw(0.6), "x_b": draw(0.3, documents=100, seed=1)}
    after = {task: turned(right, gained=20) for task, right in before.items()}
    groups = {"x": ["x_part"], "x_part": ["x_a", "x_b"]}
    pooled = np.concatenate(list(before.values())).mean()
    options = {"groups": groups, "group_scores": {"x": pooled, "x_part": np.mean([0.6, 0.3])}}
    invented(tmp_path / "base", before, model="base", **options)
    invented(tmp_path / "other", after, model="other", groups=groups)
    [found] = compared(tmp_path / "base", tmp_path / "other")["comparisons"]
    assert set(found["tasks"]) == {"x_a", "x_b"} and not found["not_compared"]
    by_documents, by_tasks = found["groups"]["x"], found["groups"]["x_part"]
    assert (by_documents["weighted"], by_documents["before"]) == ("pooled", pooled)
    assert by_documents["difference"] == pytest.approx(40 / 500) and by_documents["documents"] == 500
    assert by_tasks["weighted"] == "mean" and by_tasks["difference"] == pytest.approx((20 / 400 + 20 / 100) / 2)


def test_where_lower_is_better_the_difference_says_so(tmp_path, draw, turned):
    wrong = draw(0.5)
    lower = {"metric": "bias,none", "lower": True}
    invented(tmp_path / "base", {"a": wrong, "n": 3.0 * wrong}, model="base", **lower)
    invented(tmp_path / "other", {"a": turned(wrong, lost=40), "n": 2.0 * wrong}, model="other", **lower)
    [found] = compared(tmp_path / "base", tmp_path / "other")["comparisons"]
    a, n = found["tasks"]["a"], found["tasks"]["n"]
    assert a["difference"] == pytest.approx(0.1) and (a["gained"], a["lost"]) == (40, 0)
    assert (a["before"], a["after"]) == pytest.approx((0.5, 0.4)) and (n["before"], n["after"]) == (1.5, 1.0)
    assert n["difference"] == pytest.approx(0.5) and n["gained"] is None and found["unit"] == "score"
    assert found["mean"]["before"] is None
    invented(tmp_path / "hits", {"n": 1.0 * wrong}, model="hits", **lower)  # right and wrong against counts
    [found] = compared(tmp_path / "hits", tmp_path / "base")["comparisons"]
    assert found["tasks"]["n"]["difference"] == pytest.approx(-1.0) and found["tasks"]["n"]["before"] == 0.5


def test_the_newest_of_several_is_taken_and_said_or_one_is_named(tmp_path, draw, turned):
    old, new = draw(0.5), draw(0.7)
    first = invented(tmp_path / "out" / "base", {"a": old}, model="base")
    invented(tmp_path / "out" / "base", {"a": new}, model="base", date=LATER)
    other = invented(tmp_path / "other", {"a": old}, model="other")
    found = compared(tmp_path / "out", other)
    assert found["comparisons"][0]["tasks"]["a"]["before"] == 0.7
    assert f"the newest of 2 results is read, results_{LATER}.json" in found["notes"][0]
    assert compared(first, other)["comparisons"][0]["tasks"]["a"]["difference"] == 0
    found = compared(first, tmp_path / "out" / "base")  # two runs of one model, each with a name of its own
    assert found["baseline"]["name"] != found["comparisons"][0]["name"]


def test_results_without_a_date_and_under_other_names(tmp_path, draw):
    """Of old versions of lm-eval, of `--output_path base.json`, renamed by hand, and dumped with their samples."""
    right = {"a": draw(0.5)}
    plain = invented(tmp_path / "plain", right, model="plain", date=None)
    dated = invented(tmp_path / "dated", right, model="dated")
    dated.rename(dated.with_name(f"base_{DATE}.json"))
    renamed = invented(tmp_path / "renamed", right, model="renamed")
    renamed = renamed.rename(renamed.with_name("mine.json"))
    dumped = invented(tmp_path / "dumped", right, model="dumped")
    lines = map(json.loads, (tmp_path / "dumped" / f"samples_a_{DATE}.jsonl").read_text().splitlines())
    samples = [line | {"arguments": [[*each.values()] for each in line["arguments"].values()]} for line in lines]
    (tmp_path / "all.json").write_text(json.dumps(json.loads(dumped.read_text()) | {"samples": {"a": samples}}))
    result = compared(plain, tmp_path / "dated", renamed, tmp_path / "all.json")
    assert [found["tasks"]["a"]["documents"] for found in result["comparisons"]] == [400] * 3
    assert not any(found["notes"] for found in result["comparisons"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base", "bare"], "bare: no samples_<task>_<date>.jsonl beside results_.*run lm-eval with --log_samples"),
        (["base", "half"], "half: samples_a_.*jsonl line 2: half written"),
        (["base", "twice"], "twice: samples_a_.*jsonl line 401: document 0 is there twice"),
        (["base", "models"], "models: several models' results; name one of .*models/one, .*models/two"),
        (["base", "base"], "base: the same run as .*base"),
        (["base"], "base: a single run; name what it is compared with: idp compare"),
        (["base", "nowhere"], "nowhere: there is nothing here"),
        (["base", "empty"], "empty: neither a run of idp .record.json. nor lm-eval's output"),
        (["base", "other.json"], "other.json: neither a record of idp nor results of lm-eval"),
        (["base", f"base/samples_a_{DATE}.jsonl"], "the documents of one task; name the results_<date>.json"),
        (["base@dense", "models/one"], "base@dense: @dense names a model of a run of idp, and this is none"),
        (["base", "models/one", "metric=f1"], "no metric f1 in base"),
        (["empty", "metric=acc"], "metric=: of single runs"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, draw, monkeypatch):
    right = {"a": draw(0.5)}
    monkeypatch.chdir(tmp_path)
    for name in ("base", "half", "twice", "models/one", "models/two"):
        invented(tmp_path / name, right, model=name)
    invented(tmp_path / "bare", right, samples=False)
    lines = (tmp_path / "base" / f"samples_a_{DATE}.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half" / f"samples_a_{DATE}.jsonl").write_text(lines[0] + lines[1][:40])
    other = json.loads(lines[0])
    other["acc"] = 1 - other["acc"]
    (tmp_path / "twice" / f"samples_a_{DATE}.jsonl").write_text("".join(lines) + json.dumps(other) + "\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match=message) as caught:
        main(["compare", *words])
    assert "\n" not in str(caught.value)


def test_runs_of_this_package(finished_run, tmp_path, capsys):
    folder, record = finished_run("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true")
    result = compared(f"{folder}@dense", f"{folder}@compressed", folder)
    assert [found["name"] for found in result["comparisons"]] == ["tiny_llama gptq3", "tiny_llama gptq3 + idp"]
    step = next(
        each for each in record["idp"]["comparisons"] if (each["after"], each["before"]) == ("compressed", "dense")
    )
    found = result["comparisons"][0]["tasks"]["arc_easy"]
    for key in ("difference", "low", "high", "p", "gained", "lost", "detectable"):
        assert found[key] == step["tasks"]["arc_easy"][key]
    with pytest.raises(UserError, match="the same run"):
        compared(folder, f"{folder}@repaired")
    for words in ([str(folder)], [str(folder), str(folder.parent)]):  # one record is a study, as it always was
        main(["compare", *words, f"out={tmp_path}"])
        assert "# What compression costs" in capsys.readouterr().out
