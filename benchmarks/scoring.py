"""Our scorer against lm-eval's HFLM on the same model, requests and precision, in alternating rounds."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

from idp.config import Task
from idp.evaluate.engine import LocalEngine
from idp.evaluate.scorer import Scorer
from idp.models import LoadedModel
from idp.progress import progress
from idp.prompting.bank import PromptBank
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.attention import Attention
from idp.recover.initial import initial
from idp.tasks.tasks import TaskSource, document_indices, find_tasks

if TYPE_CHECKING:
    import torch

OURS = ("none", "prompt", "idp")
HFLM_NAME = "hflm"
REPEATS = 4


@dataclass
class Timed:
    """One task's requests, and what each way of scoring them took in each round."""

    source: TaskSource
    fewshot: int
    kind: str  # loglikelihood or generate_until
    requests: list[Any]
    documents: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    flops: int = 0
    answers: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.name + (f" ({self.fewshot}-shot)" if self.fewshot else "")


def find(names: Sequence[str], fewshot: int, documents: int, data_dir: str | None) -> list[Timed]:
    """The requests of evenly spaced documents of each task."""
    timed = []
    for source in find_tasks(Task(list(names), data_dir, fewshot or None, documents)):
        # HFLM takes most of the time to generate, and its ratio to ours there is in the tens.
        generates = source.build(document_indices(source.documents, 1)).OUTPUT_TYPE == "generate_until"
        indices = document_indices(source.documents, max(1, documents // (2 if generates else 1)))
        task = source.build(indices if len(indices) < source.documents else None)
        task.build_all_requests(rank=0, world_size=1)
        for request in task.instances:
            request.task_name, request.doc_id = source.runs, request.doc_id
        kind = task.instances[0].request_type
        timed.append(Timed(source, fewshot, kind, task.instances, len(indices)))
    return timed


def run(
    loaded: LoadedModel, tasks: list[Timed], *, lengths: Sequence[int], rounds: int, batch_tokens: int, hflm_batch: int
) -> dict[str, float]:
    """Times every way on every task, and returns the matrix product rate in FLOP/s at the start, middle and end.

    Args:
        loaded: the model.
        tasks: what `find` found; filled in.
        lengths: the bank's prompts; the single prompt is the first.
        rounds: of all tasks and ways, each in another order.
        batch_tokens: tokens per forward pass of ours.
        hflm_batch: rows per forward pass of HFLM.
    """
    scorers = make_scorers(loaded, lengths, batch_tokens)
    reference = HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=hflm_batch, device=str(loaded.device)
    )
    rates = [matmul_rate(loaded)]
    with progress(len(tasks) * rounds, "bench", unit="tasks") as bar:
        for number in range(rounds):
            for timed in tasks:
                for way, seconds in _round(timed, scorers, reference, number).items():
                    timed.seconds.setdefault(way, []).append(statistics.median(seconds))
                    timed.best[way] = min(*seconds, timed.best.get(way, math.inf))
                bar.update(1)
            rates.append(matmul_rate(loaded))
    for timed in tasks:
        timed.tokens[HFLM_NAME] = _hflm_tokens(timed, scorers["none"])
        timed.flops = _flops(timed, scorers["none"], loaded)
    return {"matmul_flops": statistics.median(rates)}


def where_time_goes(timed: Timed, scorer: Scorer, shown: int = 10) -> list[tuple[str, float]]:
    """The operators that ours spends its time in on one task, and each one's share, largest first."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if scorer.engine.repaired.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as taken:
        getattr(scorer, timed.kind)(list(timed.requests), disable_tqdm=True)
    on_gpu = len(activities) > 1
    seconds = {
        row.key.removeprefix("aten::"): row.self_device_time_total if on_gpu else row.self_cpu_time_total
        for row in taken.key_averages()
    }
    whole = sum(seconds.values())
    return [(name, value / whole) for name, value in sorted(seconds.items(), key=lambda item: -item[1])[:shown]]


def make_scorers(loaded: LoadedModel, lengths: Sequence[int], batch_tokens: int) -> dict[str, Scorer]:
    """Ours without a prompt, with one, and with IDP over a bank of untrained ones: training does not change speed."""
    prompts = [initial(loaded, length, "vocabulary", "", seed) for seed, length in enumerate(lengths)]
    bank = PromptBank(prompts, [f"prompt_{number}" for number in range(len(prompts))])
    models = {
        "none": RepairedModel(loaded),
        "prompt": RepairedModel(loaded, PromptBank(prompts[:1], ["prompt_0"])),
        "idp": RepairedModel(loaded, bank, Attention()),
    }
    return {name: Scorer(LocalEngine(model), batch_tokens) for name, model in models.items()}


def matmul_rate(loaded: LoadedModel, rows: int = 2048, seconds: float = 0.5) -> float:
    """FLOP/s of the model's own widest product, [rows, hidden] x [hidden, intermediate], in its dtype."""
    import torch

    config = loaded.model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    left = torch.randn(rows, config.hidden_size, device=loaded.device).to(loaded.model.dtype)
    right = torch.randn(inner, config.hidden_size, device=loaded.device).to(loaded.model.dtype).t()
    for _ in range(3):
        left @ right
    _synchronise(loaded.device)
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        for _ in range(8):
            left @ right
        _synchronise(loaded.device)
        count += 8
    return count * 2 * rows * config.hidden_size * inner / taken


def agreement(loaded: LoadedModel, tasks: list[Timed], batch_tokens: int, hflm_batch: int) -> dict[str, Any]:
    """How far ours and HFLM's log-likelihoods are apart, and whether they choose the same answers."""
    scorer = make_scorers(loaded, [1], batch_tokens)["none"]
    reference = HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=hflm_batch, device=str(loaded.device)
    )
    largest, same, documents, texts, equal = 0.0, 0, 0, 0, 0
    for timed in tasks:
        found, expected = (_answer(timed, lm) for lm in (scorer, reference))
        if timed.kind == "generate_until":
            texts += len(found)
            equal += sum(one == other for one, other in zip(found, expected, strict=True))
            continue
        largest = max(largest, *(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)))
        for ours, theirs in zip(_best(timed, found), _best(timed, expected), strict=True):
            documents += 1
            same += ours == theirs
    return {
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "largest_difference": largest,
        "same_choice": same,
        "documents": documents,
        "same_text": equal,
        "generated": texts,
    }


