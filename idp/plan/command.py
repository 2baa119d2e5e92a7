"""The plan of a run, or of a sweep, as a table: `python -m idp.run ... --plan`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idp.command import failures_in_one_line
from idp.config import Config
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.plan.preflight import Plan
    from idp.plan.steps import Step
    from idp.plan.workload import Workload

FLAG, SWEEP = "--plan", ("-m", "--multirun")
HELP = """What a run would make or reuse, with seconds, memory and disk, before anything is computed.

  python -m idp.run compressor=gptq4 recovery=idp --plan
  python -m idp.run -m compressor=gptq4,awq4 recovery=prompt,lora --plan

The overrides are those of idp run; with -m, of a sweep, whose runs are added up; what they share counts once."""
MADE, REUSED, SHARED = "made", "reused", "shared"
GB = 1e9
SHOWN = 12  # characters of a key


@dataclass
class PlanLine:
    """A product in a plan: what becomes of it, and what that takes."""

    stage: str
    label: str
    key: str  # "" where it is not known yet
    state: str  # made, reused, shared (made by an earlier run of the sweep)
    seconds: float = 0.0
    host: float = 0.0  # bytes
    device: float = 0.0
    disk: float = 0.0


@dataclass
class PlannedRun:
    """A run of a plan, or why it is refused."""

    name: str
    entries: list[PlanLine] = field(default_factory=list)
    refusal: str = ""
    speed: str = ""

    def total(self, what: str) -> float:
        """Seconds or disk of all that is made."""
        return sum(getattr(entry, what) for entry in self.entries)

    def most(self, what: str) -> float:
        """The most memory of all that is made."""
        return max((getattr(entry, what) for entry in self.entries), default=0.0)

    def count(self, state: str) -> int:
        """How many products become that."""
        return sum(entry.state == state for entry in self.entries)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    from idp.usage import explain

    arguments = [word for word in (sys.argv[1:] if argv is None else argv) if word != FLAG]
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    sweep = bool(set(SWEEP) & set(arguments))
    with failures_in_one_line(explain=explain, also="nothing was computed"):
        from idp.composed import configs, without_flags

        given = without_flags([word for word in arguments if word not in SWEEP])
        if strange := [word for word in given if word.startswith("-")]:
            raise UserError(f"{strange[0]}: a plan takes overrides of idp.run, and -m for a sweep")
        found = list(cells(configs(given, sweep), sweep))
        print(sweep_text(found) if sweep else run_text(found[0]), flush=True)
        if refused := [cell for cell in found if cell.refusal]:
            raise UserError(f"{len(refused)} of {len(found)} runs are refused; the first: {refused[0].refusal}")


def cells(configs: Iterator[Config], sweep: bool = True) -> Iterator[PlannedRun]:
    """The plans of several runs in their order; what an earlier one makes is shared by the later ones.

    Args:
        configs: the runs'.
        sweep: whether one that is refused is said, and not raised.

    Raises:
        UserError: a run is refused, and it is the only one.
    """
    from idp.plan.inputs import Known
    from idp.plan.preflight import preflight
    from idp.recording import run_id_and_folder

    known = Known()
    made: set[Any] = set()
    done: set[Any] = set()
    for config in configs:
        name = run_id_and_folder(config)[1].name
        try:
            plan = preflight(config, known)
            cell = PlannedRun(name, speed=plan.speed.origin)
            for step in plan.steps:
                cell.entries.append(_entry(plan, step, made, done))
            yield cell
        except UserError as error:
            if not sweep:
                raise
            yield PlannedRun(name, refusal=str(error))


def _entry(plan: Plan, step: Step, made: set[str], done: set[tuple[str, str]]) -> PlanLine:
    """What a step comes to beside those before it, of which `made` has the keys and `done` the works."""
    from idp.plan.estimate import seconds_of

    key = step.key or ""
    if step.reused:
        return PlanLine(step.stage, step.label, key, REUSED)
    if key in made:
        return PlanLine(step.stage, step.label, key, SHARED)
    made |= {key} - {""}
    new: list[Workload] = []
    for work in step.works:
        if (work.what, work.key) not in done:
            done.add((work.what, work.key))
            new.append(work)
    host, device = plan.memory(step)
    state = MADE if not step.after else f"{MADE}, key known after {step.after}"
    return PlanLine(
        step.stage, step.label, key, state, seconds_of(new, plan.speed, plan.size), host, device, plan.disk(step)
    )


def run_text(cell: PlannedRun) -> str:
    """The plan of one run as Markdown: each product, and their sum."""
    rows = [
        [entry.stage, entry.label, entry.key[:SHOWN] or "-", entry.state, *_numbers(entry)] for entry in cell.entries
    ]
    rows.append(["all", f"{cell.count(REUSED)} of {len(cell.entries)} reused", "", "", *_sums([cell])])
    headers = ["stage", "product", "key", "is", "seconds", "memory, GB", "card, GB", "disk, GB"]
    return "\n\n".join([f"plan of {cell.name}", _table(rows, headers), _notes(cell.speed)])


def sweep_text(found: list[PlannedRun]) -> str:
    """The plan of a sweep as Markdown: each run, and their sum."""
    rows: list[list[Any]] = []
    for cell in found:
        if cell.refusal:
            rows.append([cell.name, "refused", "", "", "", "", "", ""])
            continue
        made = len(cell.entries) - cell.count(REUSED) - cell.count(SHARED)
        rows.append([cell.name, made, cell.count(SHARED), cell.count(REUSED), *_sums([cell])])
    counts = [sum(row[column] or 0 for row in rows if row[1] != "refused") for column in (1, 2, 3)]
    rows.append([f"all {len(found)} runs", *counts, *_sums(found)])
    headers = ["run", MADE, SHARED, REUSED, "seconds", "memory, GB", "card, GB", "disk, GB"]
    note = f"{SHARED}: made by a run above, and counted there"
    speed = next((cell.speed for cell in found if cell.speed), "")
    refused = [f"refused: {cell.name}: {cell.refusal}" for cell in found if cell.refusal]
    return "\n\n".join(filter(None, [_table(rows, headers), "\n".join(refused), f"{note}\n{_notes(speed)}"]))


def _sums(found: list[PlannedRun]) -> list[str]:
    seconds, disk = (sum(cell.total(what) for cell in found) for what in ("seconds", "disk"))
    host, device = (max((cell.most(what) for cell in found), default=0.0) for what in ("host", "device"))
    return _shown(seconds, host, device, disk)


def _numbers(entry: PlanLine) -> list[str]:
    if entry.state in (REUSED, SHARED):
        return ["", "", "", ""]
    return _shown(entry.seconds, entry.host, entry.device, entry.disk)


def _shown(seconds: float, host: float, device: float, disk: float) -> list[str]:
    return [
        f"{seconds:,.0f}" if seconds >= 1 or not seconds else "<1",
        f"{host / GB:.1f}" if host else "-",
        f"{device / GB:.1f}" if device else "-",
        f"{disk / GB:,.3f}" if disk >= 1e6 or not disk else "<0.001",
    ]


def _table(rows: list[list], headers: list[str]) -> str:
    from tabulate import tabulate

    right = ("left", "left", "left", "left", "right", "right", "right", "right")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=right)


def _notes(speed: str) -> str:
    return f"speed: {speed}. Not counted: imports, reading documents, a choice's own layer. Nothing was computed."


if __name__ == "__main__":
    main()
