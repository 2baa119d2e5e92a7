"""The Python API: `idp.load` brings a run's model into memory with its repair on it; text goes in, answers come out.

    model = idp.load("outputs/runs/<run>")
    model.generate(["The capital of France is"])[0].text
    model.score(["Which is larger? Answer:"], [[" the sun", " the moon"]])[0].best

It runs through the evaluation's own engine and scorer, so its scores are those of the record.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idp.errors import UserError, out_of_memory_is_explained

if TYPE_CHECKING:
    import torch

    from idp.export.load import Exported
    from idp.finished import Finished
    from idp.prompting.repaired import RepairedModel
    from idp.records.schema import Record

log = logging.getLogger(__name__)

VARIANTS = ("dense", "compressed", "repaired")
DTYPES = ("auto", "float32", "bfloat16", "float16")
TASK = "api"  # what the scorer knows our requests by
NEW_TOKENS = 64  # of an answer, unless more or fewer are asked for


@dataclass(frozen=True)
class Answer:
    """A greedy continuation, and the name of the prompt that the bank's selector gave its input (None: no prompt)."""

    text: str
    prompt: str | None


@dataclass(frozen=True)
class Scores:
    """Each choice's score behind one context.

    `loglikelihoods` are in nats, sums over the `tokens` of each choice; `greedy` says whether greedy decoding would
    give the choice; `prompt` names the prompt that the context was given (None: no prompt).
    """

    loglikelihoods: list[float]
    tokens: list[int]
    greedy: list[bool]
    prompt: str | None

    @property
    def best(self) -> int:
        """The index of the likeliest choice; the first of several."""
        return max(range(len(self.loglikelihoods)), key=self.loglikelihoods.__getitem__)


