"""What all steps share: the device, the shapes, a folder, and random models, texts and requests made there."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.plan.shapes import SHAPES

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance

    from idp.config import Model
    from idp.models import LoadedModel
    from idp.store import Product, Store

WORDS = ("the", "old", "bridge", "over", "a", "quiet", "river", "repairs", "seven", "new", "stones", "while", "two")
WORDS += ("boats", "drift", "away", "and", "nobody", "builds")

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Size:
    """How much of everything a shape is given: the papers' for a real one, next to nothing for the tiny one."""

    batch: tuple[int, int]  # sequences and tokens of a training step
    prompt: int  # tokens of a trained prompt
    lengths: tuple[int, ...]  # tokens of the prompts of IDP's bank
    contexts: dict[int, int]  # tokens of scored contexts, and how many documents of each
    calibration: tuple[int, int]  # sequences and tokens
    rounds: int  # of latency
    group_size: int  # of quantisation


PAPERS = Size((2, 1024), 100, (25,) * 4, {100: 128, 500: 64, 2000: 16}, (128, 2048), 6, 128)
LITTLE = Size((2, 32), 5, (3, 4), {20: 3, 60: 2}, (4, 64), 2, 32)


@dataclass(frozen=True)
class Bench:
    """Where a step runs, on what, and what it may leave behind for the steps after it.

    Args:
        device: cuda or cpu.
        shape: a name of `idp.plan.shapes.SHAPES`, or tiny.
        folder: lives as long as the whole check.
    """

    device: str
    shape: str
    folder: Path

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def size(self) -> Size:
        return LITTLE if self.shape == "tiny" else PAPERS

    def arguments(self, **changed: Any) -> dict[str, Any]:
        """The shape as arguments of `AutoConfig.for_model`."""
        return {**(TINY if self.shape == "tiny" else SHAPES[self.shape]), **changed}

    @property
    def dtype(self) -> torch.dtype:
        """What the papers' models run in on a card; a CPU's dry run is in float32."""
        import torch

        return torch.bfloat16 if self.cuda else torch.float32

    def model(self, **changed: Any) -> LoadedModel:
        """A random model of the shape, drawn on the device."""
        from benchmarks.random_model import random_model

        return random_model(self.arguments(**changed), self.dtype, self.device)

    def saved_model(self, name: str, **changed: Any) -> Path:
        """The folder of a random model of the shape, written once; it stays for the steps that follow.

        Raises:
            OSError: the disk is too small.
        """
        from idp.memory import release

        place = self.folder / "models" / name
        if not (place / "config.json").exists():
            loaded = self.model(**changed)
            loaded.model.save_pretrained(place, max_shard_size="2GB")  # a shard at a time passes through main memory
            loaded.tokenizer.save_pretrained(place)
            del loaded
            release()
        return place

    def config(self, folder: Path) -> Model:
        """`model=local` of a folder."""
        from idp.config import Model

        dtype = str(self.dtype).removeprefix("torch.")
        return Model(folder.name, "local", str(folder), None, dtype, self.device, None, False, "auto", {})

    def product(self, folder: Path, store: Store, role: str = "dense") -> Product:
        """The load stage's product of a folder whose weights need no hash: they are this check's own."""
        from idp import models

        return models.load(
            self.config(folder), models.ModelSource("folder", folder, {"check": folder.name, "role": role}), store
        )

    def text_file(self) -> Path:
        """A corpus of few words, large enough for calibration and training."""
        place = self.folder / "text.txt"
        if not place.exists():
            draw = random.Random(0)
            samples, length = self.size.calibration
            # Calibration is a tenth of the documents, by their hashes; a document has about 400 characters.
            documents = max(400, samples * length // 400 * 12)
            place.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=80)) for _ in range(documents)))
        return place

    def corpus(self) -> list[str]:
        """The overrides that name it."""
        return ["corpus=local", f"corpus.path={self.text_file()}", "corpus.name=words"]

    def composed(self, *overrides: str) -> Any:
        """The checked config of a run."""
        import hydra
        from hydra.core.global_hydra import GlobalHydra

        from idp.checks import check
        from idp.config import conf_dir
        from idp.registry import register

        register()
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
            return check(hydra.compose("config", overrides=["tracker=none", *overrides]))

    def synchronise(self) -> None:
        """Waits for the card."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()


def requests(tokens: int, documents: int, choices: int = 4) -> list[Instance]:
    """Multiple choice: contexts of so many bytes, which are the byte tokenizer's tokens, and short choices."""
    return [
        request("loglikelihood", (context, f" {text(draw, 8)}"), number, choice)
        for number in range(documents)
        for draw in [random.Random(f"{tokens} {number}")]
        for context in [f"{text(draw, tokens - 8)}\nAnswer:"]
        for choice in range(choices)
    ]


def request(kind: str, arguments: tuple[Any, ...], document: int, place: int = 0) -> Instance:
    """One of lm-eval's."""
    from lm_eval.api.instance import Instance

    made = Instance(request_type=kind, doc={}, arguments=arguments, idx=place, metadata=("words", document, 1))
    made.task_name, made.doc_id = "words", document
    return made


def text(draw: random.Random, characters: int) -> str:
    """Words, exactly so many characters."""
    return " ".join(draw.choices(WORDS, k=characters // 2 + 1))[:characters].rstrip().ljust(characters, "s")


@functools.cache
def once(make: Any, *arguments: Any) -> Any:
    """`make(*arguments)`, kept for the parts of a step that follow in this process."""
    return make(*arguments)
