"""Every `idp.run` command that an experiment's page or a YAML prints is composed, with all of its overrides.

Those of README and docs run: tests/test_readme.py.
"""

import re
import shlex
from pathlib import Path

import pytest

from idp.composed import Composer, _cells, configs, without_flags
from idp.grid import Fits
from idp.usage import explain

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / "experiments").rglob("*.md"), *(ROOT / "conf").rglob("*.yaml")]
COMMAND = re.compile(r"^[#\s]*(?:python -m idp\.|idp )(?:run|plan|fetch) (.*)$")
SWEEPS = {"-m", "--multirun"}
DRAWN = ("interval(", "tag(", "hydra/sweeper=optuna", "optuna=")  # whose cells a search makes
ELSEWHERE = ("--config-dir", "plugins=", "glob(")  # YAMLs of the reader's own


def commands(page):
    """Its commands, each as words; what stands in brackets for something of the reader's is a name."""
    found = []
    for line in re.sub(r"\\\n[#\s]*", " ", page.read_text()).splitlines():
        if (match := COMMAND.match(line.split("   (")[0])) is None or "..." in match[1]:
            continue
        words = shlex.split(re.sub(r"<[^>]*>", "name", match[1]), comments=True)
        words = [word for word in words if word not in ("--plan", "-h", "--help")]
        if not any(mark in word for word in words for mark in ELSEWHERE):
            found.append(words)
    return found


def telling(cells):
    """Of a sweep's cells those that have a word which none before them has."""
    known, found = set(), []
    for cell in cells:
        if not known.issuperset(cell):
            known |= set(cell)
            found.append(cell)
    return found


WITH_COMMANDS = [page for page in sorted(PAGES) if commands(page)]


@pytest.fixture(scope="module", autouse=True)
def composed_once():
    """Commands share most of their YAMLs, and half a second goes into each combination of them."""
    composer, known = Composer(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("idp.composed.Composer", lambda: composer)
        patch.setattr(Fits, "_known", known, raising=False)
        patch.setattr(Fits, "__init__", lambda self, loader, path=(): vars(self).update(loader=loader, path=list(path)))
        yield


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_commands_are_composed(page):
    for words in commands(page):
        sweep = bool(SWEEPS & set(words))
        given = [word for word in without_flags(words) if word not in SWEEPS]
        drawn = any(mark in word for word in given for mark in DRAWN)
        given = [word for word in given if not word.startswith(("hydra/", "hydra."))]
        given = [word for word in given if not (drawn and any(mark in word for mark in DRAWN))]
        try:
            for cell in telling(list(_cells(given))) if sweep else [given]:
                assert list(configs(cell, ahead=True))
        except Exception as error:
            pytest.fail(f"{' '.join(words)}: {explain(error)}")


def test_there_are_many():
    assert sum(len(commands(page)) for page in WITH_COMMANDS) > 60
