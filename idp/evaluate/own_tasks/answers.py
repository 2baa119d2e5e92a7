"""Short answers held against the accepted ones, normalised as SQuAD's official script (v1.1) does it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)


def normalised(text: str) -> str:
    """In small letters, without punctuation and English articles, with single spaces."""
    plain = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", plain).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the accepted answers, else 0."""
    return float(any(normalised(prediction) == normalised(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 over the accepted answers: the harmonic mean of the words' precision and recall."""
    return max((_f1(normalised(prediction).split(), normalised(answer).split()) for answer in answers), default=0.0)


def accepted(doc: dict[str, Any]) -> list[str]:
    """lm-eval's `doc_to_target` for documents in SQuAD's fields; examples show the first one."""
    return list(doc["answers"]["text"])


def jeopardy(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's `process_results` for documents with one answer, `continuation`."""
    return _scored(results[0], [doc["continuation"]])


def reading(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's `process_results` for documents in SQuAD's fields: `answers["text"]` lists what is accepted."""
    return _scored(results[0], accepted(doc))


def _scored(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    return {"exact_match": exact_match(prediction, answers), "f1": f1(prediction, answers)}


def _f1(predicted: list[str], answer: list[str]) -> float:
    common = sum((Counter(predicted) & Counter(answer)).values())
    return 2 * common / (len(predicted) + len(answer)) if common else 0.0
