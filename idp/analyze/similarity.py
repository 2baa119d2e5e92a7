"""How near a run's models are to the dense one inside: attention and activations, layer by layer, on the same inputs.

Hoang et al. (2310.00867) tell two regimes apart by it: a repair that makes the model attend as the dense one does, and
one that gets the answers right while it attends elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.beginning import AFTER, BEFORE, WITHIN, Beginning, Encoder
from idp.errors import UserError, out_of_memory_is_explained
from idp.memory import release
from idp.store import CHECKPOINT, Product, Store, digest, write_json
from idp.store.scratch import ReaderStore

if TYPE_CHECKING:
    import torch

    from idp.finished import Finished
    from idp.prompting.repaired import RepairedModel

SCHEMA, VERSION = 1, 1
FILE = "similarity.json"
UNTRAINED = "untrained_prompt"
SHORTEST = 4  # tokens of an input: with fewer there is nothing to attend to


# What the page's first table shows of each model.
MEASURES = (
    *(
        ("attention", name)
        for name in ("cosine", "cosine_beyond_first", "jensen_shannon", "jensen_shannon_beyond_first")
    ),
    ("attention", "prompt_share"),
    ("activation", "cosine"),
    ("activation", "cka"),
)


@dataclass
class SimilarityInputs:
    """Token ids that every model is shown, and what is said of them."""

    tokens: list[list[int]]
    described: dict[str, Any]


@dataclass
class Look:
    """What a model did with one input.

    `attention[layer]` is [heads, tokens, tokens], the weights on the input's own tokens, which sum to less than 1
    behind a prompt or a BOS; `prompt_share[layer]` is what went to the prompt, the mean over heads and tokens;
    `hidden[layer]` is [tokens, hidden_size], what the layer hands on (the last layer's behind the final normalisation).
    """

    attention: list[torch.Tensor]
    prompt_share: list[float]
    hidden: list[torch.Tensor]


def similarity(run: Finished, folder: Path, documents: int, tokens: int) -> dict[str, Any]:
    """Compares the compressed and the repaired model of a run with the dense one, layer by layer.

    What was compared before, by this run or another one with the same models and inputs, is read from the store. A
    repair that puts a prompt before the input has a control beside it: as many random tokens of the vocabulary, not
    trained, before the compressed model. What they move as well is moved by any prompt.

    Args:
        run: the run.
        folder: of its record.
        documents: per task, evenly spaced among those that the run measured.
        tokens: of an input at most; the last ones are kept.

    Returns:
        JSON: `inputs`, `layers`, and of each of `models` its `attention` and `activation`, a value for each layer.

    Raises:
        UserError: the run has only a dense model, or what was stored of it is gone, or no model can choose its prompt.
    """
    variants = [variant for variant in run.variants if variant != "dense"]
    if not variants:
        raise UserError(f"{run.label}: the run compressed nothing and repaired nothing, so there is nothing to compare")
    if run.recovery.selector is not None and run.recovery.selector.uses_labels:
        raise UserError(
            f"{run.label}: its prompts were chosen with the answers in hand ({run.recovery.selector.kind}), which no"
            " model can do; name a run with another selector"
        )
    for variant in ("dense", *variants):
        run.check(variant)
    load = run.made("load")
    store = ReaderStore(load.path.parents[1])
    inputs = find_inputs(run, folder, documents, tokens, load)
    found = {}
    for name in [*variants, *([UNTRAINED] if _prompt_length(run) else [])]:
        found[name] = _compared(run, name, inputs, store).read(FILE)
    layers = len(next(iter(found.values()))["activation"]["cosine"])
    result = {
        "schema": SCHEMA,
        "run": run.name,
        "inputs": inputs.described,
        "layers": list(range(layers)),
        "models": found,
    }
    return result


def find_inputs(run: Finished, folder: Path, documents: int, tokens: int, load: Product) -> SimilarityInputs:
    """The contexts of documents that the run measured, evenly spaced over each task, as token ids.

    Args:
        run: the run.
        folder: of its record, beside which its documents are.
        documents: per task.
        tokens: of an input at most.
        load: the dense model, for its tokenizer and its window.
    """
    from pyarrow import parquet
    from transformers import AutoConfig, AutoTokenizer

    from idp.models import bos_of, model_folder
    from idp.records.record import SAMPLES
    from idp.tasks.tasks import document_indices

    place = model_folder(load)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=run.model.trust_remote_code)
    config = AutoConfig.from_pretrained(place, trust_remote_code=run.model.trust_remote_code).get_text_config()
    bos = bos_of(place, run.model)
    encoded = Encoder(tokenizer, [], bos)  # each model puts it where it has its place
    room = min(tokens, config.max_position_embeddings - (_prompt_length(run) or 0) - len(bos))
    file = folder / SAMPLES
    if not file.is_file():
        raise UserError(f"{file}: it is gone; the inputs are the documents in it. Run the record's command again")
    table = parquet.read_table(file, columns=["asked_for", "model", "context"]).to_pylist()
    contexts: dict[str, list[str]] = {}
    for row in table:
        if row["model"] == run.record["idp"]["row"]:
            contexts.setdefault(row["asked_for"], []).append(row["context"])
    ids, per_task = [], {}
    for task, texts in contexts.items():
        chosen = [encoded(texts[index])[-room:] for index in document_indices(len(texts), documents)]
        kept = [row for row in chosen if len(row) >= SHORTEST]
        ids += kept
        per_task[task] = len(kept)
    if not ids:
        raise UserError(f"{file}: no document has a context of {SHORTEST} tokens; measure other tasks")
    described = {
        "documents": len(ids),
        "tokens": sum(map(len, ids)),
        "longest": max(map(len, ids)),
        "tasks": per_task,
        "fingerprint": digest(ids),
    }
    return SimilarityInputs(ids, described)


def compare(dense: RepairedModel, other: RepairedModel, inputs: Sequence[Sequence[int]], label: str) -> dict[str, Any]:
    """Both models' likeness per layer, each a mean over inputs; the inputs stream through, one at a time.

    Args:
        dense: the model that is compared with.
        other: the compressed or repaired model.
        inputs: token ids.
        label: what is said beside the progress bar.
    """
    with eager_attention(dense), eager_attention(other):
        return _likeness(((look(dense, tokens), look(other, tokens)) for tokens in inputs), len(inputs), label)


def compare_apart(
    open_dense: Callable[[], RepairedModel],
    open_other: Callable[[], RepairedModel],
    inputs: Sequence[Sequence[int]],
    label: str,
    folder: Path,
) -> dict[str, Any]:
    """As `compare`, of models that are in memory one after the other.

    What the dense model does with an input is kept in a file until the other one is there: for each input
    4 * layers * tokens * (heads * tokens + hidden_size) bytes.

    Args:
        open_dense: opens the model that is compared with.
        open_other: opens the other one.
        inputs: token ids.
        label: what is said beside the progress bar.
        folder: an empty one for those files; it is the caller's to remove.
    """
    from idp.progress import progress

    dense = open_dense()
    with eager_attention(dense), progress(len(inputs), f"dense model, for {label}", "inputs") as bar:
        for number, tokens in enumerate(inputs):
            _keep(look(dense, tokens), folder / f"{number}.safetensors")
            bar.update(1)
    del dense
    release()
    other = open_other()
    with eager_attention(other):
        return _likeness(_beside(folder, other, inputs), len(inputs), label)


def _likeness(looks: Iterable[tuple[Look, Look]], count: int, label: str) -> dict[str, Any]:
    """The likeness per layer of what the dense model and another one did, each a mean over `count` inputs."""
    from idp.analyze.measures import LinearCKA, attention_likeness, hidden_cosine
    from idp.progress import progress

    sums: list[dict[str, float]] = []
    alignments: list[LinearCKA] = []
    with progress(count, f"similarity of {label}", "inputs") as bar:
        for mine, theirs in looks:
            if not sums:
                sums = [{} for _ in mine.hidden]
                alignments = [LinearCKA() for _ in mine.hidden]
            for layer, (total, alignment) in enumerate(zip(sums, alignments, strict=True)):
                whole = attention_likeness(mine.attention[layer], theirs.attention[layer])
                beyond = attention_likeness(mine.attention[layer], theirs.attention[layer], beyond=1)
                values = whole | {f"{name}_beyond_first": value for name, value in beyond.items()}
                values |= {"prompt_share": theirs.prompt_share[layer]}
                values |= {"hidden_cosine": hidden_cosine(mine.hidden[layer], theirs.hidden[layer])}
                for name, value in values.items():
                    total[name] = total.get(name, 0.0) + value / count
                alignment.add(mine.hidden[layer], theirs.hidden[layer])
            bar.update(1)
    measures = [name for name in sums[0] if name != "hidden_cosine"]
    return {
        "attention": {name: [total[name] for total in sums] for name in measures},
        "activation": {
            "cosine": [total["hidden_cosine"] for total in sums],
            "cka": [alignment.value() for alignment in alignments],
        },
    }


def _beside(folder: Path, other: RepairedModel, inputs: Sequence[Sequence[int]]) -> Iterator[tuple[Look, Look]]:
    """What was kept of the dense model, and beside it the other one's."""
    for number, tokens in enumerate(inputs):
        file = folder / f"{number}.safetensors"
        yield _kept(file), look(other, tokens)
        file.unlink()


def _keep(found: Look, file: Path) -> None:
    from safetensors.torch import save_file

    parts = {"attention": found.attention, "hidden": found.hidden}
    save_file(
        {f"{part}.{n}": each.contiguous() for part, layers in parts.items() for n, each in enumerate(layers)}, file
    )


def _kept(file: Path) -> Look:
    """What the dense model did with an input; its prompt's share is nobody's: it has none."""
    from safetensors.torch import load_file

    found = load_file(file)
    layers = range(len(found) // 2)
    return Look([found[f"attention.{n}"] for n in layers], [0.0] * len(layers), [found[f"hidden.{n}"] for n in layers])


def look(model: RepairedModel, tokens: Sequence[int]) -> Look:
    """One input through a model, behind the prompt that it is given. To be called within `eager_attention`.

    A BOS is read where the model has it, and is no token of the input nor of the prompt.

    Raises:
        UserError: the architecture does not show its attention.
    """
    import torch

    with torch.inference_mode():
        bos = model.beginning.ahead_of_text
        ids = torch.tensor([bos + list(tokens)], device=model.device)
        width, count = ids.shape[1], len(tokens)
        ahead = model.prefixes.ahead if model.prefixes is not None else 0
        visible = torch.ones(1, width, width, dtype=torch.bool, device=model.device).tril()
        positions = torch.arange(width, device=model.device)[None]
        inputs = model.attention_inputs(visible, positions, model.choose([bos + list(tokens)]))
        output = model.model.base_model(
            input_ids=ids, **inputs, output_attentions=True, output_hidden_states=True, return_dict=True
        )
    if not output.attentions or any(weights is None for weights in output.attentions):
        raise UserError(f"{type(model.model).__name__}: it does not show its attention, so it cannot be compared")
    weights = [rows[0].float().cpu() for rows in output.attentions]
    return Look(
        [rows[:, -count:, -count:] for rows in weights],
        [float(rows[:, -count:, ahead:-width].sum(-1).mean()) for rows in weights],
        [states[0, -count:].float().cpu() for states in output.hidden_states[1:]],
    )


@contextlib.contextmanager
def eager_attention(model: RepairedModel) -> Iterator[None]:
    """Within the block, attention is computed in the plain way, which alone keeps its weights."""
    config = model.model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def untrained(model: RepairedModel, length: int, beginning: Beginning | None = None) -> RepairedModel:
    """The model behind a prompt of `length` random rows of its embedding: always the same ones.

    Its BOS stands where `beginning`, that of the trained prompt, has it.
    """
    import torch

    from idp.models import LoadedModel
    from idp.prompting.bank import PromptBank
    from idp.prompting.repaired import RepairedModel

    table = model.model.get_input_embeddings().weight
    drawn = torch.randint(len(table), (length,), generator=torch.Generator().manual_seed(0))
    place = beginning.place if beginning is not None else AFTER
    place = BEFORE if place == WITHIN else place  # the drawn rows hold no BOS
    bank = PromptBank(
        [table[drawn.to(table.device)].detach().float().cpu()], [UNTRAINED], beginning=Beginning(model.bos, place)
    )
    return RepairedModel(LoadedModel(model.model, model.tokenizer, model.bos), bank)


def _compared(run: Finished, name: str, inputs: SimilarityInputs, store: Store) -> Product:
    """One model's likeness to the dense one, as a product."""
    from idp.models import bos_of, model_folder, numerics

    stages = run.record["idp"]["stages"]
    keys = {stage: made["key"] for stage in ("load", "compress", "recover", "select") if (made := stages.get(stage))}
    weights = keys["compress"] if "compressed" in run.variants else keys["load"]
    length = _prompt_length(run)
    made_of: dict[str, Any] = {"weights": weights, "untrained": length if name == UNTRAINED else None}
    if name == "repaired":
        selector = run.recovery.selector
        made_of |= {"recover": keys["recover"], "select": keys.get("select")}
        made_of["selector"] = selector and selector.identity

    bos = Beginning(bos_of(model_folder(run.made("load")), run.model)).identity()
    beginning = _beginning(run) if length is not None else None
    if bos and beginning is not None:
        made_of["place"] = beginning.place

    def make(folder: Path) -> None:
        def other() -> RepairedModel:
            if name != UNTRAINED or length is None:
                return run.open(name)
            return untrained(run.open("compressed" if "compressed" in run.variants else "dense"), length, beginning)

        kept = folder / CHECKPOINT
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        write_json(folder / FILE, compare_apart(lambda: run.open("dense"), other, inputs.tokens, name, kept))
        release()

    with out_of_memory_is_explained("similarity"):
        return store.get_or_make(
            "similarity",
            parent=keys["load"],
            config={"of": made_of, "inputs": inputs.described["fingerprint"], **numerics(run.model), **bos},
            version=VERSION,
            make=make,
            label=name,
        )


def _prompt_length(run: Finished) -> int | None:
    """Tokens of the longest prompt of the run's repair; None where none has any."""
    repair = run.product("recover")
    if repair is None or not (repair.path / "bank").is_dir():
        return None
    described = json.loads((repair.path / "bank" / "bank.json").read_text(encoding="utf-8"))
    return max(described["lengths"]) or None


def _beginning(run: Finished) -> Beginning | None:
    """The BOS that the run's prompts were made with, where that is known."""
    from idp.prompting.bank import beginning_of

    described = (run.made("recover").path / "bank" / "bank.json").read_text(encoding="utf-8")
    return beginning_of(json.loads(described))[0]


def page(result: dict[str, Any]) -> str:
    """The analysis as Markdown: a row for each layer, the measures of each model side by side."""
    from tabulate import tabulate

    columns = {
        f"{model} {part} {name}": found[part][name]
        for model, found in result["models"].items()
        for part, name in (
            ("attention", "cosine"),
            ("attention", "jensen_shannon"),
            ("activation", "cosine"),
            ("activation", "cka"),
        )
    }
    rows = [
        [layer, *("" if values[place] is None else f"{values[place]:.3f}" for values in columns.values())]
        for place, layer in enumerate(result["layers"])
    ]
    means = [
        [model.replace("_", " "), *(_mean(found[part][name]) for part, name in MEASURES)]
        for model, found in result["models"].items()
    ]
    headers = ["layer", *(name.replace("_", " ") for name in columns)]
    inputs = result["inputs"]
    return "\n".join(
        [
            f"# How near to the dense model: {result['run']}",
            "",
            f"{inputs['documents']} inputs of {', '.join(inputs['tasks'])} ({inputs['tokens']} tokens). Cosine is 1 and"
            " Jensen-Shannon divergence (bits) 0 where a model is as the dense one is.",
            "",
            "Means over layers. `beyond first`: without the first token as a key, the sink that a prompt takes over.",
            "",
            tabulate(
                means,
                headers=["model", *(f"{part} {name}".replace("_", " ") for part, name in MEASURES)],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True),
        ]
    )


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""
