"""A bank leaves as PEFT folders of its prompts' names, whatever those are and however it was stored."""

from types import SimpleNamespace

import pytest
import torch

from idp.config import Storage
from idp.export.repair import _save_prompts
from idp.prompting import peft_files
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.prompting.shapes import prefix_width


def test_names_of_others_folders_and_prompts_in_four_bits(open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [3, 4])
    bank.names = ["prompt_1", "prompt_0"]
    bank.save(tmp_path / "bank", loaded.model.config, "base", Storage(4, 0.5, True, "bfloat16"))
    record = {"idp": {"config": {"recovery": {"kind": "idp", "selector": {"kind": "attention"}}}}}
    run = SimpleNamespace(record=record, selector=None)
    _save_prompts(run, SimpleNamespace(path=tmp_path), loaded, tmp_path / "out", "me/mine")
    stored = PromptBank.load(tmp_path / "bank")
    for name, prompt in zip(stored.names, stored.prompts, strict=True):
        read = peft_files.read(tmp_path / "out" / name)
        assert torch.equal(read.prompt, prompt) and read.base_model == "me/mine"


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_prefix_is_peft_s_with_the_same_logits(family, open_tiny, tmp_path):
    from peft import PeftModel

    loaded = open_tiny(family)
    width = prefix_width(loaded.model.config)
    prefix = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    bank = PromptBank([prefix], ["prefix"], kind="prefix")
    bank.save(tmp_path / "bank", loaded.model.config, "base")
    record = {"idp": {"config": {"recovery": {"kind": "prefix"}}}}
    run = SimpleNamespace(record=record, selector=None)
    _save_prompts(run, SimpleNamespace(path=tmp_path), loaded, tmp_path / "out", "me/mine")
    tokens = torch.tensor([[3, 4, 5, 6, 90]])
    repaired = RepairedModel(loaded, bank)
    visible = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    inputs = repaired.attention_inputs(visible, torch.arange(5)[None], torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        ours = loaded.model(input_ids=tokens, **inputs).logits
        plain = loaded.model(input_ids=tokens).logits
        theirs = PeftModel.from_pretrained(loaded.model, tmp_path / "out" / "prefix")(input_ids=tokens).logits
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 1e-3
