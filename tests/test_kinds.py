"""A new recovery, bank or selector is one file and one YAML, and everything else finds it."""

import importlib
from pathlib import Path

import pytest

from idp import registry
from idp.errors import UserError

TINY = ("model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "baselines=false", "compressor=rtn3")

EXAMPLES = Path(__file__).parent / "extending"  # here as files of the package, there from outside it
BY_LENGTH, DOUBLED, TURNS = ((EXAMPLES / f"{name}.py").read_text() for name in ("by_length", "doubled", "turns"))
BY_LENGTH_YAML, DOUBLED_YAML, TURNS_YAML = (
    (EXAMPLES / "conf" / "recovery" / f"{place}.yaml").read_text()
    for place in ("selector/by_length", "doubled", "bank/turns")
)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """`added(package, group, name, source, yaml)`: a kind of one's own, and the override that lets Hydra find it."""

    def add(package, group, name, source, yaml):
        folder, choices = tmp_path / "kinds", tmp_path / "conf" / group
        folder.mkdir(exist_ok=True)
        choices.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(source)
        (choices / f"{name}.yaml").write_text(yaml)
        home = importlib.import_module(package)
        monkeypatch.setattr(home, "__path__", [*home.__path__, str(folder)])
        registry.forget()
        return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"

    yield add
    registry.forget()


def test_the_page_s_selector(added, run_here):
    found = added("idp.prompting.selectors", "recovery/selector", "by_length", BY_LENGTH, BY_LENGTH_YAML)
    idp = ("recovery=idp", "recovery.lengths=[2,3,4]", "recovery.controls=false", "recovery/selector=by_length")
    for tokens, place in ((1, 2), (2000, 0)):
        record = run_here(found, *TINY, *idp, f"recovery.selector.tokens={tokens}")
        counts = list(record["idp"]["selection"]["arc_easy"].values())
        assert counts[place] == sum(counts) > 0
    with pytest.raises(UserError, match="recovery.selector.tokens=0: must be at least 1"):
        run_here(found, *TINY, *idp, "recovery.selector.tokens=0")


HINDSIGHT = """
from dataclasses import dataclass

from idp import config


@dataclass
class Hindsight(config.Selector):
    @property
    def uses_labels(self) -> bool:
        return True

    def best_by_labels(self, scores):
        return scores.argmin(1)
"""
HINDSIGHT_YAML = "defaults: [/schema/selector/hindsight@_here_, _self_]\nkind: hindsight\n"
RANKED = """
from dataclasses import dataclass

from idp.recover.lora import Lora


@dataclass
class Ranked(Lora):
    pass
"""
RANKED_YAML = "defaults: [lora@_here_, /schema/recovery/ranked@_here_, _self_]\nkind: ranked\nrank: 2\n"


def test_a_selector_of_one_s_own_that_peeks(added, run_here, tmp_path):
    """It is asked whether it uses the labels, whatever it is called: measured as it says, and no method anywhere."""
    from idp.analyze.claims import check
    from idp.analyze.claims import page as claims_page
    from idp.api import load
    from idp.export.card import _meaning
    from idp.records.collect import collect
    from idp.records.tables import run_summary
    from idp.report.page import data
    from idp.report.view import views

    found = added("idp.prompting.selectors", "recovery/selector", "hindsight", HINDSIGHT, HINDSIGHT_YAML)
    kind = ("recovery=idp", "recovery.lengths=[2,3]", "recovery.controls=false", "recovery/selector=hindsight")
    record = run_here(found, *TINY, *kind, "baselines=true")
    about = record["idp"]
    assert (
        about["selector"]["kind"] == "hindsight" and about["selector"]["peeks"] and not about["selector"]["collapsed"]
    )
    task = about["controls"]["tasks"]["arc_easy"]
    assert task["chosen"] == record["results"]["arc_easy"]["acc,none"] <= min(task["prompts"]) and task["oracle"] > 0
    for found in about["controls"]["perplexity"].values():  # each window behind its worst prompt
        assert found["chosen"] >= max(found["prompts"]) > found["oracle"]
    folder = tmp_path / "outputs" / "runs" / about["name"]
    collection = collect([folder])
    assert "hindsight" not in claims_page(check(collection))
    shown = data(collection, views(collection), "t")["views"][0]
    [row] = [row for row in shown["rows"] if row["role"] == "repaired"]
    assert row["uses_labels"] and row["name"] == "rtn3 + idp (hindsight, upper bound: uses the labels)"
    assert any("hindsight, upper bound" in note and "beyond that" in note for note in shown["notes"])
    summary = run_summary(record)
    assert "selector: hindsight, an upper bound: it uses the labels" in summary
    assert ("hindsight (upper bound)" in summary) == (task["chosen"] != task["oracle"])
    assert "hindsight" in _meaning(record)
    with pytest.raises(UserError, match="recovery.selector=hindsight chooses with the answers in hand"):
        load(folder)


def test_the_page_s_recovery(added, run_here, tmp_path):
    """Claims about prompts hold of it as of the recovery that it derives from: by what it is made of."""
    from idp.analyze.cells import cells_of, of_the_input, repairs
    from idp.records.collect import collect

    found = added("idp.recover", "recovery", "doubled", DOUBLED, DOUBLED_YAML)
    record = run_here(found, *TINY, "recovery=doubled", "recovery.length=3")
    assert record["idp"]["parameters"]["added"] == 2 * record["idp"]["parameters"]["trainable"] == 2 * 3 * 64
    assert record["idp"]["repair"] == {"method": "prompt", "prompts": [6], "adapter": False}
    found = added("idp.recover", "recovery", "ranked", RANKED, RANKED_YAML)
    record = run_here(found, *TINY, "recovery=ranked")
    assert record["idp"]["repair"] == {"method": "lora", "prompts": [], "adapter": True}
    collection = collect([tmp_path / "outputs" / "runs"])
    cells = cells_of(collection, collection.settings[0])
    assert (
        [cell.first.recovery for cell in of_the_input(cells)]
        == ["doubled"]
        == [cell.first.recovery for cell in repairs(cells, "prompt")]
    )
    assert [cell.first.recovery for cell in repairs(cells, "lora")] == ["ranked"]


def test_the_page_s_bank(added, run_here, monkeypatch):
    from idp.recover import tuning

    seen, tune = [], tuning.tune

    def watched(context, *about):
        seen.append({tuple(block.tolist()) for block in context.text[0]})
        return tune(context, *about)

    monkeypatch.setattr(tuning, "tune", watched)
    found = added("idp.recover.banks", "recovery/bank", "turns", TURNS, TURNS_YAML)
    idp = ("recovery=idp", "recovery/bank=turns", "recovery.lengths=[2,3]", "recovery.controls=false")
    record = run_here(found, *TINY, *idp)
    assert record["idp"]["parameters"]["added"] == (2 + 3) * 64
    assert len(seen) == 2 and seen[0] and seen[1] and not seen[0] & seen[1]


def test_a_kind_that_is_not_its_options_is_refused(compose):
    with pytest.raises(UserError, match="recovery.selector.kind=random: .* say recovery/selector=random"):
        compose("recovery=idp", "recovery.selector.kind=random")


def test_kinds_are_found_without_the_heavy_libraries():
    import subprocess
    import sys

    code = "import sys; from idp import registry; registry.register(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
