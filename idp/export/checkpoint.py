"""An export: written in a temporary folder, loaded again, compared with what was measured, then put in its place."""

from __future__ import annotations

import gc
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp import models
from idp.compress import freeze
from idp.compress.sizes import claims_of
from idp.compress.terminal import quiet
from idp.config import WEIGHTS
from idp.errors import UserError
from idp.export import adapters, licence, repair, vllm
from idp.export.card import write_card
from idp.export.options import ExportOptions
from idp.export.run import Run, find_run_to_export
from idp.models import weights
from idp.store import versions, write_json
from idp.store.modes import as_umask_says

if TYPE_CHECKING:
    import torch

    from idp.config import Model

PROVENANCE = "export.json"
# What a reloaded model is compared on: prose, code, numbers, one word.
TEXTS = (
    "The committee met on Tuesday to discuss the repair of the old bridge over the river.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "In 1969, 3.5% of 12,480 people answered; in 1970 it was 4.25%.",
    "Yes",
)


@dataclass
class Done:
    """A finished export: its folder, and the largest difference of a logit from the model that was measured.

    Of adapters alone there is no model to compare: `difference` is None, and `base` is the checkpoint that they are
    for. `refused` is what of the LoRA adapter vLLM would not load.
    """

    folder: Path
    difference: float | None = None
    base: str | None = None
    refused: list[str] = field(default_factory=list)


