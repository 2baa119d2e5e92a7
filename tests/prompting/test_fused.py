"""Attention in parts by a fused kernel, merged by log-sum-exps: against plain products, with a CPU's flash attention in
the place of a GPU's."""

import logging
from dataclasses import replace

import pytest
import torch

from idp.evaluate.batching import Request, make_row
from idp.evaluate.engine import LocalEngine
from idp.prompting.attention import fused, plain
from idp.prompting.attention.fused import Kernel, kernel_for
from idp.prompting.attention.group import TRUNK
from idp.prompting.attention.weighing import Weighing
from idp.prompting.packing import pack
from idp.prompting.prefix import Prefixes
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.base import Selector

CPU = torch.device("cpu")


def flash_of_a_cpu(query, key, value, sequences, causal, scale):
    """Sequence by sequence, what `_flash_attention_forward` gives on a GPU."""
    output, mass = torch.full_like(query, torch.nan), query.new_full((query.shape[1], len(query)), torch.nan).float()
    queries, keys = sequences.queries.tolist(), sequences.keys.tolist()
    for number in range(len(queries) - 1):
        mine = slice(queries[number], queries[number + 1])
        end = keys[number + 1] if sequences.used is None else keys[number] + int(sequences.used[number])
        assert end > keys[number] or mine.stop == mine.start, "queries without keys"
        assert mine.stop - mine.start <= sequences.longest_queries and end - keys[number] <= sequences.longest_keys
        q = query[mine].transpose(0, 1)[None]
        k, v = (
            t[keys[number] : end].repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(0, 1)[None]
            for t in (key, value)
        )
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        output[mine], mass[:, mine] = found[0][0].transpose(0, 1), found[1][0].float()
    return output, mass


FLASH = Kernel(flash_of_a_cpu, lambda query, value: query.shape[-1] == value.shape[-1], lambda device, dtype: True)


@pytest.fixture
def on_cpu(monkeypatch):
    """A CPU that has a fused kernel; what is passed takes its place."""

    def has(kernel=FLASH):
        monkeypatch.setitem(fused.KERNELS, "cpu", kernel)
        monkeypatch.setattr(fused, "_held", set())
        monkeypatch.setattr(fused, "_distrusted", set())

    has()
    return has


def packed_rows(model, shapes, choice=None, prefixes=None):
    """Rows of (tokens of the trunk, tokens of each branch)."""
    branches = [[TRUNK] * trunk + [i for i, n in enumerate(sizes, 1) for _ in range(n)] for trunk, sizes in shapes]
    positions = [[*range(trunk), *(trunk + step for n in sizes for step in range(n))] for trunk, sizes in shapes]
    return pack([[1] * len(row) for row in branches], positions, branches, choice, prefixes, model, CPU)


def prefixes_of(lengths, kv_heads, dim, dtype=torch.float32):
    keys, values = (torch.randn(len(lengths), kv_heads, max(lengths), dim, dtype=dtype) for _ in range(2))
    return Prefixes([keys], [values], torch.tensor(lengths))


def tensors(packed, heads, kv_heads, dim, dtype=torch.float32):
    total = packed.tokens.numel()
    return [torch.randn(total, count, dim, dtype=dtype) for count in (heads, kv_heads, kv_heads)]


