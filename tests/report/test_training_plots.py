"""Curves of training: what they are drawn of, and which stand apart."""

import itertools

import pytest

from idp.records.collect import collect
from idp.report.drawing import NothingToShow
from idp.report.training_plots import training_curves
from idp.report.view import views

TRAINING = {"batch_size": 2, "sequence_length": 8, "objective": "distill", "heldout_sequences": 4}


pytest.importorskip("matplotlib")


def trained(parts, **changes):
    def change(written):
        written["idp"]["training"] = parts

    return {"recovery": {"kind": "idp", "training": {**TRAINING, **changes}}, "change": change}


def lines(axes):
    return [[list(map(float, values)) for values in line.get_data()] for line in axes.get_lines()]


def test_a_curve_is_the_mean_of_the_prompts_over_the_tokens_read(record, runs):
    parts = {"prompt_0": {"heldout": [[0, 4.0], [3, 2.0]]}, "prompt_1": {"heldout": [[0, 2.0], [3, 1.0], [6, 1.0]]}}
    record("bank", **trained(parts))
    (view,) = views(collect([runs]))
    (axes,) = training_curves(view).axes
    assert lines(axes) == [[[0, 48], [3.0, 1.5]]]
    assert axes.get_ylabel() == "held-out loss, distill (nats per token)"


def test_ticks_of_long_trainings_can_be_read(record, runs):
    heldout = [[step, 4.0 / (step + 1)] for step in range(0, 12000, 1000)]
    for number in range(2):  # two panels beside each other, each with less room
        record(f"long-{number}", keys=[str(number)], **trained({"prompt_0": {"heldout": heldout}}, lm_weight=number))
    (view,) = views(collect([runs]))
    figure = training_curves(view)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert len(boxes) > 3 and not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))


def test_losses_of_other_objectives_stand_apart_and_seeds_together(record, runs):
    part = {"prompt_0": {"heldout": [[0, 4.0], [3, 2.0]]}}
    record("one", **trained(part))
    record("two", seed=1, **trained(part))
    record("three", keys=["other"], **trained(part, objective="lm"))
    (view,) = views(collect([runs]))
    panels = training_curves(view).axes
    assert sorted(len(lines(axes)) for axes in panels) == [1, 2]
    assert {axes.get_ylabel().split()[2] for axes in panels} == {"distill", "lm"}


def test_records_of_before_have_none(record, runs):
    record("old", **trained({"prompt_0": {"best_step": 3, "heldout_loss": 2.0}}))
    (view,) = views(collect([runs]))
    with pytest.raises(NothingToShow, match="of this version"):
        training_curves(view)
