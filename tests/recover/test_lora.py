"""LoRA on layers that hold their weight transposed (GPT-2's), by itself, merged, stored and beside linear ones."""

from types import SimpleNamespace

import pytest
import torch

from idp.errors import UserError
from idp.models import LoadedModel
from idp.recover import lora
from idp.recover.context import RepairContext

TOKENS = torch.tensor([[3, 4, 5, 6, 90, 17]])


@pytest.mark.filterwarnings("error:fan_in_fan_out")
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"], ["c_attn", "lm_head"]])
def test_gpt2_s_layers_are_adapted(open_tiny, compose, tmp_path, targets):
    loaded = open_tiny("gpt2")
    options = compose("recovery=lora", f"recovery.targets=[{','.join(targets)}]", "recovery.rank=2").recovery
    options.check_model(loaded)
    plain = loaded.model(TOKENS).logits
    torch.manual_seed(0)
    adapted = lora.adapt(loaded, options)
    layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert {name.rsplit(".", 1)[-1] for name in layers} == set(targets)
    with torch.no_grad():
        for module in layers.values():
            module.lora_B["default"].weight.normal_(std=0.1)
    # y = x W + b + alpha / r * x A' B', with W [in, out] as GPT-2 holds it.
    module = next(module for name, module in layers.items() if name.endswith("c_attn"))
    x = torch.randn(2, 64)
    base = module.base_layer
    update = x @ module.lora_A["default"].weight.T @ module.lora_B["default"].weight.T
    torch.testing.assert_close(
        module.eval()(x), x @ base.weight + base.bias + options.alpha / options.rank * update, atol=1e-5, rtol=1e-5
    )
    expected = adapted.eval()(TOKENS).logits
    assert (expected - plain).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")
    for merge in (False, True):
        again = lora.attach(open_tiny("gpt2"), tmp_path / "adapter", merge)
        torch.testing.assert_close(again.model(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)


def test_gpt2_s_adapter_is_trained_and_exported(open_tiny, compose, tmp_path):
    from peft import PeftModel

    from idp.export.repair import _save_lora

    loaded = open_tiny("gpt2")
    short = {"steps": 3, "batch_size": 2, "sequence_length": 16, "warmup_steps": 1, "evaluate_every": 3}
    short |= {"heldout_sequences": 2, "checkpoint_every": 3, "learning_rate": 0.01}
    options = compose(
        "recovery=lora",
        "recovery.targets=[c_attn]",
        "recovery.rank=2",
        *(f"recovery.training.{name}={value}" for name, value in short.items()),
    ).recovery
    blocks = torch.randint(1, 200, (6, 16), generator=torch.Generator().manual_seed(0))
    context = RepairContext(loaded, 0, tmp_path / "checkpoint", tmp_path, text=(blocks, blocks[:2]))
    numbers, history = lora.tune(context, options)
    assert numbers == 2 * 2 * (64 + 192)  # layers, rank
    assert history.best_loss < history.heldout[0]["loss"]

    def read(name):
        import json

        return json.loads((tmp_path / name).read_text())

    _save_lora(SimpleNamespace(path=tmp_path, read=read), tmp_path / "out", "me/mine")
    ours = lora.attach(open_tiny("gpt2"), tmp_path / "adapter").model(TOKENS).logits
    theirs = PeftModel.from_pretrained(open_tiny("gpt2").model, tmp_path / "out")(TOKENS).logits
    torch.testing.assert_close(ours, theirs)


def test_wrong_targets_and_ranks_name_the_real_layers(open_tiny, compose):
    loaded = open_tiny("gpt2")
    options = compose("recovery=lora").recovery
    with pytest.raises(UserError, match="no layer is called q_proj, v_proj; there are c_attn, c_fc, c_proj, lm_head"):
        options.check_model(loaded)
    options = compose("recovery=lora", "recovery.targets=[c_attn]", "recovery.rank=65").recovery
    with pytest.raises(UserError, match="c_attn is 64 x 192; use 64 or less"):
        options.check_model(loaded)


def test_an_adapted_model_keeps_its_bos(open_bos, compose, tmp_path):
    loaded = open_bos(mode="never")
    options = compose("recovery=lora", "recovery.rank=2").recovery
    lora.adapt(loaded, options).save_pretrained(tmp_path)
    again = lora.attach(open_bos(mode="never"), tmp_path)
    assert isinstance(again, LoadedModel) and again.bos == ()
