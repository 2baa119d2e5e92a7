"""Every document that will be evaluated is formatted once, with its examples, before anything is computed.

A document that cannot be formatted or scored would end a run at its last stage, or count as wrong without a word. Only
documents that the run evaluates are looked at, and the examples that it draws.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idp.errors import UserError
from idp.models import greedy
from idp.tasks import rows
from idp.tasks.places import Places, one_line

METRIC_SECONDS = 5  # spent at most on trying out the metrics of a task: some load models of their own
NULL = "\N{REPLACEMENT CHARACTER}null\N{REPLACEMENT CHARACTER}"  # stands for null where its text is looked for
MEND = "mend or remove it"


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one document: of the evaluated ones, or, with `example`, of the pool of examples.

    `target` is its target where that is what is wrong.
    """

    index: int
    what: str
    example: bool = False
    target: Any = None


class TooFewExamples(Exception):
    """The sampler of examples does not find as many as are asked for."""


def check(
    task: Any,
    name: str,
    indices: Sequence[int],
    shots: int,
    places: Places,
) -> None:
    """Formats the documents with their examples, builds their requests, and scores an answer that is made up.

    Args:
        task: lm-eval's, made for this: its sampler of examples moves on.
        name: what it is called.
        indices: of the documents to be evaluated.
        shots: examples before each document.
        places: where documents and examples are, for messages.

    Raises:
        UserError: names the first document that is in trouble, and says how many are.
    """
    _check_set_up(task, name)
    with rows.quiet(logging.CRITICAL), contextlib.redirect_stdout(io.StringIO()):
        _check_each(_Formatter(task, name, shots), name, indices, shots, places)


def _check_each(formatter: _Formatter, name: str, indices: Sequence[int], shots: int, places: Places) -> None:
    pool, alike = formatter.examples() if shots else (0, False)
    if pool < shots or (alike and shots > 1):
        shown = _count(pool, "document") + (", all of them alike," if alike and pool > 1 else "")
        raise UserError(
            f"{places.example(None)}: {shown} and task {name} takes {_count(shots, 'example')} before each question;"
            f" add documents, or use task.fewshot={min(pool, 1) if alike else pool}"
        )
    try:
        troubles = formatter.troubles(indices)
    except TooFewExamples as error:
        raise UserError(
            f"{places.example(None)}: task {name} takes {_count(shots, 'example')} before each question, none of them"
            f" the question itself, and does not find so many ({error}); add documents, or use task.fewshot="
            f"{min(shots, pool) - 1}"
        ) from error
    if not troubles:
        return
    first, others, todo = troubles[0], len(troubles) - 1, MEND
    if first.example:
        raise UserError(f"{places.example(first.index)}: as an example of task {name} it {first.what}; {MEND}")
    more = f" (so {'is' if others == 1 else 'are'} {others} more of {len(indices)} documents)" if others else ""
    alike = first.target is not None and all(each.target == first.target for each in troubles)
    if alike and len(troubles) == len(indices) > 1:
        more, todo = ", like every other", "labels that are withheld cannot be scored: give a split that has them"
    raise UserError(f"{places.document(first.index)}: document {first.index} of task {name} {first.what}{more}; {todo}")


