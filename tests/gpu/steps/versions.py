"""Which card, driver and libraries, whether they are those this project asks for, and what the card really does."""

from __future__ import annotations

import platform
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from tests.gpu.bench import Bench
from tests.gpu.lines import FAILED, OK, SKIPPED, SLOW, Line, gib
from tests.gpu.packages import ROOT
from tests.gpu.steps import Step

SHOWN = ("torch", "transformers", "accelerate", "peft", "datasets", "llmcompressor", "compressed-tensors", "lm-eval")


def parts(_: Bench) -> list[str]:
    return ["card", "libraries", "copy", "product"]


def run(part: str, bench: Bench) -> Iterator[Line]:
    yield {"card": _card, "libraries": _libraries, "copy": _copy, "product": _product}[part](bench)


def _card(bench: Bench) -> Line:
    import torch

    if not bench.cuda:
        name = f"{platform.machine()}, no CUDA device"
        return Line("card", name, SKIPPED, "a dry run on a CPU: its figures say nothing of a card", {"card": name})
    about = torch.cuda.get_device_properties(0)
    values = {
        "card": about.name,
        "bytes": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "free_bytes": torch.cuda.mem_get_info(0)[0],
    }
    figure = f"{about.name}, {gib(about.total_memory)}, CUDA {torch.version.cuda}, capability {values['capability']}"
    taken = values["bytes"] - values["free_bytes"]
    if taken > 2 * 2**30:
        return Line("card", figure, SLOW, f"{gib(taken)} of it are taken already", values)
    return Line("card", figure, OK, "", values)


def _libraries(_: Bench) -> Line:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ranges = {needed.name: needed.specifier for needed in map(Requirement, asked)}
    found = {name: metadata.version(name) for name in SHOWN}
    wrong = [
        f"{name} {version}: this project asks for {ranges[name]}"
        for name, version in found.items()
        if name in ranges and not ranges[name].contains(version, prereleases=True)
    ]
    figure = ", ".join(f"{name} {version}" for name, version in found.items())
    values = {**found, "python": platform.python_version()}
    return Line("libraries", f"Python {values['python']}, {figure}", FAILED if wrong else OK, "; ".join(wrong), values)


def _copy(bench: Bench) -> Line:
    """Bytes a second of a copy within the device's memory, read and written: decoding can be no faster."""
    import torch

    source = torch.empty(2**30 if bench.cuda else 2**22, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = _timed(lambda: target.copy_(source), bench)
    rate = 2 * source.numel() / seconds
    return Line("copy within its memory", f"{rate / 1e9:.0f} GB/s", values={"bytes_a_second": rate})


def _product(bench: Bench) -> Line:
    """Operations a second of one matrix product of LLaMA-7B's width."""
    import torch

    width = 8192 if bench.cuda else 256
    left = torch.randn(width, width, device=bench.device, dtype=bench.dtype)
    right = torch.randn(width, width, device=bench.device, dtype=bench.dtype)
    rate = 2 * width**3 / _timed(lambda: left @ right, bench)
    dtype = str(bench.dtype).removeprefix("torch.")
    return Line(f"product of {width} x {width}, {dtype}", f"{rate / 1e12:.3g} TFLOP/s", values={"flops": rate})


def _timed(run, bench: Bench, rounds: int = 10) -> float:
    """Seconds of one run, the mean over those after three that are not counted."""
    for _ in range(3):
        run()
    bench.synchronise()
    started = time.perf_counter()
    for _ in range(rounds):
        run()
    bench.synchronise()
    return (time.perf_counter() - started) / rounds


STEP = Step("versions", 20, parts, run, ("torch",))
