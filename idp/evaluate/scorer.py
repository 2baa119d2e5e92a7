"""lm-eval's `LM` over a model with a prefix per input: its scores are lm-eval's own, found with fewer tokens.

A document's context goes through the model once for all its choices (see `batching.py`), text that all documents begin
with goes through once for all of them, only the scored places go through the output head, and prompts enter as cached
keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    configure_pad_token,
    handle_stop_sequences,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from idp.beginning import Encoder
from idp.errors import UserError
from idp.evaluate.batching import PackedRow, Request, common_length, make_row, plan
from idp.evaluate.divergence import Watched
from idp.evaluate.engine import Engine
from idp.evaluate.journal import Journal
from idp.models import greedy
from idp.progress import progress

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Score = tuple[float, bool]  # log-likelihood in nats; whether every token was the most likely one
MERGED = (  # what is said of `Scorer.merged`
    "have no tokens of their own where they stand: the tokenizer merges them into their context, and lm-eval gives them"
    " 0 nats; they, and the other choices of their documents, were encoded apart from the context"
)
WINDOW = ""  # stands for a task in `Scorer.choices` where windows of running text are scored
ROLLING_READS = 32  # tokens of a window that a selector reads where there is no question to read
SHARED_TOKENS = 16  # text that all documents begin with is worth a prefix of its own from this length on


class Scorer(TemplateLM):
    """Scores and generates with an engine.

    Args:
        engine: the model, or several copies of it.
        batch_tokens: tokens per forward pass, padding included; halved when memory runs out.
        label: what is said beside the progress bar.

    Attributes:
        choices: the prompt that was chosen for each (task, document), or (WINDOW, number of the window), where there is
            a bank.
        truncated: requests whose context was cut on the left to fit the model's window.
        merged: choices without a token of their own where they stand, which were encoded apart: see `encode_choices`.
        partly_merged: choices that share their first token with the context, scored by the tokens behind it.
        tokens_run: tokens that went through the model, padding included; prompts are never run.
        journal: where finished batches are written down; set it to go on with a task that was killed.
    """

    def __init__(self, engine: Engine, batch_tokens: int, label: str = ""):
        super().__init__()
        self.engine, self.batch_tokens = engine, batch_tokens
        self.name = self.label = label
        self.tokenizer = configure_pad_token(engine.tokenizer, model_config=engine.config)
        self.begin()
        self.journal = Journal(None)
        self.bos = engine.beginning.ahead_of_text
        self._encoded = Encoder(self.tokenizer, self.bos, engine.beginning.elsewhere)

    def begin(self) -> None:
        """Sets what is counted of a task back to nothing."""
        self.choices: dict[tuple[str, int], int] = {}
        self.truncated = self.merged = self.partly_merged = self.tokens_run = 0

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What an empty context is: the token that begins a text, or else the one that ends one.

        Behind a prompt that has the BOS before it, or that has none, it is the token that ends one: in training each
        document but the first stands behind it.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        first, second = (eos, bos) if self.engine.beginning.elsewhere else (bos, eos)
        return first if first is not None else second

    @property
    def max_length(self) -> int:
        """Tokens that fit in the model's window behind the longest prompt."""
        return resolve_max_length(self.engine.config, self.tokenizer, default=2048) - self.engine.longest_prompt

    @property
    def max_gen_toks(self) -> int:
        return 256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, special tokens as HFLM adds them, and its BOS as `model.bos` and `recovery.bos` say."""
        if add_special_tokens is not None:
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        prefix = self.prefix_token_id
        return self._encoded(string, self.tokenizer.decode(prefix) if prefix is not None else None)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Log-likelihoods of continuations; requests of one document are scored together."""
        documents: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            documents.setdefault((request.task_name, request.doc_id), []).append(number)
        encoded: list[Request] = [Request([], [])] * len(requests)
        for numbers in documents.values():
            choices = self.encode_choices([requests[number].args for number in numbers])
            for number, request in zip(numbers, choices, strict=True):
                encoded[number] = request
        scored = {
            key: [number for number in numbers if encoded[number].continuation] for key, numbers in documents.items()
        }
        return self._score(encoded, {key: numbers for key, numbers in scored.items() if numbers}, disable_tqdm)

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
            cut = self._windows(self.tok_encode(request.args[0]), self._empty_context()[0], self.max_length)
            windows += cut
            owners += [number] * len(cut)
        return self._summed(windows, owners, len(requests), disable_tqdm)

    def own_tokens(self, text: str) -> list[int]:
        """Token ids of a text without its BOS."""
        tokens = self.tok_encode(text)
        return tokens[len(self.bos) :] if tokens[: len(self.bos)] == self.bos else tokens

    def loglikelihood_texts(self, texts: Sequence[str], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts: of the tokens that are a text's own, never of its BOS.

        Windows are those of `loglikelihood_rolling`, but that each of them begins with the BOS where texts do, which is
        not predicted.
        """
        windows: list[Request] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            first = self.bos[-1] if self.bos else self._empty_context()[0]
            cut = self._windows(self.own_tokens(text), first, self.max_length - len(self.bos))
            for place, window in enumerate(cut):
                ahead = self.bos[:-1] if place == 0 else self.bos
                windows.append(Request([*ahead, *window.context], window.continuation))
            owners += [number] * len(cut)
        return self._summed(windows, owners, len(texts), disable_tqdm)

    def score_windows(
        self, windows: list[Request], disable_tqdm: bool = False, watched: Watched | None = None
    ) -> list[Score]:
        """Log-likelihoods of windows of running text; a selector reads each window's first tokens, and the BOS.

        What is asked of the windows' distributions at every counted token is answered in `watched`.
        """
        rows = []
        for number, window in enumerate(windows):
            ahead = len(self.bos) if window.context[: len(self.bos)] == self.bos else 0
            reads = (window.context + window.continuation)[: ahead + ROLLING_READS]
            rows.append(make_row([window], [number], reads))
        keys = [(WINDOW, number) for number in range(len(windows))]
        return self._run(rows, len(windows), disable_tqdm, keys, watched=watched)

    def watch_contexts(self, contexts: Sequence[list[int]], counts: Sequence[int], watched: Watched) -> None:
        """Answers in `watched` what is asked of the next-token distributions at the ends of contexts.

        Args:
            contexts: token ids, each as `shared_context` gives it; a selector reads all of it.
            counts: of each, how many of its last tokens are the places: the last one predicts an answer's first token.
            watched: what is asked of each context, and what is found.
        """
        firsts = [len(context) - count + 1 for context, count in zip(contexts, counts, strict=True)]
        shared = _shared_beginning([context[:first] for context, first in zip(contexts, firsts, strict=True)], contexts)
        size, rows = len(shared), []
        for number, (context, first) in enumerate(zip(contexts, firsts, strict=True)):
            # The last place has no token of its own to predict: any does, its probability is not read.
            request = Request(context[size:first], [*context[first:], context[-1]])
            rows.append(make_row([request], [number], context[size:]))
        self._run(rows, len(contexts), False, shared=shared, watched=watched)

    def shared_context(self, context: str, continuations: Sequence[str]) -> list[int]:
        """Token ids of what a document's requests share of their contexts, cut as they are: what a selector reads."""
        encoded = self.encode_choices([(context, text) for text in continuations])
        scored = [request for request in encoded if request.continuation]
        return _shared_reads(scored, [self._fit(request) for request in scored]) if scored else self._empty_context()

    def _summed(self, windows: list[Request], owners: list[int], texts: int, disable_tqdm: bool) -> list[float]:
        totals = [0.0] * texts
        for owner, (value, _) in zip(owners, self.score_windows(windows, disable_tqdm), strict=True):
            totals[owner] += value
        return totals

    def _windows(self, tokens: list[int], first: int, length: int) -> list[Request]:
        """A text in windows of up to `length` tokens as HFLM cuts them; `first` is the context of the first one."""
        cut = get_rolling_token_windows(tokens, first, length, context_len=1)
        return [Request(list(context), list(continuation)) for context, continuation in map(make_disjoint_window, cut)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each up to its first stop string, token for token as HFLM's.

        Raises:
            UserError: a task asks for sampling, or for more new tokens than the window behind the prompt holds.
        """
        greedy.say_not_followed(tuple(self.engine.not_followed))
        texts = [""] * len(requests)
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self.generation_options(request), []).append(number)
        with progress(len(requests), f"generate {self.label}", unit="documents", disable=disable_tqdm) as bar:
            for (stops, longest), numbers in groups.items():
                contexts = [self.generation_context(requests[number].args[0], longest) for number in numbers]
                batches = plan([len(context) for context in contexts], self.batch_tokens)
                inputs = [[contexts[place] for place in batch] for batch in batches]
                page = self.journal.open([inputs, stops, longest])
                left = [number for number in range(len(batches)) if number not in page.finished]
                results = self.engine.generate([inputs[number] for number in left], list(stops), longest)
                for number, result in self._written(page, left, results):
                    for place, text, prompt in zip(batches[number], result["texts"], result["choice"], strict=True):
                        request = requests[numbers[place]]
                        texts[numbers[place]] = text
                        self._note_choice((request.task_name, request.doc_id), prompt)
                    bar.update(len(batches[number]))
        return texts

    def generation_options(self, request: Instance) -> tuple[tuple[str, ...], int]:
        """Stop strings, the end of text among them, and the most new tokens."""
        options = greedy.options(request.task_name, request.args[1], self.max_gen_toks)
        if options["max_gen_toks"] >= self.max_length:
            raise UserError(
                f"{request.task_name}: wants to generate {options['max_gen_toks']} tokens, and the window behind"
                f" the prompt holds {self.max_length}; use a shorter prompt"
            )
        eot = self.eot_token_id
        end = self.tokenizer.decode([eot], skip_special_tokens=False) if eot is not None else None
        return tuple(handle_stop_sequences(options["until"], eos=end)), options["max_gen_toks"]

    def generation_context(self, text: str, longest: int) -> list[int]:
        """Token ids as HFLM makes them for generation, cut on the left to leave room for `longest` new tokens."""
        tokens = self._encoded(text, getattr(self.tokenizer, "bos_token", None)) or self._empty_context()
        room = self.max_length - longest
        self.truncated += len(tokens) > room
        return tokens[-room:]

    def encode_choices(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """Token ids of one document's contexts and of the choices to be scored behind them, split where HFLM splits.

        HFLM encodes context and choice as one text and takes the tokens behind as many as the context alone makes. A
        tokenizer whose tokens reach over that border leaves a choice none: it would score 0 nats and win. Where that
        befalls one choice of a document, all of them are encoded apart from their contexts, so that each is scored by
        its whole text. It is counted in `merged`.
        """
        encoded = [self._encode_together(*pair) for pair in pairs]
        apart = [
            pair[0] != "" and not request.continuation and self._encode_apart(*pair)
            for pair, request in zip(pairs, encoded, strict=True)
        ]
        if not any(apart):
            return encoded
        self.merged += sum(map(bool, apart))
        return [
            request if pair[0] == "" else Request(request.context, self._encode_apart(*pair))
            for pair, request in zip(pairs, encoded, strict=True)
        ]

    def _encode_together(self, context: str, continuation: str) -> Request:
        if context == "":
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            if tokens and tokens[0] == self.prefix_token_id:
                return Request(tokens[:1], tokens[1:])
            return Request(self._empty_context(), tokens)
        context, continuation = _spaces_moved(context, continuation)
        before, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        after = whole[len(before) :]
        self.partly_merged += bool(after) and whole[: len(before)] != before
        # A context that tokenizes to nothing, such as spaces alone, is conditioned on as an empty one is.
        return Request(before or self._empty_context(), after)

    def _encode_apart(self, context: str, continuation: str) -> list[int]:
        """The tokens of a continuation by itself, without a space that a tokenizer puts before the first word."""
        _, text = _spaces_moved(context, continuation)
        tokens = self.tok_encode(text, add_special_tokens=False)
        if self.tokenizer.decode(tokens) == text:
            return tokens
        for anchor in ("\n", "a", "1", "."):  # what the border does not reach over
            ahead = self.tok_encode(anchor, add_special_tokens=False)
            whole = self.tok_encode(anchor + text, add_special_tokens=False)
            if whole[: len(ahead)] == ahead and len(whole) > len(ahead):
                return whole[len(ahead) :]
        return tokens

    def _empty_context(self) -> list[int]:
        """What the first token of a text is predicted from where nothing stands before it.

        Raises:
            UserError: the tokenizer has neither a BOS nor an EOS token.
        """
        if self.prefix_token_id is None:
            raise UserError(
                f"{self.label or 'scoring'}: a text has nothing before its first token, and the model's tokenizer has"
                " neither a BOS nor an EOS token that could stand there; leave out tasks whose documents have an empty"
                " context, or name one in its tokenizer_config.json (bos_token)"
            )
        return [self.prefix_token_id]

    def _score(self, requests: list[Request], groups: dict[Any, list[int]], disable_tqdm: bool) -> list[Score]:
        rows, keys = [], []
        for key, numbers in groups.items():
            group = [requests[number] for number in numbers]
            fitted = [self._fit(request) for request in group]
            reads = _shared_reads(group, fitted)
            whole = all(one is request for one, request in zip(fitted, group, strict=True))
            # Requests that were cut no longer begin alike: each is a row of its own, with the same prompt.
            parts = [range(len(numbers))] if whole else [[index] for index in range(len(numbers))]
            for part in parts:
                rows.append(([fitted[i] for i in part], [numbers[i] for i in part], reads))
                keys.append(key)
        contexts = [request.context for fitted, _, _ in rows for request in fitted]
        shared = _shared_beginning(contexts, [reads for _, _, reads in rows])
        size = len(shared)
        made = [
            make_row([Request(one.context[size:], one.continuation) for one in fitted], numbers, reads[size:])
            for fitted, numbers, reads in rows
        ]
        return self._run(made, len(requests), disable_tqdm, keys, shared)

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
        self,
        rows: Sequence[PackedRow],
        count: int,
        disable_tqdm: bool,
        keys: Sequence[Any] = (),
        shared: Sequence[int] = (),
        watched: Watched | None = None,
    ) -> list[Score]:
        """Scores every request of `rows`; those that no row owns are empty continuations, of probability one."""
        sums, greedy = [0.0] * count, [True] * count
        batches = plan([len(row.tokens) for row in rows], self.batch_tokens)
        page = self.journal.open([[vars(row) for row in rows], batches, list(shared)])
        left = [number for number in range(len(batches)) if number not in page.finished]
        parts = [[rows[place] for place in batches[number]] for number in left]
        asks = [[watched.asks[place] for place in batches[number]] for number in left] if watched else None
        results = self.engine.score(parts, list(shared), asks)
        with progress(len(rows), f"score {self.label}", unit="rows", disable=disable_tqdm) as bar:
            for number, result in self._written(page, left, results):
                owners = (owner for place in batches[number] for owner in rows[place].owners)
                for owner, value, hit in zip(owners, result["values"], result["hits"], strict=True):
                    sums[owner] += value
                    greedy[owner] &= hit
                for place, prompt in zip(batches[number], result["choice"], strict=True):
                    if keys:
                        self._note_choice(keys[place], prompt)
                if watched is not None:
                    for place, answer in zip(batches[number], result["found"], strict=True):
                        watched.found[place] = answer
                bar.update(len(batches[number]))
        return list(zip(sums, greedy, strict=True))

    def _written(self, page: Any, left: list[int], results: Any) -> Any:
        """All batches' numbers and results: first those found in the journal, then the new ones, written down."""
        for number, result in page.finished.items():
            self.tokens_run += result["tokens"]
            yield number, result
        for place, result in results:
            page.add(left[place], result)
            self.tokens_run += result["tokens"]
            yield left[place], result

    def _note_choice(self, key: Any, prompt: int | None) -> None:
        if prompt is not None and isinstance(key, tuple):
            self.choices[key] = prompt


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to the word behind them, as in `TemplateLM._encode_pair`."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _shared_reads(requests: Sequence[Request], fitted: Sequence[Request]) -> list[int]:
    """What a selector reads of a document: what the contexts of its choices share, as far as no choice has it cut off.

    A choice that does not fit the window loses the beginning of its context, a longer one more of it: what all of them
    still have is the end of what they share. Where that is nothing, its last token is read.

    Args:
        requests: the document's choices.
        fitted: the same, cut to the window.
    """
    common = common_length([request.context for request in requests])
    cut = max(len(request.context) - len(one.context) for request, one in zip(requests, fitted, strict=True))
    return requests[0].context[cut:common] or requests[0].context[max(common - 1, 0) : max(common, 1)]


def _shared_beginning(contexts: Sequence[list[int]], reads: Sequence[list[int]]) -> list[int]:
    """The tokens that all contexts begin with, where running them once for all is worth while.

    Each context keeps a token of its own at least: the first continuation token is predicted there. Of each row they
    are part of what a selector reads.
    """
    if len(reads) < 2:
        return []
    size = min(common_length([*contexts, *reads]), min(map(len, contexts)) - 1)
    return list(contexts[0][:size]) if size >= SHARED_TOKENS else []
