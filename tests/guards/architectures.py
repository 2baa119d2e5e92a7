"""The table of architectures in docs/models.md: `python -m tests.guards.architectures` makes it anew, in minutes.

Every causal language model of transformers is made small from its class's own defaults, with random weights, and held
to its own forward pass in each of the ways that a run may need.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
ROPE = {"rope_type": "longrope", "original_max_position_embeddings": 2048}
ROPE |= {"short_factor": [1 + i / 10 for i in range(8)], "long_factor": [2.0 + i / 2 for i in range(8)]}
LONG = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2}
# Where a class's defaults make no model, or none of the kind that has trained weights; and variants of one class.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {"is_decoder": True})
        for name in ("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert")
    },
    **{
        name: (name, {"is_decoder": True})
        for name in ("roberta", "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod")
    },
    "deepseek_v2": ("deepseek_v2", {**EXPERTS, "topk_method": "greedy"}),
    "dots1": ("dots1", {**EXPERTS, "n_shared_experts": 1}),
    "granitemoehybrid": ("granitemoehybrid", {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 16}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"head_dim": 16, "num_experts": 4, "moe_topk": 2}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4}),
    "llama4_text": ("llama4_text", {"num_hidden_layers": 4}),
    "llama4": ("llama4", {"text_config": {"num_hidden_layers": 4}}),
    "llama4_text, attn_temperature_tuning=False": (
        "llama4_text",
        {"num_hidden_layers": 4, "attn_temperature_tuning": False},
    ),
    "ministral": ("ministral", {"head_dim": 16}),
    "nemotron": ("nemotron", {"num_key_value_heads": 8}),
    "phi3, LongRoPE": ("phi3", {**LONG, "rope_scaling": dict(ROPE), "original_max_position_embeddings": 2048}),
    "phimoe, LongRoPE": ("phimoe", {**LONG, "rope_scaling": {**ROPE, "short_mscale": 1.1, "long_mscale": 1.3}}),
    "llama, dynamic RoPE": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama, YaRN": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}},
    ),
}


def names() -> list[str]:
    """Every model type that transformers has a causal language model of, and the variants, in order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS})


def config_of(name: str) -> Any:
    """The config of a row of the table."""
    from transformers import AutoConfig

    model_type, values = VARIANTS.get(name, (name, {}))
    return AutoConfig.for_model(model_type, **values)


def row(name: str) -> str:
    """One line of the table: in which ways the architecture is right, and why it is refused in the others."""
    from idp.evaluate import guard, trial

    try:
        config = config_of(name)
    except Exception as error:
        return _line(name, "", ["?"] * 4, f"its class's defaults make no config ({type(error).__name__})")
    class_name = guard._name(config)
    known = guard.refused_by_class(config)
    if known is not None:
        return _line(name, class_name, ["refused"] * 4, known.partition(": ")[2].partition(", which")[0])
    found = guard.answers(config)
    if found[trial.PACKED] is not None and "no small model" in found[trial.PACKED]:
        return _line(name, class_name, ["refused"] * 4, "no small model of its class could be built")
    marks = [
        "equal" if all(found[part] is None for part in parts) else "refused"
        for parts in (
            (trial.PACKED,),
            (trial.PROMPTED,),
            (trial.GENERATION, trial.GENERATION_PROMPTED),
            (trial.TRAINING,),
        )
    ]
    refused = [part for part in trial.PARTS if found[part] is not None]
    return _line(
        name, class_name, marks, f"otherwise than its own forward pass: {', '.join(refused)}" if refused else ""
    )


def _line(name: str, class_name: str, marks: list[str], why: str) -> str:
    return f"| {name} | {class_name} | {' | '.join(marks)} | {why} |"


def table() -> dict[str, str]:
    """The lines of the table in docs/models.md, by architecture."""
    text = DOCS.read_text(encoding="utf-8")
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()[3:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def write(rows: dict[str, str]) -> None:
    """Puts the table into docs/models.md."""
    text = DOCS.read_text(encoding="utf-8")
    head = [
        "| architecture | class | scoring | behind a prompt | generation | training a prompt | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    body = "\n".join([BEGIN, *head, *(rows[name] for name in names())])
    DOCS.write_text(text[: text.index(BEGIN)] + body + "\n" + text[text.index(END) :], encoding="utf-8")


if __name__ == "__main__":
    found = table() if sys.argv[1:] else {}
    for name in sys.argv[1:] or names():
        found[name] = row(name)
        print(found[name], flush=True)
    write(found)
