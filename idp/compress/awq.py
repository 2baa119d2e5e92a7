"""AWQ on every machine and for OPT, and the scales that it folded into the layers, without which nothing compares."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from compressed_tensors.utils import patch_attr
from llmcompressor.core import active_session
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier, base
from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model
from llmcompressor.pipelines.cache import IntermediatesCache
from pydantic import PrivateAttr
from torch import nn

from idp.compress import guard
from idp.compress.forward import decoder_layers
from idp.errors import UserError

NAME = "compressor.quantization.method=awq"

# Architectures whose mappings were held to their module graph: scales moved by them leave the logits as they are (a
# test does so with each). llmcompressor guesses for any other, and a wrong guess is a worse model without a word: in
# BitNet a norm stands between the values and the output projection.
KNOWN = (
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
    "CwmForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
    "HeliumForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "LlamaForCausalLM",
    "MinistralForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "OlmoForCausalLM",
    "Olmo3ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
)

# OPT with its norms before attention and before the feed-forward layers (all sizes but 350M), as in the AWQ paper.
# Its ReLU passes a positive scale through, so that fc1 can carry fc2's.
OPT = [
    AWQMapping("re:.*self_attn_layer_norm$", ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]),
    AWQMapping("re:.*v_proj$", ["re:.*out_proj$"]),
    AWQMapping("re:.*layers\\.\\d+\\.final_layer_norm$", ["re:.*fc1$"]),
    AWQMapping("re:.*fc1$", ["re:.*fc2$"]),
]


def mappings(model: nn.Module) -> list[AWQMapping]:
    """Which layer of this architecture carries the inverse of the scale that others are given; none: not known."""
    config, name = model.config, type(model).__name__
    if name == "OPTForCausalLM" and config.do_layer_norm_before and config.activation_function == "relu":
        return OPT
    return get_layer_mappings_from_model(model) if name in KNOWN else []


def check_architecture(model: nn.Module) -> None:
    """Refuses an architecture whose mappings are not known, or do not fit this model; its weights need not be there.

    Raises:
        UserError: names the class.
    """
    from compressed_tensors.utils import match_modules_set

    found = 0
    for mapping in mappings(model):
        try:
            sets = list(match_modules_set(model, (mapping.smooth_layer, *mapping.balance_layers)))
        except ValueError:  # a layer has one part of the mapping without the other
            sets = [((), ())]
        if any(len(smooth) != 1 for smooth, *_ in sets):
            raise UserError(
                f"{NAME}: {mapping.smooth_layer} does not fit this {type(model).__name__}, which has other layers than"
                " usual; use gptq or rtn"
            )
        found += len(sets)
    if not found:
        raise UserError(f"{NAME}: which layers it may scale in {type(model).__name__} is not known; use gptq or rtn")


class RecordingAWQModifier(AWQModifier):
    """llmcompressor's AWQ, which also runs without an accelerator and keeps the scales that it chose.

    `input_scales[layer]` is what the layer's columns were multiplied by, `output_scales[layer]` what its rows were
    divided by: the scaled weight is `W * input_scale / output_scale[:, None]`.
    """

    _input_scales: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _output_scales: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _behind_pruning: bool = PrivateAttr(default=False)
    _logits: torch.Tensor | None = PrivateAttr(default=None)

    @property
    def scales(self) -> dict[str, torch.Tensor]:
        """`<layer>.input_scale` [columns] and `<layer>.output_scale` [rows] of every layer that was scaled."""
        found = {f"{name}.input_scale": scale for name, scale in self._input_scales.items()}
        return found | {f"{name}.output_scale": scale for name, scale in self._output_scales.items()}

    def behind_pruning(self, pruned: bool) -> RecordingAWQModifier:
        """Says whether a pruner before this one changes the logits, which then cannot be held to the dense model's."""
        self._behind_pruning = pruned
        return self

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        super().on_calibration_start(state, event, **kwargs)
        layers = [set(layer.modules()) for layer in decoder_layers(state.model)]
        for mapping in self._resolved_mappings:
            modules = {mapping.smooth_layer, *mapping.balance_layers}
            if not any(modules <= layer for layer in layers):
                raise UserError(f"{NAME}: {mapping.smooth_name} scales layers beyond its own; use gptq or rtn")
        if not self._behind_pruning:
            self._logits = guard.last_logits(state.model, state.block)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        super().on_calibration_end(state, event, **kwargs)
        if self._logits is not None:
            after = guard.last_logits(state.model, state.block)
            guard.check_logits(NAME, self._logits, after, state.model.dtype)
            self._logits = None

    def _apply_smoothing(self, model: nn.Module) -> None:
        layer = getattr(active_session().state, "layer", None)
        with ExitStack() as stack:
            if model.get_input_embeddings().weight.device.type == "cpu":  # there is nothing to pin it for
                stack.enter_context(patch_attr(IntermediatesCache, "pin_memory", lambda *_: None))
            # Calibration is in such a context already, and may have another attention than this one would set.
            stack.enter_context(patch_attr(base, "calibration_forward_context", lambda _: nullcontext()))
            if layer is not None:
                stack.enter_context(layer.unchanged(NAME))
            super()._apply_smoothing(model)

    def _compute_best_scale(self, mapping: Any, *arguments: Any) -> torch.Tensor:
        scales = super()._compute_best_scale(mapping, *arguments)
        for name in mapping.balance_names:
            self._input_scales[name] = scales
        if isinstance(mapping.smooth_layer, nn.Linear):
            rows = mapping.smooth_layer.out_features
            whole = scales.new_ones(rows)
            whole[rows - len(scales) :] = scales  # a fused projection's last rows are the values
            self._output_scales[mapping.smooth_name] = whole
        return scales
