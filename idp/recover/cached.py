"""What the dense model says of a training's text, kept in the store: computed once, and read by every repair of it.

At each place its most likely tokens are kept with their log-probabilities, tokens that are drawn from the others, and
the others' mass (`idp.evaluate.tails.cut`), all softened by the training's temperature. A product is of one part
of a corpus, of so many blocks from one draw of it, whichever model and repair learn from it, by whichever seed.

blocks-00000.safetensors ...   tokens [blocks, length] int32; of all places but each block's last: ids
                               [blocks, length - 1, top + drawn] (int16 without a sign where the vocabulary allows),
                               logs of the same shape, float16, and rest [blocks, length - 1] float32
teacher.json                   the vocabulary, and how many tokens are the most likely ones
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import config as schema
from idp import models
from idp.beginning import Beginning
from idp.evaluate.tails import DRAWN, cut
from idp.progress import progress
from idp.recover.checkpoint import write_tensors
from idp.store import CHECKPOINT, Identity, Product, Store, write_json

if TYPE_CHECKING:
    import torch

    from idp.corpora.corpus import Text

STAGE, VERSION, DESCRIPTION = "teacher", 1, "teacher.json"
PARTS = ("train", "heldout")
FILE_TOKENS = 2**16  # of a file: what a killed run does over again
PASS_TOKENS = 2**11  # of a forward pass
OPEN_FILES = 64
SMALL_VOCABULARY = 2**16  # whose tokens are written in two bytes


def token_bytes(top: int, vocabulary: int) -> int:
    """Bytes that a token of text takes: two for a log-probability, two or four for a token's number."""
    kept = vocabulary if vocabulary <= top else top + DRAWN
    return kept * (2 + (2 if vocabulary <= SMALL_VOCABULARY else 4)) + 4 + 4


def identities(
    training: schema.Training, model: schema.Model, dense: str, bos: Sequence[int], text: Text, share: int = 1
) -> dict[str, Identity]:
    """What the products that a training reads are, before there are any, by the part of its corpus.

    Args:
        training: which text, how much of it, and what is kept.
        model: the model's config: its dtype and device decide the numbers.
        dense: the key of the dense model, its tokenizer included.
        bos: the dense model's.
        text: the training corpus.
        share: how many prompts share out the training text among them.
    """
    kept: dict[str, Any] = {"length": training.sequence_length, "temperature": training.temperature}
    kept |= {"kept": [training.teacher_top, DRAWN], "corpus": text.fingerprint, **models.numerics(model)}
    kept |= Beginning(tuple(bos)).identity()
    return {
        part: Identity(STAGE, dense, {**kept, "part": part, "blocks": count}, VERSION, f"{part} text of {text.name}")
        for part, count in _counts(training, share).items()
    }


def blocks_of(
    training: schema.Training, text: Text, tokenizer: Any, seed: int, share: int = 1
) -> dict[str, torch.Tensor]:
    """A training's blocks, [blocks, tokens], by the part of its corpus: at most as many as it goes through.

    The held-out ones are the same for every seed, so that losses compare. Training text is that of `share` prompts,
    where they share it out among them; a long training passes over a small corpus several times.
    """
    from idp.corpora.corpus import blocks

    length, seeds = training.sequence_length, {"train": training.text_seed(seed), "heldout": 0}
    return {
        part: blocks(text, part, tokenizer, length, count, seeds[part], at_most=True)
        for part, count in _counts(training, share).items()
    }


def _counts(training: schema.Training, share: int) -> dict[str, int]:
    return {"train": training.steps * training.batch_size * share, "heldout": training.heldout_sequences}


def obtain(
    training: schema.Training, model: schema.Model, dense: Product, text: Text, store: Store, share: int = 1
) -> CachedTeacher:
    """The kept predictions for a training's text, those that are lacking made; no model is in memory afterwards."""
    folder = models.model_folder(dense)
    asked = identities(training, model, dense.key, models.bos_of(folder, model), text, share)

    @functools.cache  # one dense model in memory, and only where something is made
    def opened() -> Any:
        return models.open_model(folder, model)

    def make(part: str, place: Path) -> None:
        found = blocks_of(training, text, opened().tokenizer, 0, share)[part]
        write(opened(), found, training, place)

    return CachedTeacher(
        [store.obtain(identity, functools.partial(make, part)).path for part, identity in asked.items()]
    )


