"""A packed sequence as variable-length attention takes it: which tokens are queries, and which keys they see.

A row is a trunk and branches, one behind the other, and follows a prefix. What its tokens see falls into parts that a
kernel for sequences of different lengths knows: each trunk and branch sees itself (`causal`); all tokens of the rows
behind one prefix see all of it (`behind`); all branches of a row see its whole trunk (`over`).

    keys      prefix | trunk | branch 1 | branch 2
    trunk       all    causal
    branch 1    all     all     causal
    branch 2    all     all                causal
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from idp.prompting.attention.group import PADDING, TRUNK

if TYPE_CHECKING:
    import torch

    from idp.prompting.attention.group import Group


@dataclass(frozen=True)
class Sequences:
    """Queries and keys that belong together, end to end.

    Args:
        queries: [sequences + 1], int32, where the queries of each begin, and where the last ones end.
        keys: likewise of the keys; of each sequence's keys the first `used` count.
        longest_queries: of any sequence.
        longest_keys: see `longest_queries`.
        used: [sequences], int32; None: all keys up to the next sequence's.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    longest_queries: int
    longest_keys: int
    used: torch.Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """What the tokens of a packed sequence see, part by part.

    Args:
        causal: each trunk and each branch, over itself.
        behind: the rows that stand together and follow one prefix, over that; None where there is no prefix.
        alone: tokens at the beginning, of rows whose prefix has no tokens, that are not among the queries of `behind`.
        prefix: [keys], which prefix the keys of `behind` are taken from, and at `place` [keys] in it.
        place: see `prefix`.
        single: the one prefix of all rows and its length; None where there are several, or none.
        over: the branches of each row, over its trunk; None where there are no branches.
        branched: [queries], where the queries of `over` stand in the packed sequence.
    """

    causal: Sequences
    behind: Sequences | None = None
    prefix: torch.Tensor | None = None
    place: torch.Tensor | None = None
    single: tuple[int, int] | None = None
    over: Sequences | None = None
    branched: torch.Tensor | None = None
    alone: int = 0


@dataclass
class Divided:
    """A packed sequence in parts, on whichever devices they are asked for.

    Args:
        parts: on the CPU; None where rows are no trunk with branches behind it, or some that follow no prefix stand
            behind others that do.
        last: the largest position in the packed sequence.
        count: of the sequences of any part at most.
    """

    parts: Parts | None
    last: int
    count: int
    _moved: dict[str, Parts] = field(default_factory=dict)

    def on(self, device: torch.device) -> Parts:
        """`parts`, on a device; copied there once, however many layers ask."""
        if str(device) not in self._moved:
            self._moved[str(device)] = _to(self.parts, device)
        return self._moved[str(device)]


def divide(groups: list[Group]) -> Divided:
    """The parts of a packed sequence, from its groups in order."""
    import torch

    real = [group.branches != PADDING for group in groups]
    kinds = torch.cat([group.branches[mask] for group, mask in zip(groups, real, strict=True)])
    lengths = torch.cat([mask.sum(1) for mask in real])
    last = max((int(group.positions.max()) for group in groups if group.positions.numel()), default=0)
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    begins = torch.ones_like(kinds, dtype=torch.bool)
    begins[1:] = (kinds[1:] != kinds[:-1]) | (row[1:] != row[:-1])
    starts = begins.nonzero()[:, 0]
    segment_row, segment_kind = row[starts], kinds[starts]
    first = torch.ones_like(starts, dtype=torch.bool)
    first[1:] = segment_row[1:] != segment_row[:-1]
    repeated = len((segment_row * (len(kinds) + 1) + segment_kind).unique()) < len(starts)
    followed = _followed(groups)
    if not len(kinds) or repeated or bool((segment_kind == TRUNK)[~first].any()) or followed is None:
        return Divided(None, last, len(starts))
    causal = _sequences(starts, starts, len(kinds), len(kinds))
    before = sum(len(group.positions) for group in groups[: _alone(groups)])
    behind = _behind(followed, lengths[before:])
    parts = Parts(causal, *behind, *_over(kinds, row, lengths), alone=int(lengths[:before].sum()))
    return Divided(parts, last, len(starts))


