"""IDP's selector: the prompt that the input's tokens attend to most (Hoang et al., 2310.00867).

    s_i = mean over heads h, input tokens x, prompt tokens p of A_h[x, p in prompt i],   i* = argmax_i s_i

The paper leaves open at which layer, before or after the softmax, over which heads. Here each is an option; the
default is layer 0, after the softmax, all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from idp import config
from idp.config import option
from idp.errors import UserError
from idp.prompting.attention.group import TRUNK
from idp.prompting.attention.plain import own_mass
from idp.prompting.attention.weighing import Weighing
from idp.prompting.frequencies import switch_of
from idp.prompting.packed import queries_and_keys
from idp.prompting.packing import pack
from idp.prompting.selectors.base import Selector
from idp.prompting.selectors.threshold import threshold

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from idp.prompting.prefix import Prefixes

FITTED_AT_ONCE = 32  # contexts


@dataclass
class AttentionSelector(config.Selector):
    layer: int = option("decoder layer whose attention is read", minimum=0)
    softmax: str = option("attention before (pre) or after (post) the softmax", choices=("pre", "post"))
    reduce: str = option("over a prompt's tokens: mean or sum", choices=("mean", "sum"))
    heads: Optional[list[int]] = option("attention heads to read; null: all")
    calibrated: bool = option("standardise each prompt's score by its mean and deviation over held-out text")

    @property
    def fits(self) -> bool:
        return self.calibrated

    @property
    def published(self) -> bool:
        return self.temperature is None

    @property
    def reads_layers(self) -> int:
        return self.layer + 1

    @property
    def scores_empty(self) -> bool:
        return self.calibrated

    def check_members(self, prompts: bool, experts: bool) -> None:
        if not prompts:
            raise UserError(
                f"recovery/selector={self.kind}: it reads the attention to prompts, and this bank's members have no"
                " tokens; use recovery/selector=nearest, or learned, likelihood or arrow"
            )

    def check_model(self, model: Any, prompts: int | None = None) -> None:
        if self.layer >= model.num_hidden_layers:
            raise UserError(
                f"recovery.selector.layer={self.layer}: the model has layers 0 to {model.num_hidden_layers - 1}"
            )
        for head in self.heads or ():
            if not 0 <= head < model.num_attention_heads:
                raise UserError(
                    f"recovery.selector.heads: {head} is not one of the model's heads, 0 to"
                    f" {model.num_attention_heads - 1}"
                )

    def build(self) -> Attention:
        return Attention(self.layer, self.softmax, self.reduce, self.heads, self.calibrated)


class Attention(Selector):
    """Attention to each prompt, as one pass over all prompts side by side would show it.

    The prompts do not see one another. The query that looks at prompt i stands where it would if prompt i were alone
    (at n_i + t for prompts of n_i tokens), so every prompt is judged at the distance that it was trained for. All
    prompts and the input's own earlier tokens share one softmax, and the BOS before a prompt, where that is its place:
    it is no token of the prompt, and what it draws is nobody's.

    Args:
        layer: the decoder layer that is read. Layer 0 costs one embedding, one projection and one product of queries
            with keys; deeper ones run the layers below, once per prompt.
        softmax: `post` reads attention weights, `pre` the scaled products before the softmax.
        reduce: over a prompt's tokens, `mean` or `sum`; a post-softmax sum favours long prompts.
        heads: the heads that are read; None reads all.
        calibrated: each prompt's score less its mean over held-out contexts, in units of its deviation there: a prompt
            that every input attends to more, because it is short or loud, gains nothing by it. Needs `fit`.

    The empty prompt has no token that could be attended to. Its calibrated score is a threshold, the same for every
    input: an input whose highest score among the other prompts is not above it follows none. `fit` finds the threshold
    with which the chosen prompts lose least on held-out text. Without calibration it cannot be scored.
    """

    def __init__(
        self,
        layer: int = 0,
        softmax: str = "post",
        reduce: str = "mean",
        heads: list[int] | None = None,
        calibrated: bool = False,
    ):
        self.layer, self.softmax, self.reduce, self.heads = layer, softmax, reduce, heads
        self.calibrated = calibrated

    def bind(self, model: PreTrainedModel, prefixes: Prefixes) -> None:
        lengths = prefixes.own_lengths.tolist()
        self.prompts = [prompt for prompt, length in enumerate(lengths) if length]
        self.empty = next((prompt for prompt, length in enumerate(lengths) if not length), None)
        super().bind(model, prefixes if self.empty is None else prefixes.only(self.prompts))
        if self.empty is not None and not self.calibrated:
            raise UserError(
                "recovery.selector=attention: the empty prompt of the bank has no token that could be attended to; use"
                " recovery/selector=attention_calibrated"
            )

    def scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        raw = self.raw_scores(contexts)
        if not self.calibrated:
            return raw
        scores = (raw - self.mean.to(raw.device)) / self.deviation.to(raw.device)
        if self.empty is None or self.threshold is None:
            return scores
        before, after = scores[:, : self.empty], scores[:, self.empty :]
        return torch.cat([before, self.threshold.to(scores).expand(len(scores), 1), after], dim=1)

    def fit(self, contexts: Sequence[Sequence[int]], losses: torch.Tensor) -> None:
        import torch

        if not self.calibrated:
            return
        parts = range(0, len(contexts), FITTED_AT_ONCE)
        raw = torch.cat([self.raw_scores(contexts[i : i + FITTED_AT_ONCE]).double().cpu() for i in parts])
        deviation = raw.std(0)
        # A prompt whose score never moves is never standardised away from 0.
        state = {"mean": raw.mean(0), "deviation": torch.where(deviation > 0, deviation, 1.0)}
        if self.empty is not None:
            scores = (raw - state["mean"]) / state["deviation"]
            state["threshold"] = threshold(scores, losses[:, self.prompts], losses[:, self.empty])
        self.restore(state)

    def state(self) -> dict[str, torch.Tensor]:
        if not self.calibrated:
            return {}
        found = {"mean": self.mean, "deviation": self.deviation}
        return found if self.threshold is None else found | {"threshold": self.threshold}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.mean, self.deviation = state["mean"].float(), state["deviation"].float()
        found = state.get("threshold")
        self.threshold = found.float() if found is not None else None

    @property
    def added(self) -> int:
        return 2 * len(self.mean) + (self.threshold is not None) if self.calibrated else 0

    def raw_scores(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The scores before any calibration, [contexts, prompts].

        Where rotary frequencies change at a length, a context has those that it has behind the longest prompt, and so
        have all prompts that it looks at.
        """
        import torch

        switch = switch_of(self.model.config)
        if switch is None:
            return self._scores(contexts, self.prefixes, None)
        room = switch - int(self.prefixes.lengths.max())
        found = torch.empty(len(contexts), len(self.prefixes.lengths), device=self.prefixes.lengths.device)
        for long, prefixes in ((False, self.prefixes), (True, self.prefixes.long)):
            rows = [row for row, context in enumerate(contexts) if (len(context) > room) is long]
            if rows:
                assert prefixes is not None  # those for long texts are there where frequencies change
                found[rows] = self._scores([contexts[row] for row in rows], prefixes, long)
        return found

    def _scores(self, contexts: Sequence[Sequence[int]], prefixes: Prefixes, long: bool | None) -> torch.Tensor:
        import torch

        post, lengths, ahead = self.softmax == "post", prefixes.lengths.tolist(), prefixes.ahead
        device = prefixes.lengths.device
        seen: dict[int, torch.Tensor] = {}  # per prompt what is read of it, [tokens, heads]
        input_mass = torch.empty(0)
        # At layer 0 a query depends on its position alone, not on what the prompt says: one pass per prompt length.
        together = (
            [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]
            if self.layer == 0
            else [[i] for i in sorted(range(len(lengths)), key=lengths.__getitem__)]
        )
        for prompts in together:
            n = lengths[prompts[0]]
            packed = pack(
                contexts,
                [range(n, n + len(context)) if self.layer == 0 else range(len(context)) for context in contexts],
                [[TRUNK] * len(context) for context in contexts],
                None if self.layer == 0 else [prompts[0]] * len(contexts),
                None if self.layer == 0 else prefixes,
                self.model,
                device,
                long,
            )
            query, key, weighing = queries_and_keys(self.model, packed, prefixes, self.layer)
            products = _products(query, prefixes.keys[self.layer][prompts, :, :n], weighing)
            seen_of = _seen(packed.positions[0], n, weighing)
            read = self._read(products[..., ahead:], None if seen_of is None else seen_of[:, None, None, ahead:])
            seen |= {prompt: read[..., number].to(device) for number, prompt in enumerate(prompts)}
            if post and prompts is together[-1]:  # the input's own attention, with the input behind the longest prompt
                input_mass = torch.cat([own_mass(group, query, key, weighing) for group in packed.groups]).to(device)
                if ahead:  # the BOS before all prompts is none of theirs
                    bos = products[..., 0, :ahead]
                    bos = bos if seen_of is None else bos.masked_fill(~seen_of[:, None, :ahead], -torch.inf)
                    input_mass = input_mass.logaddexp(bos.logsumexp(-1).to(device))
        values = torch.stack([seen[prompt] for prompt in range(len(lengths))], dim=-1)  # [tokens, heads, prompts]
        if post:
            values = (values - torch.cat([values, input_mass[..., None]], dim=-1).logsumexp(-1, keepdim=True)).exp()
            if self.reduce == "mean":
                values = values / (prefixes.lengths - ahead)
        if self.heads is not None:
            values = values[:, self.heads]
        order = sorted(range(len(contexts)), key=packed.starts.__getitem__)
        sizes = torch.tensor([len(contexts[row]) for row in order], device=device)
        found = torch.empty(len(contexts), len(lengths), device=device)
        found[order] = torch.segment_reduce(values.mean(1), "mean", lengths=sizes, axis=0)
        return found

    def _read(self, products: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """What is read of each prompt, [tokens, heads, prompts], over those of its tokens that a query sees.

        Args:
            products: [tokens, heads, prompts, prompt tokens].
            seen: what each query sees of them, broadcast; None: all.
        """
        import torch

        if self.softmax == "post":
            return (products if seen is None else products.masked_fill(~seen, -torch.inf)).logsumexp(-1)
        if seen is None:
            return getattr(products, self.reduce)(-1)
        total = (products * seen).sum(-1)
        return total / seen.sum(-1).clamp(min=1) if self.reduce == "mean" else total


def _seen(positions: torch.Tensor, n: int, weighing: Weighing) -> torch.Tensor | None:
    """Which of a prompt's n tokens a query sees, [queries, n]; None where every one sees all.

    Args:
        positions: [queries], where they stand, the prompt in front counted.
        n: tokens of the prompt.
        weighing: the layer's: its window or its chunks.
    """
    import torch

    seen, places = None, torch.arange(n, device=positions.device)
    if weighing.window is not None:
        seen = places > positions[:, None] - weighing.window
    if weighing.chunk is not None:
        same = places // weighing.chunk == positions[:, None] // weighing.chunk
        seen = same if seen is None else seen & same
    return seen


def _products(query: torch.Tensor, keys: torch.Tensor, weighing: Weighing) -> torch.Tensor:
    """Scaled products of queries with the keys of prompts, [tokens, heads, prompts, prompt tokens], float32.

    They are taken in the model's own precision, as its attention takes them, and bounded where it bounds them. Query
    heads share the key heads in order.

    Args:
        query: [tokens, heads, head_dim].
        keys: [prompts, kv_heads, prompt tokens, head_dim].
        weighing: the layer's.
    """
    import torch

    tokens, heads, dim = query.shape
    prompts, kv_heads, n, _ = keys.shape
    scaling = weighing.scaling
    if query.dtype == torch.float16:  # as the packed pass does, and for the same reason
        query, scaling = query * scaling, 1.0
    grouped = query.view(tokens, kv_heads, -1, dim).transpose(0, 1).reshape(kv_heads, -1, dim)
    found = grouped @ keys.transpose(0, 1).reshape(kv_heads, prompts * n, dim).transpose(1, 2)
    found = found.view(kv_heads, tokens, -1, prompts, n).transpose(0, 1).reshape(tokens, heads, prompts, n)
    found = found.float().mul_(scaling)
    return found if weighing.cap is None else weighing.cap * torch.tanh(found / weighing.cap)
