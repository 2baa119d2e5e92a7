"""TriviaQA with its evidence: questions whose evidence names the answer, each with the passage that does."""

from __future__ import annotations

import re
from typing import Any

WORDS = 150  # of a passage, about as long as SQuAD's


def with_passage(dataset: Any) -> Any:
    """lm-eval's `process_docs`: documents in SQuAD's fields, for those that have a passage naming an accepted answer.

    The passage is the 150 words about the first place in the evidence (Wikipedia pages, then search results) where an
    accepted answer stands. Closed and open book share this function, so that they ask the same questions.

    Raises:
        ValueError: no document has evidence (the hub's configurations `*.nocontext` leave it out).
    """
    from datasets import Dataset

    found = []
    for document in dataset:
        accepted = [*document["answer"]["aliases"]] or [document["answer"]["value"]]
        passage = _passage(_evidence(document), accepted)
        if passage is not None:
            question = {key: document[key] for key in ("question_id", "question")}
            found.append({**question, "context": passage, "answers": {"text": accepted}})
    if not found:
        raise ValueError(
            "no document has evidence that names its answer: entity_pages.wiki_context and"
            " search_results.search_context are empty, as in the hub's nocontext configurations"
        )
    return Dataset.from_list(found)


def _evidence(document: dict[str, Any]) -> list[str]:
    texts: list[str] = []
    for source, field in (("entity_pages", "wiki_context"), ("search_results", "search_context")):
        texts += (document.get(source) or {}).get(field) or []
    return texts


def _passage(texts: list[str], accepted: list[str]) -> str | None:
    names = "|".join(re.escape(answer) for answer in sorted(accepted, key=len, reverse=True) if answer.strip())
    pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE) if names else None
    for text in texts:
        if pattern is not None and (place := pattern.search(text)):
            before, after = text[: place.start()].split(), text[place.start() :].split()
            start = max(0, min(len(before) - WORDS // 2, len(before) + len(after) - WORDS))
            return " ".join([*before, *after][start : start + WORDS])
    return None
