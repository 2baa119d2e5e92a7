"""A GGUF file's tokenizer as transformers' own: SentencePiece pieces with scores, or byte-level BPE with merges.

transformers reads the first kind as a unigram model (other tokens), and gives every file of the second kind the
pre-tokenizer of GPT-2. Here both are built from what the file states, by llama.cpp's rules and defaults.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.models.gguf.header import Header
from idp.models.gguf.pretokenizers import DIGIT, GPT2, PRE_TOKENIZERS, PreTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"
KINDS = {SENTENCEPIECE: "SentencePiece BPE", BYTE_LEVEL: "byte-level BPE"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType
SPACE = "▁"
# What llama.cpp takes where a SentencePiece file names no id.
DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}


@dataclass(frozen=True, eq=False)  # told apart by identity, as its tables are large
class Vocabulary:
    """The tokenizer that a GGUF file states, with llama.cpp's defaults where it is silent."""

    header: Header

    @property
    def kind(self) -> str:
        """`llama` or `gpt2`."""
        return self.header.token("model")

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token, by id; user-defined ones with plain spaces, as they stand in text."""
        return [
            piece.replace(SPACE, " ") if kind == USER_DEFINED else piece or f"[EMPTY_{number}]"
            for number, (piece, kind) in enumerate(zip(self.header.token("tokens"), self.types, strict=True))
        ]

    @cached_property
    def types(self) -> list[int]:
        """What each token is: normal, unknown, control, user-defined, unused or a byte."""
        return self.header.token("token_type") or [NORMAL] * len(self.header.token("tokens"))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece: number for number, piece in enumerate(self.pieces)}

    @property
    def scores(self) -> list[float]:
        """SentencePiece: the greater, the sooner it is merged."""
        return self.header.token("scores")

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs that are merged, the first ones first."""
        if self.kind == BYTE_LEVEL:  # a piece may begin with a space of its own, never hold a second one
            cuts = ((merge, merge.index(" ", 1)) for merge in self.header.token("merges", []))
            return [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]
        return _merges_of_scores(self.pieces, self.scores, self.types)

    @property
    def pre(self) -> PreTokenizer:
        """How text is split first; SentencePiece does not split it."""
        return PRE_TOKENIZERS[self.header.token("pre")]

    @property
    def space_prefix(self) -> bool:
        """Whether a text begins with a space that is not in it."""
        return self.kind == SENTENCEPIECE and bool(self.header.token("add_space_prefix", True))

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with the token at the beginning."""
        default = True if self.kind == SENTENCEPIECE else self.pre.add_bos
        return bool(self.header.token("add_bos_token", default))

    @property
    def add_eos(self) -> bool:
        """Whether a text ends with the token at the end."""
        return bool(self.header.token("add_eos_token", False))

    def special(self, name: str) -> int | None:
        """The id of the token `bos`, `eos`, `eot`, `eom`, `unknown` or `padding`; None where there is none."""
        return special_id(self.header, name)

    @cached_property
    def byte_ids(self) -> list[int | None]:
        """SentencePiece: the id of each byte's own piece."""
        return [self.ids.get(f"<0x{byte:02X}>") for byte in range(256)]

    @property
    def ends(self) -> list[int]:
        """The ids that end a text or a turn, that of the text first."""
        found = (self.special(name) for name in ("eos", "eot", "eom"))
        return list(dict.fromkeys(number for number in found if number is not None))


def special_id(header: Header, name: str) -> int | None:
    """The id of `bos`, `eos`, `eot`, `eom`, `unknown` or `padding`: the file's or llama.cpp's; None: there is none."""
    default = DEFAULT_IDS.get(name) if header.token("model") == SENTENCEPIECE else None
    number = header.token(f"{name}_token_id", default)
    return number if number is not None and 0 <= number < len(header.token("tokens") or ()) else None