def _check_set_up(task: Any, name: str) -> None:
    """What hangs on no document: kinds of tasks that cannot run here, and metrics that do not exist."""
    if getattr(task, "MULTIMODAL", False):
        raise UserError(
            f"task.names: {name} shows images or sounds, which a language model does not read; leave it out"
        )
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(
            f"task.names: {name} runs code that the model has written, which is not done here; leave it out"
        )
    unknown = [metric for metric, function in task._metric_fn_list.items() if function is None]
    if unknown and task.config.process_results is None:
        raise UserError(f"task.names: {name}: neither lm-eval nor evaluate has its metric {unknown[0]} here")
    if task.OUTPUT_TYPE == "generate_until":
        greedy.options(name, task.config.generation_kwargs or {}, 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


class _Formatter:
    """One task's documents, one after another, as lm-eval's `build_all_requests` goes through them."""

    def __init__(self, task: Any, name: str, shots: int):
        self.task, self.name, self.shots = task, name, shots
        self.custom = callable(task.config.process_results)
        self.metric_seconds = 0.0
        self.drawn: list[Any] = []
        self.seen: set[int] = set()  # examples that have been looked at
        self.pool: dict[int, int] = {}
        if shots:
            self.pool = {id(document): number for number, document in enumerate(task.sampler.df)}
            self.draw, task.sampler.sample = task.sampler.sample, self._sample

    def examples(self) -> tuple[int, bool]:
        """How many documents the pool has, and whether all of them are the same (MMLU's have doubles among them)."""
        pool = self.task.sampler.df
        return len(pool), all(document == pool[0] for document in pool)

    def troubles(self, indices: Sequence[int]) -> list[Trouble]:
        """Each document in trouble, with the first thing that is; of an example that is, that alone."""
        found: list[Trouble] = []
        blank: list[int] = []
        unanswered: list[int] = []
        for index, document in zip(indices, _chosen(self.task.eval_docs, indices), strict=True):
            try:
                what = self._trouble(document, index, blank, unanswered)
            except TooFewExamples:
                raise
            except Exception as error:
                what = Trouble(index, f"cannot be formatted ({one_line(error)})")
                if self.shots and (example := self._bad_example()) is not None and self._formats(document):
                    return [example]
            if what is not None and what.example:
                return [what]
            if what is not None:
                found.append(what)
        if len(blank) < len(indices):
            found += [Trouble(index, "has no text: its question is empty") for index in blank]
        if len(unanswered) == len(indices):
            found += [
                Trouble(index, "has no answer to be held to: its target is empty", target="") for index in unanswered
            ]
        return sorted(found, key=lambda trouble: trouble.index)

    def _sample(self, *arguments: Any, **options: Any) -> list[Any]:
        try:
            self.drawn = list(self.draw(*arguments, **options))
        except Exception as error:
            raise TooFewExamples(one_line(error)) from error
        return self.drawn

    def _trouble(self, document: Any, index: int, blank: list[int], unanswered: list[int]) -> Trouble | None:
        task = self.task
        choices = task.doc_to_choice(document) if task.OUTPUT_TYPE == "multiple_choice" else []
        if task.OUTPUT_TYPE == "multiple_choice" and (what := _choices_trouble(choices)) is not None:
            return Trouble(index, what)
        text, target = task.doc_to_text(document), task.doc_to_target(document)
        context = task.fewshot_context(
            document,
            num_fewshot=self.shots,
            system_instruction=None,
            apply_chat_template=False,
            fewshot_as_multiturn=False,
            chat_template=None,
            gen_prefix=task.doc_to_prefix(document),
        )
        if (example := self._bad_example()) is not None:
            return example
        requests = task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(task.config.task, index, task.config.repeats),
            apply_chat_template=False,
            chat_template=None,
        )
        requests = requests if isinstance(requests, list) else [requests]
        what, wrong = self._target_trouble(document, text, target, choices, requests)
        if what is not None:
            return Trouble(index, what, target=wrong)
        if task.OUTPUT_TYPE in ("multiple_choice", "generate_until") and isinstance(text, str) and not text.strip():
            blank.append(index)
        if task.OUTPUT_TYPE == "generate_until" and not self.custom and _is_blank(target):
            unanswered.append(index)
        if (field := self._null_shown(document)) is not None:
            return Trouble(index, f"shows the word None where its field {field} is null")
        if (what := self._metric_trouble(document, target, requests)) is not None:
            return Trouble(index, what)
        return None

    def _target_trouble(
        self, document: Any, text: Any, target: Any, choices: Sequence[str], requests: list[Any]
    ) -> tuple[str | None, Any]:
        """What is wrong with its target, and the target."""
        task, kind = self.task, self.task.OUTPUT_TYPE
        if kind == "multiple_choice":
            if task.multiple_input and _is_blank(f"{task.config.target_delimiter}{target}"):
                return "has nothing to score behind its choices", None
            target = text if task.multiple_input else target
            if self.custom:
                return (_withheld(target, choices), target) if target == -1 else (None, None)
            if isinstance(target, list) != bool(task.multiple_target) and not task.multiple_input:
                return (
                    f"has the target {_shown(target)}, where the first document has {_kind(task.multiple_target)}",
                    None,
                )
            return _choice_trouble(target, choices), target
        if kind in ("loglikelihood", "loglikelihood_rolling"):
            scored = requests[0].args[-1]
            if not isinstance(scored, str):
                return f"has no text to score: it is {_shown(scored)}", None
            return ("has no text to score: it is empty", None) if not scored.strip() else (None, None)
        if self.custom or "bypass" in task._metric_fn_list:
            return None, None
        if task.config.doc_to_choice is not None:
            return _choice_trouble(target, task.doc_to_choice(document)), target
        if target is None or target == []:
            return f"has no answer to be held to: its target is {_shown(target)}", str(target)
        return None, None

    def _metric_trouble(self, document: Any, target: Any, requests: list[Any]) -> str | None:
        """Scores an answer that is made up: the target, or else nothing or a letter, whichever the metric takes."""
        if self.metric_seconds > METRIC_SECONDS:
            return None
        started, reason = time.perf_counter(), ""
        for answers in self._answers(target, requests):
            try:
                if self._metrics(document, requests, answers):
                    return None
                reason = "it gives none"
            except Exception as error:
                reason = one_line(error)
            finally:
                self.metric_seconds += time.perf_counter() - started
                started = time.perf_counter()
        return f"cannot be scored: its metric fails ({reason})"

    def _answers(self, target: Any, requests: list[Any]) -> list[list[Any]]:
        kind = self.task.OUTPUT_TYPE
        if kind == "loglikelihood_rolling":
            return [[-1.0]]
        if kind != "generate_until":
            return [[(-1.0 - number, False) for number in range(len(requests))]]
        target = target[0] if isinstance(target, list) and target else target
        return [[str(target)], [""], ["A"]]

    def _metrics(self, document: Any, requests: list[Any], answers: list[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for request, answer in zip(requests, answers, strict=True):
            request.resps, request.filtered_resps = [answer] * request.repeats, {}
        for ensemble in self.task._filters:
            ensemble.apply(requests)
        for key in requests[0].filtered_resps:
            found |= self.task.process_results(document, [request.filtered_resps[key] for request in requests])
        return found

    def _formats(self, document: Any) -> bool:
        """Whether a document can be formatted without examples."""
        with contextlib.suppress(Exception):
            self.task.fewshot_context(document, num_fewshot=0, gen_prefix=self.task.doc_to_prefix(document))
            return True
        return False

    def _bad_example(self) -> Trouble | None:
        """The first of the drawn examples that is in trouble, of those not looked at before."""
        for document in self.drawn if self.shots else []:
            if id(document) in self.seen:
                continue
            self.seen.add(id(document))
            try:
                what = self._example_trouble(document)
            except Exception as error:
                what = f"cannot be formatted ({one_line(error)})"
            if what is not None:
                return Trouble(self.pool.get(id(document), 0), what, example=True)
        return None

    def _example_trouble(self, document: Any) -> str | None:
        task, fewshot = self.task, self.task.fewshot_cfg
        text = task.doc_to_text(document, fewshot.doc_to_text)
        target = task.doc_to_target(document, fewshot.doc_to_target)
        choices = task.doc_to_choice(document, fewshot.doc_to_choice) if fewshot.doc_to_choice else None
        if task.multiple_input:
            return _choice_trouble(text, choices or [])
        if not isinstance(text, str):
            return f"has no text: it is {_shown(text)}"
        if target is None or _is_blank(target):
            return f"has no answer: its target is {_shown(target)}"
        if choices is not None and isinstance(target, int):
            return _choices_trouble(choices) or _choice_trouble(target, choices)
        return None

    def _null_shown(self, document: Any) -> str | None:
        """The field whose null stands as the word None in the document's text, choices or target."""
        fields = [name for name, value in document.items() if value is None] if isinstance(document, dict) else []
        if not fields or "None" not in self._whole(document):
            return None
        for field in fields:
            with contextlib.suppress(Exception):
                if NULL in self._whole({**document, field: NULL}):
                    return field
        return None

    def _whole(self, document: Any) -> str:
        task = self.task
        parts = [task.doc_to_text(document), task.doc_to_target(document)]
        if task.config.doc_to_choice is not None:
            parts.append(task.doc_to_choice(document))
        return " ".join(map(str, parts))


def _chosen(documents: Any, indices: Sequence[int]) -> Any:
    """Those documents one after another, which is many times quicker than asking for each."""
    if len(indices) == len(documents):
        return documents
    return documents.select(indices) if hasattr(documents, "select") else [documents[index] for index in indices]


def _choices_trouble(choices: Any) -> str | None:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        return f"has no list of choices: they are {_shown(choices)}"
    if not len(choices):
        return "has no choices to score"
    for number, choice in enumerate(choices):
        if not isinstance(choice, str):
            return f"has a choice that is no text: number {number} is {_shown(choice)}"
        if not choice.strip():
            return f"has an empty choice: number {number}"
    return None


def _choice_trouble(target: Any, choices: Sequence[str]) -> str | None:
    """What is wrong with a target as the number or text of a choice, or as a list of numbers."""
    if target is None or target == "" or target == []:
        return f"has no right choice: its target is {_shown(target)}"
    for one in target if isinstance(target, list) else [target]:
        if isinstance(one, str) and not isinstance(target, list):
            right = one in choices
        else:
            with contextlib.suppress(TypeError, ValueError):
                one = one if isinstance(one, str) or int(one) != one else int(one)
            right = isinstance(one, int) and 0 <= one < len(choices)
        if not right:
            return _withheld(one, choices)
    return None


def _withheld(target: Any, choices: Sequence[str]) -> str:
    return f"has the target {_shown(target)}, which is none of its {len(choices)} choices"


def _is_blank(target: Any) -> bool:
    if isinstance(target, (list, tuple)):
        return all(_is_blank(one) for one in target)
    return target is None or (isinstance(target, str) and not target.strip())


def _kind(multiple: int) -> str:
    return "a list of them" if multiple else "a single one"


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."
