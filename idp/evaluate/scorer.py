"""lm-eval's `LM` over a model with a prefix per input: its scores are lm-eval's own, found with fewer tokens.

A document's context goes through the model once for all its choices (see `batching.py`), only the scored places go
through the output head, and prompts enter as cached keys and values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import _add_special_kwargs, configure_pad_token, has_bos_prefix, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from idp.errors import is_out_of_memory
from idp.evaluate.batching import Request, Row, collate, common_length, make_row, plan
from idp.evaluate.generation import generate
from idp.progress import progress
from idp.prompting.repaired import RepairedModel

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

Score = tuple[float, bool]  # log-likelihood in nats; whether every token was the most likely one
NOTHING: Score = (0.0, True)  # of an empty continuation: probability one
ROLLING_READS = 32  # tokens of a window that a selector reads where there is no question to read


class Scorer(TemplateLM):
    """Scores and generates with a repaired model.

    Args:
        repaired: the model, and its prompts if it has any.
        batch_tokens: tokens per forward pass, padding included; halved when memory runs out.
        label: what is said beside the progress bar.

    Attributes:
        choices: the prompt that was chosen for each (task, document), for those that a bank was asked about.
        truncated: requests whose context was cut on the left to fit the model's window.
        tokens_run: tokens that went through the model, padding included; prompts are never run.
    """

    def __init__(self, repaired: RepairedModel, batch_tokens: int, label: str = ""):
        super().__init__()
        self.repaired, self.batch_tokens = repaired, batch_tokens
        self.name = self.label = label
        self.tokenizer = configure_pad_token(repaired.tokenizer, model_config=repaired.model.config)
        self.choices: dict[tuple[str, int], int] = {}
        self.truncated = 0
        self.tokens_run = 0
        # As HFLM: Gemma must begin with its BOS token.
        gemma = "gemma" in repaired.model.config.model_type
        self.add_bos_token = True if gemma else None

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    @property
    def device(self) -> torch.device:
        return self.repaired.device

    @property
    def max_length(self) -> int:
        """Tokens that fit in the model's window behind the longest prompt."""
        window = resolve_max_length(self.repaired.model.config, self.tokenizer, default=2048)
        return window - self.repaired.longest_prompt

    @property
    def max_gen_toks(self) -> int:
        return 256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, special tokens as HFLM adds them."""
        special = _add_special_kwargs(add_special_tokens, self.add_bos_token)
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            special["add_special_tokens"] = False
        return self.tokenizer.encode(string, **special)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Log-likelihoods of continuations; requests of one document are scored together."""
        encoded = [self._encode(*request.args) for request in requests]
        groups: dict[Any, list[int]] = {}
        for number, (request, pair) in enumerate(zip(requests, encoded, strict=True)):
            if pair.continuation:
                groups.setdefault((request.task_name, request.doc_id), []).append(number)
        return self._score(encoded, groups, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Score]:
        encoded = [Request(list(context), list(continuation)) for _, context, continuation in requests]
        groups = {number: [number] for number, request in enumerate(encoded) if request.continuation}
        return self._score(encoded, groups, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows as HFLM cuts them."""
        windows: list[Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, cut):
                windows.append(Request(list(context), list(continuation)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self.score_windows(windows, disable_tqdm), strict=True):
            totals[owner] += value
        return totals

    def score_windows(self, windows: list[Request], disable_tqdm: bool = False) -> list[Score]:
        """Log-likelihoods of windows of running text; a selector reads each window's first tokens."""
        rows = [
            make_row([window], [number], (window.context + window.continuation)[:ROLLING_READS])
            for number, window in enumerate(windows)
        ]
        return self._run(rows, len(windows), disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each up to its stop strings."""
        return generate(self, requests, disable_tqdm)

    def _encode(self, context: str, continuation: str) -> Request:
        if context == "":
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            if tokens and tokens[0] == self.prefix_token_id:
                return Request(tokens[:1], tokens[1:])
            return Request([self.prefix_token_id], tokens)
        before, after = self._encode_pair(context, continuation)
        # A context that tokenizes to nothing, such as spaces alone, is conditioned on as an empty one is.
        return Request(before or [self.prefix_token_id], after)

    def _score(self, requests: list[Request], groups: dict[Any, list[int]], disable_tqdm: bool) -> list[Score]:
        rows, keys = [], []
        for key, numbers in groups.items():
            fitted = [self._fit(requests[number]) for number in numbers]
            reads = fitted[0].context[: common_length([request.context for request in fitted])]
            reads = reads or fitted[0].context[:1]
            whole = all(one is requests[number] for one, number in zip(fitted, numbers, strict=True))
            # Requests that were cut no longer begin alike: each is a row of its own, with the same prompt.
            parts = [range(len(numbers))] if whole else [[index] for index in range(len(numbers))]
            for part in parts:
                rows.append(make_row([fitted[i] for i in part], [numbers[i] for i in part], reads))
                keys.append(key)
        chosen: dict[int, int] = {}
        scores = self._run(rows, len(requests), disable_tqdm, chosen)
        self.choices |= {keys[row]: prompt for row, prompt in chosen.items() if isinstance(keys[row], tuple)}
        return scores

    def _fit(self, request: Request) -> Request:
        """The request itself, or one whose context is cut on the left to the model's window, as HFLM does."""
        excess = len(request.context) + len(request.continuation) - (self.max_length + 1)
        if excess <= 0:
            return request
        self.truncated += 1
        context = request.context[excess:]
        if context:
            return Request(context, request.continuation)
        kept = request.continuation[-self.max_length :]
        return Request(request.context[-1:], kept)

    def _run(
        self, rows: Sequence[Row], count: int, disable_tqdm: bool, chosen: dict[int, int] | None = None
    ) -> list[Score]:
        """Scores every request of `rows`; those that no row owns are empty continuations."""
        sums, greedy = [0.0] * count, [True] * count
        batches = plan(rows, self.batch_tokens)
        with progress(len(rows), f"score {self.label}", unit="rows", disable=disable_tqdm) as bar:
            for batch in batches:
                for numbers, values, hits, owners, picked in self._run_batch(rows, batch):
                    for owner, value, hit in zip(owners, values, hits, strict=True):
                        sums[owner] += value
                        greedy[owner] &= hit
                    if chosen is not None and picked is not None:
                        chosen.update(zip(numbers, picked, strict=True))
                    bar.update(len(numbers))
        return list(zip(sums, greedy, strict=True))

    def _run_batch(self, rows: Sequence[Row], numbers: list[int]) -> Iterable[tuple]:
        """One forward pass, or two halves of it where memory does not suffice."""
        import torch

        try:
            yield (numbers, *self._forward([rows[number] for number in numbers]))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(numbers) == 1:
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            half = len(numbers) // 2
            log.warning("out of memory with %d rows: going on with %d", len(numbers), half)
            yield from self._run_batch(rows, numbers[:half])
            yield from self._run_batch(rows, numbers[half:])

    def _forward(self, rows: Sequence[Row]) -> tuple[list[float], list[bool], list[int], list[int] | None]:
        import torch

        batch = collate(rows, self.device)
        self.tokens_run += batch.tokens.numel()
        with torch.inference_mode():
            choice = self.repaired.choose(batch.reads)
            wanted, where = batch.places.unique(return_inverse=True)
            logits = self.repaired.logits_at(batch.tokens, batch.visible, batch.positions, choice, wanted).float()
            best = logits.argmax(dim=-1)
            values = logits[where, batch.targets] - logits.logsumexp(dim=-1)[where]
            hits = best[where] == batch.targets
        return values.tolist(), hits.tolist(), batch.owners, choice.tolist() if choice is not None else None
