"""Which model, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from idp.beginning import AUTO, MODES
from idp.config.options import option


@dataclass
class Model:
    """Where a model comes from and how it is read; a YAML says its name, source and path, and what else differs."""

    name: str = option("the name in tables and run folders")
    source: str = option(
        "where the weights come from: the hub, a local folder or GGUF file, the installed package, or chance",
        choices=("embedded", "hub", "local", "random"),
    )
    path: Optional[str] = option("source=hub: the repository's id; source=local: a folder or a GGUF file", default=None)
    revision: Optional[str] = option("hub revision: a branch, tag or commit", default=None)
    dtype: str = option(
        "auto: bfloat16 where the device multiplies in it, else float16 on a GPU and float32 on a CPU",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
    )
    device: str = option("auto, cpu, cuda or cuda:N", default="auto")
    device_map: Optional[str] = option(
        "auto: spread a model larger than one device; null: one device",
        choices=(None, "auto", "balanced", "balanced_low_0", "sequential"),
        default=None,
    )
    trust_remote_code: bool = option(
        "run code that comes with the model; off unless you trust its author", default=False
    )
    bos: str = option(
        "the token at the beginning of a text. auto: where the tokenizer puts one; always; never",
        choices=MODES,
        default=AUTO,
    )
    architecture: dict[str, Any] = option(
        "source=random: the transformers config of a model with random weights", default={}
    )