def check(header: Header) -> Vocabulary:
    """What a file states of its tokenizer, refused where this code would give other tokens than the file means.

    Raises:
        UserError: names the first thing that is missing or not read.
    """
    where, kind = f"{header.file}: its tokenizer", header.token("model")
    if kind not in KINDS:
        known = ", ".join(f"{name} ({what})" for name, what in KINDS.items())
        raise UserError(f"{where} is of the kind {kind}, which is not read; these are: {known}")
    tokens = header.token("tokens")
    if not tokens:
        raise UserError(f"{where} has no tokens (tokenizer.ggml.tokens)")
    if kind == SENTENCEPIECE and not header.token("scores"):
        raise UserError(f"{where} has no scores (tokenizer.ggml.scores), without which text cannot be cut")
    if kind == SENTENCEPIECE and special_id(header, "unknown") is None:
        raise UserError(f"{where} has no token for what it does not know (tokenizer.ggml.unknown_token_id)")
    for name in ("scores", "token_type"):
        if header.token(name) and len(header.token(name)) != len(tokens):
            raise UserError(f"{where} has {len(tokens)} tokens and {len(header.token(name))} {name}")
    for name in ("add_sep_token", "remove_extra_whitespaces", "precompiled_charsmap"):
        if header.token(name):
            raise UserError(f"{where} asks for tokenizer.ggml.{name}, which is not read; take the model as safetensors")
    if kind == BYTE_LEVEL:
        _check_byte_level(where, header)
    vocabulary = Vocabulary(header)
    if len(vocabulary.ids) != len(tokens):
        twice = next(piece for number, piece in enumerate(vocabulary.pieces) if vocabulary.ids[piece] != number)
        raise UserError(f"{where} has the token {twice!r} twice")
    for name, adds in (("bos", vocabulary.add_bos), ("eos", vocabulary.add_eos)):
        if adds and vocabulary.special(name) is None:
            raise UserError(f"{where} says add_{name}_token, and not which token that is ({name}_token_id)")
    return vocabulary


def _check_byte_level(where: str, header: Header) -> None:
    pre = header.token("pre")
    if pre is None:
        raise UserError(
            f"{where} does not say how it splits text (tokenizer.ggml.pre), as files from before May 2024 do not;"
            " convert the model again, or take it as safetensors"
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{where} splits text as {pre} does (tokenizer.ggml.pre), which is not known here; take the model as"
            " safetensors"
        )
    known = set(header.token("tokens"))
    for merge in header.token("merges", []):
        first, _, second = merge[1:].partition(" ")
        if not {merge[0] + first, second, merge[0] + first + second} <= known:
            raise UserError(f"{where} merges {merge!r}, and one of the pieces is not among its tokens")
    types = header.token("token_type") or [NORMAL] * len(header.token("tokens"))
    words = (piece for piece, kind in zip(header.token("tokens"), types, strict=True) if kind == NORMAL)
    if not header.token("merges") and any(len(piece) > 1 for piece in words):
        raise UserError(f"{where} has no merges (tokenizer.ggml.merges), without which text cannot be cut")