def _followed(groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The prefix of each row that has one and its length, both [rows]; None where others stand behind such rows."""
    import torch

    groups = groups[_alone(groups) :]
    if not groups:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    followed = [(group.prefix, group.prefix_length) for group in groups if group.prefix is not None]
    if len(followed) < len(groups) or not all(length for _, length in followed):
        return None
    sizes = [torch.full((len(prefix),), length) for prefix, length in followed]
    return torch.cat([prefix for prefix, _ in followed]), torch.cat(sizes)


def _alone(groups: list[Group]) -> int:
    """How many groups at the beginning follow nothing: rows are packed by the lengths of their prefixes."""
    return next((n for n, group in enumerate(groups) if group.prefix is not None and group.prefix_length), len(groups))


def _behind(
    followed: tuple[torch.Tensor, torch.Tensor], lengths: torch.Tensor
) -> tuple[Sequences | None, torch.Tensor | None, torch.Tensor | None, tuple[int, int] | None]:
    """`Parts.behind` to `single`: one sequence for all rows that stand together behind one prefix."""
    import torch

    prefix, sizes = followed
    if not len(prefix):
        return None, None, None, None
    changes = torch.ones_like(prefix, dtype=torch.bool)
    changes[1:] = prefix[1:] != prefix[:-1]
    runs = changes.nonzero()[:, 0]
    starts = (lengths.cumsum(0) - lengths)[runs]
    which, keys = prefix[runs], sizes[runs]
    begin = keys.cumsum(0) - keys
    total = int(keys.sum())
    place = torch.arange(total) - torch.repeat_interleave(begin, keys)
    sequences = _sequences(starts, begin, int(lengths.sum()), total)
    single = (int(which[0]), total) if len(runs) == 1 else None
    return sequences, torch.repeat_interleave(which, keys), place, single


def _over(
    kinds: torch.Tensor, row: torch.Tensor, lengths: torch.Tensor
) -> tuple[Sequences | None, torch.Tensor | None]:
    """`Parts.over` and `branched`: one sequence for the branches of each row that has a trunk."""
    import torch

    trunks = torch.zeros_like(lengths).index_add_(0, row, (kinds == TRUNK).long())
    branched = ((kinds != TRUNK) & (trunks[row] > 0)).nonzero()[:, 0]
    if not len(branched):
        return None, None
    counts = torch.zeros_like(lengths).index_add_(0, row[branched], torch.ones_like(branched))
    rows = counts.nonzero()[:, 0]
    begin = counts[rows].cumsum(0) - counts[rows]
    starts = (lengths.cumsum(0) - lengths)[rows]
    made = _sequences(begin, starts, len(branched), len(kinds))
    used = trunks[rows]
    return replace(made, used=used.int(), longest_keys=int(used.max())), branched


def _sequences(queries: torch.Tensor, keys: torch.Tensor, query_count: int, key_count: int) -> Sequences:
    """Sequences that begin at `queries` and `keys`, both [sequences], of so many altogether."""
    import torch

    ends = [torch.cat([starts, starts.new_tensor([n])]) for starts, n in ((queries, query_count), (keys, key_count))]
    return Sequences(*(end.int() for end in ends), *(int(end.diff().max()) for end in ends))


def _to(node: Any, device: torch.device) -> Any:
    """The tensors of a dataclass on a device."""
    import torch

    moved = {}
    for name in (entry.name for entry in fields(node)):
        value = getattr(node, name)
        if isinstance(value, torch.Tensor):
            moved[name] = value.to(device)
        elif isinstance(value, Sequences):
            moved[name] = _to(value, device)
    return replace(node, **moved)
