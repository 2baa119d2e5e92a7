"""llmcompressor's `oneshot` over the modifiers of a recipe, one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from compressed_tensors.offload import disable_offloading, remove_dispatch, set_onload_device
from compressed_tensors.utils import patch_attr
from llmcompressor import oneshot
from llmcompressor.core import LifecycleCallbacks, active_session, reset_session
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.utils.hooks import HooksMixin
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.pipelines.registry import CalibrationPipeline
from llmcompressor.utils.helpers import DisableQuantization, calibration_forward_context
from pydantic import PrivateAttr
from torch import nn
from torch.utils.data import DataLoader

from idp.compress import guard
from idp.compress.activations import BATCH_TOKENS, Observer, Observers, hook
from idp.compress.forward import LayeredForward, decoder_layers
from idp.errors import lacks_memory


def run(model: nn.Module, modifiers: list[Any], inputs: torch.Tensor | None) -> None:
    """Compresses `model` in place.

    Args:
        model: loaded from a folder on disk (llmcompressor reads its config again).
        modifiers: what is done, in order.
        inputs: calibration blocks [samples, tokens]; None for methods that look at the weights alone.

    Raises:
        UserError: calibration would not be the model's own forward pass, or gives values that are not finite.
    """
    reset_session()  # a session outlives its call: without this a second compression repeats the first's recipe
    if inputs is None:
        oneshot(model=model, recipe=modifiers, pipeline=LayerByLayer.name)
    else:
        blocks = CalibrationBlocks(inputs)
        blocks.plain_states = guard.plain_states(model, decoder_layers(model), next(iter(blocks))["input_ids"])
        oneshot(
            model=model,
            dataset=blocks,
            recipe=modifiers,
            num_calibration_samples=len(inputs),
            shuffle_calibration_samples=False,
            max_seq_length=inputs.shape[1],
            pipeline=Calibrating.name,
        )
    reset_session()


class Watching(Modifier):
    """Changes nothing: has observers see the inputs of the layers that are calibrated, and says when each is done.

    It stands before the modifiers whose statistics an observer may set right.
    """

    requires_calibration_data: bool = True

    _observers: tuple[Observers, ...] = PrivateAttr(default=())

    def of(self, *observers: Observers) -> Watching:
        """Takes the observers, each by the name of its layer."""
        self._observers = observers
        return self

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        return True

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        for name, observer in self._all():
            self.register_hook(state.model.get_submodule(name), hook(name, observer), "forward")

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: list[nn.Module], **kwargs: Any) -> None:
        done = set(modules)
        for name, observer in self._all():
            module = state.model.get_submodule(name)
            if module in done:
                observer.finish(module)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        self.remove_hooks()

    def _all(self) -> Iterator[tuple[str, Observer]]:
        for group in self._observers:
            yield from group.items()


def execution_device(model: nn.Module) -> torch.device:
    """Where layers are compressed, one after the other: where the model begins.

    llmcompressor's own choice is the first accelerator that there is, whatever the model is on: every weight of a model
    on another device, or on a CPU beside a GPU, would then be worked on in copies and written back.
    """
    return model.get_input_embeddings().weight.device


class CalibrationBlocks(DataLoader):
    """Batches of calibration blocks, and what the untouched model makes of the first batch."""

    plain_states: list[torch.Tensor] | None = None

    def __init__(self, inputs: torch.Tensor):
        samples = [{"input_ids": row} for row in inputs]
        super().__init__(samples, batch_size=max(1, BATCH_TOKENS // inputs.shape[1]), shuffle=False)


@CalibrationPipeline.register("idp_calibrating")
class Calibrating(CalibrationPipeline):
    """Every layer compressed on what the layers before it, already compressed, make of the calibration blocks.

    In place of llmcompressor's sequential pipeline, whose tracer loses the mask of models that choose it by an
    expression (Mistral, Phi-3 and others) and calibrates them without one.
    """

    name = "idp_calibrating"

    @staticmethod
    def __call__(model: nn.Module, dataloader: CalibrationBlocks, dataset_args: Any) -> None:
        device = execution_device(model)
        set_onload_device(model, device)
        forward = LayeredForward(model, decoder_layers(model))
        batches = [batch["input_ids"] for batch in dataloader]
        assert dataloader.plain_states is not None  # made before anything is traced
        attention = _held_to_plain(forward, batches[0].to(device), dataloader.plain_states)
        dataloader.plain_states, active_session().state.block = None, batches[0][:1]
        LifecycleCallbacks.calibration_start()
        with _forward_context(model, attention):
            _compress_before(forward, batches, device)
            _compress_layers(forward, batches, device, torch.device(dataset_args.sequential_offload_device))
        LifecycleCallbacks.calibration_end()


def _held_to_plain(forward: LayeredForward, input_ids: torch.Tensor, plain: list[torch.Tensor]) -> str:
    """The attention to calibrate with: `eager`, or the model's own where eager attention is another function.

    (Gemma-2 caps its attention scores, which only its eager attention does.)

    Raises:
        UserError: calibration would not be the model's own forward pass.
    """
    attention = "eager"
    try:
        with _forward_context(forward.model, attention):
            same = guard.alike(forward.learn(input_ids), plain, forward.model.dtype)
        if not same:
            attention = forward.model.config._attn_implementation
        with _forward_context(forward.model, attention):
            guard.check(forward, input_ids, plain)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if lacks_memory(error):
            raise
        raise forward.refusal(f"its layers, called one by one, fail ({type(error).__name__}: {error})") from error
    return attention


@contextmanager
def _forward_context(model: nn.Module, attention: str) -> Iterator[None]:
    with (
        calibration_forward_context(model),  # sets the attention to eager
        patch_attr(model.config, "_attn_implementation", attention),
        DisableQuantization(model),
    ):
        yield


def _compress_before(forward: LayeredForward, batches: list[torch.Tensor], device: torch.device) -> None:
    """Compresses what is in front of the decoder layers, where there is anything."""
    if not forward.before:
        return
    with disable_offloading():
        for number, ids in enumerate(batches):
            active_session().state.current_batch_idx = number
            forward.until_layers(ids.to(device))
        LifecycleCallbacks.sequential_epoch_end(forward.before)


def _compress_layers(
    forward: LayeredForward, batches: list[torch.Tensor], device: torch.device, store: torch.device
) -> None:
    """Compresses the decoder layers, and what is behind them."""
    state, dtype = active_session().state, forward.model.dtype
    cache = IntermediatesCache([], store)
    with HooksMixin.disable_hooks():
        for values in _calls(forward, batches, device):
            cache.append(values)

    def run(index: int, number: int) -> torch.Tensor:
        values = cache.fetch(number, ["hidden", str(index)])
        # a layer may write into what it is given, and will be given it again
        return forward.layer(index, values["hidden"].clone(), values[str(index)])

    for index, layer in enumerate(forward.layers):
        with disable_offloading():
            for number in range(len(batches)):
                state.current_batch_idx = number
                guard.refuse_not_finite(run(index, number), f"the output of {forward.names[index]}", dtype)
            given = cache.fetch(0, ["hidden"])["hidden"]
            state.layer = guard.CalibratedLayer(forward.names[index], dtype, given, partial(run, index, 0))
            LifecycleCallbacks.sequential_epoch_end(list(layer.modules()))
            with HooksMixin.disable_hooks():
                for number in range(len(batches)):
                    hidden = run(index, number)
                    guard.refuse_not_finite(hidden, f"the output of {forward.names[index]}, once compressed,", dtype)
                    cache.update(number, {"hidden": hidden})
                    cache.delete(number, [str(index)])
    state.layer = None
    head = forward.model.get_output_embeddings()
    if any(module is not head for module in forward.behind):
        with disable_offloading():
            for number, ids in enumerate(batches):
                state.current_batch_idx = number
                _run_behind(forward, ids.to(device), cache.fetch(number, ["hidden"])["hidden"])
            LifecycleCallbacks.sequential_epoch_end(forward.behind)


def _run_behind(forward: LayeredForward, input_ids: torch.Tensor, hidden: torch.Tensor) -> None:
    """Runs what is behind the layers; what is before them has been seen, so that hooks wait until they are passed."""
    with ExitStack() as silence:
        silence.enter_context(HooksMixin.disable_hooks())
        forward.behind_layers(input_ids, hidden, then=silence.close)


def _calls(forward: LayeredForward, batches: list[torch.Tensor], device: torch.device) -> Iterator[dict[str, Any]]:
    """For each batch the first layer's hidden states and, under a layer's number, its call."""
    for hidden, calls in forward.shared_calls(ids.to(device) for ids in batches):
        yield {"hidden": hidden, **{str(index): call for index, call in enumerate(calls)}}


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
    """Frees the weights of a model that has served: llmcompressor's session and caches may hold it for ever."""
    remove_dispatch(model)
    nn.Module.to(model, "meta")  # a model spread over devices refuses its own `to`
