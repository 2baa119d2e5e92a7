"""The table of the papers: what stands in each row, and in every format."""

import csv
import io

import numpy as np
import pytest

from idp.records.cell import Cell
from idp.records.collect import collect
from idp.records.measured import Perplexity
from idp.report.comparisons import compare
from idp.report.costs import cost_table
from idp.report.formats import Column, Entry, Table, comma_separated, latex, markdown
from idp.report.nine_tasks import score_table
from idp.report.view import views
from idp.stats.significance import t_test
from tests.report.conftest import of_compressor, of_seed


def table_of(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], row, strict=True)) for row in lines[2:]]


def test_seeds_are_one_row_with_mean_and_spread(sweep):
    (view,) = views(collect([sweep]))
    rows = table_of(markdown(score_table(view)))
    assert [(row["compressor"], row["recovery"]) for row in rows] == [
        ("none", "none"),
        ("gptq3", "none"),
        ("gptq3", "idp (attention)"),
        ("rtn3", "none"),
        ("rtn3", "idp (attention)"),
        ("gptq2", "lora \\[failed\\]"),
    ]
    one, other = (model.tasks["arc_easy"].value for model in view.rows[2].members)
    assert rows[2]["seeds"] == "0, 1" and other == one + 1 / 8
    assert rows[2]["arc_easy"].startswith(f"{(one + other) / 2:.3f} ±{np.std([one, other], ddof=1):.3f} (")
    assert rows[0]["seeds"] == "" and rows[5]["arc_easy"] == "-"


def test_perplexity_has_its_spread_over_seeds(sweep):
    (view,) = views(collect([sweep]))
    first, second = view.rows[2].members
    view.setting.sample["corpus:text"] = ("text",)
    first.perplexity, second.perplexity = ({"text": Perplexity(value, None, None, None)} for value in (12.0, 14.0))
    table = cost_table(view)
    assert table.rows[2]["text perplexity"].text == "13.00 ±1.41"
    assert table.rows[3]["text perplexity"].text == "-"
    assert any("standard deviation" in note for note in table.notes)


def test_differences_are_to_the_parent_over_the_same_documents(vary, runs):
    def turned(table):
        import pyarrow as arrow

        right = {"dense": 1.0, "compressed": 0.0, "repaired": 1.0}
        values = [right[row] for row in table["model"].to_pylist()]
        place = table.column_names.index("metric:acc,none")
        return table.set_column(place, "metric:acc,none", arrow.array(values))

    def said(record):
        record["results"]["arc_easy"]["acc,none"] = 0.75
        record["idp"]["baselines"]["dense"]["results"]["arc_easy"]["acc,none"] = 1.0
        record["idp"]["baselines"]["compressed"]["results"]["arc_easy"]["acc,none"] = 0.0

    vary("first", said, outcomes=turned)
    (view,) = views(collect([runs]))
    dense, compressed, repaired = score_table(view).rows
    assert dense["difference"].text == ""
    assert compressed["difference"].value == -1 and repaired["difference"].value == 1
    documents = view.rows[0].first.tasks["arc_easy"].documents
    p = 2 * 0.5**documents  # McNemar: all documents turned one way; Holm doubles it
    found = view.compared[view.rows[2].id].tasks["arc_easy"]
    assert (found.p, found.adjusted) == (pytest.approx(p), pytest.approx(min(1, 2 * p)))
    assert (found.gained, found.lost, found.test) == (documents, 0, "mcnemar")
    assert repaired["arc_easy"].bold == (2 * p < 0.05)
    assert repaired["brought back"].text == "100% (100% to 100%)"


def test_without_damage_nothing_is_brought_back(real):
    (view,) = views(collect([real[0]]))
    damage = view.compared[view.rows[1].id].mean
    if damage.high < 0:
        pytest.skip("this run did damage")
    assert score_table(view).rows[2]["brought back"].text == "no damage beyond noise"


