"""`idp bench attention`: what attention takes of a layer of the packed pass, in FLOP and in kernels.

Both are counted, on tensors without numbers: no card is needed, and none says how long they take. A row is a question
with its answers, behind a prompt.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from idp.evaluate.room import FEWEST, fitting
from idp.plan.shapes import SHAPES, config_of
from idp.prompting.attention import fused, plain
from idp.prompting.attention.group import TRUNK
from idp.prompting.attention.weighing import Weighing
from idp.prompting.packed import packed_attention
from idp.prompting.packing import Packed, pack
from idp.prompting.prefix import Prefixes

ANSWERS, ANSWER = 4, 5  # of a row, and tokens of each
CARDS = (24, 80)  # GiB
META = torch.device("meta")


class Launches(TorchDispatchMode):
    """Within the block, `count` is the number of operations that a GPU has a kernel for: views and buffers are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        makes = "empty" in func.__name__ or "_unsafe_view" in func.__name__
        views = any(given.alias_info is not None and not given.alias_info.is_write for given in func._schema.returns)
        on_device = any(
            isinstance(t, torch.Tensor) and t.device == META for t in torch.utils._pytree.tree_leaves(found)
        )
        self.count += on_device and not makes and not views
        return found


@dataclass
class Counted:
    """Of a layer and a batch: kernels of plain attention, of fused, and of all else; attention's share of the FLOP."""

    tokens: int
    plain: int
    fused: int
    rest: int
    share: float


def count(shape: str, tokens: int, batch_tokens: int, prompts: Sequence[int]) -> Counted:
    """Counts a layer's kernels and FLOP for a batch of rows.

    Args:
        shape: of `SHAPES`.
        tokens: of each row, its answers counted and its prompt not.
        batch_tokens: of all rows.
        prompts: tokens of each prompt; rows follow them by turns, or nothing where there are none.
    """
    with META:
        models = [_model(shape, layers) for layers in (1, 2)]
    config, trunks = models[0].config, _trunks(tokens, batch_tokens)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    prefixes = _prefixes(prompts, kv_heads, head_dim) if prompts else None
    packed = _packed(models[0], trunks, prefixes)
    lengths = itertools.cycle(prompts or [0])
    total = packed.tokens.numel()
    made = [torch.empty(total, n, head_dim, dtype=torch.bfloat16, device=META) for n in (heads, kv_heads, kv_heads)]
    inputs = packed, *made, prefixes and (prefixes.keys[0], prefixes.values[0]), Weighing(head_dim**-0.5)
    with torch.inference_mode():
        by_products = _launched(lambda: plain.attend(*inputs))
        by_kernel = _launched(lambda: fused.in_parts(fused.KERNELS["cuda"], *inputs))
        one, two = (_launched(lambda model=model: _pass(model, packed, prefixes)) for model in models)
    weights = sum(p.numel() for name, p in models[0].named_parameters() if ".layers." in name and p.dim() > 1)
    # Each query's product with each key that it sees, and each weight's with its value.
    attended = 4 * heads * head_dim * sum(map(_pairs, trunks, lengths))
    share = attended / (2 * weights * total + attended)
    return Counted(tokens, by_products, by_kernel, two - one - by_products, share)


def _trunks(tokens: int, batch_tokens: int) -> list[int]:
    """Tokens of the questions of a batch: no two neighbours are quite of one length."""
    rows = max(1, batch_tokens // tokens)
    return [tokens - ANSWERS * ANSWER - row % 8 for row in range(rows)]


def _pairs(trunk: int, prompt: int) -> int:
    """Pairs of a query and a key that it sees, in one row."""
    question = trunk * prompt + trunk * (trunk + 1) // 2
    return question + ANSWERS * (ANSWER * (prompt + trunk) + ANSWER * (ANSWER + 1) // 2)


def _model(shape: str, layers: int | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    changed = {"num_hidden_layers": layers} if layers is not None else {}
    return AutoModelForCausalLM.from_config(config_of(shape, **changed), dtype=torch.bfloat16).eval()


def _prefixes(lengths: Sequence[int], kv_heads: int, head_dim: int) -> Prefixes:
    """Prompts in two layers."""
    shape = len(lengths), kv_heads, max(lengths), head_dim
    keys, values = ([torch.empty(shape, dtype=torch.bfloat16, device=META)] * 2 for _ in range(2))
    return Prefixes(keys, values, torch.tensor(lengths))


def _packed(model: Any, trunks: list[int], prefixes: Prefixes | None) -> Packed:
    branches = [[TRUNK] * trunk + [n for n in range(1, ANSWERS + 1) for _ in range(ANSWER)] for trunk in trunks]
    positions = [[*range(trunk), *(ANSWERS * [*range(trunk, trunk + ANSWER)])] for trunk in trunks]
    choice = [row % len(prefixes.lengths) for row in range(len(trunks))] if prefixes is not None else None
    return pack([[1] * len(row) for row in branches], positions, branches, choice, prefixes, model, META)


def _pass(model: Any, packed: Packed, prefixes: Prefixes | None) -> None:
    with packed_attention(model, packed, prefixes) as inputs:
        model.base_model(**inputs)


def _launched(run: Callable[[], Any]) -> int:
    """The kernels of a run, once what is made for all layers is there."""
    run()
    with Launches() as launches:
        run()
    return launches.count


def main(arguments: Sequence[str] | None = None) -> None:
    """The table on standard output, and the tokens of a forward pass where the user does not say."""
    parser = argparse.ArgumentParser(prog="idp bench attention", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama_7b", help="the model's")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 500, 1000, 2000], help="of each row")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="of all rows of a batch")
    parser.add_argument(
        "--prompts", type=int, nargs="*", default=[100], help="tokens of each prompt, followed by turns"
    )
    options = parser.parse_args(arguments)
    if (shortest := ANSWERS * ANSWER + 8) > min(options.tokens):
        parser.error(f"--tokens {min(options.tokens)}: a question with its answers takes {shortest} or more")
    rows = [count(options.shape, tokens, options.batch_tokens, options.prompts) for tokens in options.tokens]
    cells = [(row.tokens, f"{row.share:.1%}", row.plain, row.fused, row.rest) for row in rows]
    names = ("tokens a row", "attention's FLOP", "kernels: plain", "fused", "all else")
    print(tabulate(cells, names, tablefmt="github", disable_numparse=True))
    with META:
        whole = _model(options.shape)
    weights = sum(parameter.numel() for parameter in whole.parameters())
    chosen = [f"{fitting(whole.config, weights, 2, gib * 2**30):,} on a card of {gib} GiB" for gib in CARDS]
    print(f"\nevaluation.batch_tokens=null: {', '.join(chosen)}; {FEWEST:,} on a CPU")


if __name__ == "__main__":
    main()
