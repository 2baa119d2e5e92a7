"""GPTQ that keeps zeros: against a plain slow loop, and against the two ways that lose zeros or error."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.pruning import SparseGPTModifier
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from llmcompressor.observers.base import Observer
from torch import nn

from idp.compress import recipe
from idp.compress.joint import SharingSparseGPTModifier, quantize_kept
from idp.compress.magnitude import smallest
from idp.compress.terminal import quiet


def problem(rows, columns, seed=0, tokens=2048):
    """Correlated inputs [tokens, columns], their Hessian, and a weight [rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.linspace(1, 0.02, columns)[:, None]
    inputs = torch.randn(tokens, columns, generator=generator) @ mix
    return inputs, 2 * inputs.T @ inputs / tokens, torch.randn(rows, columns, generator=generator) * 0.05


def grid(weight, arguments):
    """Scale and zero point [rows, groups] from each group's range."""
    observer = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=arguments)
    observer(weight)
    found = observer.get_qparams()
    return found["scale"], found["zero_point"]


def arguments(bits, group_size, symmetric=False, actorder=None):
    strategy = "channel" if group_size == -1 else "group"
    size = None if group_size == -1 else group_size
    return QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=size, actorder=actorder
    )


def slowly(weight, hessian, kept, scale, zero_point, bits, group_size, symmetric, order):
    """The same in float64 without Cholesky factors or blocks: the inverse of the remaining Hessian at every column."""
    weight, hessian = weight.double().clone(), hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    result, order = torch.zeros_like(weight), list(order)
    for place, column in enumerate(order):
        rest = order[place:]
        inverse = torch.linalg.inv(hessian[rest][:, rest])
        group = 0 if group_size == -1 else column // group_size
        step, zero = scale[:, group].double(), 0.0 if symmetric else zero_point[:, group].double()
        rounded = (torch.clamp(torch.round(weight[:, column] / step + zero), low, high) - zero) * step
        rounded[~kept[:, column]] = 0
        result[:, column] = rounded
        weight[:, rest] -= ((weight[:, column] - rounded) / inverse[0, 0])[:, None] * inverse[0]
    return result


@pytest.mark.parametrize("actorder", [None, "static"])
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, 16, False), (3, -1, False), (2, 32, True)])
def test_it_equals_the_plain_slow_loop(bits, group_size, symmetric, actorder):
    _, hessian, weight = problem(24, 96)
    hessian[:, 5] = hessian[5] = 0  # a dead input
    weight[smallest(weight, 0.5, None)] = 0
    kept = weight != 0
    wanted = arguments(bits, group_size, symmetric, actorder)
    scale, zero_point = grid(weight, wanted)
    order = hessian.diagonal().argsort(descending=True) if actorder else torch.arange(96)
    expected = slowly(weight, hessian, kept, scale, zero_point, bits, group_size, symmetric, order.tolist())
    found, failed = quantize_kept(weight.clone(), hessian.clone(), kept, scale, zero_point, wanted, block_size=40)
    assert not failed and (found[~kept] == 0).all() and (found[:, 5] == 0).all()
    # A value that lies halfway between two levels may go either way in float32.
    assert (found - expected).abs().gt(1e-5).float().mean() < 0.002


def test_with_nothing_pruned_it_is_llmcompressors_gptq():
    _, hessian, weight = problem(32, 128)
    wanted = arguments(3, 32, actorder="static")
    scale, zero_point = grid(weight, wanted)
    found, _ = quantize_kept(
        weight.clone(), hessian.clone(), torch.ones_like(weight, dtype=torch.bool), scale, zero_point, wanted
    )
    theirs = quantize_weight(weight[None].clone(), hessian[None].clone(), scale[None], zero_point[None], None, wanted)
    assert (found - theirs[0][0]).abs().gt(1e-5).float().mean() < 0.002


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_mask_in_the_loop_mask_after_and_llmcompressors_order(bits, pattern):
    for seed in range(3):
        inputs, hessian, weight = problem(128, 256, seed)
        layer = nn.Linear(256, 128, bias=False)
        layer.weight.data = weight.clone()
        prune = (2, 4) if pattern else (0, 0)
        _, pruned = sparsify_weight(layer, {layer: hessian.clone()}, 0.5, *prune, 128, 0.01, False)
        pruned = pruned.detach()
        kept, wanted = pruned != 0, arguments(bits, 64, actorder="static")
        scale, zero_point = grid(pruned, wanted)

        def error(other, inputs=inputs, weight=weight):
            return float((inputs @ (weight - other).T).square().sum() / (inputs @ weight.T).square().sum())

        in_loop, _ = quantize_kept(pruned.clone(), hessian.clone(), kept, scale, zero_point, wanted)
        plain = quantize_weight(
            pruned[None].clone(), hessian[None].clone(), scale[None], zero_point[None], None, wanted
        )[0][0]
        assert (plain == 0).float().mean() < 0.49, "llmcompressor keeps the zeros now: this file has had its day"
        assert (in_loop == 0).float().mean() >= 0.5 and (in_loop[~kept] == 0).all()
        assert error(pruned) < error(in_loop) < error(plain * kept)


def test_sparsegpt_is_given_the_hessians_that_it_would_have_gathered(open_tiny, calibration, compose, monkeypatch):
    import llmcompressor.modifiers.pruning.sparsegpt.base as sparsegpt

    given, sparsify = [], sparsegpt.sparsify_weight

    def recording(**options):
        given.append(options["hessians_dict"][options["module"]].clone())
        return sparsify(**options)

    monkeypatch.setattr(sparsegpt, "sparsify_weight", recording)
    for shared in (True, False):
        model = open_tiny("llama").model
        compressor = compose("compressor=sparsegpt50_gptq4").compressor
        group_size = recipe.check(compressor, model)
        with quiet():
            from idp.compress import oneshot

            pruning, rounding = recipe.build(compressor, group_size, model)
            assert isinstance(pruning, SharingSparseGPTModifier)
            if not shared:
                pruning = SparseGPTModifier(**pruning.model_dump(exclude_unset=True))
            oneshot.run(model, [pruning, rounding], calibration)
    assert len(given) == 2 * 14
    for ours, theirs in zip(given[:7], given[14:21], strict=True):  # behind the first layer, rounding has its say
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_smallest():
    weight = torch.tensor([[0.1, -0.4, 0.3, -0.2], [0.5, 0.5, -0.5, 0.5]])
    assert smallest(weight, 0.5, None).tolist() == [[True, True, True, True], [False, False, False, False]]
    assert smallest(weight, 0.3, None).sum() == 3  # 2.4 weights: never fewer than asked for
    assert smallest(weight, 0.5, "2:4").tolist() == [[True, False, False, True], [True, True, False, False]]
    assert smallest(weight, 0.25, "3:4").sum(dim=1).tolist() == [1, 1]