ROWS = {
    "branches": [(130, [3, 5]), (120, []), (128, [1]), (12, [2, 2, 2]), (9, []), (290, [4, 1])],
    "one token": [(1, []), (1, [1]), (1, []), (2, [1, 1]), (1, [])],
    "no trunk": [(0, [3, 2]), (5, [1]), (0, [1]), (4, [])],
    "no branches": [(64, []), (63, []), (3, [])],
    "long": [(400, [7, 2]), (270, [])],
    "single": [(1, [])],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("lengths", [None, [6], [6, 50, 6]], ids=["no prefix", "one prefix", "prefixes"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_parts_equal_plain_products(open_tiny, rows, lengths, heads, kv_heads):
    torch.manual_seed(0)
    shapes = ROWS[rows]
    prefixes = prefixes_of(lengths, kv_heads, 8) if lengths else None
    choice = [(7 * row + 1) % len(lengths) for row in range(len(shapes))] if lengths else None
    packed = packed_rows(open_tiny("llama").model, shapes, choice, prefixes)
    query, key, value = tensors(packed, heads, kv_heads, 8)
    prefix = (prefixes.keys[0], prefixes.values[0]) if prefixes else None
    for weighing in (Weighing(0.3), Weighing(0.3, sinks=torch.randn(heads))):
        expected = plain.attend(packed, query, key, value, prefix, weighing)
        found = fused.in_parts(FLASH, packed, query, key, value, prefix, weighing)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_parts_are_no_farther_from_float32_than_plain_products(open_tiny):
    torch.manual_seed(0)
    prefixes = prefixes_of([9, 40], 2, 16, torch.bfloat16)
    packed = packed_rows(open_tiny("llama").model, ROWS["branches"], [0, 1, 0, 1, 1, 0], prefixes)
    inputs = [*tensors(packed, 4, 2, 16, torch.bfloat16), (prefixes.keys[0], prefixes.values[0])]
    exact = plain.attend(packed, *(t.float() for t in inputs[:3]), tuple(t.float() for t in inputs[3]), Weighing(0.3))
    apart = [
        (way(packed, *inputs, Weighing(0.3)).float() - exact).square().mean().sqrt()
        for way in (plain.attend, lambda *given: fused.in_parts(FLASH, *given))
    ]
    assert 0 < apart[1] < 1.1 * apart[0]


def test_a_kernel_is_taken_only_where_it_computes_what_the_layer_wants(open_tiny, on_cpu):
    model = open_tiny("llama").model
    prefixes = prefixes_of([6], 2, 8)
    packed = packed_rows(model, [(20, [3]), (10, [])], [0, 0], prefixes)
    query, _, value = tensors(packed, 4, 2, 8)
    prefix, plainly = (prefixes.keys[0], prefixes.values[0]), Weighing(0.3)

    def taken(packed=packed, query=query, value=value, prefix=prefix, weighing=plainly):
        return kernel_for(packed, query, value, prefix, weighing) is not None

    assert taken() and taken(weighing=replace(plainly, sinks=torch.zeros(4)))
    assert packed.divided.last == 28  # 6 of the prompt, 20 of the trunk, 3 of the branch
    assert taken(weighing=replace(plainly, window=29)) and not taken(weighing=replace(plainly, window=28))
    assert taken(weighing=replace(plainly, chunk=29)) and not taken(weighing=replace(plainly, chunk=28))
    assert not taken(weighing=replace(plainly, cap=50.0))
    assert not taken(value=torch.randn(33, 2, 4)), "values narrower than keys"
    assert not taken(prefix=tuple(tensor.double() for tensor in prefix))
    assert not taken(query=query.clone().requires_grad_())
    with torch.no_grad():
        assert taken(query=query.clone().requires_grad_())
    scattered = pack([[1] * 4], [range(4)], [[TRUNK, 1, TRUNK, 1]], None, None, model, CPU)
    assert not taken(packed=scattered, prefix=None), "a row that is no trunk with branches behind it"
    del fused.KERNELS["cpu"]
    assert not taken()


def test_what_the_flash_attention_of_torch_takes(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    fused._has_flash.cache_clear()
    capability = (8, 0)

    class Shaped:
        def __init__(self, dim, dtype=torch.bfloat16):
            self.shape, self.dtype, self.device = (10, 4, dim), dtype, cuda

    takes = fused.KERNELS["cuda"].takes
    try:
        assert takes(Shaped(64), Shaped(64)) and takes(Shaped(256, torch.float16), Shaped(256))
        assert not takes(Shaped(64, torch.float32), Shaped(64, torch.float32)), "no kernel of float32's accuracy"
        assert not takes(Shaped(192), Shaped(128))
        assert not takes(Shaped(60), Shaped(60)) and not takes(Shaped(264), Shaped(264))
        assert fused.in_use(cuda, torch.bfloat16) and not fused.in_use(CPU, torch.bfloat16)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            assert not takes(Shaped(64), Shaped(64)), "switched off"
        fused._has_flash.cache_clear()
        capability = (7, 5)
        assert not takes(Shaped(64), Shaped(64)) and not fused.in_use(cuda, torch.float16)
    finally:
        fused._has_flash.cache_clear()


class ByTurns(Selector):
    def scores(self, contexts):
        return torch.nn.functional.one_hot(torch.arange(len(contexts)) % 2, 2).float()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3_text"])
def test_models_score_the_same_through_the_kernel(open_tiny, make_bank, on_cpu, family):
    calls = []

    def counted(*given):
        calls.append(given[0].shape)
        return flash_of_a_cpu(*given)

    loaded = open_tiny(family)
    bank = make_bank(loaded, [5, 9])
    contexts = [[3, 40, 41, 42], [5, *range(60, 100)], [6]]
    rows = [make_row([Request(c, [7, 8]), Request(c, [9])], [2 * n, 2 * n + 1], c) for n, c in enumerate(contexts)]
    engines = [LocalEngine(RepairedModel(loaded)), LocalEngine(RepairedModel(loaded, bank, ByTurns()))]
    del fused.KERNELS["cpu"]
    expected = [engine.score_batch(rows, shared)["values"] for engine in engines for shared in ([], [1, 2, 3])]
    on_cpu(replace(FLASH, run=counted))
    found = [engine.score_batch(rows, shared)["values"] for engine in engines for shared in ([], [1, 2, 3])]
    assert calls
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=0)


def test_a_kernel_that_fails_or_errs_gives_way_to_plain_products(open_tiny, on_cpu, caplog):
    packed = packed_rows(open_tiny("llama").model, [(20, [3]), (10, [])])
    query, key, value = tensors(packed, 4, 2, 8)

    def raises(*_):
        raise RuntimeError("no kernel image is available\nfor this device")

    def forgets_the_scale(query, key, value, sequences, causal, _):
        return flash_of_a_cpu(query, key, value, sequences, causal, 1.0)

    def counts_in_powers_of_two(*given):
        output, mass = flash_of_a_cpu(*given)
        return output, mass / torch.tensor(2.0).log()

    def lacks_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for run, said in (
        (raises, "RuntimeError: no kernel image is available;"),
        (forgets_the_scale, "it differs from plain products by"),
        (counts_in_powers_of_two, "it differs from plain products by"),
    ):
        caplog.clear()
        kernel = replace(FLASH, run=run)
        on_cpu(kernel)
        with caplog.at_level(logging.WARNING):
            assert fused.attend(kernel, packed, query, key, value, None, Weighing(0.3)) is None
        assert caplog.text.count(said) == 1, caplog.text
        assert kernel_for(packed, query, value, None, Weighing(0.3)) is None, "not asked again"

    on_cpu(kernel := replace(FLASH, run=lacks_memory))
    with pytest.raises(torch.OutOfMemoryError):  # the batch is halved
        fused.attend(kernel, packed, query, key, value, None, Weighing(0.3))
    on_cpu()
    assert fused.attend(FLASH, packed, query, key, value, None, Weighing(0.3)) is not None
    with pytest.raises(
        RuntimeError, match="no kernel image"
    ):  # one that has held, and fails later, is no kernel's fault
        fused.attend(replace(FLASH, run=raises), packed, query, key, value, None, Weighing(0.3))


def test_numbers_that_are_not_finite_say_nothing_of_the_kernel(open_tiny, on_cpu):
    packed = packed_rows(open_tiny("llama").model, [(5, [])])
    query, key, value = tensors(packed, 4, 2, 8)
    value[2] = torch.inf
    found = fused.attend(FLASH, packed, query, key, value, None, Weighing(0.3))
    assert found is not None and not fused._held and not fused._distrusted


def test_torch_has_the_kernel_as_it_is_called(open_tiny):
    """On tensors without numbers: the operation takes these arguments, and gives outputs of these shapes."""
    meta = torch.device("meta")
    prefixes = prefixes_of([6, 50], 2, 8, torch.bfloat16)
    packed = packed_rows(open_tiny("llama").model, ROWS["branches"], [0, 1, 0, 1, 1, 0], prefixes)
    query, key, value = (tensor.to(meta) for tensor in tensors(packed, 4, 2, 8, torch.bfloat16))
    prefix = prefixes.keys[0].to(meta), prefixes.values[0].to(meta)
    weighing = Weighing(0.3, sinks=torch.empty(4, device=meta))
    found = fused.in_parts(fused.KERNELS["cuda"], packed, query, key, value, prefix, weighing)
    assert (found.shape, found.dtype) == (query.shape, query.dtype)
