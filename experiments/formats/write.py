"""Writes text in four formats, none of it of a task that the study evaluates, one file each and one of all.

    python experiments/formats/write.py outputs/formats

questions   with choices and the answer: OpenBookQA, CommonsenseQA, Social IQa, BoolQ, COPA
cloze       three sentences at a time of SQuAD's and DROP's passages with one word left out, and the word
dialogue    half of CoQA's stories, each with its questions and answers by turns
narrative   the other half, as they are

Each has as many characters as the shortest, in documents drawn by their hashes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from idp.corpora.sources import questions
from idp.tasks import embedded

STORY, TURN = "coqa/bpb_0shot", re.compile(r"_turn\d+$")
SHORTEST = 6  # letters of a word that is left out
TOGETHER = 3  # sentences
QUESTIONS = ("openbookqa", "commonsense_qa", "social_iqa", "boolq", "copa")


def main(folder: Path) -> None:
    stories = coqa()
    half = sorted(stories, key=digest)[: len(stories) // 2]
    texts = {
        "questions": list(questions.documents_of(QUESTIONS)),
        "cloze": [cloze(each) for passage in embedded.passages(["squad", "drop"]) for each in sentences(passage)],
        "dialogue": [dialogue(story, stories[story]) for story in half],
        "narrative": [story for story in stories if story not in half],
    }
    texts = {name: sorted((tidied(each) for each in found), key=digest) for name, found in texts.items()}
    budget = min(sum(map(len, found)) for found in texts.values())
    texts = {name: up_to(found, budget) for name, found in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in {**texts, "all": [*itertools.chain(*texts.values())]}.items():
        lines = "".join(f"{json.dumps({'text': each}, ensure_ascii=False)}\n" for each in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(found):,} documents, {sum(map(len, found)):,} characters")


def coqa() -> dict[str, list[tuple[str, str]]]:
    """Each story's turns, question and answer."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for doc in embedded.documents_of(STORY):
        turns = found.setdefault(TURN.sub("", doc["id"]), {}).setdefault(doc["story"], [])
        turns.append((doc["question"], doc["choices"][0].strip()))
    return {story: turns for of_story in found.values() for story, turns in of_story.items()}


def dialogue(story: str, turns: Iterable[tuple[str, str]]) -> str:
    return "\n".join([story, "", *(f"{who}: {said}" for turn in turns for who, said in zip("AB", turn, strict=True))])


def sentences(passage: str) -> list[str]:
    found = re.split(r"(?<=[.!?])\s+(?=[A-Z])", passage)
    return [" ".join(found[start : start + TOGETHER]) for start in range(0, len(found), TOGETHER)]


def cloze(text: str) -> str:
    """A word is left out that the text's hash draws among the longer ones of its second half."""
    words = [each for each in re.finditer(rf"\b[a-zA-Z]{{{SHORTEST},}}\b", text) if each.start() > len(text) // 2]
    if not words:
        return text
    word = words[int(digest(text), 16) % len(words)]
    return f"{text[: word.start()]}____{text[word.end() :]}\nThe missing word is: {word.group()}"


def up_to(texts: list[str], characters: int) -> list[str]:
    found = []
    for text in texts:
        if characters <= 0:
            break
        found.append(text)
        characters -= len(text)
    return found


def tidied(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def digest(text: str) -> str:
    """Of a text behind a salt: a corpus is divided into parts by the text's own, which would be all of one part."""
    return hashlib.sha256(f"order {text}".encode()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
