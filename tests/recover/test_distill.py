"""Distillation brings a damaged model nearer to the dense one, and its repair is kept apart from that of `lm`."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from idp import models
from idp.recover import making, opening, stage
from idp.store import Store

from .conftest import METHODS


@pytest.fixture
def damaged(small, text, tmp_path):
    """`damaged(method, *overrides)`: a repair of a model with coarse weights, the dense one being its teacher."""
    from idp.compress import stage as compressing

    def make(method, *overrides):
        few = ["compressor.calibration.samples=2", "compressor.calibration.length=64"]
        compressor = "magnitude50" if method == "masked_lora" else "rtn2"
        config = small(method, f"compressor={compressor}", *few, *overrides)
        root = Store(tmp_path / "store")
        dense = models.load(config.model, models.find_model(config.model), root)
        empty = models.open_empty(models.model_folder(dense), config.model)
        size = compressing.check(config.compressor, empty, text)
        coarse = compressing.compress(config.compressor, size, config.model, dense, text, root)
        return config, dense, coarse, stage.recover(config.recovery, config.model, coarse, text, 0, root, dense=dense)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_from_the_dense_model(method, damaged, text):
    distill = ["recovery.training.objective=distill", "recovery.training.learning_rate=0.01"]
    distill += ["recovery.lora.training.objective=distill"] if method == "lora_idp" else []
    config, dense, coarse, repair = damaged(method, *distill, "recovery.training.steps=20")
    for history in repair.read("history.json").values():
        assert history["best_loss"] < history["heldout"][0]["loss"]
    history = list(repair.read("history.json").values())[-1]

    # The held-out loss is the KL by torch's own function.
    if method in ("prompt", "lora"):
        teacher = models.open_model(models.model_folder(dense), config.model)
        _, heldout = making._text(config.recovery.training, text, teacher, 0)
        repaired = opening.open_repaired(config.model, coarse, repair, config.recovery)
        with torch.no_grad():
            given = log_softmax(teacher.model(heldout).logits[:, :-1], dim=-1).flatten(0, 1)
            if method == "lora":
                logits = repaired.model(heldout).logits[:, :-1]
            else:
                embedded = repaired.model.get_input_embeddings()(heldout)
                whole = torch.cat([repaired.bank.prompts[0].expand(len(heldout), -1, -1), embedded], dim=1)
                logits = repaired.model(inputs_embeds=whole).logits[:, 5:-1]
            kl = kl_div(log_softmax(logits, dim=-1).flatten(0, 1), given, reduction="batchmean", log_target=True)
        assert history["best_loss"] == pytest.approx(kl.item(), abs=1e-5)


def test_the_key_has_the_teacher(damaged):
    lm, other = damaged("prompt")[-1], damaged("prompt", "recovery.training.objective=distill")[-1]
    _, dense, *_ = damaged("prompt")
    assert "teacher" not in lm.manifest["config"] and other.manifest["config"]["teacher"] == dense.key
    mixed = damaged("prompt", "recovery.training.objective=distill", "recovery.training.lm_weight=0.5")[-1]
    assert len({lm.key, other.key, mixed.key}) == 3
