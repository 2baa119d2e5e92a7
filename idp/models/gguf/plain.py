"""Encoding written out plainly, from a GGUF file's own pieces: what the tokenizer that is used is held to.

By the rules of llama.cpp (src/llama-vocab.cpp): tokens that stand in the text first; then SentencePiece merges the two
neighbours whose joined piece scores best, and byte-level BPE those whose pair ranks first, in each split of the text.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterator

from idp.models.gguf.tokenizer import CONTROL, SENTENCEPIECE, SPACE, UNKNOWN, USER_DEFINED, Vocabulary


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    """The ids of a text, without what is added at its ends."""
    ids: list[int] = []
    for part in _partition(vocabulary, text):
        if isinstance(part, int):
            ids.append(part)
        elif vocabulary.kind == SENTENCEPIECE:
            ids.extend(_sentencepiece(vocabulary, part))
        else:
            ids.extend(_byte_level(vocabulary, part))
    return ids


def _partition(vocabulary: Vocabulary, text: str) -> list[str | int]:
    """The text with the tokens that stand in it cut out, the longest first."""
    special = (
        piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.types, strict=True)
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and piece in text
    )
    parts: list[str | int] = [text] if text else []
    for piece in sorted(special, key=len, reverse=True):
        cut: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
                continue
            first, *rest = part.split(piece)
            cut += [first] if first else []
            for after in rest:
                cut += [vocabulary.ids[piece], *([after] if after else [])]
        parts = cut
    return parts


def _sentencepiece(vocabulary: Vocabulary, text: str) -> Iterator[int]:
    text = (SPACE if vocabulary.space_prefix else "") + text.replace(" ", SPACE)

    def score(left: str, right: str) -> float | None:
        number = vocabulary.ids.get(left + right)
        return None if number is None else -vocabulary.scores[number]

    number = vocabulary.special("unknown")
    unknown_id = -1 if number is None else number  # the id of no token
    unknown = False  # a run of what is not known is one token
    for piece in _merged(list(text), score):
        of_bytes = [vocabulary.byte_ids[byte] for byte in piece.encode()]
        known = [vocabulary.ids[piece]] if piece in vocabulary.ids else [each for each in of_bytes if each is not None]
        complete = piece in vocabulary.ids or len(known) == len(of_bytes)
        if complete:
            yield from known
        elif not unknown:
            yield unknown_id
        unknown = not complete


def _byte_level(vocabulary: Vocabulary, text: str) -> Iterator[int]:
    ranks, letters = _ranks(vocabulary), _letters()
    for word in _splits(text, vocabulary.pre.patterns):
        spelled = "".join(letters[byte] for byte in word.encode())
        if vocabulary.pre.whole_words and spelled in vocabulary.ids:
            yield vocabulary.ids[spelled]
        else:
            pieces = _merged(list(spelled), lambda left, right: ranks.get((left, right)))
            yield from (vocabulary.ids[piece] for piece in pieces)


@functools.lru_cache(maxsize=1)
def _ranks(vocabulary: Vocabulary) -> dict[tuple[str, str], int]:
    return {pair: number for number, pair in reversed(list(enumerate(vocabulary.merges)))}


@functools.cache
def _letters() -> list[str]:
    """The letter that GPT-2 writes for each byte: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _splits(text: str, patterns: tuple[str, ...]) -> list[str]:
    """The text cut at the matches of each expression in turn."""
    import regex

    pieces = [text]
    for pattern in patterns:
        cut = []
        for piece in pieces:
            place = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[place : match.start()], match.group()]
                place = match.end()
            cut.append(piece[place:])
        pieces = [piece for piece in cut if piece]
    return pieces


def _merged(pieces: list[str], cost: Callable[[str, str], float | None]) -> list[str]:
    """The pieces after all merges: always the neighbours of least cost, the leftmost of equals."""
    after = list(range(1, len(pieces) + 1))
    before = list(range(-1, len(pieces) - 1))
    waiting: list[tuple[float, int, int, str, str]] = []

    def consider(left: int, right: int) -> None:
        if left >= 0 and right < len(pieces):
            worth = cost(pieces[left], pieces[right])
            if worth is not None:
                heapq.heappush(waiting, (worth, left, right, pieces[left], pieces[right]))

    for left in range(len(pieces) - 1):
        consider(left, left + 1)
    while waiting:
        _, left, right, first, second = heapq.heappop(waiting)
        if pieces[left] != first or pieces[right] != second or after[left] != right:
            continue  # one of them was merged since
        pieces[left], pieces[right] = first + second, ""
        after[left] = after[right]
        if after[left] < len(pieces):
            before[after[left]] = left
        consider(before[left], left)
        consider(left, after[left])
    return [piece for piece in pieces if piece]
