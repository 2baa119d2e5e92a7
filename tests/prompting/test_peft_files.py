"""Prompts go over to PEFT and come from it with equal logits; what is no soft prompt is refused in one line."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.errors import UserError
from idp.prompting import peft_files
from idp.prompting.bank import PromptBank
from idp.prompting.prefix import bind
from idp.prompting.repaired import RepairedModel

TOKENS = [3, 4, 5, 6, 90]


def our_logits(loaded, prompt):
    """Logits behind a prompt by way of the bank: its keys and values first, then the input."""
    repaired = RepairedModel(loaded, PromptBank([prompt], ["one"]))
    tokens = torch.tensor([TOKENS])
    visible = torch.ones(1, len(TOKENS), len(TOKENS), dtype=torch.bool).tril()
    inputs = repaired.attention_inputs(visible, torch.arange(len(TOKENS))[None], torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        return loaded.model(input_ids=tokens, **inputs).logits[0]


def peft_logits(adapted):
    with torch.no_grad():
        return adapted.eval()(input_ids=torch.tensor([TOKENS])).logits[0, -len(TOKENS) :]


def trained_by_peft(loaded, folder, kind="PROMPT_TUNING"):
    """A prompt that PEFT itself trains for three steps and saves; the adapted model."""
    from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model

    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    made = PromptTuningConfig(**options) if kind == "PROMPT_TUNING" else PromptEncoderConfig(**options)
    if kind == "P_TUNING":
        made.encoder_hidden_size = 16
    torch.manual_seed(0)
    adapted = get_peft_model(loaded.model, made)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    batch = torch.randint(1, 250, (4, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        adapted(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_prompt_that_peft_trained_gives_the_same_logits_here(family, kind, open_tiny, tmp_path):
    loaded = open_tiny(family)
    expected = peft_logits(trained_by_peft(loaded, tmp_path, kind))
    read = peft_files.read(tmp_path)
    assert read.prompt.shape == (5, 64) and read.base_model == loaded.model.config._name_or_path
    torch.testing.assert_close(our_logits(open_tiny(family), read.prompt), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_our_prompts_give_the_same_logits_in_peft(family, open_tiny, make_bank, tmp_path):
    from peft import PeftModel

    bank = make_bank(open_tiny(family), [5, 9])
    bank.save(tmp_path, open_tiny(family).model.config, "base")
    for number, prompt in enumerate(bank.prompts):
        adapted = PeftModel.from_pretrained(open_tiny(family).model, tmp_path / f"prompt_{number}")
        expected = our_logits(open_tiny(family), prompt)
        torch.testing.assert_close(peft_logits(adapted), expected, atol=1e-4, rtol=0)


@pytest.fixture
def adapter(open_tiny, make_bank, tmp_path):
    """`adapter(**changes)`: a good PEFT folder with its config changed."""

    def made(**changes):
        loaded = open_tiny("llama")
        make_bank(loaded, [5]).save(tmp_path, loaded.model.config, "facebook/other")
        folder = tmp_path / "prompt_0"
        described = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**described, **changes}))
        return folder

    return made


def refused(folder, message):
    with pytest.raises(UserError, match=message) as caught:
        peft_files.read(folder)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_and_not_opened(adapter, tmp_path):
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "was_run"), "w")

    folder = adapter()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"prompt_embeddings": Touch()}))
    refused(folder, "its weights are pickled .adapter_model.bin.*save it again")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("PREFIX_TUNING", "PREFIX_TUNING cannot join a bank of prompts: it holds keys and values of every layer"),
        ("LORA", "LORA cannot join .*recovery=transfer recovery.from"),
        ("MULTITASK_PROMPT_TUNING", "its prompt depends on the task"),
        ("VERA", "only PROMPT_TUNING and P_TUNING are soft prompts"),
    ],
)
def test_other_adapters_are_refused(kind, message, adapter):
    refused(adapter(peft_type=kind), message)


def test_files_that_do_not_agree_are_refused(adapter):
    refused(adapter(num_virtual_tokens=7), r"prompt_embeddings is \(5, 64\), adapter_config.json says \(7, 64\)")
    refused(adapter(num_transformer_submodules=2), "for an encoder and a decoder")
    folder = adapter()
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({"embedding.weight": tensors["prompt_embeddings"]}, file)
    refused(folder, "no tensor prompt_embeddings .*, but embedding.weight: save it with PEFT")
    save_file({"prompt_embeddings": tensors["prompt_embeddings"] * float("nan")}, file)
    refused(folder, "NaN or infinite")
    file.write_bytes(b"nothing")
    refused(folder, "cannot be read as safetensors")
    file.unlink()
    refused(folder, "there is no adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[")
    refused(folder, "not a PEFT adapter")


def test_a_bank_with_centres_reads_back_whole(open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    bank.centres, bank.made = torch.randn(2, 64), {"kind": "cluster", "blocks": [3, 4]}
    bank.save(tmp_path, loaded.model.config, "base")
    again = PromptBank.load(tmp_path)
    assert torch.equal(again.centres, bank.centres) and again.made == bank.made
    assert bind(loaded.model, again).lengths.tolist() == [5, 9]
