"""Our scorer against lm-eval's HFLM on one model, at several lengths of context, and against the card's matmul rate."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from tests.gpu.bench import Bench, once, requests
from tests.gpu.lines import FAILED, OK, SLOW, Line
from tests.gpu.steps import Step

NATS = 1.0  # apart in bfloat16, where two right ways differ by tenths
ENOUGH = 0.5  # of the matmul rate
WARM_UP = 2  # documents


def parts(bench: Bench) -> list[str]:
    return [f"{tokens} tokens" for tokens in bench.size.contexts]


def run(part: str, bench: Bench) -> Iterator[Line]:
    from lm_eval.models.huggingface import HFLM

    from idp.prompting.attention.fused import in_use

    tokens = int(part.split()[0])
    documents = bench.size.contexts[tokens]
    loaded, scorers, rate = once(_opened, bench)
    warned = once(_Heard, "idp.prompting.attention")
    asked, few = requests(tokens, documents), requests(tokens, WARM_UP)
    rows = max(1, (8192 if bench.cuda else 256) // tokens)
    reference = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=rows, device=str(loaded.device))
    ways: dict[str, Any] = {**scorers, "hflm": reference}
    fused = in_use(loaded.device, loaded.model.dtype)
    if fused:
        ways = {"plain": scorers["none"], **ways}
    seconds, answers = {}, {}
    for way, lm in ways.items():
        with _plain_products() if way == "plain" else contextlib.nullcontext():
            seconds[way], answers[way] = _timed(lm, asked, few, bench, 1 if way == "hflm" else 2)
    ran = _tokens(scorers["none"], asked)
    share = _operations(loaded, ran, asked, scorers["none"]) / seconds["none"] / rate
    apart = {way: _apart(answers["none"], answers[way]) for way in ways if way in ("hflm", "plain")}
    same = sum(_best(answers["none"], n) == _best(answers["hflm"], n) for n in range(documents))
    speed, cost = seconds["hflm"] / seconds["none"], seconds["idp"] / seconds["none"] - 1
    figure = (
        f"{documents / seconds['none']:.1f} documents/s, {speed:.2f}x HFLM, {share:.0%} of the matmul rate, IDP"
        f" {cost:+.0%}; {apart['hflm']:.2g} nats apart, same choice {same} of {documents}; "
    )
    if fused:
        figure += f"fused attention {seconds['plain'] / seconds['none']:.2f}x plain, {apart['plain']:.2g} nats apart"
    else:
        figure += "plain attention"
    values = {"seconds": seconds, "tokens": ran, "share": share, "speed": speed, "nats_apart": apart["hflm"]}
    values |= {"matmul_flops": rate, "same_choice": same, "documents": documents, "fused": fused}
    if max(apart.values()) > (NATS if bench.cuda else 1e-3):
        wrong = max(apart, key=apart.__getitem__)
        yield Line(part, figure, FAILED, f"log-likelihoods are not those of {wrong}", values)
    elif warned.lines:
        yield Line(part, figure, SLOW, warned.lines[0], values)
    elif bench.cuda and speed < 1:
        yield Line(part, figure, SLOW, "slower than HFLM", values)
    elif bench.cuda and share < ENOUGH:
        yield Line(part, figure, SLOW, f"under {ENOUGH:.0%} of the matmul rate", values)
    else:
        yield Line(part, figure, OK, "", values)


def _timed(lm: Any, asked: list[Any], few: list[Any], bench: Bench, rounds: int) -> tuple[float, list[Any]]:
    """Seconds of the quickest round, and the answers."""
    lm.loglikelihood(few, disable_tqdm=True)
    taken, answers = [], []
    for _ in range(rounds):
        bench.synchronise()
        started = time.perf_counter()
        answers = lm.loglikelihood(asked, disable_tqdm=True)
        bench.synchronise()
        taken.append(time.perf_counter() - started)
    return min(taken), answers


@contextlib.contextmanager
def _plain_products() -> Iterator[None]:
    """Within the block, fused attention is switched off."""
    import torch

    before = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_flash_sdp(before)


def _opened(bench: Bench) -> tuple[Any, dict[str, Any], float]:
    """The model, our scorers of it alone and behind IDP's bank, and the rate of its widest product, in FLOP/s."""
    from benchmarks.scoring import make_scorers, matmul_rate
    from idp.evaluate.room import batch_tokens

    loaded = bench.model()
    evaluation = bench.composed("task=arc_easy").evaluation
    tokens = batch_tokens(bench.config(bench.folder / bench.shape), evaluation, loaded)
    scorers = make_scorers(loaded, bench.size.lengths, tokens)
    return loaded, {way: scorers[way] for way in ("none", "idp")}, matmul_rate(loaded)


def _operations(loaded: Any, tokens: int, asked: list[Any], scorer: Any) -> int:
    """Of the linear layers for every token run, and of the head for every scored one; attention's products left out."""
    head = loaded.model.get_output_embeddings().weight
    tables = {id(head), id(loaded.model.get_input_embeddings().weight)}
    linear = sum(p.numel() for p in loaded.model.parameters() if p.dim() == 2 and id(p) not in tables)
    scored = sum(len(scorer.tok_encode(request.args[1])) for request in asked)
    return 2 * (linear * tokens + head.numel() * scored)


def _tokens(scorer: Any, asked: list[Any]) -> int:
    """That go through the model for these requests, padding included."""
    before = scorer.tokens_run
    scorer.loglikelihood(asked, disable_tqdm=True)
    return scorer.tokens_run - before


def _apart(one: list[tuple[float, bool]], other: list[tuple[float, bool]]) -> float:
    """The largest difference, in nats."""
    return max(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True))


def _best(answers: list[tuple[float, bool]], document: int) -> int:
    """The likeliest of a document's four choices."""
    return max(range(4), key=lambda choice: answers[4 * document + choice][0])


class _Heard(logging.Handler):
    """The warnings of some loggers, as lines."""

    def __init__(self, name: str):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


IMPORTS = ("transformers.models.llama.modeling_llama", "lm_eval.models.huggingface", "benchmarks.scoring")
STEP = Step("scoring", 55, parts, run, IMPORTS)
