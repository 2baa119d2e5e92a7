"""A new recovery, bank or selector is one file and one YAML, and everything else finds it."""

import importlib

import pytest

from idp import kinds
from idp.errors import UserError

TINY = ("model=tiny_llama", "budget=smoke", "tracker=none", "task=arc_easy", "baselines=false", "compressor=rtn3")

LAST = '''
from dataclasses import dataclass

from idp import config
from idp.config import option
from idp.prompting.selectors.fixed import Fixed


@dataclass
class LastSelector(config.Selector):
    back: int = option("prompts to count from the end", minimum=0)

    def build(self):
        return Last(self.back)


class Last(Fixed):
    """The last prompt, or one a few before it."""

    def bind(self, model, prefixes):
        self.prompt = len(prefixes.lengths) - 1 - self.prompt
        super().bind(model, prefixes)
'''
TWICE = """
from dataclasses import dataclass

from idp.prompting.bank import PromptBank
from idp.recover.prompt import PromptTuning
from idp.recover.work import Made


@dataclass
class Twice(PromptTuning):
    def prompt_lengths(self, tokenizer=None):
        return [2 * self.length]

    def make(self, work):
        made = super().make(work)
        (prompt,) = made.bank.prompts
        bank = PromptBank([prompt.repeat(2, 1)], ["twice"])
        return Made(bank, made.trainable, histories=made.histories)
"""


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


def test_a_selector(added, run_here):
    yaml = "defaults:\n  - /schema/selector/last@_here_\n  - _self_\nkind: last\nback: 1\n"
    found = added("idp.prompting.selectors", "recovery/selector", "last", LAST, yaml)
    idp = ("recovery=idp", "recovery.lengths=[2,3,4]", "recovery.controls=false")
    record = run_here(found, *TINY, *idp, "recovery/selector=last")
    first, second, third = record["idp"]["selection"]["arc_easy"].values()
    assert first == third == 0 and second > 0


def test_a_recovery(added, run_here):
    yaml = "defaults:\n  - prompt@_here_\n  - /schema/recovery/twice@_here_\n  - _self_\nkind: twice\nlength: 3\n"
    found = added("idp.recover", "recovery", "twice", TWICE, yaml)
    record = run_here(found, *TINY, "recovery=twice")
    assert record["idp"]["parameters"]["added"] == 2 * record["idp"]["parameters"]["trainable"] == 2 * 3 * 64


def test_a_kind_that_is_not_its_options_is_refused(compose):
    with pytest.raises(UserError, match="recovery.selector.kind=random: .* say recovery/selector=random"):
        compose("recovery=idp", "recovery.selector.kind=random")


def test_kinds_are_found_without_the_heavy_libraries():
    import subprocess
    import sys

    code = "import sys; from idp import kinds; kinds.register(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
