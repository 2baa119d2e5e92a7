"""The model card of an exported checkpoint: what it is, how it was made, and what was measured on it."""

from __future__ import annotations

import re
from typing import Any, cast

from tabulate import tabulate

import idp
from idp.compress.sizes import claims_of
from idp.export.licence import UNKNOWN, Licence
from idp.export.repair import LORA
from idp.export.run import Run
from idp.records.schema import Record
from idp.records.tables import run_table

SOURCES = {
    "embedded": "from its 4-bit Q4_1 GGUF file, whose weights are the dense reference here",
    "hub": "from the hub",
    "local": "from a local folder or file",
    "random": "random weights, for tests",
}


def write_card(run: Run, base: Licence, *, name: str, packed: bool, beside: dict[str, str], disk_bytes: int) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        run: the run that is exported.
        base: the base model's licence.
        name: what the checkpoint is called by those who load it: a path or a hub id.
        packed: whether the weights are stored as packed codes.
        beside: the parts of a repair beside it, as `repair.save` gives them: how each is loaded.
        disk_bytes: what the weight files take.
    """
    record, made = run.record, run.compressor.label
    sections = [
        _front_matter(base, made, packed),
        f"# {run.model.name}, {made}",
        _opening(run, base, made, packed),
        "## How it was compressed",
        _table(_settings(run, made), "setting"),
        "## What was measured",
        run_table(record),
        *([conclusion] if (conclusion := record["idp"].get("conclusion")) else []),
        _meaning(record),
        _table(_weights(record, disk_bytes), "weights"),
        "## How to load it",
        _loading(name, packed, beside),
        "## Licence",
        _licence(base),
        f"Made with idp {idp.__version__}, run `{record['idp']['name']}`; {_versions(record)}.",
    ]
    return "\n\n".join(sections) + "\n"


def write_repair_card(run: Run, *, base: str, beside: dict[str, str], rank: int | None) -> str:
    """The card of adapters alone, as Markdown with the hub's front matter.

    Args:
        run: the run whose repair they are.
        base: the checkpoint that they are for: a folder, file or hub id.
        beside: the parts of the repair, as `repair.save` gives them: how each is loaded.
        rank: what vLLM's `--max-lora-rank` must be; None where there is no LoRA adapter, or none that vLLM loads.
    """
    record = run.record
    matter = ["library_name: peft", "pipeline_tag: text-generation", f"base_model: {base}"]
    served = f" vLLM: `vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules repair=lora`."
    sections = [
        "\n".join(["---", *matter, "---"]),
        f"# A repair of {base}",
        f"What `recovery={record['idp']['config']['recovery']['kind']}` brings back of what compression took from"
        f" {run.model.name}. The checkpoint itself is not in this folder and is not changed.",
        "## What was measured",
        run_table(record),
        *([conclusion] if (conclusion := record["idp"].get("conclusion")) else []),
        _meaning(record),
        "## How to load it",
        *(sentence + (served if part == LORA and rank else "") for part, sentence in beside.items()),
        f"Made with idp {idp.__version__}, run `{record['idp']['name']}`; {_versions(record)}.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(base: Licence, made: str, packed: bool) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"base_model: {base.base}"]
    if re.fullmatch(r"[a-z0-9.\-]+", base.name):
        lines.append(f"license: {base.name}")
    return "\n".join(["---", *lines, f"tags: [{'compressed-tensors, ' if packed else ''}{made}]", "---"])


def _opening(run: Run, base: Licence, made: str, packed: bool) -> str:
    source = SOURCES[run.model.source]
    if run.model.source == "hub":
        source += f", revision {run.model.revision or 'main'}"
    opening = f"A language model made from **{base.base}** ({source}) with `{made}`."
    if packed:
        return f"{opening} Its layers are stored as packed codes: compressed-tensors, `pack-quantized`."
    if claims_of(run.compressed.manifest["config"]).sparsity:
        return (
            f"{opening} Its weights are stored dense: there is no sparse format on disk that is still read, so a zero"
            " takes as much room as any other number."
        )
    return f"{opening} Its weights are stored dense."


def _settings(run: Run, made: str) -> list[tuple[str, Any]]:
    config = run.record["idp"]["config"]
    rows: list[tuple[str, Any]] = [("compressor", made)]
    if (brought := cast("dict[str, Any]", run.record["idp"]["weights"]).get("external")) is not None:
        rows.append(("compressed by", f"others ({brought['format']}); decompressed here"))
    rows += run.compressor.settings()
    if (size := claims_of(run.compressed.manifest["config"]).group_size) is not None:
        rows.append(("weights that share a scale", "a row" if size == -1 else size))
    rows.append(("calibration", "none"))
    if run.compressed.manifest["config"].get("calibration"):
        data = run.compressor.calibration
        corpus = data.corpus or config["corpus"]["name"]
        rows[-1] = ("calibration", f"{data.samples} x {data.length} tokens of {corpus}, seed {data.seed}")
    return [*rows, ("dtype", run.model.dtype)]


def _meaning(record: Record) -> str:
    about = record["idp"]
    text = (
        f"Budget `{about['budget']}`. `stderr` is that of the last model's score; differences are paired over the same"
        " documents, with 95 % intervals."
    )
    if (selector := about.get("selector")) and selector.get("peeks"):
        text += (
            f" `repaired` is no method: its selector ({selector['kind']}) chose among the prompts with the"
            " answers in hand."
        )
    return text


def _weights(record: Record, disk_bytes: int) -> list[tuple[str, str]]:
    weights = record["idp"]["weights"]
    return [
        ("zeros", f"{weights['sparsity']:.2%} of the compressed layers' weights"),
        ("bits per weight", f"{weights['bits_per_weight']:.3f}, scales and zero points included"),
        ("on disk", f"{disk_bytes / 1e6:.2f} MB"),
        ("packed", f"{weights['packed_bytes'] / 1e6:.2f} MB, computed: the tensors as they are written here"),
        ("effective", f"{weights['effective_bytes'] / 1e6:.2f} MB, computed: zeros left out behind a mask"),
    ]


def _table(rows: list[tuple[str, Any]], subject: str) -> str:
    value = "measured" if subject == "weights" else "value"
    return tabulate(rows, headers=[subject, value], tablefmt="github", disable_numparse=True)


def _loading(name: str, packed: bool, beside: dict[str, str]) -> str:
    dense = ", quantization_config=CompressedTensorsConfig(dequantize=True)" if packed and LORA in beside else ""
    imports = "AutoModelForCausalLM, AutoTokenizer" + (", CompressedTensorsConfig" if dense else "")
    lines = [
        "```python",
        f"from transformers import {imports}",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}"{dense})',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
    ]
    for part, sentence in beside.items():
        lines += ["", sentence]
        if part == LORA and packed:
            lines[-1] += " PEFT wants plain layers, hence the decompression at load."
    return "\n".join(lines)


def _licence(base: Licence) -> str:
    if base.name == UNKNOWN:
        return f"The base model's licence is {UNKNOWN}."
    beside = f" Its text: {', '.join(base.texts)}." if base.texts else ""
    return f"That of the base model: {base.name}.{beside}"


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["idp"]["environment"]["versions"].items())
