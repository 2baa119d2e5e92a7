"""What repairs bring back against what they cost: table, sentence and plot, of records whose every figure is known."""

import numpy as np
import pytest

from idp.records.collect import collect
from idp.report.drawing import NothingToShow
from idp.report.formats import markdown
from idp.report.frontier import best_repair, frontier, frontier_table, studies, verdicts
from idp.report.plots import draw_all
from idp.report.view import views
from idp.report.write import write

RIGHT = {"dense": 0.7, "compressed": 0.5}  # shares of the documents
COSTS = {"hard_prompt": (0, 0.2, 1.04), "lora": (460_800, 130.0, 1.12), "prompt": (14_400, 95.0, 1.1)}


def scores(shares):
    """`right(model, task)`: the first documents are right, so that repairs differ from compressed by what they add."""

    def right(model, task):
        found = np.zeros(400)
        found[: round(400 * shares[model])] = 1
        return np.random.default_rng(0).permutation(found)

    return right


@pytest.fixture
def study(record, runs):
    """`study(gptq3={repair: share right})`: the view of runs of a compressed model and its repairs."""

    def made(timed=True, dense=RIGHT["dense"], **compressors):
        for compressor, repairs in compressors.items():
            for repair, share in repairs.items():
                added, seconds, ratio = COSTS[repair]

                def change(written, repair=repair, added=added, seconds=seconds, ratio=ratio):
                    about = written["idp"]
                    about["parameters"]["added"] = added
                    about["stages"]["recover"] |= {"seconds": 1.0, "total_seconds": seconds}  # the rest is beneath it
                    about["training"] = None if repair == "hard_prompt" else {"prompt": {"heldout_loss": 3.0}}
                    about["comparisons"] = [{"after": "x", "before": "y", "unit": "share"}]
                    if timed:
                        part = {"p50": 1.0, "p90": 1.0, "p99": 1.0}
                        shape = {"batch_size": 1, "input_tokens": 8, "decode": part | {"ratio": 1.0}}
                        ratios = {"dense": 1.0, "compressed": 1.0, repair: ratio}
                        rows = [{"variant": v, **shape, "prefill": part | {"ratio": r}} for v, r in ratios.items()]
                        about["latency"] = {"rows": rows}

                shares = {"dense": dense, "compressed": RIGHT["compressed"], "repaired": share}
                options = {"kind": repair, **({"length": 10} if repair == "prompt" else {})}
                record(
                    f"{compressor}-{repair}", recovery=options, compressor=compressor, change=change,
                    right=scores(shares), keys=(compressor,),
                )  # fmt: skip
        (view,) = views(collect([runs]))
        return view

    return made


def test_the_cheapest_come_first_with_effect_and_cost(study):
    view = study(gptq3={"lora": 0.62, "prompt": 0.55, "hard_prompt": 0.5})
    ((compressed, repairs),) = studies(view)
    assert compressed.name == "gptq3" and [row.first.recovery for row in repairs] == ["hard_prompt", "prompt", "lora"]
    first, second, third = frontier_table(view).rows
    assert [line["trained"].text for line in (first, second, third)] == ["no", "yes", "yes"]
    assert third["brought back"].value == pytest.approx(0.6) and second["brought back"].value == pytest.approx(0.25)
    assert third["brought back"].low < 0.6 < third["brought back"].high and first["brought back"].text.startswith("0%")
    assert third["difference"].value == pytest.approx(0.12) and third["added"].text == "460,800"
    assert third["seconds"].value == 130.0 and third["prefill"].value == 1.12
    assert best_repair(view).first.recovery == "lora"
    (said,) = verdicts(view)
    assert "gptq3 differs from dense by -20.0 points" in said and "lora brings back most, +12.0 points" in said
    assert "60% (" in said and "the cheapest that brings back more than noise is prompt, +5.0 points" in said
    assert "| gptq3" in markdown(frontier_table(view)) and said in markdown(frontier_table(view))


