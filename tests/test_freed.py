"""One model at a time: whatever a stage or a command opened is gone when it is done, weights and all."""

import gc
import types
import weakref

import pytest

import idp
from idp import models
from idp.analyze.__main__ import main as analyze
from idp.export.__main__ import main as export
from idp.generate import main as generate


@pytest.fixture
def opened(monkeypatch):
    """Weak references of all models that are opened; as each is, those before it that still live are noted."""
    made: list[weakref.ref] = []
    together: list[int] = []
    real = models._opened

    def noted(*arguments, **options):
        gc.collect()
        loaded = real(*arguments, **options)
        made.append(weakref.ref(loaded.model))
        together.append(sum(holds_weights(model()) for model in made))
        return loaded

    monkeypatch.setattr(models, "_opened", noted)
    return types.SimpleNamespace(models=made, together=together)


def holds_weights(model) -> bool:
    """Whether a model lives and has its weights: what llmcompressor may still hold is moved to `meta` meanwhile."""
    return model is not None and any(parameter.device.type != "meta" for parameter in model.parameters())


def assert_gone(opened, most: int) -> None:
    """No model lives, not even its shell, and never more than `most` had their weights at once."""
    gc.collect()
    for model in opened.models:
        assert model() is None, [type(holder) for holder in gc.get_referrers(model())]
    assert opened.models and max(opened.together) <= most, opened.together
    opened.models.clear()
    opened.together.clear()


@pytest.mark.parametrize(
    ("options", "most"),
    [
        # every row, its perplexity and its fidelity to the dense model, adapters and a bank that was selected from
        (("compressor=gptq4", "recovery=lora_idp"), 1),
        # the dense model teaches the compressed one: the two that must be there
        (("compressor=awq4", "recovery=prompt", "recovery.training.objective=distill"), 2),
        (("compressor=wanda50_gptq4", "recovery=lora", "recovery.training.objective=distill"), 2),
    ],
)
def test_a_run_leaves_no_model(opened, run_here, bridges, options, most):
    run_here("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", *bridges, *options)
    assert_gone(opened, most)


def test_latency_leaves_no_model(opened, run_here, bridges):
    few = ("latency=default", "latency.rounds=2", "latency.new_tokens=2", "latency.warmup=0", "baselines=true")
    options = ("compressor=rtn4", "recovery=prompt", "recovery.length=4", *few)
    run_here("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", *bridges, *options)
    assert_gone(opened, 3)


def test_what_opens_a_finished_run_leaves_no_model(opened, finished_run, tmp_path, capsys):
    folder, _ = finished_run("compressor=rtn4", "recovery=lora_idp")
    model = idp.load(folder)
    model.generate(["one"], 2)
    model.score(["one"], [["two", "three"]])
    del model
    assert_gone(opened, 1)
    generate([f"record={folder}", "prompt=x", "max_new_tokens=2"])
    assert_gone(opened, 1)
    analyze(["similarity", f"record={folder}", "documents=2"])
    assert_gone(opened, 1)
    export([f"record={folder}", f"out={tmp_path / 'exported'}"])
    assert_gone(opened, 1)