def build(vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    """The tokenizer in transformers' form, which keeps its ids when it is saved and opened again."""
    from transformers import PreTrainedTokenizerFast

    made = _sentencepiece(vocabulary) if vocabulary.kind == SENTENCEPIECE else _byte_level(vocabulary)
    _add_tokens(made, vocabulary)
    _add_ends(made, vocabulary)
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {ours: vocabulary.special(theirs) for ours, theirs in names.items()}
    if special["pad_token"] is None:
        special["pad_token"] = special["eos_token"]
    # Said beside the post-processor as well: a class that builds its own again goes by these.
    ends = {"add_bos_token": vocabulary.add_bos, "add_eos_token": vocabulary.add_eos}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **(ends if any(ends.values()) else {}),
        clean_up_tokenization_spaces=False,  # what is decoded is what the tokens say
        **{name: vocabulary.pieces[number] for name, number in special.items() if number is not None},
    )
    if template := vocabulary.header.metadata.get("tokenizer.chat_template"):
        tokenizer.chat_template = template
    return tokenizer


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer so that no class adds special tokens of its own, beyond the embedding, when it is opened."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    missing = {name: None for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name not in config}
    if missing:
        file.write_text(json.dumps({**config, **missing}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sentencepiece(vocabulary: Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    unknown = vocabulary.special("unknown")
    made = Tokenizer(
        BPE(
            vocab=vocabulary.ids,
            merges=vocabulary.merges,
            unk_token=None if unknown is None else vocabulary.pieces[unknown],
            fuse_unk=True,
            byte_fallback=any(number is not None for number in vocabulary.byte_ids),
        )
    )
    spaces: normalizers.Normalizer = normalizers.Replace(" ", SPACE)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.space_prefix:
        spaces = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        back.append(decoders.Strip(" ", 1, 0))
    made.normalizer = spaces
    made.decoder = decoders.Sequence(back)
    return made


def _byte_level(vocabulary: Vocabulary) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    pre = vocabulary.pre
    made = Tokenizer(BPE(vocab=vocabulary.ids, merges=vocabulary.merges, ignore_merges=pre.whole_words))
    ends_as_gpt2 = pre.patterns[-1] == GPT2
    splits = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == DIGIT
        else pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in (pre.patterns[:-1] if ends_as_gpt2 else pre.patterns)
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=ends_as_gpt2)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _add_tokens(made: Any, vocabulary: Vocabulary) -> None:
    """Control and user-defined tokens are found in text as they stand, before anything else happens to it."""
    from tokenizers import AddedToken

    # llama.cpp lets most of Phi-3's control tokens take the white space after them; no file says so.
    greedy = vocabulary.header.architecture == "phi3" and vocabulary.kind == SENTENCEPIECE
    plain = {"<unk>", "<s>", "<|endoftext|>"}
    added = [
        AddedToken(piece, special=True, normalized=False, rstrip=greedy and piece not in plain)
        for piece, kind in zip(vocabulary.pieces, vocabulary.types, strict=True)
        if kind in (CONTROL, UNKNOWN)
    ]
    made.add_special_tokens(added)
    made.add_tokens(
        [
            AddedToken(piece, special=False, normalized=False)
            for piece, kind in zip(vocabulary.pieces, vocabulary.types, strict=True)
            if kind == USER_DEFINED
        ]
    )


def _add_ends(made: Any, vocabulary: Vocabulary) -> None:
    from tokenizers.processors import TemplateProcessing

    if not vocabulary.add_bos and not vocabulary.add_eos:
        return
    begin, end = vocabulary.special("bos"), vocabulary.special("eos")
    before = [begin] if vocabulary.add_bos and begin is not None else []
    after = [end] if vocabulary.add_eos and end is not None else []
    named = [(vocabulary.pieces[number], number) for number in dict.fromkeys(before + after)]
    first, second = ([vocabulary.pieces[number] for number in ids] for ids in (before, after))
    made.post_processor = TemplateProcessing(
        single=[*first, "$A", *second],
        pair=[*first, "$A", *second, *(f"{piece}:1" for piece in first), "$B:1", *(f"{piece}:1" for piece in second)],
        special_tokens=named,
    )


def _merges_of_scores(pieces: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """SentencePiece's merges as ranked pairs: it merges the neighbours whose joined piece has the best score.

    Pairs that make one piece rank beside one another, by the ids of their parts.
    """
    rank = {piece: number for number, piece in enumerate(pieces) if types[number] == NORMAL}
    found = []
    for piece, number in rank.items():
        better = -scores[number]
        for cut in range(1, len(piece)):
            left = rank.get(piece[:cut])
            if left is not None:
                right = rank.get(piece[cut:])
                if right is not None:
                    found.append((better, left, right))
    found.sort()
    return [(pieces[left], pieces[right]) for _, left, right in found]
