"""What a claim is judged by: comparisons with their figures, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from idp.stats.significance import LEVEL, Interval, holm, unseen

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"


@dataclass
class Evidence:
    """One comparison.

    `p` is that of the hypothesis which the claim denies, so that a small one speaks for the claim; None where the
    figure is exact or has no test, and then `holds` says whether the claim does. `refuted` says whether the interval
    leaves no room for what is claimed. `detectable` and `documents_to_decide` are those of the difference, where it is
    one (`idp.stats.significance.comparison`): before p is adjusted.
    """

    what: str
    value: float
    low: float | None
    high: float | None
    unit: str  # points, share, ratio: how the figure is shown
    p: float | None = None
    holds: bool | None = None  # without a test: whether the figure is as claimed; with one: whether it points that way
    refuted: bool = False
    note: str = ""
    p_adjusted: float | None = None
    detectable: float | None = None
    documents_to_decide: int | None = None

    @property
    def verdict(self) -> str:
        """What this comparison says of the claim."""
        if self.p is None:
            return SUPPORTED if self.holds else NOT_SUPPORTED if self.refuted else UNDECIDED
        adjusted = self.p if self.p_adjusted is None else self.p_adjusted
        if self.holds is not False and adjusted < LEVEL:
            return SUPPORTED
        return NOT_SUPPORTED if self.refuted else UNDECIDED


@dataclass
class Claim:
    """A claim of a paper, and what was found."""

    title: str
    says: str
    source: str
    test: str
    evidence: list[Evidence] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)  # what is missing, each with the command that makes it
    note: str = ""

    @property
    def verdict(self) -> str:
        """What half of the comparisons or more say, if none of the others says the opposite."""
        verdicts = [evidence.verdict for evidence in self.evidence]
        for verdict, opposite in ((SUPPORTED, NOT_SUPPORTED), (NOT_SUPPORTED, SUPPORTED)):
            if verdict in verdicts and opposite not in verdicts and 2 * verdicts.count(verdict) >= len(verdicts):
                return verdict
        return UNDECIDED

    @property
    def tally(self) -> str:
        """How many of the comparisons say what."""
        verdicts = [evidence.verdict for evidence in self.evidence]
        if not verdicts:
            return "no such runs"
        kinds = (SUPPORTED, NOT_SUPPORTED, UNDECIDED)
        return ", ".join(f"{count} {kind}" for kind in kinds if (count := verdicts.count(kind)))


def difference(what: str, found: Interval, margin: float, documents: int, note: str = "") -> Evidence:
    """Evidence for a claim that something is better: refuted where it is worse, or better by less than the margin.

    Args:
        what: was compared.
        found: the difference.
        margin: see above.
        documents: that were compared; too few refute nothing.
        note: more of it.
    """
    return Evidence(
        what,
        found.difference,
        found.low,
        found.high,
        "points",
        p=found.p,
        holds=found.difference > 0,
        refuted=found.high < margin and unseen(margin, documents) < LEVEL,
        note=note,
        detectable=found.detectable,
        documents_to_decide=found.documents_to_decide,
    )


def adjust(claims: Sequence[Claim]) -> None:
    """Adjusts the p-values of all claims together (Holm)."""
    tested = [(each, each.p) for claim in claims for each in claim.evidence if each.p is not None]
    for (evidence, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
        evidence.p_adjusted = adjusted
