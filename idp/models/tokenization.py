"""The guard of tokenizers: what a run would encode with is held to its saved copy and, where there is one, its file.

A tokenizer that cuts text wrongly raises nothing: the model reads letters, the loss doubles, and every number of the
run is wrong. So a page of text is encoded once for every model and version of the libraries, before anything is
computed.
"""

# ruff: noqa: RUF001 (the page has marks of many scripts)
from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import hub
from idp.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
PROSE = (
    "The bridge over the river was built of stone in 1847, and repaired twice since. It isn't wide: two carts can't"
    " pass each other, so the one that comes down the hill waits. People who live nearby don't mind; they've known it"
    " all their lives, and they'll tell you that the old mason's name was never written down anywhere.\n\n"
)
PAGE = (
    PROSE
    + "def area(width: float, height=2.5):\n    # half of it\n\tif width >= 10_000:\n        return [width / 2]\n"
    + "Prices: $1,234.50 (-7%), 3/4 & 12345678 items; e-mail a.b@c.org, <tag id='x'>, {\"key\": null} ~ `code`...\n"
    + "  Two spaces,   three, and a\ttab.\r\nWHAT'S NEW? I'LL SEE -- \"quoted\" --\n\n\n"
    + "Größe, naïve, São Paulo; Привет, мир! Καλημέρα. שלום مرحبا नमस्ते 你好，世界。東京は夜 안녕하세요 ½ ² № ™ "
    + "→ ≤ ∑ 😀👩\u200d🔬 ½\u00a0km\n"
)
A_REAL_VOCABULARY = 1000  # pieces; one of bytes or letters has fewer
MOST_TOKENS_PER_CHARACTER = 0.75  # of English prose: words take 0.2 to 0.3, letters 1


def check(folder: Path, trust_remote_code: bool = False, plain: Callable[[str], list[int]] | None = None) -> None:
    """Refuses a folder's tokenizer if a run could not rely on it.

    Args:
        folder: of the model.
        trust_remote_code: whether its own code may run.
        plain: another implementation of the same tokenizer, without what is added at the ends of a text.

    Raises:
        UserError: in one line, how it differs: from `plain`, from its own saved copy, from the text, or from the
            model's embedding.
    """
    from transformers import AutoConfig

    where = f"{folder}: its tokenizer"
    tokenizer = opened(folder, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a causal language model: {hub.first_line(error)}") from error
    check_ids(where, tokenizer, getattr(config.get_text_config(), "vocab_size", None))
    check_text(where, tokenizer)
    if plain is not None:
        check_same(f"{where} and a plain implementation of its file's own merges", _ids(tokenizer), plain(PAGE))
    check_file(where, tokenizer, folder)
    check_saved(where, tokenizer, folder, trust_remote_code)


def opened(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        UserError: there is none, or it cannot be opened.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be opened: {hub.first_line(error)}") from error


def check_ids(where: str, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Refuses ids that the model has no embedding for.

    Args:
        where: what is said before the fault.
        tokenizer: whose ids.
        rows: of the embedding; None if nothing says.

    Raises:
        UserError: names the token of the greatest id.
    """
    if rows is None:
        return
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= rows:
        raise UserError(
            f"{where} has the token {token!r} with the id {number}, and the model's embedding has {rows} rows; take the"
            " tokenizer that belongs to the model, or resize its embedding"
        )


def check_text(where: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that cuts words into letters, or loses text that it could keep.

    Args:
        where: what is said before the fault.
        tokenizer: of any kind.

    Raises:
        UserError: says which of the two.
    """
    share = len(tokenizer(PROSE, add_special_tokens=False)["input_ids"]) / len(PROSE)
    if len(tokenizer) > A_REAL_VOCABULARY and share > MOST_TOKENS_PER_CHARACTER:
        raise UserError(
            f"{where} has {len(tokenizer)} pieces and cuts a page of English into {share:.2f} tokens a character: it"
            " splits words into letters, which the model was not trained on; take the model's own tokenizer.json"
        )
    if not is_lossless(tokenizer):
        return
    back = tokenizer.decode(_ids(tokenizer), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back not in (PAGE, f" {PAGE}"):  # some put a space before every text
        place = next((place for place, pair in enumerate(zip(PAGE, back, strict=False)) if pair[0] != pair[1]), -1)
        raise UserError(
            f"{where} does not give a text back: {PAGE[max(0, place - 10) : place + 10]!r} becomes"
            f" {back[max(0, place - 10) : place + 10]!r}; take the model's own tokenizer.json"
        )


def check_file(where: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuses a tokenizer that transformers makes into another than its tokenizer.json is.

    It builds the tokenizers of many classes anew from vocabulary and merges, with the class's own way of splitting.

    Args:
        where: what is said before the fault.
        tokenizer: as transformers opened it.
        folder: where from.

    Raises:
        UserError: names the first token that differs.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file() or getattr(tokenizer, "backend_tokenizer", None) is None:
        return
    stated = Tokenizer.from_file(str(file))
    stated.no_truncation()
    stated.no_padding()
    check_same(
        f"{where} as {type(tokenizer).__name__} and its own tokenizer.json",
        _ids(tokenizer),
        stated.encode(PAGE, add_special_tokens=False).ids,
    )


def check_saved(where: str, tokenizer: PreTrainedTokenizerBase, folder: Path, trust_remote_code: bool = False) -> None:
    """Refuses a tokenizer whose saved copy gives other ids: every product and export of a run holds such a copy.

    Args:
        where: what is said before the fault.
        tokenizer: the one in memory.
        folder: of its model, whose config decides as what a saved tokenizer is opened.
        trust_remote_code: whether the folder's own code may run.

    Raises:
        UserError: names the first token that differs.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        tokenizer.save_pretrained(copy)
        for file in [folder / "config.json", *folder.glob("*.py")]:
            if file.is_file():
                shutil.copy(file, copy / file.name)
        again = opened(copy, trust_remote_code)
        for ends in (False, True):
            check_same(f"{where} and its saved copy", _ids(tokenizer, ends), _ids(again, ends))


def check_same(what: str, first: list[int], second: list[int]) -> None:
    """Refuses two encodings of the page that differ.

    Args:
        what: the two, named in this order.
        first: the ids of one.
        second: the ids of the other.

    Raises:
        UserError: names the first place where they differ.
    """
    if first == second:
        return
    place = next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
    raise UserError(
        f"{what} differ: token {place} of a page is {first[place : place + 1]} and {second[place : place + 1]}"
        f" ({len(first)} and {len(second)} tokens in all); take the model as safetensors with its own tokenizer.json"
    )


def is_lossless(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer can spell every text: byte by byte if need be, with nothing normalised away."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return False
    if not _kinds(backend.normalizer) <= {"Sequence", "Prepend", "Replace", "NFC"}:
        return False
    if "ByteLevel" in _kinds(backend.decoder):
        return True
    return backend.model.byte_fallback and all(
        backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256)
    )


def _kinds(part: Any) -> set[str]:
    """The kinds of a tokenizer's part and of the parts in it."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("type"), str):
                found.add(value["type"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    if part is not None:
        walk(json.loads(part.__getstate__()))
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, ends: bool = False) -> list[int]:
    return list(tokenizer(PAGE, add_special_tokens=ends)["input_ids"])
