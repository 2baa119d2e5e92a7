"""What people do to finished work: they move and copy it, edit a config, come back after a reboot, read it from a disk
that cannot be written, share it, and leave odd files in it. Each case is done to a copy of one finished sweep.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idp.records.record import RECORD, comparable
from idp.status import STATUS
from tests.faults.runs import Fault, track, write_text
from tests.processes import python

SWEEP = (
    "model=tiny_llama",
    "compressor=rtn3",
    "recovery=mine",
    "task=arc_easy",
    "budget=smoke",
    "corpus=local",
    "corpus.name=bridges",
    "evaluation.perplexity=[]",
    "baselines=true",
    "tracker=none",
    "seed=0,1",
)
RECOVERY = "defaults: [prompt]\nlength: {length}\n"
OTHER, GROUP = 65534, 65533  # another user, and a group that a shared store belongs to
DROPPED = 0b1111  # linux/capability.h: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER


class Unavailable(Exception):
    """This machine does not let the case be tried."""


@dataclass
class Figures:
    """Cases by what was done, and those that this machine does not allow."""

    cases: Counter = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[list[object]]:
        """For a table."""
        rows = [[kind, count] for kind, count in self.cases.items()]
        return [*rows, ["**all**", sum(self.cases.values())]]


class Place:
    """A project's folder: a corpus, a recovery of its own in `conf`, and what a sweep of two seeds made of them.

    Args:
        folder: where it is now.
        output: the sweep's output, in it.
    """

    def __init__(self, folder: Path, output: str = "outputs"):
        self.folder, self.output = folder, folder / output

    def write(self) -> None:
        """The files that a user has before any run."""
        write_text(self.folder / "text.txt")
        (self.folder / "conf" / "recovery").mkdir(parents=True)
        self.recovery(3)

    def recovery(self, length: int) -> None:
        (self.folder / "conf" / "recovery" / "mine.yaml").write_text(RECOVERY.format(length=length))

    def sweep(self, *words: str, code: int = 0) -> str:
        """The sweep's command; what it said."""
        given = ["--config-dir=conf", "-m", *SWEEP, "corpus.path=text.txt", f"output={self.output.name}", *words]
        return self.idp("run", *given, code=code)

    def idp(self, module: str, *words: str, code: int = 0, stranger: bool = False) -> str:
        """A command, given in the project's folder.

        Raises:
            Fault: it ends with another status, or in a traceback.
        """
        done = python(*_as(stranger, f"idp.{module}", words), cwd=self.folder)
        said = done.stdout + done.stderr
        if done.returncode != code or "Traceback" in said:
            raise Fault(f"idp.{module} {' '.join(words)}: exit status {done.returncode}\n{said[-3000:]}")
        return said

    @property
    def list(self) -> Path:
        """The sweep's folder."""
        (found,) = self.output.glob("sweeps/*/sweep.json")
        return found.parent

    @property
    def runs(self) -> list[Path]:
        return sorted(file.parent for file in self.output.glob(f"runs/*/{STATUS}"))

    @property
    def first(self) -> Path:
        """The folder of the sweep's first run."""
        return self._of_cell(0)

    @property
    def second(self) -> Path:
        """The folder of the sweep's last run, whether or not it is there."""
        return self._of_cell(-1)

    def _of_cell(self, number: int) -> Path:
        cells = json.loads((self.list / "sweep.json").read_text())["cells"]
        return (self.list / cells[number]["folder"]).resolve()

    def states(self, stranger: bool = False) -> list[str]:
        """Where the cells stand."""
        done = python(*_as(stranger, "idp.sweep", ("status", str(self.list), "--json")), cwd=self.folder)
        if done.returncode:
            raise Fault(f"status: {done.stdout}{done.stderr}")
        return sorted(cell["state"] for cell in json.loads(done.stdout))

    def wants(self, *states: str) -> None:
        """Raises Fault where the cells do not stand so."""
        if (found := self.states()) != sorted(states):
            raise Fault(f"the cells are {found}, not {sorted(states)}")

    def records(self) -> list[Any]:
        """What was found, by the runs' names: places and times aside."""
        found = []
        for run in self.runs:
            record = comparable(json.loads((run / RECORD).read_text()))
            found.append({"results": record["results"], "accuracy": record["idp"]["parameters"]})
        return found

    def files(self) -> dict[str, int]:
        """All that is in the output, and when it was changed last."""
        found = (path for path in sorted(self.output.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.output)): path.stat().st_mtime_ns for path in found}

    def products(self) -> dict[str, int]:
        return {name: when for name, when in self.files().items() if name.endswith("manifest.json")}


def _as(stranger: bool, module: str, words: tuple[str, ...]) -> list[str]:
    """A command's words; `stranger`: of a process that may not do more with files of others than their mode says."""
    if not stranger:
        return ["-m", module, *words]
    run = f"import runpy, sys; sys.argv[0] = {module!r}; runpy.run_module({module!r}, run_name='__main__')"
    return ["-c", f"from tests.faults.people import be_a_stranger; be_a_stranger(); {run}", *words]


def be_a_stranger() -> None:
    """Takes from root what lets it read and write files of others whatever their mode."""
    library = ctypes.CDLL(None, use_errno=True)
    os.setgroups([GROUP])
    os.umask(0o002)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if library.capget(header, sets) == 0:
        for number in range(3):  # effective, permitted, inheritable
            sets[number] &= ~DROPPED
        if library.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def check(folder: Path, count: int | None, seed: int) -> Figures:
    """Does all of it.

    Args:
        folder: where the sweeps are made.
        count: cases to try, evenly spaced; None: all.
        seed: of no use here: the cases are all that there are.

    Raises:
        Fault: something was lost, repeated, taken from elsewhere, or not said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    whole = Place(folder / "whole")
    whole.write()
    whole.sweep()
    whole.wants("done", "done")
    from tests.faults.people_cases import CASES

    cases = list(CASES)
    if count is not None:
        cases = [cases[number * len(cases) // count] for number in range(min(count, len(cases)))]
    figures = Figures()
    for kind, case in track(cases, "cases"):
        name = f"{kind}: {case.__doc__ or case.__name__}".strip()
        place = Place(folder / "project")
        shutil.copytree(whole.folder, place.folder, symlinks=True)
        _belong(place)
        try:
            case(place, whole)
            figures.cases[kind] += 1
        except Unavailable as why:
            figures.skipped[name] = str(why)
        except Fault as fault:
            raise Fault(f"{name}: {fault}") from fault
        finally:
            for left in folder.iterdir():
                if left.name != "whole":
                    shutil.rmtree(left)
    return figures


def _belong(place: Place) -> None:
    """Makes a copy look as though all of it had been made there."""
    file = place.list / "sweep.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"place": str(place.list)}))
    for run in place.runs:
        said = json.loads((run / STATUS).read_text())
        (run / STATUS).write_text(json.dumps(said | {"folder": str(run)}))