def test_nats_that_came_back_have_a_column_of_their_own(study):
    view = study(gptq3={"prompt": 0.5, "hard_prompt": 0.49})
    assert not any("nats" in column.title for column in frontier_table(view).columns)
    ((_, repairs),) = studies(view)
    view.setting.sample["corpus:c4"] = (16352, 512)
    for row, share in zip(repairs, (0.1, 0.4), strict=True):
        texts = {"c4": {"damage_brought_back": {"share": share, "low": share - 0.05, "high": share + 0.05}}}
        row.first.comparisons["compressed"] = {"texts": texts}
    frontier_table.cache_clear()
    table = frontier_table(view)
    assert [line["c4"].text for line in table.rows] == ["10% (5% to 15%)", "40% (35% to 45%)"]
    assert "nats brought back, c4 (95 % CI)" in [column.title for column in table.columns]
    assert any("paired over windows" in note for note in table.notes)


def test_nothing_that_helps_and_nothing_to_repair(study, runs):
    (said,) = verdicts(study(gptq3={"prompt": 0.5, "hard_prompt": 0.49}))
    assert "no repair here brings back more than noise" in said


def test_where_nothing_was_damaged_the_table_says_so(study):
    view = study(dense=0.5025, gptq4={"prompt": 0.51, "lora": 0.52})
    (said,) = verdicts(view)
    assert said.startswith("nothing to repair here: gptq4 differs from dense by -0.2 points (95 % CI ")
    assert said.endswith("which is within noise")
    assert {line["brought back"].text for line in frontier_table(view).rows} == {"no damage beyond noise"}
    assert frontier(view).axes[0].get_ylabel().startswith("mean of 2 tasks, above compressed")


def test_damage_that_only_text_shows_is_damage(study):
    view = study(dense=0.5025, gptq4={"prompt": 0.51, "lora": 0.52})
    view.setting.sample["corpus:c4"] = (16352, 512)
    ((_, repairs),) = studies(view)
    for row, share in zip(repairs, (0.1, 0.4), strict=True):
        found = {"share": share, "low": share - 0.05, "high": share + 0.05}
        row.first.comparisons["compressed"] = {"texts": {"c4": {"damage_brought_back": found}}}
    (said,) = verdicts(view)
    assert said.endswith("; on text it lost more than noise, of which lora brings back most, 40% (35% to 45%) on c4")
    assert not said.startswith("nothing to repair")


def test_one_repair_alone_makes_no_frontier(study):
    view = study(gptq3={"prompt": 0.6})
    assert not frontier_table(view).rows and not verdicts(view) and best_repair(view) is None
    with pytest.raises(NothingToShow, match="two repairs or more"):
        frontier(view)


def test_the_plot_has_a_panel_for_each_cost(study, tmp_path, runs):
    repairs = {"hard_prompt": 0.51, "prompt": 0.55, "lora": 0.62}
    view = study(gptq3=repairs, sparsegpt50={name: share - 0.01 for name, share in repairs.items()})
    figure = frontier(view)
    labels = ["added parameters", "seconds to make the repair", "prefill latency, ratio to compressed"]
    assert [axes.get_xlabel() for axes in figure.axes] == labels
    assert len({axes.get_ylim() for axes in figure.axes}) == 1 and len(figure.axes[0].containers) == 6
    drawn, _ = draw_all(view, tmp_path / "plots")
    assert drawn["Damage brought back against cost"].read_bytes()[:4] == b"\x89PNG"
    write(collect([runs]), tmp_path / "report", ["markdown"])
    assert "### What repairs bring back and what they cost" in (tmp_path / "report" / "report.md").read_text()


def test_what_was_not_timed_has_no_panel(study):
    view = study(timed=False, gptq3={"prompt": 0.55, "lora": 0.62})
    assert len(frontier(view).axes) == 2 and "nothing was timed" in markdown(frontier_table(view))
