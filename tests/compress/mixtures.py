"""Tiny mixtures of experts whose experts matter, and their compressed products."""

from __future__ import annotations

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
}
MIXTURES = {
    "mixtral": {
        "model_type": "mixtral",
        "intermediate_size": 96,
        "num_local_experts": 4,
        "sliding_window": None,
    },
    "qwen3_moe": {  # an expert's width is a layer's option of its own; the first layer is a plain one
        "model_type": "qwen3_moe",
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "head_dim": 16,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
        "num_hidden_layers": 3,
    },
    "qwen2_moe": {  # an expert for every token, with a gate of its own
        "model_type": "qwen2_moe",
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
    },
    "olmoe": {"model_type": "olmoe", "intermediate_size": 32, "num_experts": 4},
    "phimoe": {"model_type": "phimoe", "intermediate_size": 96, "num_local_experts": 4, "sliding_window": None},
    "granitemoe": {"model_type": "granitemoe", "intermediate_size": 96, "num_local_experts": 4},  # one tensor on disk
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
}


def make_mixture(family: str, folder):
    """Writes a tiny mixture of `family`, whose experts are as wide in their values as its other layers."""
    import torch
    from transformers import AutoModelForCausalLM

    from idp.models import _make_random

    _make_random(SMALL | MIXTURES[family], folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 3:
                parameter.mul_(0.08 / parameter.std())
    model.save_pretrained(folder)
    return folder
