"""A new recovery, bank or selector is one file and one YAML, and everything else finds it."""

import importlib
import re
from pathlib import Path

import pytest

from idp import kinds
from idp.errors import UserError

TINY = ("model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "baselines=false", "compressor=rtn3")

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
BY_LENGTH, DOUBLED, TURNS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BY_LENGTH_YAML, DOUBLED_YAML, TURNS_YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


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
        for known in (kinds.recoveries, kinds.banks, kinds.selectors):
            known.cache_clear()
        return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"

    yield add
    for known in (kinds.recoveries, kinds.banks, kinds.selectors):
        known.cache_clear()


def test_the_page_s_selector(added, run_here):
    found = added("idp.prompting.selectors", "recovery/selector", "by_length", BY_LENGTH, BY_LENGTH_YAML)
    idp = ("recovery=idp", "recovery.lengths=[2,3,4]", "recovery.controls=false", "recovery/selector=by_length")
    for tokens, place in ((1, 2), (2000, 0)):
        record = run_here(found, *TINY, *idp, f"recovery.selector.tokens={tokens}")
        counts = list(record["idp"]["selection"]["arc_easy"].values())
        assert counts[place] == sum(counts) > 0
    with pytest.raises(UserError, match="recovery.selector.tokens=0: must be at least 1"):
        run_here(found, *TINY, *idp, "recovery.selector.tokens=0")


def test_the_page_s_recovery(added, run_here):
    found = added("idp.recover", "recovery", "doubled", DOUBLED, DOUBLED_YAML)
    record = run_here(found, *TINY, "recovery=doubled", "recovery.length=3")
    assert record["idp"]["parameters"]["added"] == 2 * record["idp"]["parameters"]["trainable"] == 2 * 3 * 64


def test_the_page_s_bank(added, run_here, monkeypatch):
    from idp.recover.banks import independent

    seen, tune = [], independent.tune

    def watched(loaded, start, text, *rest, **about):
        seen.append({tuple(block.tolist()) for block in text[0]})
        return tune(loaded, start, text, *rest, **about)

    monkeypatch.setattr(independent, "tune", watched)
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

    code = "import sys; from idp import kinds; kinds.register(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
