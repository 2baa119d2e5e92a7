"""A bank leaves as PEFT folders of its prompts' names, whatever those are and however it was stored."""

from types import SimpleNamespace

import torch

from idp.config import Storage
from idp.export.repair import _save_prompts
from idp.prompting import peft_files
from idp.prompting.bank import PromptBank


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
