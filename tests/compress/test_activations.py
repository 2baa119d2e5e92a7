"""One hook and one pass: what observers see is what the model's own forward pass gives its layers."""

import sys

import pytest
import torch
from torch import nn

from idp.compress import activations
from idp.compress.activations import Observer, observe, watching
from idp.compress.forward import LayeredForward
from idp.compress.recipe import compressed_layers
from idp.errors import UserError

FAMILIES = ("llama", "opt", "mistral")


class Kept(Observer):
    """Everything, which no observer of use keeps."""

    def __init__(self, log=None, name=""):
        self.seen, self.finished, self.log, self.name = [], 0, log, name

    def see(self, layer, inputs, outputs):
        assert inputs.dim() == 2 and outputs.shape == (len(inputs), layer.out_features)
        self.seen.append(inputs.clone())
        if self.log is not None:
            self.log.append(("see", self.name))

    def finish(self, layer):
        self.finished += 1
        if self.log is not None:
            self.log.append(("finish", self.name))


def plain_inputs(model, blocks, names):
    """Each layer's inputs [tokens, in_features], by hooks of torch alone."""
    found, handles = {}, []
    for name in names:

        def keep(module, given, output, name=name):
            found[name] = given[0].flatten(0, -2)

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model(input_ids=blocks, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_is_seen_once_in_order(family, open_tiny, calibration):
    model = open_tiny(family).model
    names = [*compressed_layers(model), "lm_head"]
    expected = plain_inputs(model, calibration, names)
    observers = {name: Kept() for name in names}
    observe(model, calibration, observers, batch_tokens=64)
    for name, observer in observers.items():
        assert len(observer.seen) == 4 and observer.finished == 1, name
        torch.testing.assert_close(torch.cat(observer.seen), expected[name], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_is_done_before_the_next_begins(open_tiny, calibration):
    """So that statistics of one decoder layer are held at a time."""
    model, log = open_tiny("llama").model, []
    names = list(compressed_layers(model))
    done = []
    observe(
        model,
        calibration,
        {name: Kept(log, name) for name in names},
        batch_tokens=64,
        done=lambda: done.append(len(log)),
    )
    depth = [int(name.split(".")[2]) for _, name in log]
    assert depth == sorted(depth) and set(depth) == {0, 1} and len(done) == 2
    for number in set(depth):
        acts = [act for (act, _), place in zip(log, depth, strict=True) if place == number]
        assert acts == ["see"] * acts.count("see") + ["finish"] * (len(names) // 2)


def test_changed_layers_are_what_the_next_ones_see(open_tiny, calibration):
    class Halving(Kept):
        def finish(self, layer):
            layer.weight.mul_(0.5)

    model, other = open_tiny("llama").model, open_tiny("llama").model
    first, second = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"
    observers = {first: Halving(), second: Kept()}
    observe(model, calibration, observers, changing=True)
    other.get_submodule(first).weight.data.mul_(0.5)
    torch.testing.assert_close(
        torch.cat(observers[second].seen), plain_inputs(other, calibration, [second])[second], rtol=1e-4, atol=1e-5
    )
    again = {first: Halving(), second: Kept()}
    observe(model, calibration, again)  # not told that it changes: what is seen is as the pass began
    torch.testing.assert_close(
        torch.cat(again[second].seen), plain_inputs(other, calibration, [second])[second], rtol=1e-4, atol=1e-5
    )


def test_a_model_that_cannot_be_taken_apart_goes_through_as_a_whole(open_tiny, calibration, monkeypatch, caplog):
    model = open_tiny("llama").model
    names = list(compressed_layers(model))
    expected = plain_inputs(model, calibration, names)

    def refuse(self, *_):
        raise self.refusal("a test says so")

    monkeypatch.setattr(LayeredForward, "calls", refuse)
    observers = {name: Kept() for name in names}
    observe(model, calibration, observers)
    for name, observer in observers.items():
        assert observer.finished == 1
        torch.testing.assert_close(torch.cat(observer.seen), expected[name], rtol=1e-4, atol=1e-5)
    assert "a test says so" in caplog.text
    with pytest.raises(UserError, match="a test says so"):  # of which a change in sequence would be another one
        observe(model, calibration, observers, changing=True)


def test_inputs_that_are_not_finite_are_refused(open_tiny, calibration):
    model = open_tiny("llama").model
    model.model.layers[1].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"model\.layers\.1"):
        observe(model, calibration, {"model.layers.1.self_attn.q_proj": Kept()})
    with (
        pytest.raises(UserError, match=r"the input of model\.layers\.1\.self_attn\.q_proj has values that are NaN"),
        torch.no_grad(),
        watching(model, {"model.layers.1.self_attn.q_proj": Kept()}),
    ):
        model(input_ids=calibration)


def test_a_layer_that_no_pass_calls_is_named(open_tiny, calibration):
    model = open_tiny("llama").model
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="unused is not called"):
        observe(model, calibration, {"unused": Kept()})


def test_it_is_imported_without_the_heavy_libraries():
    import subprocess

    code = "import sys, idp.compress.activations; sys.exit(bool({'torch', 'llmcompressor'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert activations.BATCH_TOKENS == 1024
