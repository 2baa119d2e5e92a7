"""Text that the dense model writes itself: what it is trained to say of it is what it says, and nothing that it read.

Data-free distillation on a model's own samples (LLM-QAT, Liu et al., 2305.17888). The text is sampled token by token,
document after document, and kept in the store, so that every run with this model and these options reads the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from idp import config, models
from idp.config import DENSE, MANY, SEEDS, option
from idp.errors import UserError
from idp.progress import progress
from idp.store import CHECKPOINT, Identity, write_json

if TYPE_CHECKING:
    import torch

STAGE, VERSION, DOCUMENTS = "corpus", 1, "documents.json"


@dataclass
class GeneratedCorpus(config.Corpus):
    tokens: int = option("source=generated: tokens to sample, all parts together", minimum=1, maximum=100 * MANY)
    length: int = option("source=generated: tokens of one sample, which may hold several documents", minimum=8)
    rows: int = option("source=generated: samples that are written at once", minimum=1, maximum=2**16)
    temperature: float = option("source=generated: of sampling; 1: the model's own", minimum=0.01, maximum=100.0)
    top_k: int = option("source=generated: only so many of the most likely tokens are drawn; 0: all", minimum=0)
    seed: int = option("source=generated: draws the tokens", minimum=0, maximum=SEEDS)

    needs: ClassVar[frozenset[str]] = frozenset({DENSE})

    def read(self, data_dir: str | None, store: Any) -> tuple[dict[str, list[str]], str]:
        raise UserError("corpus=generated is written by a run's own model: it is read within a run")

    def product(self, model: config.Model, dense: str) -> Identity:
        asked = {name: getattr(self, name) for name in ("tokens", "length", "rows", "temperature", "top_k", "seed")}
        return Identity(STAGE, dense, {"generated": asked, **models.numerics(model)}, VERSION, self.name)

    def check_model(self, empty: models.LoadedModel) -> None:
        window = empty.model.config.get_text_config().max_position_embeddings
        if self.length > window:
            raise UserError(f"corpus.length={self.length}: the model's window is {window}; use {window} or less")

    def make(self, model: config.Model, dense: Path, folder: Path) -> None:
        loaded, samples = models.open_model(dense, model), -(-self.tokens // self.length)
        found: list[str] = []
        with progress(samples, f"text by {model.name}", unit="samples") as bar:
            for number, start in enumerate(range(0, samples, self.rows)):
                rows = min(self.rows, samples - start)
                file = folder / CHECKPOINT / f"batch-{number:05}.json"
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, {"documents": self._batch(loaded, rows, number)})
                found += json.loads(file.read_text(encoding="utf-8"))["documents"]
                bar.update(rows)
        write_json(folder / DOCUMENTS, {"documents": found})

    def documents_of(self, folder: Path) -> list[str]:
        return json.loads((folder / DOCUMENTS).read_text(encoding="utf-8"))["documents"]

    def _batch(self, loaded: models.LoadedModel, rows: int, number: int) -> list[str]:
        """The documents of the samples of one batch; another batch draws other tokens."""
        import torch

        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        found = sample(loaded, rows, self.length, self.temperature, self.top_k, generator)
        ends = {token for token in (*begins_with(loaded), loaded.tokenizer.eos_token_id) if token is not None}
        documents = [loaded.tokenizer.decode(part).strip() for row in found.tolist() for part in _split(row, ends)]
        return [document for document in documents if document]


def begins_with(loaded: models.LoadedModel) -> list[int]:
    """What a document begins with: the model's BOS, else the token that its texts are set apart by, else nothing."""
    tokenizer = loaded.tokenizer
    if loaded.bos:
        return list(loaded.bos)
    other = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if other is None else [other]


def sample(
    loaded: models.LoadedModel, rows: int, length: int, temperature: float, top_k: int, generator: torch.Generator
) -> torch.Tensor:
    """Text that the model writes, [rows, length], drawn token by token from softmax(logits / temperature).

    Each row begins as `begins_with` says, or with any token where a document begins with nothing; behind an end of text
    the next document begins.

    Args:
        loaded: the model.
        rows: how many texts.
        length: tokens of each, the first included.
        temperature: see above.
        top_k: only so many of the most likely tokens are drawn; 0: all.
        generator: of the CPU, where tokens are drawn on every device.
    """
    import torch

    start, eos = begins_with(loaded), loaded.tokenizer.eos_token_id
    if start:
        text = torch.tensor(start[:length]).expand(rows, -1)
    else:
        text = torch.randint(len(loaded.tokenizer), (rows, 1), generator=generator)
    read, cache = text, None
    with torch.inference_mode():
        while text.shape[1] < length:
            given = loaded.model(input_ids=read.to(loaded.device), past_key_values=cache, use_cache=True)
            cache, logits = given.past_key_values, given.logits[:, -1].float().cpu() / temperature
            if 0 < top_k < logits.shape[1]:
                lowest = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < lowest, -torch.inf)
            read = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            if start and start != [eos]:
                read = torch.where(text[:, -1:] == eos, start[0], read)
            text = torch.cat([text, read], dim=1)
    return text


def _split(tokens: Sequence[int], ends: set[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token in ends:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]
