"""Task definitions as JSON: functions by name and by what is bound to them, and never an address."""

import functools
import json
import logging
import random
import re

import numpy
import pytest
import torch

from idp.errors import UserError
from idp.store.plain import config_of, plain
from idp.tasks import catalog

ADDRESS = re.compile(r"0x[0-9a-f]{4,}|memory:|object at")


def score(doc, power=1, *, table=None):
    return doc


class Threshold:
    def __init__(self, low):
        self.low, self.itself = low, self

    def __call__(self, doc):
        return self.low

    def method(self, doc):
        return doc


def closing_over(value):
    def inner(doc):
        return value

    return inner


HERE = __name__


@pytest.mark.parametrize(
    "value, wanted",
    [
        (score, f"{HERE}.score"),
        (functools.partial(score, 2, table={"b": 1, "a": "x"}), f"functools.partial({HERE}.score, 2, table="),
        (
            functools.partial(functools.partial(score, power=3), table=score),
            f"{HERE}.score, power=3, table={HERE}.score",
        ),
        (Threshold, f"{HERE}.Threshold"),
        (Threshold(0.5), f"{HERE}.Threshold(itself={HERE}.Threshold, low=0.5)"),
        (Threshold(0.5).method, "low=0.5).method"),
        (closing_over(7), "closing_over.<locals>.inner#"),
        (functools.wraps(score)(lambda doc: doc), f"{HERE}.score"),
        (len, "builtins.len"),
        (object(), "builtins.object()"),
        (re.compile("a+"), "re.compile('a+')"),
        (numpy.float32(0.5), 0.5),
        (numpy.arange(3), [0, 1, 2]),
        (torch.ones(2), [1.0, 1.0]),
        ({1: (score, {"x"})}, {"1": [f"{HERE}.score", ["x"]]}),
    ],
)
def test_a_value_is_named(value, wanted):
    found = plain(value)
    assert wanted in found if isinstance(found, str) else found == wanted
    assert not ADDRESS.search(json.dumps(found))


@pytest.mark.parametrize(
    "one, other",
    [
        (functools.partial(score, table={"a": 1}), functools.partial(score, table={"a": 2})),
        (functools.partial(score, 1), functools.partial(score, 2)),
        (Threshold(1), Threshold(2)),
        (Threshold(1).method, Threshold(2).method),
        (closing_over(1), closing_over(2)),
        (lambda doc: doc["a"], lambda doc: doc["b"]),
    ],
)
def test_two_that_differ_do_not_look_alike(one, other):
    assert plain(one) != plain(other)


def test_lm_evals_own_definitions_are_plain_json():
    """A draw from all of its YAML tasks, and those that are known to hold partials."""
    from lm_eval.config.task import TaskConfig

    tasks, _ = catalog.scan()
    drawn, partials = random.Random(0).sample(sorted(tasks), 40), 0
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name in ["xcopa_zh", "xcopa_et", "global_mmlu_de_other", *drawn]:
        try:
            definition = catalog.definition(name)
        except UserError:  # it needs a package that is not installed
            continue
        if "class" in definition:
            continue
        text = json.dumps(config_of(TaskConfig(**definition)))
        assert not ADDRESS.search(text), name
        partials += "functools.partial(" in text
    assert partials >= 8


def test_a_config_is_as_lm_eval_writes_it_where_that_is_json():
    from lm_eval.config.task import TaskConfig

    config = TaskConfig(**catalog.definition("piqa"))
    assert config_of(config) == json.loads(json.dumps(config.to_dict()))
    winogrande = TaskConfig(**catalog.definition("winogrande"))
    assert config_of(winogrande)["doc_to_text"] == winogrande.to_dict()["doc_to_text"]