def export(options: ExportOptions) -> Done:
    """Exports the model of a run, and checks what was written.

    Raises:
        UserError: no such record or artifact, `out` is in use, the weights cannot be packed, or what was written is
            not the model that was measured.
    """
    out = Path(options.out).expanduser()
    if options.only not in (None, adapters.REPAIR):
        raise UserError(f"only={options.only}: use only={adapters.REPAIR}, or leave it out")
    _check_place(out, options.overwrite)
    run = find_run_to_export(options)
    repair.check(run)
    if options.only:
        adapters.check(run, options)
    part = out.absolute().with_name(f".{out.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        done = (_write_adapters if options.only else _write)(run, part, options)
        _publish(part, out.absolute())
    except OSError as error:
        if error.errno is None:  # a library's own subclass
            raise
        raise UserError(f"out={options.out}: {error.strerror} ({error.filename or part})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    done.folder = out
    return done


def _write_adapters(run: Run, folder: Path, options: ExportOptions) -> Done:
    """The adapters alone, and what is known of them."""
    about, refused = adapters.write(run, folder, options)
    write_json(folder / PROVENANCE, _provenance(run) | about)
    return Done(folder, base=about["base"], refused=refused)


def _write(run: Run, folder: Path, options: ExportOptions) -> Done:
    """Everything of an export, compared with the run's model after loading it again."""
    with quiet():
        loaded = models.open_model(models.model_folder(run.compressed), run.model)
        loaded = repair.put_within(run, loaded)
        expected = logits_of(loaded.model, loaded.tokenizer)
        packed = _save_model(run, loaded, folder)
        beside = repair.save(run, loaded, folder, options.called)
        del loaded  # one model in memory at a time
        gc.collect()
        difference = verify(folder, expected, run.model)
    if (run.compressed.path / "recipe.yaml").is_file():
        shutil.copy(run.compressed.path / "recipe.yaml", folder)
    base = licence.of(run.model, run.dense_folder)
    for name, text in base.texts.items():
        (folder / name).write_bytes(text)
    card = write_card(run, base, name=options.called, packed=packed, beside=beside, disk_bytes=_weight_bytes(folder))
    (folder / "README.md").write_text(card, encoding="utf-8")
    written = {"packed": packed, "repair": list(beside), "licence": base.name, "largest_logit_difference": difference}
    write_json(folder / PROVENANCE, _provenance(run) | written)
    refused = vllm.faults(folder / repair.LORA) if repair.LORA in beside else []
    return Done(folder, difference, refused=refused)


def _provenance(run: Run) -> dict[str, Any]:
    """What an export says of the run that it is of, whatever it holds."""
    about = run.record["idp"]
    provenance = {"run": about["name"], "stages": about["stages"], "compressor": run.compressor.label}
    provenance |= {"recovery": _made_by(run), "dtype": run.model.dtype, "bos": run.model.bos, "versions": versions()}
    return provenance


def _made_by(run: Run) -> str:
    """The kind of recovery that made the run's repair, which may be another run's that was transferred."""
    return run.repair.read("repair.json")["kind"] if run.repair is not None else "none"


def _save_model(run: Run, loaded: models.LoadedModel, folder: Path) -> bool:
    """The checkpoint and its tokenizer; whether it is packed."""
    from idp.compress import experts, pack

    loaded.tokenizer.save_pretrained(folder)
    like = None if WEIGHTS in run.compressor.needs else run.dense_folder  # whose generation settings are kept
    grids = freeze.stored_grids(run.compressed)
    if grids is None:
        weights.save(loaded.model, folder, like)
        return False
    grids, made = repair.put_in_grids(run, grids), claims_of(run.compressed.manifest["config"])
    assert made.bits is not None  # grids are of what was quantised
    places = experts.places(loaded.model)
    state = pack.packed_state(loaded.model, grids, bits=made.bits, symmetric=made.symmetric, places=places)
    weights.save(loaded.model, folder, like, state)
    arguments = {name: getattr(made, name) for name in ("bits", "group_size", "symmetric", "actorder")}
    pack.describe(folder, loaded.model, grids, **arguments)
    return True


def logits_of(model: torch.nn.Module, tokenizer: models.PreTrainedTokenizerBase) -> list[torch.Tensor]:
    """The model's logits on each of `TEXTS`, [tokens, vocabulary] float32 on the CPU."""
    import torch

    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    device = model.get_input_embeddings().weight.device
    found = []
    with torch.inference_mode():
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :window]
            found.append(model(ids.to(device)).logits[0].float().cpu())
    return found


def verify(folder: Path, expected: list[torch.Tensor], config: Model) -> float:
    """Loads a checkpoint as anybody would and compares its logits; the largest difference.

    Args:
        folder: the checkpoint.
        expected: what `logits_of` gave for the model that was measured.
        config: the model's config: device and whether its code may run.

    Raises:
        UserError: they differ by more than the dtype's rounding: four units in the last place of the largest logit.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"device_map": models.device_map(folder, config)} if config.device_map else {}
    trust = config.trust_remote_code
    model, about = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trust, output_loading_info=True, **place
    )
    weights.check_loaded(str(folder), about, model.config)
    if not config.device_map:
        model = model.to(models.device_of(config))
    found = logits_of(model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=trust))
    if [logits.shape for logits in found] != [logits.shape for logits in expected]:
        raise UserError(f"{folder}: the written tokenizer or head is not that of the model that was measured")
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    largest = max(float(logits.abs().max()) for logits in expected)
    allowed = 4 * torch.finfo(getattr(torch, config.dtype)).eps * largest
    if not difference <= allowed:  # also where it is no number
        raise UserError(
            f"{folder}: loaded again, its logits differ by {difference:.3g} from those of the model that was measured,"
            f" which is more than rounding ({allowed:.3g}); nothing was exported"
        )
    return difference


def _check_place(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out}: a file is there; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"out={out}: not empty; name another folder, or say overwrite=true to replace an earlier export"
        )
    if not (out / PROVENANCE).is_file():
        raise UserError(f"out={out}: holds no earlier export (no {PROVENANCE}), so it is not replaced; name another")


def _publish(part: Path, out: Path) -> None:
    """Puts a finished folder in its place; an earlier export is there until then."""
    as_umask_says(part)
    if not out.exists():
        os.rename(part, out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    os.rename(out, old)
    os.rename(part, out)
    shutil.rmtree(old, ignore_errors=True)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