def test_of_other_documents_nothing_is_tested(vary, runs):
    def fewer(table):
        keep = [
            not (row == "repaired" and document == 0)
            for row, document in zip(table["model"].to_pylist(), table["doc_id"].to_pylist(), strict=True)
        ]
        return table.filter(keep)

    vary("first", lambda record: record["idp"].pop("comparisons"), outcomes=fewer)  # as of before they were recorded
    (view,) = views(collect([runs]))
    assert view.compared[view.rows[2].id].mean is None and view.compared[view.rows[2].id].tasks == {}
    assert score_table(view).rows[2]["difference"].text.endswith("(not paired)")


def test_stand_ins_are_marked_in_every_header(vary, runs):
    def stands_in(record):
        record["idp"]["data"]["webqs"] = {**record["idp"]["data"]["arc_easy"], "stand_in": "arc_easy"}

    vary("first", stands_in)
    (view,) = views(collect([runs]))
    table = score_table(view)
    for text in (markdown(table), comma_separated([table]), latex(table).replace("\\_", "_")):
        assert "webqs (stand-in: arc_easy)" in text


def test_a_task_that_a_row_lacks_is_missing(vary, runs):
    def more(record):
        of_compressor("rtn3")(record)
        for place in (record, *record["idp"]["baselines"].values()):
            place["results"]["piqa"] = place["results"]["arc_easy"]
        record["idp"]["data"]["piqa"] = record["idp"]["data"]["arc_easy"]

    vary("first")
    vary("second", more)
    (view,) = views(collect([runs]))
    rows = {(row["compressor"].text, row["recovery"].text): row for row in score_table(view).rows}
    lacking = rows["gptq3", "idp (attention)"]
    assert lacking["piqa"].text == "-" and lacking["mean"].text == "-" and lacking["arc_easy"].value is not None
    assert rows["rtn3", "none"]["mean"].value is not None


def test_rows_are_told_apart_by_what_differs(vary, runs):
    def longer(record):
        of_seed(1)(record)
        record["idp"]["config"]["recovery"]["lengths"] = [3, 50]
        record["idp"]["config"]["recovery"]["training"] |= {"steps": 7, "warmup_steps": 70}

    def calibrated(record):
        of_compressor("gptq3")(record)
        record["idp"]["config"]["compressor"]["calibration"]["samples"] = 3

    vary("first")
    vary("second", longer)
    vary("third", calibrated)
    (view,) = views(collect([runs]))
    names = {row.name for row in view.rows}
    assert len(names) == len(view.rows)
    assert any("lengths=3+50" in name and "steps=7" in name for name in names)
    assert not any("warmup_steps" in name for name in names), "the steps say it already"
    assert any("samples=3" in name for name in names)


def test_rows_are_in_the_order_of_their_numbers(vary, runs):
    for samples in (16, 256, 64):

        def calibrated(record, samples=samples):
            of_compressor(f"gptq3-{samples}")(record)
            record["idp"]["compressor"] = "gptq3"
            record["idp"]["config"]["compressor"]["calibration"]["samples"] = samples

        vary(str(samples), calibrated)
    (view,) = views(collect([runs]))
    names = dict.fromkeys(row.compressor for row in view.rows)
    assert [name.rpartition("=")[2] for name in names if name.startswith("gptq3")] == ["16", "64", "256"]
    roles = [row.first.role for row in view.rows if row.compressor == "gptq3 samples=16"]
    assert roles == ["compressed", "repaired"]


def test_a_warm_up_that_the_steps_do_not_tell_is_told(vary, runs):
    def warmed(record):
        of_seed(1)(record)
        record["idp"]["config"]["recovery"]["training"]["warmup_steps"] = 70

    vary("first")
    vary("second", warmed)
    (view,) = views(collect([runs]))
    assert any("warmup_steps=70" in row.name for row in view.rows)


def test_costs(real):
    folder, record = real
    (view,) = views(collect([folder]))
    dense, compressed, repaired = cost_table(view).rows
    about = record["idp"]
    assert repaired["added"].value == about["parameters"]["added"] and compressed["added"].value == 0
    assert compressed["packed"].value == about["weights"]["packed_bytes"] / 1e6 < dense["packed"].value
    assert repaired["prefill"].text == "-" and "latency=default" in cost_table(view).notes[0]