class LanguageModel:
    """A dense, compressed or repaired model in memory. Each input has its own prompt, chosen from what it says.

    Attributes:
        name: the run's.
        variant: dense, compressed or repaired.
        prompts: the names of the bank's prompts, in order; empty where there is no bank.
    """

    def __init__(self, repaired: RepairedModel, batch_tokens: int, *, name: str = "", variant: str = "repaired"):
        """Makes one of a model with a prefix chosen per input.

        Args:
            repaired: the model.
            batch_tokens: tokens per forward pass; halved when memory runs out.
            name: what it is called.
            variant: dense, compressed or repaired.
        """
        from idp.evaluate.engine import LocalEngine
        from idp.evaluate.scorer import Scorer

        self.name, self.variant = name, variant
        self._engine = LocalEngine(repaired)
        self._scorer = Scorer(self._engine, batch_tokens, variant)
        self.prompts: list[str] = list(self._engine.prompts)

    def __repr__(self) -> str:
        model = self._engine.repaired
        dtype = str(model.model.dtype).removeprefix("torch.")
        prompts = f", {len(self.prompts)} prompt{'s' * (len(self.prompts) != 1)}" if self.prompts else ""
        return f"<{self.variant} model of {self.name}: {dtype} on {model.device}{prompts}>"

    @out_of_memory_is_explained("generate")
    def generate(
        self, texts: Sequence[str], max_new_tokens: int = NEW_TOKENS, stop: str | Sequence[str] = ()
    ) -> list[Answer]:
        """Greedy continuations of texts, batched by length, each text behind its own prompt.

        Args:
            texts: what to go on from.
            max_new_tokens: tokens at most; the end of text ends an answer sooner.
            stop: strings that end an answer; they are not part of it.

        Raises:
            UserError: no texts, something that is no text, or more new tokens than the model's window holds.
        """
        texts = _texts(texts, "texts")
        stops = _texts([stop] if isinstance(stop, str) else stop, "stop", may_be_empty=True)
        if "" in stops:
            raise UserError("stop: an empty text would end every answer before it begins; leave it out")
        check_count("max_new_tokens", max_new_tokens)
        if max_new_tokens >= self._scorer.max_length:
            raise UserError(
                f"max_new_tokens={max_new_tokens}: the model's window holds {self._scorer.max_length} tokens behind"
                f" the prompt, the text itself among them; use {self._scorer.max_length - 1} or less"
            )
        options = {"until": stops, "do_sample": False, "max_gen_toks": max_new_tokens}
        requests = [_request("generate_until", (text, options), number) for number, text in enumerate(texts)]
        self._begin()
        answers = self._scorer.generate_until(requests)
        self._say_what_was_cut()
        return [Answer(text, self._chosen(number)) for number, text in enumerate(answers)]

    @property
    def has_chat(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return bool(getattr(self._scorer.tokenizer, "chat_template", None))

    def in_chat(self, questions: Sequence[str]) -> list[str]:
        """Questions as the model's chat template asks them, to `generate` the answers; none of the history is kept.

        Raises:
            UserError: no questions, something that is no text, or a tokenizer without a chat template.
        """
        tokenizer = self._scorer.tokenizer
        if not self.has_chat:
            raise UserError(f"{self.name or 'the model'}: its tokenizer has no chat template; ask without one")
        asked = [[{"role": "user", "content": text}] for text in _texts(questions, "questions")]
        return [tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in asked]

    @out_of_memory_is_explained("generate")
    def score(self, contexts: Sequence[str], choices: Sequence[Sequence[str]] | Sequence[str]) -> list[Scores]:
        """How likely each choice is behind its context. The context goes through the model once for all its choices.

        Args:
            contexts: texts, of which the prompt is chosen: never of a choice.
            choices: for each context its choices, or one list of choices for all contexts. A choice is what follows
                the context, with its leading space, as in lm-eval.

        Raises:
            UserError: no contexts, no choices for one, something that is no text, or a choice without tokens.
        """
        contexts = _texts(contexts, "contexts")
        offered = _choices(choices, len(contexts))
        requests, tokens = [], []
        for number, (context, continuations) in enumerate(zip(contexts, offered, strict=True)):
            requests += [
                _request("loglikelihood", (context, choice), number, i) for i, choice in enumerate(continuations)
            ]
            encoded = self._scorer.encode_choices([(context, choice) for choice in continuations])
            tokens.append([len(choice.continuation) for choice in encoded])
            if 0 in tokens[-1]:
                place = f"choices[{number}][{tokens[-1].index(0)}]"
                raise UserError(f"{place} has no tokens: there is nothing to score; leave it out")
        self._begin()
        found = iter(self._scorer.loglikelihood(requests))
        self._say_what_was_cut()
        scores = []
        for number, counts in enumerate(tokens):
            values, greedy = zip(*(next(found) for _ in counts), strict=True)
            scores.append(Scores(list(values), counts, list(greedy), self._chosen(number)))
        return scores

    @out_of_memory_is_explained("generate")
    def choose(self, texts: Sequence[str]) -> list[str | None]:
        """The name of the prompt that each text is given, of a mixture the one that weighs most; None without a bank.

        Raises:
            UserError: no texts, or something that is no text.
        """
        from idp.evaluate.batching import plan
        from idp.evaluate.engine import chosen_of, in_halves

        contexts = [self._scorer.generation_context(text, 1) for text in _texts(texts, "texts")]
        chosen: list[str | None] = [None] * len(contexts)
        if not self.prompts:
            return chosen
        for batch in plan([len(context) for context in contexts], self._scorer.batch_tokens):
            parts = in_halves(self._engine.repaired.choose, [contexts[place] for place in batch])
            numbers = [prompt for part in parts if part is not None for prompt in chosen_of(part, len(part))]
            for place, prompt in zip(batch, numbers, strict=True):
                chosen[place] = self.prompts[prompt]
        return chosen

    @out_of_memory_is_explained("generate")
    def perplexity(self, texts: Sequence[str]) -> list[float]:
        """Each text's perplexity per token, its first token counted and its BOS not, in windows as lm-eval cuts them.

        Where texts begin with a BOS token, each window does.

        (A record's perplexity is over many windows of running text, which are full and whose first tokens are not
        counted.)

        Raises:
            UserError: no texts, something that is no text, or a text without tokens.
        """
        texts = _texts(texts, "texts")
        counts = [len(self._scorer.own_tokens(text)) for text in texts]
        if 0 in counts:
            raise UserError(f"texts[{counts.index(0)}] has no tokens: there is no perplexity of nothing; leave it out")
        totals = self._scorer.loglikelihood_texts(texts)
        return [_exp(-total / count) for total, count in zip(totals, counts, strict=True)]

    def _begin(self) -> None:
        self._scorer.begin()

    def _chosen(self, number: int) -> str | None:
        index = self._scorer.choices.get((TASK, number))
        return self.prompts[index] if index is not None else None

    def _say_what_was_cut(self) -> None:
        from idp.evaluate.scorer import MERGED

        if self._scorer.merged:
            log.warning("%d of the choices %s", self._scorer.merged, MERGED)
        if self._scorer.truncated:
            log.warning(
                "%d of the requests were longer than the %d tokens that the model's window holds behind the prompt, and"
                " were cut on the left",
                self._scorer.truncated,
                self._scorer.max_length,
            )


def load(
    record_or_folder: str | Path | dict[str, Any],
    *,
    variant: str = "repaired",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    store: str | Path | None = None,
) -> LanguageModel:
    """A run's model in memory, ready to generate and to score.

    Args:
        record_or_folder: a run's `record.json` or its folder, a folder that `python -m idp.export` wrote, or a record
            that has been read.
        variant: repaired, compressed or dense.
        device: where to; None: as in the run (an export: a GPU if there is one).
        dtype: float32, bfloat16 or float16; None: the one that was measured.
        store: the folder of stored products, if it was moved.

    Raises:
        UserError: there is no such run, it failed, it does not have the variant, or its products are gone or damaged.
    """
    if variant not in VARIANTS:
        raise UserError(f"variant={variant}: use {', '.join(VARIANTS)}")
    dtype = str(dtype).removeprefix("torch.") if dtype is not None else None
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: use {', '.join(DTYPES)}")
    check_device(device)
    found = find(record_or_folder, store)
    model = found.open(variant, str(device) if device is not None else None, dtype)
    return LanguageModel(model, found.batch_tokens, name=found.name, variant=variant)


def find(record_or_folder: str | Path | dict[str, Any], store: str | Path | None = None) -> Finished | Exported:
    """What `load` opens models of, found without opening any.

    Raises:
        UserError: it is neither a finished run nor an export.
    """
    from idp import finished
    from idp.export import load as exports
    from idp.export.checkpoint import PROVENANCE

    if isinstance(record_or_folder, dict):
        return finished.of_record(cast("Record", record_or_folder), store)
    if not isinstance(record_or_folder, (str, Path)):
        raise UserError(f"idp.load takes a path or a record, not {type(record_or_folder).__name__}")
    folder = Path(record_or_folder).expanduser()
    if (folder / PROVENANCE).is_file():
        return exports.find_export(folder)
    return finished.find_run(record_or_folder, store)


def check_device(device: Any) -> None:
    """Refuses a device that is not here.

    Raises:
        UserError: as said.
    """
    import torch

    if device is None or device == "auto":
        return
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device={device}: use auto, cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device}: there are {torch.cuda.device_count()} CUDA devices here; use auto or cpu")


def check_count(name: str, value: Any) -> None:
    """Refuses what is no whole number from 1 up.

    Raises:
        UserError: as said, of `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value}: use a whole number, 1 or more")


def _request(kind: str, arguments: tuple, number: int, choice: int = 0) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, choice, (TASK, number, 1))


def _texts(given: Any, name: str, may_be_empty: bool = False) -> list[str]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UserError(f"{name}: give a list of texts, not {_described(given)}")
    texts = list(given)
    if not texts and not may_be_empty:
        raise UserError(f"{name} is empty: give at least one text")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}[{number}] is not a text: {_described(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name}[{number}] is not valid Unicode: {error}") from error
    return texts


def _choices(given: Any, contexts: int) -> list[list[str]]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UserError(f"choices: give a list of choices for each context, not {_described(given)}")
    given = list(given)
    if given and all(isinstance(choice, str) for choice in given):
        return [_texts(given, "choices")] * contexts
    if len(given) != contexts:
        raise UserError(f"choices: there are {contexts} contexts and {len(given)} lists of choices; give one for each")
    return [_texts(texts, f"choices[{number}]") for number, texts in enumerate(given)]


def _described(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # a model that compression broke
        return math.inf
