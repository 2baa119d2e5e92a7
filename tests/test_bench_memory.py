"""What a training step takes of a card's memory at the shapes of real models; on `meta` tensors, by the real step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from idp.bench.memory import (
    BESIDE,
    CHECKPOINTED,
    GIB,
    PLAIN,
    fits,
)
from idp.plan.meta import Peak
from idp.plan.peaks import RECOVERIES, TrainingStep, peak_of, prepared
from idp.plan.shapes import config_of
from idp.recover.fitting import FitResult

SAVED = {"checkpointing": True, "teacher": "streamed"}


@pytest.mark.parametrize("shape", ["llama_7b", "llama3_8b"])
@pytest.mark.parametrize("recovery", RECOVERIES)
def test_seven_and_eight_billion_weights_are_trained_within_20_gib(shape, recovery):
    found = peak_of(TrainingStep(shape, recovery, **SAVED))
    numbers = sum(parameter.numel() for parameter in model(shape).parameters())
    assert found["weights"] == pytest.approx(2 * numbers, rel=1e-6)  # and a few of its positions' frequencies
    assert found["weights"] < found["peak"] < 20 * GIB
    assert documented(shape, recovery)[CHECKPOINTED] == f"{found['peak'] / GIB:.1f}"


def documented(shape, recovery):
    """The row of the table in docs/large_models.md, by its columns."""
    lines = (Path(__file__).parents[1] / "docs" / "large_models.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (row,) = [row for row in rows if row[:2] == [shape, recovery]]
    return dict(zip(next(row for row in rows if row[:2] == ["model", "recovery"]), row, strict=True))


def model(shape):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(shape))


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_logits_never_set_the_peak(recovery, monkeypatch):
    """A quarter as many at a time take no less."""
    from idp.recover.nets import head_loss

    step = TrainingStep("llama3_8b", recovery, layers=2, **SAVED)
    found = peak_of(step)["peak"]
    monkeypatch.setattr(head_loss, "GPU_LOGITS", head_loss.GPU_LOGITS // 4)
    assert peak_of(step)["peak"] > 0.97 * found


def test_a_card_that_is_too_small_makes_training_spare_memory():
    """First layers are computed anew, then the micro batch is halved."""
    step = TrainingStep("llama32_1b", "prompt", layers=4, checkpointing=None)
    saved = peak_of(TrainingStep("llama32_1b", "prompt", layers=4, **SAVED))["peak"]
    plain, little = peak_of(step)["peak"], 2**24  # more than the optimizer has, which is not asked to step here

    def changes(limit):
        with Peak() as memory:
            loss, parameters, _ = prepared(step, memory)
            fitting, held = FitResult(loss, step.rows, []), memory.now

            def backward(rows):
                for parameter in parameters:
                    parameter.grad = None
                for summand in loss.summands(torch.zeros(2, 1024, dtype=torch.long, device="meta"), rows):
                    summand.backward()
                return 0.0

            memory.limit = limit
            fitting.attempt(1, backward)
            for parameter in parameters:
                parameter.grad = None
            assert memory.now - held < 2**23, "what a failed step held, some 400 MB, is freed"
        return [row["changed"] for row in fitting.changes]

    assert changes(plain) == []
    assert changes(plain - little) == ["checkpointing"]
    assert changes(saved - little) == ["checkpointing", "micro_batch_size=1"]


def test_the_table_says_by_what_a_card_holds_a_step():
    row = {PLAIN: 30 * GIB, CHECKPOINTED: (24 - BESIDE) * GIB}
    assert [fits(row, card) for card in (80, 48, 24, 16)] == ["yes", "yes", "checkpointing", "no"]