def test_costs_say_the_most_memory_in_gib(vary, runs):
    """Of making and measuring each row; a column for GPUs only where one was used."""

    def on_a_gpu(record):
        about = record["idp"]
        about["peak_memory_bytes"] = {"load": 2**30, "compress": 2**31, "recover": 2**30, "measure": 2**29}
        about["device_peak_bytes"] = {"recover": {"cuda:0": 3 * 2**30, "cuda:1": 2**30}, "measure": {"cuda:0": 2**32}}
        for row in ("dense", "compressed"):
            about["baselines"][row]["stage"] |= {"peak_memory_bytes": 2**30, "device_peak_bytes": {"cuda:0": 2**31}}

    vary("first", on_a_gpu)
    (view,) = views(collect([runs]))
    table = cost_table(view)
    assert [column.title for column in table.columns if column.key in ("device", "host")] == ["GPU GiB", "host GiB"]
    found = [(row["device"].text, row["host"].text) for row in table.rows]
    assert found == [("2.0", "1.0"), ("2.0", "2.0"), ("4.0", "1.0")]
    assert any("GPU and host GiB" in note for note in table.notes)


def test_costs_without_a_gpu_and_of_older_records(vary, runs):
    def older(record):
        record["idp"].pop("device_peak_bytes", None)
        record["idp"]["peak_memory_bytes"] = {}
        for row in ("dense", "compressed"):
            record["idp"]["baselines"][row]["stage"].pop("peak_memory_bytes", None)

    vary("first", older)
    (view,) = views(collect([runs]))
    table = cost_table(view)
    assert "device" not in [column.key for column in table.columns]
    assert [row["host"].text for row in table.rows] == ["-", "-", "-"]


def test_latency_is_the_repairs_own(vary, runs):
    def timed(record):
        ratios = {"compressed": 1.0, "prompt": 1.1, "idp": 1.25, "dense": 0.9}
        record["idp"]["latency"] = {
            "reference": "compressed",
            "rows": [
                {"batch_size": batch, "input_tokens": 8, "variant": name, "prefill": {"ratio": ratio * batch},
                 "decode": {"ratio": ratio}}
                for batch in (1, 4) for name, ratio in ratios.items()
            ],
        }  # fmt: skip

    vary("first", timed)
    (view,) = views(collect([runs]))
    assert [row["prefill"].value for row in cost_table(view).rows] == [0.9, 1.0, 1.25]


def test_formats_of_one_table():
    table = Table(
        "T",
        [Column("name", "name | x"), Column("score", "50% & more")],
        [{"name": Entry("a_b|<c>*"), "score": Entry("0.500 (0.100)", 0.5, True, 0.1)}, {"name": Entry("=1+1")}],
    )
    assert "**0.500 (0.100)**" in markdown(table) and "a_b\\|\\<c>\\*" in markdown(table)
    header, first, second = csv.reader(io.StringIO(comma_separated([table])))
    assert header == ["name | x", "50% & more", "50% & more stderr"]
    assert first == ["a_b|<c>*", "0.5", "0.1"] and second == ["'=1+1", "", ""]
    text = latex(table)
    assert (
        r"\textbf{0.500 (0.100)}" in text
        and r"a\_b\textbar{}\textless{}c\textgreater{}*" in text
        and r"50\% \& more" in text
    )
    assert all(f"\\{rule}rule" in text for rule in ("top", "mid", "bottom"))


def test_nothing_is_compared_without_a_parent(real):
    (view,) = views(collect([real[0]]))
    assert compare([Cell("x", view.rows[2].members)], view.tasks) == {}


def test_the_t_test_is_the_paired_one():
    from scipy.stats import ttest_rel

    generator = np.random.default_rng(0)
    before, after = generator.random((2, 1, 40))
    assert t_test({"task": (before, after)}) == pytest.approx(ttest_rel(after[0], before[0]).pvalue)
    # Seeds that disagree with one another make a difference less sure.
    one = np.stack([after[0], after[0] + 0.3])
    assert t_test({"task": (before, one)}) > t_test({"task": (before, one.mean(0, keepdims=True))})
    assert t_test({"task": (before, before)}) == 1 and t_test({"task": (before, before + 1)}) < 1e-9
