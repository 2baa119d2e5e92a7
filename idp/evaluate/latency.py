"""Prefill and decode latency of several models, in interleaved rounds so that drift hits all alike.

Forward passes of a quantised model run on plain weights here: the figures compare repairs with one another and say
nothing of a quantised kernel's speed. `backend` in the result says which kernels ran. For the same reason the dense
model and merged adapters run the compressed model's kernels: they are timed on its weights, the only ones in memory.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idp import memory
from idp.beginning import begun
from idp.config import GRAPH
from idp.evaluate import graph
from idp.evaluate.generation import prefill, step
from idp.progress import progress
from idp.prompting.repaired import RepairedModel
from idp.prompting.variants import Variants

if TYPE_CHECKING:
    import torch

    from idp.config import Latency

REFERENCE = "compressed"


def measure_latency(variants: Mapping[str, RepairedModel], options: Latency, seed: int = 0) -> dict[str, Any]:
    """Times every variant at every batch size and input length.

    Prefill is one pass over the input up to the logits of its last token, the choice of a prompt included; where texts
    begin with a BOS, it comes before the input's tokens. Decode is
    the mean time of one greedy step behind it, launched by the host or, with `options.decode=graph`, replayed.

    Args:
        variants: by name; ratios are to the one called `compressed`, or else to the first. `Variants` share weights.
        options: batch sizes, input lengths, steps and rounds.
        seed: draws the tokens.

    Returns:
        `backend`, `reference`, `units`, `by_shape` (variants whose own weights were not here, and whose stood in for
        them) and a list `rows`: batch_size, input_tokens, variant, and for `prefill` and `decode` the
        ratio of medians to the reference, p50, p90, p99, mean, deviation (milliseconds), and peak memory in bytes
        (on a GPU).

    Raises:
        UserError: `decode=graph` on what no CUDA graph can hold.
    """
    import torch

    shared = variants if isinstance(variants, Variants) else Variants(**variants)
    reference = REFERENCE if REFERENCE in shared else next(iter(shared))
    first = shared[next(iter(shared))]
    if options.decode == GRAPH:
        for repaired in shared.values():
            graph.check(repaired.model, repaired.device)
    rows = []
    shapes = [(batch, length) for batch in options.batch_sizes for length in options.input_tokens]
    with progress(len(shapes) * (options.warmup + options.rounds), "latency", unit="rounds") as bar:
        for batch, length in shapes:
            generator = torch.Generator().manual_seed(seed)
            vocabulary = first.model.get_input_embeddings().weight.shape[0]
            tokens = torch.randint(vocabulary, (batch, length), generator=generator).to(first.device)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in shared}
            peaks: dict[str, int] = {}
            for number in range(options.warmup + options.rounds):
                # Each round in another order, so that no model always follows the same one.
                names = list(shared)[number % len(shared) :] + list(shared)[: number % len(shared)]
                for name in names:
                    repaired = shared.ready(name)
                    inputs = begun(tokens, repaired.beginning.ahead_of_text)
                    taken, peaks[name] = _time(repaired, inputs, options.new_tokens, options.decode)
                    if number >= options.warmup:
                        times[name].append(taken)
                bar.update(1)
            rows += [_row(name, batch, length, times, reference, peaks[name]) for name in shared]
    return {
        "backend": backend(first) | {"decode": options.decode},
        "reference": reference,
        "by_shape": shared.by_shape,
        "units": "milliseconds",
        "rows": rows,
    }


def backend(repaired: RepairedModel) -> dict[str, Any]:
    """What ran: device, dtype, attention kernel, library."""
    import torch
    import transformers

    return {
        "library": f"transformers {transformers.__version__}, torch {torch.__version__}, weights decompressed",
        "device": card(repaired.device) or platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(repaired.model.dtype).removeprefix("torch."),
        "attention": repaired.model.config._attn_implementation,
    }


def card(device: torch.device) -> str | None:
    """The name of a GPU; None of a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _time(
    repaired: RepairedModel, tokens: torch.Tensor, new_tokens: int, decode: str
) -> tuple[tuple[float, float], int]:
    """Milliseconds of the prefill and of one decoding step, and peak memory in bytes (0 without a GPU)."""
    import torch

    device = repaired.device
    clock = _Events(device) if device.type == "cuda" else _Wall()
    if device.type == "cuda":
        memory.keep_peaks()
        torch.cuda.reset_peak_memory_stats(device)
    contexts = tokens.tolist()
    with torch.inference_mode():
        clock.mark()
        choice = repaired.choose(contexts)
        state = prefill(repaired, tokens, None, choice)
        clock.mark()
        replayed = graph.GraphDecoding(repaired, state, new_tokens) if decode == GRAPH else None
        clock.mark()
        for _ in range(new_tokens):
            if replayed is not None:
                replayed.step()
            else:
                step(repaired, state, state.logits.argmax(dim=-1))
        clock.mark()
    first, _, second = clock.milliseconds()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return (first, second / new_tokens), peak


class _Wall:
    """Marks on the wall clock."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        return [1000 * (b - a) for a, b in zip(self.marks, self.marks[1:], strict=False)]


class _Events:
    """Marks in the device's own stream, so that the host's queueing is not timed."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []  # events of the device

    def mark(self) -> None:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self.marks.append(event)

    def milliseconds(self) -> list[float]:
        import torch

        torch.cuda.synchronize(self.device)
        return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:], strict=False)]


def _row(
    name: str, batch: int, length: int, times: dict[str, list[tuple[float, float]]], reference: str, peak: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": name, "batch_size": batch, "input_tokens": length}
    for place, part in enumerate(("prefill", "decode")):
        values = [pair[place] for pair in times[name]]
        base = [pair[place] for pair in times[reference]]
        row[part] = {
            # Round by round, then the median: what slows a whole round down cancels out.
            "ratio": statistics.median(a / b for a, b in zip(values, base, strict=True)),
            "p50": percentile(values, 0.5),
            "p90": percentile(values, 0.9),
            "p99": percentile(values, 0.99),
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values),
        }
    row["peak_memory_bytes"] = peak or None
    return row
