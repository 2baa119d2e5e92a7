"""What must work on a pretended accelerator; `python -m tests.devices.checks RESULTS NAMES...` runs it.

torch is changed for the whole process by `pretend.install`, so that all checks run in one process of their own. Each is
held to the same computation on the CPU, whose numbers the accelerator's are.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
MODELS = {
    "untied": {**ARCHITECTURE, "tie_word_embeddings": False},
    "tied": {**ARCHITECTURE, "tie_word_embeddings": True},
    "opt": OPT,  # tied, learned positions
    "gemma2": {  # soft-capped logits, sliding windows, tied
        **ARCHITECTURE,
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 24,
        "query_pre_attn_scalar": 16,
    },
}
CLOSE = 1e-4
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[..., None]) -> Callable[..., None]:
    CHECKS[function.__name__] = function
    return function


def for_each(*cases: str) -> Callable:
    """A check for each case, which it is given."""

    def named(function: Callable[[str], None]) -> Callable[[str], None]:
        for case in cases:
            CHECKS[f"{function.__name__}-{case}"] = lambda case=case: function(case)
        return function

    return named


# ---------------------------------------------------------------------------------------------- the instrument itself


@check
def what_a_gpu_refuses_is_refused() -> None:
    import torch

    here, there, host = torch.ones(3, device="gpu:0"), torch.ones(3, device="gpu:1"), torch.ones(3)
    for wrong in (
        lambda: here + there,
        lambda: here + host,
        lambda: here[there.long()],
        lambda: host[here.long()],
        lambda: torch.randn(3, device="gpu:0", generator=torch.Generator()),
    ):
        with raises(RuntimeError):
            wrong()
    with raises(TypeError):
        here.numpy()
    assert (here + torch.tensor(2.0)).tolist() == [3.0] * 3  # one number may come from anywhere
    assert here[torch.tensor([0])].device == torch.device("gpu:0")  # and so may an index


@check
def gradients_cross_devices() -> None:
    import torch

    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], device="gpu:0"))
    (weight.to("gpu:1") * torch.tensor([3.0, 4.0], device="gpu:1")).sum().to("gpu:0").backward()
    assert weight.grad.device == torch.device("gpu:0") and weight.grad.tolist() == [3.0, 4.0]


@check
def waits_and_copies_are_counted() -> None:
    import torch

    from tests.devices import pretend

    pretend.reset()
    numbers = torch.ones(3).to("gpu:0")
    assert not pretend.syncs and sum(pretend.copies.values()) == 1
    numbers.sum().item(), numbers.tolist(), numbers.cpu(), bool(numbers.any()), numbers[numbers > 0]
    assert sum(pretend.syncs.values()) == 5, pretend.syncs


# ------------------------------------------------------------------------------------------ a model over two devices


@for_each("auto", "balanced", "balanced_low_0", "sequential")
def a_model_is_placed(way: str) -> None:
    import torch

    low = way == "balanced_low_0"  # as much as possible beside the first
    with free_memory(700_000, 1_400_000 if low else 700_000):  # of 724,000 bytes
        model = opened("untied", way).model
    devices = {str(parameter.device) for parameter in model.parameters()}
    assert devices == {"gpu:0", "gpu:1"} or (low and devices == {"gpu:1"}), devices
    tokens = torch.tensor([texts()[0]])
    with torch.no_grad():
        assert close(model(tokens.to("gpu:1" if low else "gpu:0")).logits, opened("untied").model(tokens).logits)


@check
def a_model_s_device_is_the_current_one() -> None:
    import torch

    opened("untied", "gpu:1")
    assert torch.accelerator.current_device_index() == 1 and torch.zeros(1, device="gpu").get_device() == 1


@for_each(*MODELS)
def scores(name: str) -> None:
    from idp.prompting.repaired import RepairedModel

    spread, plain = (RepairedModel(opened(name, way)) for way in ("auto", None))
    assert close_values(scored(spread), scored(plain))


@for_each("attention-0", "attention-3", "attention_calibrated", "likelihood", "nearest", "learned", "random")
def selects(name: str) -> None:
    for model in ("untied", "tied"):
        spread, plain = (with_bank(model, way, name) for way in ("auto", None))
        assert spread.choose(texts()).tolist() == plain.choose(texts()).tolist()
        assert close(spread.selector.scores(texts()), plain.selector.scores(texts()))
        assert close_values(scored(spread), scored(plain))


@for_each(*MODELS)
def generates(name: str) -> None:
    from idp.evaluate.engine import LocalEngine

    made = [
        LocalEngine(with_bank(name, way, "attention-0")).generate_batch([text[:9] for text in texts()], [], 6)
        for way in ("auto", None)
    ]
    assert made[0] == made[1]


@for_each("prompt", "prefix", "lora", "distilled_prompt", "distilled_lora")
def trains(what: str) -> None:
    for name in ("untied", "tied", "gemma2"):
        loss, gradients = trained(name, "auto", what)
        expected, plain = trained(name, None, what)
        assert abs(loss - expected) < CLOSE and gradients.keys() == plain.keys()
        for each, gradient in gradients.items():
            assert close(gradient, plain[each], CLOSE * float(plain[each].norm())), each


@for_each("untied", "tied")
def banks_read_their_text(name: str) -> None:
    import torch

    from idp.recover.banks import cluster, specialists

    blocks = torch.tensor(texts())
    spread, plain = opened(name, "auto"), opened(name)
    assert close(cluster.text_embeddings(spread, blocks, 2), cluster.text_embeddings(plain, blocks, 2))
    prompt = prompts()[0]
    found = specialists.row_losses(spread, prompt.to(spread.device), blocks.to(spread.device))
    assert close(found, specialists.row_losses(plain, prompt, blocks))


# -------------------------------------------------------------------------------------------------------- compression


@for_each("awq4", "gptq4", "sparsegpt50_gptq4", "wanda50", "rtn4", "magnitude50")
def compresses(compressor: str) -> None:
    """Over two devices, on the second of two, and on the CPU beside them: the weights are the CPU's, and so is what is
    said of each layer."""
    from tests.devices import pretend

    pretend.reset()
    expected, said = compressed(compressor, "cpu", None)
    assert not pretend.copies, pretend.copies  # no weight has been to the GPU that is there
    for device, way in (("gpu", "auto"), ("gpu:1", None)):
        found, about = compressed(compressor, device, way)
        for name, tensor in found.items():
            assert close(tensor, expected[name], 1e-5), (device, name)
        for name, row in about["layers"].items():
            error, plain = (each["reconstruction_error"] for each in (row, said["layers"][name]))
            assert abs(error - plain) < CLOSE, (device, name, error, plain)


# -------------------------------------------------------------------------------------------- a run from end to end


@check
def a_run_over_two_devices() -> None:
    from idp.pipeline import run

    options = (
        "compressor=rtn4",
        "recovery=lora_idp",
        "latency=default",
        "latency.rounds=2",
        "latency.new_tokens=2",
        "evaluation.perplexity=[corpus]",
    )
    found = {}
    for device, way in (("gpu", "auto"), ("cpu", "null")):
        with tempfile.TemporaryDirectory() as output:
            config = composed(*options, f"model.device={device}", f"model.device_map={way}", f"output={output}")
            found[device] = run(config)[0]["idp"]
    spread, plain = found["gpu"], found["cpu"]
    assert spread["latency"].keys() == plain["latency"].keys()
    for row in ("dense", "compressed"):
        mine, theirs = (each["baselines"][row]["perplexity"]["bridges"] for each in (spread, plain))
        assert abs(mine - theirs) < 1e-3 * theirs, (row, mine, theirs)


@check
def similarity_over_two_devices() -> None:
    from idp.analyze.similarity import compare
    from idp.prompting.repaired import RepairedModel

    found = [
        compare(RepairedModel(opened("untied", way)), with_bank("untied", way, "attention-0"), texts()[:2], "bank")
        for way in ("auto", None)
    ]
    mine, theirs = (dict(numbers_in(each)) for each in found)
    assert mine.keys() == theirs.keys() and all(abs(mine[key] - theirs[key]) < CLOSE for key in mine)


# ----------------------------------------------------------------------------------------------------------- refusals


@check
def what_does_not_fit_is_refused() -> None:
    from idp.models import device_map, open_model

    for way in ("auto", "balanced_low_0", "sequential"):
        with free_memory(400_000, 300_000), refused("need 0.000724 GB in float32", "0.00036 GB on gpu:0", "smaller"):
            device_map(folder("untied"), config("gpu", way))
        with free_memory(400_000, 300_000), refused(f"model.device_map={way}"):
            open_model(folder("untied"), config("gpu", way))


@check
def what_was_offloaded_is_refused() -> None:
    from transformers import AutoModelForCausalLM

    from idp.models.placement import refuse_offloaded

    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    parts += [f"model.layers.{number}" for number in range(4)]
    for left in ("cpu", "disk"):
        places = {**dict.fromkeys(parts, "gpu:0"), "model.layers.3": left}
        with tempfile.TemporaryDirectory() as offload:
            model = AutoModelForCausalLM.from_pretrained(folder("untied"), device_map=places, offload_folder=offload)
            with refused("model.layers.3 is left in main memory or on disk"):
                refuse_offloaded(model, "auto")


@check
def a_device_and_a_map_contradict() -> None:
    from idp.models import device_of

    for device in ("gpu:1", "cpu"):
        with refused(f"model.device={device}: model.device_map=auto", "CUDA_VISIBLE_DEVICES"):
            device_of(config(device, "auto"))


# ---------------------------------------------------------------------------------------------------- synchronisations


@for_each("no-bank", "one-prompt", "attention-0", "likelihood")
def few_waits_for_a_scored_batch(what: str) -> None:
    """The host waits as often for a batch of many rows, in many groups, as for one of few."""
    from tests.devices import pretend

    bank = {"no-bank": lambda: None, "one-prompt": lambda: with_bank("untied", "gpu:0", None)}
    from idp.prompting.repaired import RepairedModel

    repaired = bank.get(what, lambda: with_bank("untied", "gpu:0", what))() or RepairedModel(opened("untied", "gpu:0"))
    scored(repaired)  # what is found out once
    counts = []
    for rows in (2, 12):
        pretend.reset()
        scored(repaired, rows)
        counts.append(sum(pretend.syncs.values()))
    print(what, counts, pretend.syncs.most_common(12), file=sys.stderr)
    assert counts[0] == counts[1] <= WAITS[what], (counts, pretend.syncs)


WAITS = {"no-bank": 2, "one-prompt": 5, "attention-0": 8, "likelihood": 8}


# ------------------------------------------------------------------------------------------------------------- helpers


@contextlib.contextmanager
def raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    from idp.errors import UserError

    try:
        yield
    except UserError as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"not refused: {words}")


@contextlib.contextmanager
def free_memory(*of_each: int) -> Iterator[None]:
    import torch

    before = torch.gpu.free
    torch.gpu.free = list(of_each)
    try:
        yield
    finally:
        torch.gpu.free = before


def close(one: Any, other: Any, bound: float = CLOSE) -> bool:
    return one.shape == other.shape and float((one.cpu().float() - other.cpu().float()).abs().max()) <= bound


def close_values(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["choice"] == other["choice"] and all(
        abs(a - b) <= CLOSE for a, b in zip(one["values"], other["values"], strict=True)
    )


def numbers_in(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_in(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from numbers_in(inner, f"{path}.{number}")
    elif isinstance(value, float):
        yield path, value


def config(device: str = "cpu", way: str | None = None) -> Any:
    from idp.config import Model

    return Model("tiny", "random", None, None, "float32", device, way, False, "auto", {})


@cache
def root() -> Path:
    return Path(tempfile.mkdtemp(prefix="idp-devices-"))


@cache
def folder(name: str) -> Path:
    from idp.models import _make_random

    _make_random(MODELS[name], root() / name)
    return root() / name


def opened(name: str, way: str | None = None) -> Any:
    """A model: on the CPU, on a device such as `gpu:1`, or spread in a way such as `auto`."""
    from idp.models import open_model

    if way is None or way.startswith("gpu"):
        return open_model(folder(name), config(way or "cpu"))
    return open_model(folder(name), config("gpu", way))


@cache
def texts() -> list[list[int]]:
    import torch

    return torch.randint(1, 257, (12, 64), generator=torch.Generator().manual_seed(0)).tolist()


@cache
def prompts() -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 64, generator=generator) * 0.3 for length in (5, 5, 9)]


def with_bank(model: str, way: str | None, selector: str | None) -> Any:
    """A model with a bank of three prompts, or of one where there is no selector, which has been fitted."""
    import torch

    from idp.prompting.bank import PromptBank
    from idp.prompting.repaired import RepairedModel
    from idp.prompting.selectors.attention import Attention

    if selector is None:
        return RepairedModel(opened(model, way), PromptBank(prompts()[:1], ["a"]))
    kind, _, layer = selector.partition("-")
    if kind == "attention":
        made = Attention(layer=int(layer))
    else:
        made = composed("recovery=idp", f"recovery/selector={kind}").recovery.selector.build()
    repaired = RepairedModel(opened(model, way), PromptBank(prompts(), list("abc")), made)
    losses = torch.randn(len(texts()), 3, generator=torch.Generator().manual_seed(2))
    if hasattr(made, "fit") and kind in ("attention_calibrated", "nearest", "learned"):
        made.fit(texts(), losses)
    return repaired


def scored(repaired: Any, rows: int = 6) -> dict[str, Any]:
    from idp.evaluate.batching import Request, make_row
    from idp.evaluate.engine import LocalEngine

    batch = [
        make_row(
            [Request(text[:20], text[20:24]), Request(text[:20], text[24 : 30 + number % 4])],
            [2 * number, 2 * number + 1],
            text[:20],
        )
        for number, text in enumerate(texts()[:rows])
    ]
    return LocalEngine(repaired).score_batch(batch, [])


def trained(name: str, way: str | None, what: str) -> tuple[float, dict[str, Any]]:
    """The loss of one batch, and its gradients by parameter."""
    import torch

    from idp.config import Training
    from idp.recover import lora
    from idp.recover.objective import Objective
    from idp.recover.tuning import loss_with

    loaded, distilled = opened(name, way), what.startswith("distilled")
    teacher = opened(name, way) if distilled else None
    if teacher is not None:
        for parameter in teacher.model.parameters():
            parameter.data.mul_(1.1)
    fields = dict.fromkeys(Training.__dataclass_fields__)
    options = Training(
        **{**fields, "objective": "distill" if distilled else "lm", "temperature": 2.0, "lm_weight": 0.3}
    )
    batch, kind = torch.tensor(texts()[:4]), what.removeprefix("distilled_")
    if kind == "lora":
        torch.manual_seed(0)
        method = composed("recovery=lora", "recovery.dropout=0").recovery
        objective = Objective(options, loaded, teacher)
        adapted = lora.adapt(loaded, method)
        parameters = {key: value for key, value in adapted.named_parameters() if value.requires_grad}
        for key, value in parameters.items():
            torch.manual_seed(sum(map(ord, key)))
            value.data.copy_(torch.randn(value.shape))
        loss = objective(
            loaded.model, batch.to(loaded.device), {"input_ids": batch.to(loaded.device), "use_cache": False}
        )
    else:
        from idp.prompting.shapes import prefix_width
        from idp.recover.nets.reparameterization import Itself

        width = prefix_width(loaded.model.config) if kind == "prefix" else 64
        maker = Itself(torch.randn(5, width, generator=torch.Generator().manual_seed(3))).to(loaded.device)
        parameters = dict(maker.named_parameters())
        loss = loss_with(loaded, maker, kind, options, teacher)(batch)
    loss.backward()
    return float(loss.detach()), {key: value.grad for key, value in parameters.items()}


def compressed(compressor: str, device: str, way: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a compressed model, and what is said of them."""
    from idp import models
    from idp.compress import stage
    from idp.corpora.corpus import named_corpus
    from idp.store import Store

    whole = composed(f"compressor={compressor}", "model=tiny_llama")
    model = replace(whole.model, device=device, device_map=way)
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        dense = models.load(model, models.find_model(model), store)
        text = named_corpus("corpus", whole.corpus, None)
        group = stage.check(whole.compressor, models.open_empty(models.model_folder(dense), model), text)
        product = stage.compress(whole.compressor, group, model, dense, text, store)
        opened = models.open_model(models.model_folder(product), config())
        weights = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
        return weights, product.read("weights.json")


def composed(*overrides: str) -> Any:
    from idp.checks import check as checked
    from idp.registry import register

    register()
    text = root() / "bridges.txt"
    if not text.exists():
        words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
        draw = random.Random(0)
        lines = [" ".join(draw.choices(words, k=60)) for _ in range(300)]
        text.write_text("\n\n".join(lines))
    small = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "corpus=local")
    small += (f"corpus.path={text}", "corpus.name=bridges")
    return checked(composer().compose([*small, *overrides]))


@cache
def composer() -> Any:
    from idp.composed import Composer

    return Composer()


def main(results: str, names: list[str]) -> None:
    from tests.devices import pretend

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # weights are read in this thread: a dispatch mode knows no other
    device = pretend.install(2)
    found: dict[str, str | None] = {}
    with pretend.Pretending():
        for name in names:
            device.set_device(0)
            try:
                CHECKS[name]()
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
            Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(CHECKS))
