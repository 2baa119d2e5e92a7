"""Decoding steps on buffers of fixed size, which one CUDA graph can replay.

An eager step is some hundred kernels that the host launches one by one: at small batches the device waits for it. A
graph is launched once. What is timed so is the same computation, without the gaps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idp.errors import UserError, lacks_memory
from idp.evaluate.generation import Decoding
from idp.hub import first_line
from idp.prompting.caches import cache_of
from idp.prompting.masks import attention_mask
from idp.prompting.repaired import RepairedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHANGING = {"longrope", "dynamic"}  # frequencies for which the host looks at the positions of every step


def check(model: PreTrainedModel, device: torch.device) -> None:
    """Refuses what no graph can hold.

    Args:
        model: the model; one without weights tells all but how it is spread.
        device: where it runs.

    Raises:
        UserError: that is no single CUDA device, or the model's steps are not the same kernels each time.
    """
    if device.type != "cuda":
        raise UserError(
            f"latency.decode=graph: a CUDA graph needs a CUDA device, and the model runs on {device.type}; use"
            " latency.decode=eager"
        )
    places = {str(tensor.device) for tensor in model.parameters() if not tensor.is_meta}
    if len(places) > 1:
        raise UserError(
            f"latency.decode=graph: a CUDA graph is of one device, and the model is on {', '.join(sorted(places))};"
            " use latency.decode=eager"
        )
    stated = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    every = [stated, *(inner for inner in stated.values() if isinstance(inner, dict))]
    if kinds := {str(rope.get("rope_type")) for rope in every} & CHANGING:
        raise UserError(
            f"latency.decode=graph: {type(model).__name__} has rotary frequencies ({', '.join(sorted(kinds))}) that"
            " change with the length, which no graph follows; use latency.decode=eager"
        )


class FixedDecoding:
    """Greedy decoding in buffers with room for every step, each step the same operations on the same memory.

    `newest` [rows] is the last token that was found, `logits` [rows, vocabulary] those that it was taken from.
    """

    def __init__(self, repaired: RepairedModel, state: Decoding, steps: int):
        """Copies what a prefill left behind.

        Args:
            repaired: the model.
            state: as `prefill` returned it.
            steps: how many there is room for.
        """
        import torch

        self.repaired, self.steps = repaired, steps
        self.logits, self.newest = state.logits.clone(), state.logits.argmax(dim=-1)
        rows, width = state.seen.shape
        # Where the next keys and values go, the same in every row: rows are padded on the left.
        self.at = torch.tensor([width], device=state.seen.device)
        self.seen = torch.cat([state.seen, state.seen.new_zeros(rows, steps)], dim=1)
        self.positions = torch.cat([state.positions, state.positions.new_zeros(rows, steps)], dim=1)
        self.next_position = state.next_position.clone()
        self.cache = _with_room(state.cache, steps, self.at)

    def step(self) -> None:
        """Runs the newest token and finds the one behind it."""
        model = self.repaired.model
        self.seen.index_fill_(1, self.at, True)
        self.positions.index_copy_(1, self.at, self.next_position)
        output = model(
            input_ids=self.newest[:, None],
            attention_mask=attention_mask(model, self.seen[:, None, :], self.next_position, self.positions),
            position_ids=self.next_position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits.copy_(output.logits[:, -1])
        self.newest.copy_(self.logits.argmax(dim=-1))
        self.next_position.add_(1)
        self.at.add_(1)

    @property
    def _counters(self) -> list[torch.Tensor]:
        """All that a step changes and reads again, but for keys and values, of which it writes the next ones."""
        return [self.at, self.seen, self.positions, self.next_position, self.newest, self.logits]


class GraphDecoding(FixedDecoding):
    """The same, each step the replay of a graph that was captured at the start.

    Raises:
        UserError: the model's forward pass cannot be captured.
    """

    def __init__(self, repaired: RepairedModel, state: Decoding, steps: int):
        import torch

        super().__init__(repaired, state, steps)
        before = [tensor.clone() for tensor in self._counters]
        device = repaired.device
        try:
            with torch.cuda.device(device):
                aside = torch.cuda.Stream(device)
                aside.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(aside):  # what libraries set up at their first call cannot be captured
                    super().step()
                torch.cuda.current_stream(device).wait_stream(aside)
                for tensor, old in zip(self._counters, before, strict=True):
                    tensor.copy_(old)
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    super().step()
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            raise UserError(
                f"latency.decode=graph: a step of {type(repaired.model).__name__} cannot be captured"
                f" ({first_line(error)}); use latency.decode=eager"
            ) from error

    def step(self) -> None:
        """Replays the step."""
        self.graph.replay()


def _with_room(cache: Any, steps: int, at: torch.Tensor) -> Any:
    """A copy of a cache with room for `steps` tokens more, which are written where `at` says."""
    fixed = cache_of([], getattr(cache, "experts", None))
    while cache.layers:  # one layer at a time, so that not the whole cache is there twice
        fixed.layers.append(_fixed_layer(cache.layers.pop(0), steps, at))
    return fixed


def _fixed_layer(layer: Any, steps: int, at: torch.Tensor) -> Any:
    from torch.nn.functional import pad
    from transformers.cache_utils import DynamicLayer

    class FixedLayer(DynamicLayer):
        def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
            self.keys.index_copy_(2, at, keys)
            self.values.index_copy_(2, at, values)
            return self.keys, self.values

    fixed = FixedLayer()
    fixed.lazy_initialization(layer.keys, layer.values)
    fixed.keys, fixed.values = (pad(tensor, (0, 0, 0, steps)) for tensor in (layer.keys, layer.values))
    layer.keys = layer.values = None
    return fixed
