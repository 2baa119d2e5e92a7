"""`idp bench training`: a training step of `prompt` against PEFT's PromptTuning in a plain loop.

Each way trains the same prompt on the same batches in a process of its own, so that its peak memory is its own, and the
processes take turns, a few steps at a time, so that whatever else the machine does falls on all of them alike. Each has
the model in memory in its turn alone. A third
way is PEFT with our allocator setting, which shows how much of the difference is that setting's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

OURS, PEFT, PEFT_KEEPS = "ours", "PEFT", "PEFT, freed memory kept"
WAYS = (OURS, PEFT, PEFT_KEEPS)
RATE, CLIP = 1e-3, 1.0


def main() -> None:
    """Prints a table and writes the figures as JSON."""
    options = _arguments()
    if options.worker:
        _work(options)
        return
    from idp.store import write_json

    found = run(options)
    print(table(found))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found)
    print(f"\nwritten: {options.output}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The ways in turn: seconds of every step, peak memory, and the losses, which must agree.

    Returns:
        `ways`: per way the median step in milliseconds, the peak in bytes above what the process held before its first
        step, and the loss of every step; `speed` and `memory`: PEFT's over ours; the options; the backend.
    """
    workers = {way: _Worker(way) for way in WAYS}
    try:
        about = {way: worker.answer() for way, worker in workers.items()}  # all are ready, and quiet
        seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for number in range(options.rounds + 1):
            order = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
            for way in order:
                taken = workers[way].ask("steps")["seconds"]
                if number:  # the first round warms up
                    seconds[way].append(taken)
        ends = {way: worker.ask("end") for way, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    medians = {way: [statistics.median(taken) for taken in rounds] for way, rounds in seconds.items()}
    ways = {
        way: {
            "step_ms": 1000 * statistics.median(step for taken in seconds[way] for step in taken),
            "peak_bytes": ends[way]["peak_bytes"],
            "losses": ends[way]["losses"],
        }
        for way in WAYS
    }
    return {
        "ways": ways,
        # Of medians that were taken in one round: PEFT's over ours.
        "speed": {way: _ratio(medians[way], medians[OURS]) for way in WAYS[1:]},
        "memory": {way: ways[way]["peak_bytes"] / max(ways[OURS]["peak_bytes"], 1) for way in WAYS[1:]},
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "worker")},
        "backend": about[OURS],
    }


def table(found: dict[str, Any]) -> str:
    """The figures as a table, and what they were taken on."""
    lines = [
        [
            way,
            f"{values['step_ms']:.1f}",
            f"{found['speed'][way]:.2f}x" if way in found["speed"] else "",
            f"{values['peak_bytes'] / 2**20:.0f}",
            f"{found['memory'][way]:.2f}x" if way in found["memory"] else "",
            f"{values['losses'][-1]:.4f}",
        ]
        for way, values in found["ways"].items()
    ]
    headers = ["training step", "median ms", "ours is faster by", "peak MiB above the model", "to ours", "last loss"]
    options, ran = found["options"], found["backend"]
    note = (
        f"{options['length']} prompt tokens, batch {options['batch_size']} x {options['sequence_length']};"
        f" {options['rounds']} rounds of {options['steps']} steps; {ran['dtype']} on {ran['device']},"
        f" {ran['threads']} threads"
    )
    return f"{tabulate(lines, headers=headers, tablefmt='github', disable_numparse=True)}\n\n{note}"


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