def write(loaded: models.LoadedModel, blocks: torch.Tensor, training: schema.Training, folder: Path) -> None:
    """Writes a product's files; those that a killed run has finished are kept.

    Args:
        loaded: the dense model.
        blocks: token ids, [blocks, tokens].
        training: temperature, and how many tokens are kept.
        folder: the product's.
    """
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    rows = max(1, FILE_TOKENS // blocks.shape[1])
    with progress(len(blocks), "the dense model's predictions", unit="blocks") as bar:
        for number, part in enumerate(blocks.split(rows)):
            file = folder / CHECKPOINT / f"blocks-{number:05}.safetensors"
            if not _is_whole(file, part):
                write_tensors(file, _predicted(loaded, part, training, bar))
            else:
                bar.update(len(part))
    for file in sorted((folder / CHECKPOINT).glob("blocks-*.safetensors")):
        file.rename(folder / file.name)
    top = min(training.teacher_top, vocabulary)
    write_json(folder / DESCRIPTION, {"vocabulary": vocabulary, "top": top, "blocks": len(blocks)})


def _is_whole(file: Path, blocks: torch.Tensor) -> bool:
    import torch
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as found:
            return torch.equal(found.get_tensor("tokens").long(), blocks)
    except (SafetensorError, OSError):
        return False


def _predicted(
    loaded: models.LoadedModel, blocks: torch.Tensor, training: schema.Training, bar: Any
) -> dict[str, torch.Tensor]:
    import torch

    found: dict[str, list[torch.Tensor]] = {"ids": [], "logs": [], "rest": []}
    for part in blocks.split(max(1, PASS_TOKENS // blocks.shape[1])):
        pieces = list(_cut(loaded, part, training))
        places = (len(part), part.shape[1] - 1)
        for name, each in zip(found, zip(*pieces, strict=True), strict=True):
            found[name].append(torch.cat(each).unflatten(0, places))
        bar.update(len(part))
    small = loaded.model.get_output_embeddings().weight.shape[0] <= SMALL_VOCABULARY
    return {
        "tokens": blocks.to(torch.int32),
        "ids": torch.cat(found["ids"]).to(torch.int16 if small else torch.int32),  # beyond int16 they wrap around
        "logs": torch.cat(found["logs"]).half(),
        "rest": torch.cat(found["rest"]),
    }


def _cut(
    loaded: models.LoadedModel, blocks: torch.Tensor, training: schema.Training
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The kept tokens of a pass, a few places at a time, on the CPU."""
    import numpy as np
    import torch
    from torch.nn.functional import log_softmax

    from idp.recover.live import Live, ways
    from idp.recover.nets.head_loss import pieces

    drawn = [np.random.default_rng(int.from_bytes(_digest(block))).random(blocks.shape[1] - 1) for block in blocks]
    offsets = torch.from_numpy(np.concatenate(drawn))
    with torch.no_grad():
        live = Live(loaded)
        logits = live.logits(blocks, loaded.device, *ways([loaded.model], loaded.device))
        for places in pieces(offsets, live.vocabulary):
            logs = log_softmax(logits(places) / training.temperature, dim=-1, dtype=torch.float32)
            kept = cut(logs, offsets[places].to(logs), training.teacher_top, DRAWN)
            yield tuple(each.cpu() for each in kept)


class CachedTeacher:
    """The dense model's kept predictions for the blocks of a training.

    Args:
        folders: of products, or of what `write` wrote.
    """

    def __init__(self, folders: Sequence[Path]):
        from safetensors import safe_open

        from idp.store import read_json

        described = [read_json(folder / DESCRIPTION) for folder in folders]
        self.vocabulary, self.top = (described[0][name] for name in ("vocabulary", "top"))
        self.places: dict[bytes, tuple[Path, int]] = {}
        for file in (file for folder in folders for file in sorted(folder.glob("blocks-*.safetensors"))):
            with safe_open(file, framework="pt") as found:
                tokens = found.get_tensor("tokens")
            self.places |= {_digest(block): (file, row) for row, block in enumerate(tokens)}
        self.opened = functools.lru_cache(OPEN_FILES)(lambda file: safe_open(file, framework="pt"))

    def __call__(self, tokens: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is kept of all places but each row's last.

        Args:
            tokens: whole blocks of the text, [rows, tokens].
            device: where to.

        Returns:
            tokens [places, top + drawn], their log-probabilities, float32, and the log of the others' mass, [places].

        Raises:
            ValueError: a row is no block of the text.
        """
        import torch

        found: dict[str, list[torch.Tensor]] = {"ids": [], "logs": [], "rest": []}
        for block in tokens.cpu():
            if (place := self.places.get(_digest(block))) is None:
                raise ValueError("recovery.training.teacher=cached: text that is not that of the training")
            file, row = place
            for name, rows in found.items():
                rows.append(self.opened(file).get_slice(name)[row])
        ids, logs, rest = (torch.cat(rows).to(device) for rows in found.values())
        ids = ids.long()
        return ids & (SMALL_VOCABULARY - 1) if self.vocabulary <= SMALL_VOCABULARY else ids, logs.float(), rest


def _digest(block: torch.Tensor) -> bytes:
    import torch

    return hashlib.blake2b(block.to(torch.int32).numpy().tobytes(), digest_size=16).digest()
