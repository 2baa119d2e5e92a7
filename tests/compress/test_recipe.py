"""From config to modifiers: names, group sizes, patterns, and what is refused before any work."""

import pytest
from torch import nn

from idp.compress import recipe
from idp.errors import UserError


def test_labels_say_what_is_done(compose):
    assert compose().compressor.label == "none"
    assert compose("compressor=gptq3").compressor.label == "gptq3"
    override = ["compressor=gptq4", "compressor.quantization.bits=3", "compressor.quantization.group_size=-1"]
    assert compose(*override).compressor.label == "gptq3-g-1"
    for name in ("sparsegpt_2of4_gptq4", "wanda50_gptq4", "magnitude50", "awq3", "rtn8", "sparsegpt_4of8"):
        assert compose(f"compressor={name}").compressor.label == name
    assert compose("compressor=sparsegpt62").compressor.label == "sparsegpt62.5"


def test_group_sizes(open_tiny, compose):
    layers = recipe.compressed_layers(open_tiny("llama").model)
    quantization = compose("compressor=gptq4").compressor.quantization
    assert recipe.resolve_group_size(quantization, layers) == 64  # widths are 64 and 128
    quantization.group_size = -1
    assert recipe.resolve_group_size(quantization, layers) == -1
    quantization.group_size = 128
    with pytest.raises(UserError, match=r"group_size=128: does not divide model\.layers\.0\.\S+, whose width is 64"):
        recipe.resolve_group_size(quantization, layers)
    assert recipe.resolve_group_size(compose("compressor=gptq4").compressor.quantization, {"a": nn.Linear(7, 7)}) == -1


def test_a_3_bit_group_that_does_not_divide_is_refused(open_tiny, compose):
    compressor = compose("compressor=gptq3", "compressor.quantization.group_size=48").compressor
    with pytest.raises(UserError, match=r"group_size=48: does not divide model\.layers\.0\.self_attn\.q_proj"):
        recipe.check(compressor, open_tiny("llama").model)


@pytest.mark.parametrize(("pattern", "level"), [("2:5", 0.6), ("3:7", 4 / 7)])
def test_a_pattern_that_does_not_divide_a_width_is_refused(pattern, level, open_tiny, compose):
    options = [f"compressor.sparsity.pattern={pattern}", f"compressor.sparsity.level={level}"]
    compressor = compose("compressor=wanda50", *options).compressor
    with pytest.raises(UserError, match=rf"pattern={pattern}: model\.layers\.0\.self_attn\.q_proj is 64 wide"):
        recipe.check(compressor, open_tiny("llama").model)


def test_the_head_is_not_compressed(open_tiny):
    for family in ("llama", "qwen2", "opt"):
        model = open_tiny(family).model
        assert recipe.output_head(model) == ["lm_head"]
        assert "lm_head" not in recipe.compressed_layers(model)


def test_what_a_compressor_knows_nothing_of_is_refused(open_tiny, compose):
    gpt2 = open_tiny("gpt2").model
    with pytest.raises(UserError, match="GPT2LMHeadModel has no torch.nn.Linear layers"):
        recipe.check(compose("compressor=gptq4").compressor, gpt2)
    assert recipe.check(compose("compressor=none").compressor, gpt2) is None
    for family in ("llama", "opt", "qwen3", "mistral", "gemma2"):
        assert recipe.check(compose("compressor=awq4").compressor, open_tiny(family).model) in (32, 64)


def test_what_needs_data(compose):
    for name, needs in (("none", False), ("rtn4", False), ("magnitude50", False), ("awq3", True), ("gptq2", True)):
        assert recipe.needs_data(compose(f"compressor={name}").compressor) == needs
    mixed = ["compressor=rtn4", "compressor.sparsity.method=wanda", "compressor.sparsity.level=0.5"]
    assert recipe.needs_data(compose(*mixed).compressor)
