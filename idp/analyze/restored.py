"""The claim that compression displaces knowledge rather than losing it, judged by a second dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idp.analyze import fate
from idp.analyze.cells import dense_of, of_the_input, pair, repairs, unrepaired_of
from idp.analyze.compare import p_value
from idp.analyze.displaced import COMMAND, Fate, fate_of
from idp.analyze.evidence import UNDECIDED, Claim, Evidence
from idp.analyze.papers import HOANG, document_count, need
from idp.analyze.second import Second, second_dense
from idp.records.cell import Cell
from idp.records.collect import Collection
from idp.stats.significance import LEVEL, Interval, paired_interval, unseen


def displaced_not_forgotten(cells: Sequence[Cell], margin: float, collection: Collection) -> Claim:
    """Judged by `fate.controlled` where a second dense model was measured; without one it is never supported.

    Args:
        cells: of one setting.
        margin: as of `idp.analyze.claims.check`.
        collection: all that was read: the second model has a setting of its own.
    """
    claim = Claim(
        "Knowledge is displaced rather than forgotten",
        "Compression displaces knowledge: a prompt, which changes no weight, brings it back.",
        HOANG,
        "A repair that brings back what the dense model knew gains where dense was right and a second dense model of"
        " like accuracy was wrong, more than where the second was right and dense wrong; one that helps easy documents,"
        " or all alike, gains on both. Figure: the difference of these gains. p: of more than half of the first gain"
        " being dense's own (the first minus twice the second), or of the gain on all that dense had right, whichever"
        " is larger. Repairs of the input alone. Without a second model the figure is the gain where dense was right,"
        " which decides nothing for the claim: impostors have it as well. Not supported where the second gain is more"
        f" than half of the first, or the interval leaves no room for {100 * margin:g} point where dense was right, and"
        " none on all documents either, or the gain is elsewhere; undecided where compression took nothing measurable."
        " In the note: the control; the share of broken documents brought back; and what the same repair breaks on the"
        " dense model (about as much is lost to any change, since some of what dense has right is luck).",
    )
    lacking = False
    for cell in of_the_input(cells):
        dense, compressed = dense_of(cells, cell), unrepaired_of(cells, cell)
        if dense is None or compressed is None or dense is compressed:
            continue
        second = second_dense(collection, dense.first)
        found = fate_of(dense, compressed, cell, second, sure=second is not None and second.alike)
        if found is None or fate.SPECIFIC not in found.shares:
            continue
        whole = pair(compressed, cell)[0]
        effect = Effect(
            lost=paired_interval(pair(dense, compressed)[0]),
            whole=paired_interval(whole),
            shares=found.shares,
            control=found.control,
            documents=document_count(whole),
        )
        parts = [
            _held_against(found, second),
            _fates(found),
            f"all documents {100 * effect.whole.difference:+.1f} points",
            _breaks_dense(cells, dense, cell),
            "" if effect.damaged else "compression took nothing measurable",
        ]
        claim.evidence.append(judge(effect, margin, cell.name, "; ".join(part for part in parts if part)))
        lacking |= not effect.controlled and claim.evidence[-1].verdict == UNDECIDED
    if not claim.evidence:
        claim.needs.append(need("dense, compressed and prompted models", "nine_tasks"))
    elif lacking:
        claim.needs.append(f"a second dense model of like accuracy on the same documents: `{COMMAND}`")
    return claim


@dataclass(frozen=True)
class Effect:
    """What a repair did: `lost` is compressed minus dense, `whole` repaired minus compressed, over all documents."""

    lost: Interval
    whole: Interval
    shares: dict[str, Interval]  # as of `fate.fates`
    control: dict[str, Interval]  # as of `fate.controlled`
    documents: int

    @property
    def damaged(self) -> bool:
        """Whether compression took anything measurable."""
        return self.lost.high < 0

    @property
    def controlled(self) -> bool:
        """Whether there is a second dense model to hold it against."""
        return fate.OWN in self.control


def judge(effect: Effect, margin: float, what: str, note: str = "") -> Evidence:
    """The evidence of one repair.

    Args:
        effect: what it did.
        margin: the least gain where dense was right that is worth the name.
        what: is judged.
        note: more of it.
    """
    known, whole = effect.shares[fate.KNOWN], effect.whole
    none_known = known.high < margin and unseen(margin, effect.documents) < LEVEL
    nothing = none_known and (whole.high < margin or whole.low > 0)
    if not effect.controlled:
        refuted = effect.damaged and nothing
        return Evidence(what, known.difference, known.low, known.high, "points", refuted=refuted, note=note)
    beyond_shared, control = effect.control[fate.OWN], effect.control[fate.CONTROL]
    tested = max(known, beyond_shared, key=lambda found: found.p)
    return Evidence(
        what,
        control.difference,
        control.low,
        control.high,
        "points",
        p=tested.p,
        detectable=tested.detectable,
        documents_to_decide=tested.documents_to_decide,
        holds=effect.damaged and known.difference > 0 and beyond_shared.difference > 0,
        refuted=effect.damaged and (nothing or beyond_shared.high < 0),
        note=note,
    )


def _held_against(found: Fate, second: Second | None) -> str:
    """The control in a phrase: which model, and the two gains; without one what the gains alone say."""
    if fate.OWN in found.control and second is not None:
        gains = [f"{100 * found.control[name].difference:+.1f}" for name in (fate.ALONE, fate.OTHERS)]
        graded = found.graded_control.get(fate.CONTROL)
        sure = f"; in probability {_points(graded)}" if graded is not None else ""
        return f"against {second.summary}: {gains[0]} where dense alone was right, {gains[1]} where it alone was{sure}"
    known, specific = found.shares[fate.KNOWN], found.shares[fate.SPECIFIC]
    p = max(known.p, specific.p)
    where = ""
    if known.difference > 0 and specific.difference > 0 and p < LEVEL:
        where = f"gains lie where dense was right (p {_equals(p)}); "
    if second is None:
        return f"{where}no second dense model to hold it against"
    if not second.alike:
        return f"{where}{second.summary}: too far off to be a control"
    return f"{where}{second.summary}: no documents that one of the two alone has right"


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _points(found: Interval) -> str:
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _fates(found: Fate) -> str:
    names = [name for name in (fate.RESTORED, fate.LEARNED, fate.BROKEN) if name in found.shares]
    return "; ".join(f"{name.replace('_', ' ')} {100 * found.shares[name].difference:.0f} %" for name in names)


def _breaks_dense(cells: Sequence[Cell], dense: Cell, repaired: Cell) -> str:
    """Of the documents that dense has right, the share that the same repair of the dense model has wrong."""
    same = [cell for cell in repairs(cells) if cell.first.compressor == "none" and cell.recovery == repaired.recovery]
    scores = pair(dense, same[0])[0] if same else {}
    right = np.mean([before[0].mean() for before, _ in scores.values()]) if scores else 0
    if not right:
        return ""
    kept = np.mean([(before[0] * after).mean() for before, after in scores.values()])
    return f"on dense it breaks {100 * (1 - kept / right):.0f} % of the known"
