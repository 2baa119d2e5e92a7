"""llmcompressor's `oneshot` over the modifiers of a recipe, one decoder layer at a time."""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.offload import remove_dispatch
from llmcompressor import oneshot
from llmcompressor.core import LifecycleCallbacks, reset_session
from llmcompressor.pipelines.registry import CalibrationPipeline
from torch import nn
from torch.utils.data import DataLoader

BATCH_TOKENS = 1024


def run(model: nn.Module, modifiers: list[Any], inputs: torch.Tensor | None) -> None:
    """Compresses `model` in place.

    Args:
        model: loaded from a folder on disk (llmcompressor reads its config again).
        modifiers: what is done, in order.
        inputs: calibration blocks [samples, tokens]; None for methods that look at the weights alone.
    """
    reset_session()  # a session outlives its call: without this a second compression repeats the first's recipe
    if inputs is None:
        oneshot(model=model, recipe=modifiers, pipeline=LayerByLayer.name)
    else:
        samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in inputs]
        oneshot(
            model=model,
            dataset=DataLoader(samples, batch_size=max(1, BATCH_TOKENS // inputs.shape[1]), shuffle=False),
            recipe=modifiers,
            num_calibration_samples=len(samples),
            shuffle_calibration_samples=False,
            max_seq_length=inputs.shape[1],
            pipeline="sequential",
        )
    reset_session()


@CalibrationPipeline.register("idp_layer_by_layer")
class LayerByLayer(CalibrationPipeline):
    """As llmcompressor's pipeline without data, which takes all layers at once and so cannot show how far it is."""

    name = "idp_layer_by_layer"

    @staticmethod
    def __call__(model: nn.Module, dataloader: None, dataset_args: Any) -> None:
        LifecycleCallbacks.calibration_start()
        layers = decoder_layers(model)
        inside = {module for layer in layers for module in layer.modules()}
        for layer in layers:
            LifecycleCallbacks.sequential_epoch_end(list(layer.modules()))
        LifecycleCallbacks.sequential_epoch_end([module for module in model.modules() if module not in inside])
        LifecycleCallbacks.calibration_end()


def release(model: nn.Module) -> None:
    """Frees the weights of a model that has served: the tracer of llmcompressor's pipeline holds the model for ever."""
    remove_dispatch(model)
    nn.Module.to(model, "meta")  # a model spread over devices refuses its own `to`


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a decoder: the longest list of modules in it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
