"""Calibration is the model's own forward pass, whatever the architecture and however it makes its masks."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from idp.compress import recipe
from idp.compress.freeze import freeze
from idp.compress.terminal import quiet
from idp.models import byte_tokenizer
from tests.conftest import FAMILIES

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 256, "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GROUPED = {**SIZES, "num_key_value_heads": 2}
KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}
OPT = {key: value for key, value in FAMILIES["opt"].items() if key != "model_type"}
# A window is always shorter than the 64 tokens of a calibration block.
ARCHITECTURES = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 24},
    "ministral": {**GROUPED, "head_dim": 16, **KINDS},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, **KINDS},
    "gemma3_text": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, **KINDS},
    "phi": SIZES,
    "phi3": {**GROUPED, "sliding_window": 24},
    "starcoder2": {**GROUPED, "sliding_window": 24},
    "gpt_neox": SIZES,
    "gpt_oss": {**GROUPED, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, **KINDS},
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, **KINDS},
    "cohere": GROUPED,
    "cohere2": {**GROUPED, **KINDS},
    "exaone4": {**GROUPED, **KINDS},
    "granite": GROUPED,
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0]},
    "stablelm": GROUPED,
    "opt": {**OPT, "vocab_size": 300, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
}


@pytest.fixture
def saved_tiny(tmp_path):
    """`saved_tiny(model_type, **settings)`: a tiny float32 model with random weights, read from a folder."""

    def made(model_type: str, **settings):
        config = AutoConfig.for_model(model_type, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.dim() == 2 else 1.0)
        model.save_pretrained(tmp_path / model_type)
        byte_tokenizer().save_pretrained(tmp_path / model_type)
        return AutoModelForCausalLM.from_pretrained(tmp_path / model_type).eval().requires_grad_(False)

    return made


def blocks(tokens: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 250, (8, tokens), generator=torch.Generator().manual_seed(seed))


def inputs_of_layers(model, forward) -> dict[str, torch.Tensor]:
    """What every compressed layer is given while `forward` runs."""
    seen, handles = {}, []
    for name, layer in recipe.compressed_layers(model).items():

        def note(module, arguments, name=name):
            seen.setdefault(name, []).append(arguments[0].flatten(0, -2).clone())

        handles.append(layer.register_forward_pre_hook(note))
    forward()
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_is_calibrated_on_what_the_model_itself_gives_it(architecture, saved_tiny):
    model, ids = saved_tiny(architecture, **ARCHITECTURES[architecture]), blocks()
    with quiet():
        from llmcompressor.modifiers import Modifier

        from idp.compress import oneshot

        class Noting(Modifier):
            """Notes what hooks see, as modifiers do; changes nothing."""

            requires_calibration_data: bool = True

            def on_initialize(self, state, **kwargs):
                return True

            def on_calibration_start(self, state, event, **kwargs):
                for name, layer in recipe.compressed_layers(state.model).items():

                    def note(module, arguments, output, name=name):
                        seen.setdefault(name, []).append(arguments[0].flatten(0, -2).clone())

                    self.register_hook(layer, note, "forward")

            def on_calibration_end(self, state, event, **kwargs):
                self.remove_hooks()

        seen: dict[str, list[torch.Tensor]] = {}
        with torch.no_grad():
            plain = inputs_of_layers(model, lambda: model(ids, use_cache=False))
        oneshot.run(model, [Noting()], ids)
    compared = [name for name in plain if name in seen and "experts" not in name]
    assert len(compared) >= 6 and set(plain) <= set(seen)
    for name in compared:
        torch.testing.assert_close(torch.cat(seen[name]), plain[name], rtol=1e-3, atol=1e-3, msg=f"{name} differs")


@pytest.mark.parametrize("name", ["gptq3", "awq3", "sparsegpt50", "wanda50", "sparsegpt50_gptq4"])
def test_the_same_function_under_another_name_is_compressed_the_same(name, saved_tiny, compose):
    """Llama is Mistral without a window; Mistral, which chooses its mask by an expression, once lost it."""
    weights = {}
    for model_type in ("llama", "mistral"):
        model = saved_tiny(model_type, **GROUPED, **({"sliding_window": None} if model_type == "mistral" else {}))
        compressor = compose(f"compressor={name}").compressor
        group_size = recipe.check(compressor, model)
        with quiet():
            from idp.compress import oneshot

            oneshot.run(model, recipe.build(compressor, group_size, model), blocks())
        freeze(model)
        weights[model_type] = model.state_dict()
    assert weights["llama"].keys() == weights["mistral"].keys()
    assert all(torch.equal(tensor, weights["mistral"][name]) for name, tensor in weights["llama"].items())


def test_a_window_changes_what_is_calibrated(saved_tiny, compose):
    changed = []
    for window in (None, 24, 64):
        model = saved_tiny("mistral", **GROUPED, sliding_window=window)
        compressor = compose("compressor=gptq3").compressor
        group_size = recipe.check(compressor, model)
        with quiet():
            from idp.compress import oneshot

            oneshot.run(model, recipe.build(compressor, group_size, model), blocks())
        freeze(model)
        changed.append(model.model.layers[1].mlp.up_proj.weight.clone())
    assert torch.equal(changed[0], changed[2]) and not torch.equal(changed[0], changed[1])
