"""Prompts in few bits: against a plain grid, number by number; the bytes are those of the files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from idp.config import Storage
from idp.errors import UserError
from idp.prompting import storage
from idp.prompting.bank import PromptBank


@pytest.fixture
def prompt():
    """Seven tokens of 13 numbers (an odd count: 4-bit codes end in half a byte), one of them all positive, one zero."""
    made = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))
    made[2] = made[2].abs() + 1.0
    made[4] = 0.0
    return made


def plain_grid(prompt, bits, symmetric, share):
    """The stored numbers by the book: sort, cut, and round one number after the other."""
    kept = prompt.clone()
    order = sorted(range(prompt.numel()), key=lambda place: abs(prompt.flatten()[place].item()))
    for place in order[: int(share * prompt.numel())]:
        kept[divmod(place, prompt.shape[1])] = 0.0
    found = torch.zeros_like(kept)
    for row, numbers in enumerate(kept):
        low, high = min(numbers.min().item(), 0.0), max(numbers.max().item(), 0.0)
        if symmetric:
            top = 2 ** (bits - 1) - 1
            scale, zero, codes = max(-low, high) / top, 0, range(-top, top + 1)
        else:
            scale, codes = (high - low) / (2**bits - 1), range(2**bits)
            zero = round(-low / scale) if scale else 0
        for column, number in enumerate(numbers):
            nearest = min(codes, key=lambda code: abs(scale * (code - zero) - number.item()))
            found[row, column] = scale * (nearest - zero)
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_the_nearest_of_the_grid(bits, symmetric, share, prompt):
    options = Storage(bits, share, symmetric, "bfloat16")
    tensors = storage.pack(prompt, options)
    found = storage.unpack(tensors, options, (7, 13))
    torch.testing.assert_close(found, plain_grid(prompt, bits, symmetric, share), atol=1e-6, rtol=1e-5)
    assert (found == 0).sum() >= int(share * 91)
    assert (tensors["codes"].dtype, tensors["scale"].shape) == (torch.uint8, (7,))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("bits", [16, 32])
def test_floats(bits, share, half, prompt):
    options = Storage(bits, share, True, half)
    found = storage.unpack(storage.pack(prompt, options), options, (7, 13))
    dtype = torch.float32 if bits == 32 else getattr(torch, half)
    assert torch.equal(found, storage.prune(prompt, share).to(dtype).float())


def test_bytes_by_hand(prompt):
    def size(bits, share=0.0, symmetric=True):
        tensors = storage.pack(prompt, Storage(bits, share, symmetric, "float16"))
        return sum(tensor.nbytes for tensor in tensors.values())

    stored = 91 - 13  # one token is zero
    assert size(16, 0.01) == 2 * stored + 12  # the mask of 91 bits pays at once, for the zero token
    assert size(8) == min(91, stored + 12) + 7 * 4
    assert size(4) == 46 + 7 * 4  # as large with a mask (39 + 12), so without
    assert size(4, symmetric=False) == 46 + 7 * 4 + 7
    left = 91 - int(0.9 * 91)
    assert size(8, 0.9) == left + 12 + 7 * 4
    assert size(4, 0.9) == (left + 1) // 2 + 12 + 7 * 4


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_bank_reads_back_what_is_stored(bits, share, open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5, 9])
    options = Storage(bits, share, False, "bfloat16")
    bank.save(tmp_path, loaded.model.config, "base", options)
    again = PromptBank.load(tmp_path)
    for prompt, found in zip(bank.prompts, again.prompts, strict=True):
        assert torch.equal(found, storage.unpack(storage.pack(prompt, options), options, tuple(prompt.shape)))
        assert (found - prompt).abs().max() < (0.5 if share else {32: 1e-9, 16: 0.01, 8: 0.01, 4: 0.1}[bits])
    total = 0
    for file in tmp_path.rglob("*.safetensors"):
        total += sum(tensor.nbytes for tensor in load_file(file).values())
    assert storage.tensor_bytes(tmp_path) == total
    if not share:
        assert total == {32: 14 * 64 * 4, 16: 14 * 64 * 2, 8: 14 * (64 + 5), 4: 14 * (32 + 5)}[bits]
    described = json.loads((tmp_path / "bank.json").read_text())
    assert described.get("storage", {"bits": 32})["bits"] == bits


def test_peft_loads_sixteen_bits(open_tiny, make_bank, tmp_path):
    from peft import PeftModel

    loaded = open_tiny("llama")
    bank = make_bank(loaded, [5])
    bank.prompts[0][:4] = 0.0  # zeros that a mask would pay for
    bank.save(tmp_path, loaded.model.config, "base", Storage(16, 0.0, True, "bfloat16"))
    stored = PromptBank.load(tmp_path).prompts[0]
    adapted = PeftModel.from_pretrained(loaded.model, tmp_path / "prompt_0")
    assert torch.equal(adapted.get_prompt(1)[0].float(), stored)


def test_a_damaged_file_is_said_in_one_line(open_tiny, make_bank, tmp_path):
    loaded = open_tiny("llama")
    make_bank(loaded, [5]).save(tmp_path, loaded.model.config, "base", Storage(4, 0.0, True, "bfloat16"))
    file = tmp_path / "prompt_0" / storage.PACKED
    tensors = load_file(file)
    save_file({**tensors, "codes": tensors["codes"][:10].clone()}, file)
    with pytest.raises(UserError, match="not a prompt bank: 20 codes for 320 places"):
        PromptBank.load(tmp_path)
