"""Every `idp.run` command that a page, a YAML or an experiment prints is composed, with all of its overrides."""

import re
import shlex
from pathlib import Path

import pytest

from idp.composed import Composer, configs, without_flags
from idp.sweep.grid import Fits
from idp.usage import explain

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "experiments").rglob("*.md"),
]
PAGES += (ROOT / "conf").rglob("*.yaml")
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
            assert list(configs(given, sweep=sweep, ahead=True))
        except Exception as error:
            pytest.fail(f"{' '.join(words)}: {explain(error)}")


def test_there_are_many():
    assert sum(len(commands(page)) for page in WITH_COMMANDS) > 100
