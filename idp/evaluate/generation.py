"""Batched decoding behind each row's own prompt, each row ending at its stop string."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import postprocess_generated_text

from idp.evaluate.sampling import likeliest
from idp.models.greedy import ends_of
from idp.prompting import finite
from idp.prompting.caches import empty_cache
from idp.prompting.frequencies import frequencies, switch_of
from idp.prompting.masks import attention_mask, has_local_attention
from idp.prompting.repaired import RepairedModel, head_only_at

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

    Pick = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]  # logits [rows, vocabulary] and which rows: tokens

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass
class Decoding:
    """A batch between two steps.

    `logits` [rows, vocabulary] are of each row's next token, `seen` [rows, keys] says which cached keys are real,
    `positions` [rows, keys] where they stand, and `next_position` [rows, 1] where the next token goes. `fed` holds
    what the cache was made of, where a row that grows past a length needs another one.
    """

    logits: torch.Tensor
    cache: DynamicCache
    seen: torch.Tensor
    positions: torch.Tensor
    next_position: torch.Tensor
    fed: Fed | None = None

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but those given."""
        self.cache.batch_select_indices(rows.cpu())
        self.logits, self.seen = self.logits[rows], self.seen[rows]
        self.positions, self.next_position = self.positions[rows], self.next_position[rows]
        if self.fed is not None:
            self.fed.keep(rows)


