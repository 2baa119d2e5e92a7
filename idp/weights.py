"""Weights as they are read and written: every tensor that a model needs is in the file, and nothing else is.

transformers fills a tensor that a file lacks with random numbers, drops one that it does not know, and says so in a
log line. Here each is refused by name, wherever weights are opened.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION_CONFIG = "generation_config.json"


def check_loaded(where: str, about: dict[str, Any]) -> None:
    """Refuses weights that are not those of the model that they were read into.

    Args:
        where: what is said before the fault, such as the folder.
        about: what `from_pretrained(..., output_loading_info=True)` gives beside the model.

    Raises:
        UserError: names the first tensor that is missing, of another shape, or that the model does not have.
    """
    for key in sorted(map(str, about["missing_keys"])):
        raise UserError(f"{where}: it has no tensor {key}, which the model needs; take a complete copy")
    for key, there, here in sorted(about["mismatched_keys"]):
        raise UserError(f"{where}: {key} is {list(there)} in the file and {list(here)} in the model")
    for key in sorted(map(str, about["unexpected_keys"])):
        raise UserError(f"{where}: it has a tensor {key}, for which the model has no place")


def save(model: PreTrainedModel, folder: Path, like: Path | None = None) -> None:
    """Writes a model's weights and config as safetensors, and its generation settings as they stood in `like`.

    transformers refuses to save generation settings that it finds odd (a temperature without sampling), after all the
    work is done; here they are copied as they are.

    Args:
        model: what is written.
        folder: where to.
        like: the folder of the model that it was made of; None: the model's own settings.
    """
    model.save_pretrained(folder)
    if like is not None and (like / GENERATION_CONFIG).is_file():
        shutil.copy(like / GENERATION_CONFIG, folder / GENERATION_CONFIG)
