"""Bytes counted on `meta` tensors are those that a computation holds."""

from __future__ import annotations

import pytest
import torch

from idp.plan.meta import Peak
from idp.plan.shapes import SHAPES, config_of

KIB = 1024


def test_bytes_are_counted_as_they_are_held_and_freed():
    with Peak() as memory:
        leaf = torch.empty(1024, device="meta", requires_grad=True)
        assert memory.now == memory.peak == 4 * KIB
        held = (leaf * 2).exp()  # whose own result the gradient needs; the product is freed
        assert (memory.now, memory.peak) == (8 * KIB, 12 * KIB)
        view = held[:10]
        assert memory.now == 8 * KIB
        held.sum().backward()
        del held, view
        assert memory.now == 8 * KIB  # the leaf and its gradient
        memory.restart()
        leaf.grad = None
        assert (memory.now, memory.peak) == (4 * KIB, 8 * KIB)


def test_a_pretended_card_runs_out_of_memory():
    with Peak(limit=6 * KIB) as memory:
        held = torch.empty(1024, device="meta")
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(1024, device="meta")
        assert memory.now == held.nbytes


def test_attention_without_a_mask_holds_no_scores():
    """Queries behind a prefix too: the lower-right causal mask is one that the kernel knows."""
    query = torch.empty(1, 4, 512, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)
    keys = torch.empty(1, 2, 640, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)
    scores = 4 * 512 * 640 * 2
    with Peak() as memory:
        bias = torch.nn.attention.bias.causal_lower_right(512, 640)
        found = torch.nn.functional.scaled_dot_product_attention(query, keys, keys, attn_mask=bias, enable_gqa=True)
        found.sum().backward()
    assert found.shape == query.shape and keys.grad.shape == keys.shape
    assert 0 < memory.peak < scores


@pytest.mark.parametrize(("name", "parameters"), [("llama_7b", 6738415616), ("llama3_8b", 8030261248)])
def test_shapes_have_the_parameters_of_the_real_models(name, parameters):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_single_values_of_a_shape_can_be_changed():
    assert config_of("opt_6.7b", num_hidden_layers=2).num_hidden_layers == 2
    assert SHAPES["opt_6.7b"]["num_hidden_layers"] == 32
