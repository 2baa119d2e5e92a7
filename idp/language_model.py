"""A run's model in memory: text goes in, answers, scores, perplexities and choices of prompts come out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from idp import asked
from idp.errors import UserError, out_of_memory_is_explained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from idp.evaluate.sampling import Sampling
    from idp.prompting.bank import PromptBank
    from idp.prompting.repaired import RepairedModel

log = logging.getLogger(__name__)

Message = dict[str, str]  # of a conversation: its role (system, user or assistant) and its content
TASK = "api"  # what the scorer knows our requests by
NEW_TOKENS = 64  # of an answer, unless more or fewer are asked for


@dataclass(frozen=True)
class Answer:
    """A continuation, and the name of the prompt that the bank's selector gave its input (None: no prompt)."""

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

    @property
    def model(self) -> PreTrainedModel:
        """transformers' model, with the weight side of the repair on it; prompts are put before its input by the calls
        here, not by its own `generate`."""
        return self._engine.repaired.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._scorer.tokenizer

    @property
    def bank(self) -> PromptBank | None:
        """The prompts themselves: `bank.prompts[model.prompts.index(name)]`, [tokens, hidden_size]; None: no bank."""
        return self._engine.repaired.bank

    @out_of_memory_is_explained("generate")
    def generate(
        self,
        texts: Sequence[str],
        max_new_tokens: int = NEW_TOKENS,
        stop: str | Sequence[str] = (),
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Answer]:
        """Continuations of texts, batched by length, each behind its own prompt; greedy unless a temperature is set.

        Args:
            texts: what to go on from.
            max_new_tokens: tokens at most; the end of text ends an answer sooner.
            stop: strings that end an answer; they are not part of it.
            temperature: tokens are drawn, from logits divided by it; 0: the likeliest token is taken.
            top_k: how many of the likeliest tokens are drawn from; 0: all.
            top_p: the share of probability, of those, that is drawn from.
            seed: of the draws; each text has draws of its own, by its place among the texts.

        Raises:
            UserError: no texts, something that is no text, an option that means nothing, or more new tokens than the
                model's window holds.
        """
        texts = asked.texts(texts, "texts")
        sampling = _sampling(temperature, top_k, top_p, seed)
        requests = self._to_generate(texts, max_new_tokens, stop)
        self._begin()
        if not sampling.temperature:
            answers = [Answer(*pair) for pair in self._greedy(requests)]
        else:
            answers = self._drawn(texts, *self._scorer.generation_options(requests[0]), sampling)
        self._say_what_was_cut()
        return answers

    def stream(
        self,
        text: str,
        max_new_tokens: int = NEW_TOKENS,
        stop: str | Sequence[str] = (),
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """One text's continuation piece by piece, as it comes; together they are what `generate([text])` gives.

        Args: as of `generate`.

        Raises:
            UserError: as `generate`, when it is called.
        """
        from idp.evaluate.generation import pieces_of
        from idp.evaluate.sampling import Draws, likeliest

        asked.text(text, "text")
        sampling = _sampling(temperature, top_k, top_p, seed)
        (request,) = self._to_generate([text], max_new_tokens, stop)
        self._begin()
        stops, longest = self._scorer.generation_options(request)
        context = self._scorer.generation_context(text, longest)
        self._say_what_was_cut()
        repaired = self._engine.repaired
        pick = Draws(sampling, [0]) if sampling.temperature else likeliest
        return pieces_of(repaired, context, repaired.choose([context]), list(stops), longest, pick)

    @overload
    def chat(self, messages: str | Sequence[Message], **options: Any) -> Answer: ...

    @overload
    def chat(self, messages: Sequence[Sequence[Message]], **options: Any) -> list[Answer]: ...

    def chat(self, messages: Any, **options: Any) -> Answer | list[Answer]:
        """The answer to a conversation, asked as the model's chat template asks; of a list of conversations, to each.

        Args:
            messages: `[{"role": "user", "content": "Why?"}, ...]`, or a text for a single question.
            options: as of `generate`.

        Raises:
            UserError: no conversation, a tokenizer without a chat template, or as `generate`.
        """
        if asked.is_conversation(messages):
            return self.generate(self.in_chat([messages]), **options)[0]
        return self.generate(self.in_chat(messages), **options)

    @property
    def has_chat(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return bool(getattr(self._scorer.tokenizer, "chat_template", None))

    def in_chat(self, conversations: Sequence[str | Sequence[Message]]) -> list[str]:
        """Questions, or whole conversations, as the model's chat template puts them, for `generate` and `stream`.

        Raises:
            UserError: none, something that is no conversation, or a tokenizer without a chat template, or with one that
                does not take it.
        """
        from jinja2.exceptions import TemplateError

        tokenizer, who = self._scorer.tokenizer, self.name or "the model"
        if not self.has_chat:
            raise UserError(f"{who}: its tokenizer has no chat template; ask without one")
        if isinstance(conversations, (str, bytes)) or not isinstance(conversations, Iterable):
            raise UserError(f"questions: give a list, not {asked.described(conversations)}")
        each = [asked.conversation(one, f"questions[{number}]") for number, one in enumerate(conversations)]
        if not each:
            raise UserError("questions is empty: give at least one")
        try:
            return [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in each]
        except TemplateError as error:
            raise UserError(f"{who}: its chat template refuses this conversation: {error}") from error

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
        contexts = asked.texts(contexts, "contexts")
        offered = asked.choices(choices, len(contexts))
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

        contexts = [self._scorer.generation_context(text, 1) for text in asked.texts(texts, "texts")]
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
        texts = asked.texts(texts, "texts")
        counts = [len(self._scorer.own_tokens(text)) for text in texts]
        if 0 in counts:
            raise UserError(f"texts[{counts.index(0)}] has no tokens: there is no perplexity of nothing; leave it out")
        totals = self._scorer.loglikelihood_texts(texts)
        return [_exp(-total / count) for total, count in zip(totals, counts, strict=True)]

    def _to_generate(self, texts: list[str], max_new_tokens: int, stop: str | Sequence[str]) -> list[Any]:
        """lm-eval's requests for continuations, checked."""
        stops = asked.texts([stop] if isinstance(stop, str) else stop, "stop", may_be_empty=True)
        if "" in stops:
            raise UserError("stop: an empty text would end every answer before it begins; leave it out")
        asked.check_count("max_new_tokens", max_new_tokens)
        if max_new_tokens >= self._scorer.max_length:
            raise UserError(
                f"max_new_tokens={max_new_tokens}: the model's window holds {self._scorer.max_length} tokens behind"
                f" the prompt, the text itself among them; use {self._scorer.max_length - 1} or less"
            )
        options = {"until": stops, "do_sample": False, "max_gen_toks": max_new_tokens}
        return [_request("generate_until", (text, options), number) for number, text in enumerate(texts)]

    def _greedy(self, requests: list[Any]) -> list[tuple[str, str | None]]:
        answers = self._scorer.generate_until(requests)
        return [(text, self._chosen(number)) for number, text in enumerate(answers)]

    def _drawn(self, texts: list[str], stops: Sequence[str], longest: int, sampling: Sampling) -> list[Answer]:
        """Continuations whose tokens are drawn, each with its prompt."""
        from idp.evaluate.batching import plan
        from idp.evaluate.engine import chosen_of, in_halves
        from idp.evaluate.generation import decode
        from idp.evaluate.sampling import Draws

        repaired = self._engine.repaired
        contexts = [self._scorer.generation_context(text, longest) for text in texts]
        answers: dict[int, Answer] = {}

        def draw(numbers: list[int]) -> None:
            rows = [contexts[number] for number in numbers]
            choice = repaired.choose(rows)
            found, _ = decode(repaired, rows, choice, list(stops), longest, Draws(sampling, numbers))
            for number, text, prompt in zip(numbers, found, chosen_of(choice, len(rows)), strict=True):
                answers[number] = Answer(text, self.prompts[prompt] if prompt is not None else None)

        for batch in plan([len(context) for context in contexts], self._scorer.batch_tokens):
            in_halves(draw, list(batch))
        return [answers[number] for number in range(len(texts))]

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


def _request(kind: str, arguments: tuple, number: int, choice: int = 0) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, choice, (TASK, number, 1))


def _sampling(temperature: float, top_k: int, top_p: float, seed: int) -> Sampling:
    from idp.evaluate.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed)
    sampling.check()
    return sampling


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # a model that compression broke
        return math.inf