@dataclass
class Fed:
    """The tokens behind a cache, [rows, width], which of them are `real`, and the rows' prompts.

    `long` [rows] says which rows have outgrown the length at which the model's rotary frequencies change, `switch`.
    """

    tokens: torch.Tensor
    real: torch.Tensor
    choice: torch.Tensor | None
    long: torch.Tensor
    switch: int

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but those given."""
        self.tokens, self.real, self.long = self.tokens[rows], self.real[rows], self.long[rows]
        self.choice = self.choice[rows] if self.choice is not None else None

    def add(self, newest: torch.Tensor) -> None:
        """One more token in each row, [rows]."""
        import torch

        self.tokens = torch.cat([self.tokens, newest[:, None]], dim=1)
        self.real = torch.cat([self.real, self.real.new_ones(len(newest), 1)], dim=1)


def decode(
    repaired: RepairedModel,
    contexts: list[list[int]],
    choice: torch.Tensor | None,
    stops: list[str],
    max_new_tokens: int,
    pick: Pick = likeliest,
) -> tuple[list[str], int]:
    """Continuations of one batch, each cut before the first of `stops` and before the token that ends a text (any of
    `ends_of`); rows leave the batch as they end.

    Args:
        repaired: the model.
        contexts: token ids, none of them empty.
        choice: what each row follows, as `RepairedModel.choose` gave it.
        stops: stop strings.
        max_new_tokens: tokens at most.
        pick: which token comes next; the likeliest one, unless tokens are drawn (`sampling.Draws`).

    Returns:
        the texts, and how many tokens went through the model, padding included.
    """
    import torch

    generated: list[list[int]] = [[] for _ in contexts]
    with torch.inference_mode():
        for row, token in tokens_of(repaired, contexts, choice, stops, max_new_tokens, pick):
            generated[row].append(token)
    padded = len(contexts) * max(map(len, contexts))
    return [text_of(repaired, row, stops) for row in generated], padded + sum(map(len, generated))


def tokens_of(
    repaired: RepairedModel,
    contexts: list[list[int]],
    choice: torch.Tensor | None,
    stops: list[str],
    max_new_tokens: int,
    pick: Pick = likeliest,
) -> Iterator[tuple[int, int]]:
    """As `decode`, each row's number and next token, as they come; to be taken in torch's inference mode."""
    import torch

    ends = ends_of(repaired.model, repaired.tokenizer)
    width = max(map(len, contexts))
    tokens = torch.zeros(len(contexts), width, dtype=torch.long)
    real = torch.zeros(len(contexts), width, dtype=torch.bool)
    for row, context in enumerate(contexts):  # padded on the left, so that every row's next token is in one column
        tokens[row, width - len(context) :] = torch.tensor(context)
        real[row, width - len(context) :] = True
    generated: list[list[int]] = [[] for _ in contexts]
    alive = list(range(len(contexts)))
    state = prefill(repaired, tokens.to(repaired.device), real.to(repaired.device), choice)
    while alive:
        if not bool(state.logits.amax(dim=-1).isfinite().all()):
            rows = [contexts[row] + generated[row] for row in alive]
            again = functools.partial(_run_alone, repaired, rows, choice[alive] if choice is not None else None)
            finite.refuse(repaired.model, again, "the logits of a generated token")
        newest = pick(state.logits, alive)
        going = []
        for place, (row, token) in enumerate(zip(alive, newest.tolist(), strict=True)):
            generated[row].append(token)
            yield row, token
            if len(generated[row]) < max_new_tokens and not _stopped(repaired.tokenizer, generated[row], stops, ends):
                going.append(place)
        if not going:
            break
        if len(going) < len(alive):
            keep = torch.tensor(going, device=repaired.device)
            state.keep(keep)
            newest, alive = newest[keep], [alive[place] for place in going]
        step(repaired, state, newest)


def text_of(repaired: RepairedModel, tokens: list[int], stops: list[str]) -> str:
    """A continuation as text, without the token that ended it and cut before the first of `stops`."""
    ends = ends_of(repaired.model, repaired.tokenizer)
    whole = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    text = repaired.tokenizer.decode(whole, skip_special_tokens=True)
    return postprocess_generated_text(text, stop=stops, think_end_token=None)


def pieces_of(
    repaired: RepairedModel,
    context: list[int],
    choice: torch.Tensor | None,
    stops: list[str],
    max_new_tokens: int,
    pick: Pick = likeliest,
) -> Iterator[str]:
    """One continuation piece by piece, as soon as no later token can change it; together they are `decode`'s text.

    Held back are the beginning of what may become a stop string, letters of which bytes are missing, and white space
    at the end, which a tokenizer may still take away.
    """
    import torch

    found, sent, longest = [], "", max(map(len, stops), default=0)
    steps = tokens_of(repaired, [context], choice, stops, max_new_tokens, pick)
    while True:
        with torch.inference_mode():  # left before anything is yielded: the mode is the thread's, not this function's
            if (step := next(steps, None)) is None:
                break
        found.append(step[1])
        text = text_of(repaired, found, stops)
        held = text[: max(0, len(text) - max(longest - 1, 0))].rstrip().rstrip(REPLACEMENT)
        if len(held) > len(sent) and held.startswith(sent):
            yield held[len(sent) :]
            sent = held
    if rest := text_of(repaired, found, stops).removeprefix(sent):
        yield rest


def _run_alone(repaired: RepairedModel, rows: list[list[int]], choice: torch.Tensor | None) -> None:
    """Each row in a pass of its own."""
    import torch

    for number, row in enumerate(rows):
        tokens = torch.tensor([row], device=repaired.device)
        prefill(repaired, tokens, None, choice[number : number + 1] if choice is not None else None)


def prefill(
    repaired: RepairedModel, tokens: torch.Tensor, real: torch.Tensor | None, choice: torch.Tensor | None
) -> Decoding:
    """One pass over the contexts, each behind its own prompt.

    Args:
        repaired: the model.
        tokens: [rows, width], padded on the left.
        real: [rows, width], False where padding; None where there is none.
        choice: what each row follows, as `RepairedModel.choose` gives it; None without a bank.
    """
    import torch

    rows, width = tokens.shape
    last = torch.arange(1, rows + 1, device=tokens.device) * width - 1
    positions = torch.arange(width, device=tokens.device).expand(rows, -1)
    seen = torch.ones(rows, width, dtype=torch.bool, device=tokens.device)
    if real is not None:
        positions, seen = (real.long().cumsum(1) - 1).clamp(min=0), real
    if (
        choice is None and real is None and not has_local_attention(repaired.model)
    ):  # the plain causal pass, for which kernels have a way of their own
        inputs: dict[str, Any] = {"past_key_values": empty_cache(repaired.model), "use_cache": True}
        before = positions[:, :0]
    else:
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device)
        visible = (seen[:, None, :] & seen.new_ones(width, width).tril()) | itself
        prefixes, which = repaired.followed(choice) if choice is not None else (None, None)
        inputs = repaired.attention_inputs(visible, positions, which, prefixes)
        positions = inputs["position_ids"]
        before = positions[:, :0]
        if prefixes is None or which is None:
            inputs |= {"past_key_values": empty_cache(repaired.model), "use_cache": True}
        else:
            valid = prefixes.valid(which)
            seen = torch.cat([valid, seen], dim=1)
            before = torch.arange(valid.shape[1], device=tokens.device).expand(rows, -1)
    fed, switch = None, switch_of(repaired.model.config)
    if switch is not None:
        whole = real if real is not None else torch.ones_like(tokens, dtype=torch.bool)
        fed = Fed(tokens, whole, choice, positions[:, -1] >= switch, switch)
    with head_only_at(repaired.model, last), frequencies(repaired.model, _of_rows(fed)):
        output = repaired.model(input_ids=tokens, **inputs)
    at = torch.cat([before, positions], dim=1)
    logits = output.logits[0].to(tokens.device)
    return Decoding(logits, output.past_key_values, seen, at, positions[:, -1:] + 1, fed)


def step(repaired: RepairedModel, state: Decoding, newest: torch.Tensor) -> None:
    """Runs each row's newest token, [rows], and brings `state` up to the token after it."""
    import torch

    if state.fed is not None:
        state.fed.add(newest)
        if bool(((state.next_position[:, 0] >= state.fed.switch) & ~state.fed.long).any()):
            # A row's own earlier keys are other ones from here on.
            anew = prefill(repaired, state.fed.tokens, state.fed.real, state.fed.choice)
            state.__dict__.update(anew.__dict__)
            return
    state.seen = torch.cat([state.seen, state.seen.new_ones(len(newest), 1)], dim=1)
    state.positions = torch.cat([state.positions, state.next_position], dim=1)
    mask = attention_mask(repaired.model, state.seen[:, None, :], state.next_position, state.positions)
    with frequencies(repaired.model, _of_rows(state.fed)):
        output = repaired.model(
            input_ids=newest[:, None],
            attention_mask=mask,
            position_ids=state.next_position,
            past_key_values=state.cache,
            use_cache=True,
        )
    state.logits, state.next_position = output.logits[:, -1].to(newest.device), state.next_position + 1


def _of_rows(fed: Fed | None) -> torch.Tensor | None:
    """Which rows are long, [rows, 1], as `frequencies` takes it."""
    return fed.long[:, None] if fed is not None else None


def _stopped(tokenizer: Any, tokens: list[int], stops: list[str], ends: frozenset[int]) -> bool:
    if tokens[-1] in ends:
        return True
    # A stop string may end inside the newest token and begin a few tokens before it.
    tail = tokenizer.decode(tokens[-(max(map(len, stops), default=0) + 2) :])
    return any(stop and stop in tail for stop in stops)