def _answer(timed: Timed, lm: Any) -> list[Any]:
    return getattr(lm, timed.kind)(timed.requests, disable_tqdm=True)


def _best(timed: Timed, answers: list[Any]) -> list[int]:
    """The likeliest choice of each document; for one-choice tasks, whether the answer is what greedy decoding gives."""
    by_document: dict[int, list[Any]] = {}
    for request, answer in zip(timed.requests, answers, strict=True):
        by_document.setdefault(request.doc_id, []).append(answer)
    return [
        max(range(len(group)), key=lambda i: group[i][0]) if len(group) > 1 else int(group[0][1])
        for group in by_document.values()
    ]


def _round(timed: Timed, scorers: dict[str, Scorer], reference: HFLM, number: int) -> dict[str, list[float]]:
    """Seconds of each way. Ours differ by a few percent and take little time, so each runs several times, in turn."""
    seconds: dict[str, list[float]] = {}
    ways = list(scorers)
    for turn in range(REPEATS if timed.kind == "loglikelihood" else 1):
        shift = (number + turn) % len(ways)
        for way in ways[shift:] + ways[:shift]:
            seconds.setdefault(way, []).append(_time(timed, way, scorers[way]))
    seconds[HFLM_NAME] = [_time(timed, HFLM_NAME, reference)]
    return seconds


def _time(timed: Timed, way: str, lm: Any) -> float:
    requests = list(timed.requests)
    random.Random(0).shuffle(requests)  # neither may profit from the order in which documents come
    if isinstance(lm, Scorer):
        lm.tokens_run = 0
    _synchronise(lm.device if way == HFLM_NAME else lm.engine.repaired.device)
    started = time.perf_counter()
    getattr(lm, timed.kind)(requests, disable_tqdm=True)
    _synchronise(lm.device if way == HFLM_NAME else lm.engine.repaired.device)
    taken = time.perf_counter() - started
    if isinstance(lm, Scorer):
        timed.tokens[way] = lm.tokens_run
    return taken


def _hflm_tokens(timed: Timed, scorer: Scorer) -> int:
    """Tokens that HFLM must run, padding left out: a row for each choice (for generation, the contexts)."""
    total = 0
    for request in timed.requests:
        pair = request.args
        text = pair[0] + pair[1] if timed.kind == "loglikelihood" else pair[0]
        total += len(scorer.tok_encode(text)) - (timed.kind == "loglikelihood")
    return total


def _flops(timed: Timed, scorer: Scorer, loaded: LoadedModel) -> int:
    """Floating-point operations of ours: the linear layers for every token run, the head for every scored one."""
    if timed.kind != "loglikelihood":
        return 0
    model = loaded.model
    head = model.get_output_embeddings().weight.numel()
    embeddings = {id(p) for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    linear = sum(p.numel() for p in model.parameters() if id(p) not in embeddings and p.dim() == 2)
    scored = 0
    for request in timed.requests:
        scored += len(scorer.encode_choices([request.args])[0].continuation)
    return 2 * (linear * timed.tokens["none"] + head * scored)


def _synchronise(device: torch.device) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
