"""How text is split before merging, by the names that GGUF files give in `tokenizer.ggml.pre`.

Names and expressions are those of llama.cpp (src/llama-vocab.cpp), in the spelling of the models' own tokenizer.json
where it states one. Each expression in turn cuts the pieces that the one before left, at its matches. Digits by
threes or one by one, contractions, and where a line break goes all differ, and each changes the tokens of plain text.
"""

# ruff: noqa: RUF001 (full-width marks are what these expressions are about)
from __future__ import annotations

from dataclasses import dataclass

DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_MARKS}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*"
_CASED_AND_CONTRACTED = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
_MARKS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_CASED_AND_CONTRACTED}|\p{{N}}{{1,3}}|{_MARKS_AND_SLASHES}|{_SPACES}"
_TEKKEN = rf"{_CASED}|\p{{N}}|{_MARKS_AND_SLASHES}|{_SPACES}"
_YOUTU = rf"{_CASED_AND_CONTRACTED}|\p{{N}}|{_MARKS_AND_SLASHES}|{_SPACES}"
_QWEN35 = rf"{_CONTRACTIONS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+|{_MARKS}|{_SPACES}"
_ASIAN = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_HAN_TO_HANGUL = r"[一-龥\u0800-一가-\ud7ff]+"
_KANA = r"[一-龥\u3040-\u309f\u30a0-\u30ff]+"
_RUNS_OF_SPACE = "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))


@dataclass(frozen=True)
class PreTokenizer:
    """One way of splitting, and what llama.cpp takes for granted with it.

    Attributes:
        patterns: the expressions, in their order.
        whole_words: a piece that is in the vocabulary as it is becomes one token, without any merging.
        add_bos: whether a file that does not say `add_bos_token` means it.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_KNOWN: dict[PreTokenizer, str] = {
    PreTokenizer((GPT2,)): "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt"
    " olmo jais trillion granite-docling exaone4",
    PreTokenizer((DIGIT, GPT2)): "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True): "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral"
    " midm-2.0 lfm2 jina-v5-nano",
    PreTokenizer((_LLAMA3,)): "dbrx smaug-bpe chatglm-bpe glm4",
    PreTokenizer((_QWEN2,)): "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2",
    PreTokenizer((_QWEN35,)): "qwen35",
    PreTokenizer(
        (
            r"[\r\n]",
            r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
            r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
            r"\s+$",
            _HAN_TO_HANGUL,
            r"\p{N}+",
        )
    ): "deepseek-llm",
    PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_TO_HANGUL, DIGIT)): "deepseek-coder",
    PreTokenizer((r"\p{N}{1,3}", _KANA, _DEEPSEEK3)): "deepseek-v3 hunyuan-dense joyai-llm",
    PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2, r"[0-9][0-9][0-9]")): "falcon",
    PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): "default",
    PreTokenizer((_BLOOM,)): "bloom poro-chat gpt3-finnish",
    PreTokenizer((_BLOOM, DIGIT)): "viking",
    PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True): "tekken",
    PreTokenizer((_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)): "tiny_aya cohere2moe",
    PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")): "superbpe",
    PreTokenizer(
        (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
    ): "bailingmoe bailingmoe2 llada-moe",
    PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)): "seed-coder",
    PreTokenizer(
        (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|\s*[\r\n]+{_RUNS_OF_SPACE}|\s{{1,2}}(?!\S)|\s{{1}}",)
    ): "jais-2",
    PreTokenizer((rf"{_WORDS}|\p{{N}}|{_MARKS}|{_SPACES}",)): "ufakzeka",
    PreTokenizer(
        (r"<sentinel:[0-9]+>", r"IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", DIGIT, r"[\p{P}!-/:-@\[-`{-~]", GPT2),
        add_bos=True,
    ): "chameleon",
    PreTokenizer((_ASIAN, _YOUTU), whole_words=True): "youtu",
    PreTokenizer((r"\p{N}{1,3}", _MINICPM5), whole_words=True): "minicpm5",
}

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: way for way, names in _KNOWN.items() for name in names.split()}
