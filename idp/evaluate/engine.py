"""What turns rows into scores and contexts into text: a model in this process, or the same interface over several.

The scorer above it knows lm-eval; an engine knows tensors.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from idp.beginning import Beginning
from idp.errors import lacks_memory
from idp.evaluate.batching import PackedRow, split_at
from idp.evaluate.divergence import Ask, DivergenceObserver
from idp.evaluate.generation import decode
from idp.memory import release
from idp.models import keep_freed_memory
from idp.models.greedy import not_followed
from idp.prompting import finite
from idp.prompting.frequencies import switch_of
from idp.prompting.packing import Packed, pack
from idp.prompting.prefix import Prefixes, extend
from idp.prompting.repaired import RepairedModel

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Scores and generates in batches. Results come as plain lists, which can be written down and sent about."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: list[str]
    longest_prompt: int
    beginning: Beginning
    not_followed: list[str]  # generation settings of the model's own: see `greedy.not_followed`

    def score(
        self, batches: Sequence[Sequence[PackedRow]], shared: list[int], asks: Sequence[Sequence[Ask]] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each batch's number and result, in any order.

        A result holds, per target of the batch's rows in order, `values` (log-probability in nats) and `hits`
        (whether it was the most likely token), per row `choice` (the prompt, of a mixture the one that weighs most;
        None without a bank), and `tokens`, how many went through the model; with `asks`, per row also `found`, as
        `divergence.Watched` has it.

        Args:
            batches: rows that go through the model together.
            shared: tokens that every row begins with and does not repeat; they are run once per prompt.
            asks: what is asked of the distributions at each row's places.
        """
        ...

    def generate(
        self, batches: Sequence[list[list[int]]], stops: list[str], max_new_tokens: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each batch's number and result: per context its `texts` and `choice`, and `tokens`."""
        ...

    def choose(self, batches: Sequence[list[list[int]]]) -> Iterator[tuple[int, list[int | None]]]:
        """Each batch's number and the prompt of each of its contexts, which alone are read; None without a bank."""
        ...

    def close(self) -> None:
        """Ends what the engine holds beside this process."""
        ...


class LocalEngine:
    """An engine over a repaired model in this process."""

    def __init__(self, repaired: RepairedModel):
        self.repaired = repaired
        self.config, self.tokenizer = repaired.model.config, repaired.tokenizer
        self.prompts = repaired.bank.names if repaired.bank is not None else []
        self.longest_prompt, self.beginning = repaired.longest_prompt, repaired.beginning
        self.not_followed = not_followed(repaired.model)
        if repaired.device.type == "cpu":
            keep_freed_memory()
        self._extended: tuple[list[int], dict[int, Prefixes]] = ([], {})

    def score(
        self, batches: Sequence[Sequence[PackedRow]], shared: list[int], asks: Sequence[Sequence[Ask]] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, batch in enumerate(batches):
            yield number, self.score_batch(list(batch), shared, list(asks[number]) if asks else None)

    def generate(
        self, batches: Sequence[list[list[int]]], stops: list[str], max_new_tokens: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, contexts in enumerate(batches):
            yield number, self.generate_batch(contexts, stops, max_new_tokens)

    def choose(self, batches: Sequence[list[list[int]]]) -> Iterator[tuple[int, list[int | None]]]:
        for number, contexts in enumerate(batches):
            yield number, self.choose_batch(contexts)

    def describe(self) -> dict[str, Any]:
        """What another process needs to know: the attributes of `Engine` that are the repaired model's."""
        return {name: getattr(self, name) for name in ("prompts", "longest_prompt", "beginning", "not_followed")}

    def close(self) -> None:
        """Nothing to end: the model is this process's own."""

    def score_batch(self, rows: list[PackedRow], shared: list[int], asks: list[Ask] | None = None) -> dict[str, Any]:
        """One batch of `score`; in halves where memory does not suffice."""
        if asks is None:
            return _joined(in_halves(lambda part: self._score(part, shared), rows))
        numbers = list(range(len(rows)))
        return _joined(
            in_halves(lambda part: self._score([rows[n] for n in part], shared, [asks[n] for n in part]), numbers)
        )

    def generate_batch(self, contexts: list[list[int]], stops: list[str], max_new_tokens: int) -> dict[str, Any]:
        """One batch of `generate`; in halves where memory does not suffice."""
        return _joined(in_halves(lambda part: self._generate(part, stops, max_new_tokens), contexts))

    def choose_batch(self, contexts: list[list[int]]) -> list[int | None]:
        """One batch of `choose`; in halves where memory does not suffice."""
        return [prompt for part in in_halves(self._choose, contexts) for prompt in part]

    def _choose(self, contexts: list[list[int]]) -> list[int | None]:
        choice = self.repaired.choose(contexts)
        return choice.tolist() if choice is not None else [None] * len(contexts)

    def _score(self, rows: list[PackedRow], shared: list[int], asks: list[Ask] | None = None) -> dict[str, Any]:
        import torch

        observer = DivergenceObserver(asks, [len(row.places) for row in rows]) if asks is not None else None
        read = [shared + row.reads for row in rows]
        with torch.inference_mode():
            choice = self.repaired.choose(read)
            given, order = rows, None
            if choice is not None and choice.is_floating_point():  # each row reads the shared text behind its own
                rows, shared = [row.behind(shared) for row in rows], []
            prefixes, followed = self._prefixes(shared, choice, len(rows))
            if (switch := switch_of(self.config)) is not None:
                before = [0] * len(rows)
                if followed is not None:
                    assert prefixes is not None
                    before = prefixes.lengths[followed].tolist()
                rows, sources, order = split_at(rows, [switch - length for length in before])
                followed = followed[torch.tensor(sources, device=followed.device)] if followed is not None else None
            packed = pack(
                [row.tokens for row in rows],
                [row.positions for row in rows],
                [row.branches for row in rows],
                None if followed is None else followed.tolist(),
                prefixes,
                self.repaired.model,
                self.repaired.device,
            )
            places = [start + place for start, row in zip(packed.starts, rows, strict=True) for place in row.places]
            targets = [target for row in rows for target in row.targets]
            values, hits = self._values(packed, torch.tensor(places), torch.tensor(targets), prefixes, observer)
        if order is not None:
            values, hits = [values[place] for place in order], [hits[place] for place in order]
        result = {
            "values": values,
            "hits": hits,
            "choice": chosen_of(choice, len(given)),
            "tokens": packed.tokens.numel(),
        }
        return result if observer is None else result | {"found": observer.results()}

    def _values(
        self,
        packed: Packed,
        places: torch.Tensor,
        targets: torch.Tensor,
        prefixes: Prefixes | None,
        observer: DivergenceObserver | None = None,
    ) -> tuple[list[float], list[bool]]:
        """Each target's log-probability in nats, and whether it is the most likely token; both [targets]."""
        import torch

        values, hits = torch.empty(len(places)), torch.empty(len(places), dtype=torch.bool)
        wanted, where = places.unique(return_inverse=True)
        for start, logits in self.repaired.logits_at(packed, wanted, prefixes):
            mine = ((where >= start) & (where < start + len(logits))).nonzero()[:, 0]
            at, target = (tensor[mine].to(logits.device) for tensor in (where - start, targets))
            scores = logits.float()  # both are many times slower on a CPU's bfloat16
            # `logsumexp` is closer to float64 (2e-5 against 4e-4 nats in 170); lm-eval's scores are of `log_softmax`.
            logs, best = scores.log_softmax(dim=-1), scores.argmax(dim=-1)
            values[mine] = logs[at, target].cpu()
            hits[mine] = (best[at] == target).cpu()
            if observer is not None:
                observer.see(logs, best, at, mine)
        again = functools.partial(self._run, packed, wanted, prefixes)
        finite.check(values, self.repaired.model, again, "log-likelihoods")
        if observer is not None:
            finite.check(observer.kl, self.repaired.model, again, "divergences from the dense model")
        return values.tolist(), hits.tolist()

    def _run(self, packed: Packed, wanted: torch.Tensor, prefixes: Prefixes | None) -> None:
        for _ in self.repaired.logits_at(packed, wanted, prefixes):
            pass

    def _generate(self, contexts: list[list[int]], stops: list[str], max_new_tokens: int) -> dict[str, Any]:
        choice = self.repaired.choose(contexts)
        texts, tokens = decode(self.repaired, contexts, choice, stops, max_new_tokens)
        return {
            "texts": texts,
            "choice": chosen_of(choice, len(contexts)),
            "tokens": tokens,
        }

    def _prefixes(self, shared: list[int], choice: Any, rows: int) -> tuple[Prefixes | None, Any]:
        """The prefixes that rows follow, and which one each row follows: prompts, with the shared text behind them."""
        import torch

        if not shared:
            return self.repaired.followed(choice) if choice is not None else (self.repaired.prefixes, None)
        if self._extended[0] != shared:
            self._extended = (shared, {})
        made = self._extended[1]
        wanted = sorted(set(choice.tolist())) if choice is not None else [0]
        for prompt in wanted:
            if prompt not in made:
                made[prompt] = extend(self.repaired.model, self.repaired.prefixes, prompt, shared)
        if choice is None:
            return made[0], torch.zeros(rows, dtype=torch.long, device=self.repaired.device)
        together = Prefixes.stack([made[prompt] for prompt in wanted])
        return together, torch.tensor([wanted.index(prompt) for prompt in choice.tolist()], device=choice.device)


def chosen_of(choice: torch.Tensor | None, rows: int) -> list[Any]:
    """The prompt of each row, of a mixture the one that weighs most; None without a bank."""
    if choice is None:
        return [None] * rows
    return (choice.argmax(1) if choice.is_floating_point() else choice).tolist()


def in_halves(run: Callable[[list[Item]], Result], items: list[Item]) -> list[Result]:
    """`run(items)`, or, where memory runs out, its results on two halves, and so on down to single items."""
    try:
        return [run(items)]
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error) or len(items) == 1:
            raise
    release()
    half = len(items) // 2
    log.warning("out of memory with %d rows in a batch: going on with %d", len(items), half)
    return in_halves(run, items[:half]) + in_halves(run, items[half:])


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of the parts of a batch as one: lists one after another, numbers added."""
    if len(parts) == 1:
        return parts[0]
    return {
        key: sum(part[key] for part in parts)
        if isinstance(parts[0][key], int)
        else [item for part in parts for item in part[key]]
        for key in parts[0]
    }
