"""Packing is exact: what a reader unpacks are the weights bit for bit, and what lies off its grid is refused."""

import pytest
import torch
from torch import nn

from idp.compress import pack
from idp.errors import UserError


def on_grid(bits, groups, dtype, symmetric, rows=48, columns=128):
    """Random codes, scales and zero points, and the weights that they stand for, in `dtype`'s own arithmetic."""
    draw = torch.Generator().manual_seed(bits * 100 + groups)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (rows, columns), generator=draw)
    zero_point = torch.zeros(rows, groups, dtype=torch.int8)
    if not symmetric:
        zero_point = torch.randint(low, high, (rows, groups), generator=draw).to(torch.int8)
    scale = (torch.rand(rows, groups, generator=draw) * 0.1 + 1e-3).to(dtype)
    steps = codes.unflatten(1, (groups, -1)).to(dtype) - zero_point[..., None].to(dtype)
    return codes, (steps * scale[..., None]).flatten(1), scale, zero_point


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_library_unpacks_the_very_weights(bits, groups, symmetric, dtype):
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    codes, weight, scale, zero_point = on_grid(bits, groups, dtype, symmetric)
    packed = pack.pack(weight, scale, zero_point, bits, symmetric)
    group = {"strategy": "channel"} if groups == 1 else {"strategy": "group", "group_size": 128 // groups}
    arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **group)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    assert torch.equal(PackedQuantizationCompressor.decompress(packed, scheme)["weight"], weight)
    assert packed["weight_packed"].numel() * 32 == codes.numel() * bits
    assert ("weight_zero_point" in packed) != symmetric
    words = [word & 0xFFFFFFFF for word in packed["weight_packed"][0].tolist()]
    stream = sum(word << (32 * number) for number, word in enumerate(words))
    found = [(stream >> (bits * k)) & (2**bits - 1) for k in range(128)]
    meant = [code + 2 ** (bits - 1) for code in codes[0].tolist()]
    # In bfloat16 two neighbouring 8-bit codes may stand for one and the same weight.
    twins = int(bits == 8 and dtype is torch.bfloat16)
    assert all(abs(code - wanted) <= twins for code, wanted in zip(found, meant, strict=True))


def test_a_group_of_zeros():
    weight = torch.zeros(4, 32)
    packed = pack.pack(weight, torch.zeros(4, 1), torch.full((4, 1), -3, dtype=torch.int8), 4, False)
    assert packed["weight_packed"].shape == (4, 4)


def test_what_lies_off_the_grid_is_refused():
    _, weight, scale, zero_point = on_grid(4, 4, torch.float32, False)
    off = weight.clone()
    off[3, 5] += scale[3, 0] / 8
    with pytest.raises(ValueError, match="off its grid"):
        pack.pack(off, scale, zero_point, 4, False)
    off[3, 5] = scale[3, 0] * 40
    with pytest.raises(ValueError, match="off its grid of 4 bits"):
        pack.pack(off, scale, zero_point, 4, False)
    with pytest.raises(ValueError, match="symmetric grid with zero points"):
        pack.pack(weight, scale, zero_point, 4, True)
    model = nn.ModuleDict({"layer": nn.Linear(128, 48, bias=False)})
    model["layer"].weight.data = weight + 1e-4
    grids = {"layer.scale": scale, "layer.zero_point": zero_point}
    with pytest.raises(UserError, match="layer: a weight .*cannot be packed without changing the model"):
        pack.packed_state(model, grids, bits=4, symmetric=False)
    with pytest.raises(UserError, match="other: has a grid but no weight"):
        pack.packed_state(model, {"other.scale": scale, "other.zero_point": zero_point}, bits=4, symmetric=False)