class _Worker:
    """One way in a process of its own, asked over its standard input."""

    def __init__(self, way: str):
        command = [sys.executable, "-m", "benchmarks.training", "--worker", way, *sys.argv[1:]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(question, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: a worker ended early; its message stands above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _work(options: argparse.Namespace) -> None:
    """Answers the parent: trains `options.steps` steps for `steps`, and says peak and losses for `end`.

    The model is there for the steps alone: between them the other ways have theirs.
    """
    import torch

    from idp import models
    from idp.memory import release

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    kept = _Kept()

    def say(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    way = _Way(options, kept)
    if options.worker != PEFT and way.loaded.device.type == "cpu":
        models.keep_freed_memory()
    say(
        dtype=str(way.loaded.model.dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name() if way.cuda else "CPU",
        threads=torch.get_num_threads(),
    )
    del way
    release()
    for line in sys.stdin:
        if line.strip() == "end":
            say(peak_bytes=kept.peak, losses=kept.losses)
            continue
        way = _Way(options, kept)
        seconds = way.steps()
        del way
        release()
        say(seconds=seconds)


@dataclass
class _Kept:
    """What a way keeps between its turns: the prompt, its optimiser, and what was measured."""

    prompt: Any = None
    optimizer: dict[str, Any] | None = None
    losses: list[float] = field(default_factory=list)
    peak: int = 0  # bytes above what the process held before a turn's first step


class _Way:
    """One way with its model in memory."""

    def __init__(self, options: argparse.Namespace, kept: _Kept):
        import torch

        from benchmarks.speed import open_model

        self.options, self.kept = options, kept
        self.loaded = open_model(options)
        self.cuda = self.loaded.device.type == "cuda"
        generator = torch.Generator().manual_seed(0)
        total = options.steps * (options.rounds + 1)
        shape = (total, options.batch_size, options.sequence_length)
        self.batches = torch.randint(10, len(self.loaded.tokenizer) - 1, shape, generator=generator)
        self.parameter, self.loss_of = (_ours if options.worker == OURS else _peft)(self.loaded, options)
        self.optimizer = torch.optim.AdamW([self.parameter], lr=RATE, weight_decay=0.0)
        if kept.optimizer is not None:
            with torch.no_grad():
                self.parameter.copy_(kept.prompt)
            self.optimizer.load_state_dict(kept.optimizer)

    def steps(self) -> list[float]:
        """Seconds of each of the next steps; the first pass, which warms up, is none of them."""
        import torch

        from idp.memory import peak_bytes, start_peak

        done = len(self.kept.losses)
        batches = self.batches[done : done + self.options.steps]
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        else:
            start_peak()
            held = peak_bytes()
        self.loss_of(batches[0].to(self.loaded.device)).backward()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = []
        for batch in batches:
            started = time.perf_counter()
            self.kept.losses.append(self._step(batch))
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() if self.cuda else peak_bytes()
        self.kept.peak = max(self.kept.peak, peak - held)
        self.kept.prompt = self.parameter.detach().clone()
        self.kept.optimizer = self.optimizer.state_dict()
        return seconds

    def _step(self, batch: Any) -> float:
        import torch

        loss = self.loss_of(batch.to(self.loaded.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.parameter], CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for a GPU


def _start(loaded: Any, options: argparse.Namespace) -> Any:
    from idp.recover.initial import initial

    return initial(loaded, options.length, "vocabulary", "", 0)


def _ours(loaded: Any, options: argparse.Namespace) -> tuple[Any, Callable]:
    """The prompt and its loss as `recovery=prompt` trains it."""
    from idp.config import Training
    from idp.recover.nets.reparameterization import Itself
    from idp.recover.tuning import loss_with

    settings = Training(
        **dict.fromkeys(("steps", "warmup_steps", "evaluate_every", "heldout_sequences", "checkpoint_every"), 1),
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        learning_rate=RATE,
        weight_decay=0.0,
        clip=CLIP,
        objective="lm",
        temperature=1.0,
        lm_weight=0.0,
    )
    maker = Itself(_start(loaded, options)).to(loaded.device)
    return maker.prompt, loss_with(loaded, maker, "prompt", settings, None)


def _peft(loaded: Any, options: argparse.Namespace) -> tuple[Any, Callable]:
    """PEFT's PromptTuning of the same model, called as its examples call it."""
    import torch
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=options.length)
    model = get_peft_model(loaded.model, config)
    (parameter,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        parameter.copy_(_start(loaded, options))
    model.train()

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        labels = batch.clone()
        labels[:, 0] = -100  # ours does not count the first token either: the losses are to agree
        return model(input_ids=batch, attention_mask=torch.ones_like(batch), labels=labels).loss

    return parameter, loss_of


def _arguments() -> argparse.Namespace:
    from benchmarks.speed import SHAPES

    parser = argparse.ArgumentParser(prog="idp bench training", description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=20, help="prompt tokens")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences per step")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--rounds", type=int, default=6, help="rounds in which every way trains, beside one to warm up")
    parser.add_argument("--steps", type=int, default=4, help="steps of each way in a round")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, not the embedded model")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/training.json"), help="where the JSON goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
