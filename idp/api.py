"""The Python API: `idp.load` brings a run's model into memory with its repair on it; text goes in, answers come out.

    model = idp.load("outputs/runs/<run>")
    model.generate(["The capital of France is"])[0].text
    model.chat("What is the capital of France?").text
    model.score(["Which is larger? Answer:"], [[" the sun", " the moon"]])[0].best

It runs through the evaluation's own engine and scorer, so its scores are those of the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idp.errors import UserError
from idp.language_model import Answer, LanguageModel, Scores

if TYPE_CHECKING:
    import torch

    from idp.export.load import Exported
    from idp.finished import Finished
    from idp.records.schema import Record

__all__ = ["DTYPES", "VARIANTS", "Answer", "LanguageModel", "Scores", "check_device", "find", "load"]

VARIANTS = ("dense", "compressed", "repaired")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    record_or_folder: str | Path | dict[str, Any],
    *,
    variant: str = "repaired",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    store: str | Path | None = None,
) -> LanguageModel:
    """A run's model in memory, ready to generate and to score.

    Args:
        record_or_folder: a run's `record.json` or its folder, a folder that `python -m idp.export` wrote, or a record
            that has been read.
        variant: repaired, compressed or dense.
        device: where to; None: as in the run (an export: a GPU if there is one).
        dtype: float32, bfloat16 or float16; None: the one that was measured.
        store: the folder of stored products, if it was moved.

    Raises:
        UserError: there is no such run, it failed, it does not have the variant, or its products are gone or damaged.
    """
    if variant not in VARIANTS:
        raise UserError(f"variant={variant}: use {', '.join(VARIANTS)}")
    dtype = str(dtype).removeprefix("torch.") if dtype is not None else None
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: use {', '.join(DTYPES)}")
    check_device(device)
    found = find(record_or_folder, store)
    model = found.open(variant, str(device) if device is not None else None, dtype)
    return LanguageModel(model, found.batch_tokens, name=found.name, variant=variant)


def find(record_or_folder: str | Path | dict[str, Any], store: str | Path | None = None) -> Finished | Exported:
    """What `load` opens models of, found without opening any.

    Raises:
        UserError: it is neither a finished run nor an export.
    """
    from idp import finished
    from idp.export import load as exports
    from idp.export.checkpoint import PROVENANCE

    if isinstance(record_or_folder, dict):
        return finished.of_record(cast("Record", record_or_folder), store)
    if not isinstance(record_or_folder, (str, Path)):
        raise UserError(f"idp.load takes a path or a record, not {type(record_or_folder).__name__}")
    folder = Path(record_or_folder).expanduser()
    if (folder / PROVENANCE).is_file():
        return exports.find_export(folder)
    return finished.find_run(record_or_folder, store)


def check_device(device: Any) -> None:
    """Refuses a device that is not here.

    Raises:
        UserError: as said.
    """
    import torch

    if device is None or device == "auto":
        return
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device={device}: use auto, cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device}: there are {torch.cuda.device_count()} CUDA devices here; use auto or cpu")
