"""Weights as they are read and written: every tensor that a model needs is in the file, and nothing else is.

transformers fills a tensor that a file lacks with random numbers, drops one that it does not know, and says so in a
log line. Here each is refused by name, wherever weights are opened; where the headers tell, before a weight is read.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import LACKING, UserError, lacks_memory
from idp.models.weight_files import HARMLESS, PACKED, PLAIN, WeightFiles, read_header
from idp.progress import no_stray_bars

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

GENERATION_CONFIG = "generation_config.json"
CAUSAL_MASKS = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.(masked_)?bias$")
PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
EXPERT = re.compile(r"^(.*\.experts\.)(\d+)\.(.*)$")


def check_loaded(
    where: str,
    about: Mapping[str, Any],
    config: PretrainedConfig | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Refuses weights that are not those of the model that they were read into.

    Args:
        where: what is said before the fault, such as the folder.
        about: what `from_pretrained(..., output_loading_info=True)` gives beside the model.
        config: the model's; it says whether layers beyond the last are predictors of further tokens.
        shapes: of the file's tensors, where they are known: a causal mask is told from a bias by its shape.

    Raises:
        UserError: names the first tensor that is missing, of another shape, or that the model does not have.
    """
    for key in sorted(map(str, about["missing_keys"])):
        raise UserError(f"{where}: it has no tensor {key}, which the model needs; take a complete copy")
    for key, there, here in sorted(about["mismatched_keys"]):
        raise UserError(f"{where}: {key} is {list(there)} in the file and {list(here)} in the model")
    for key in sorted(map(str, about["unexpected_keys"])):
        if not harmless(key, config, (shapes or {}).get(key)):
            raise UserError(f"{where}: it has a tensor {key}, for which {_model(config)} has no place")


def check_files(files: WeightFiles, model: PreTrainedModel, config: PretrainedConfig | None = None) -> None:
    """Holds the headers of a folder's weights to a model, as `check_loaded` will, without reading a weight.

    transformers itself is asked, with its renamings, conversions, tied tensors and those that it ignores: the tensors
    that it is given have a shape and no numbers.

    Args:
        files: the folder's weight files.
        model: the model, whose own weights are not looked at; they may be on the `meta` device.
        config: the config that lies beside the files, where it is not the model's.

    Raises:
        UserError: as `check_loaded`; or a weight is stored as something that is no plain number.
    """
    import torch

    stored, config = files.empty(), config if config is not None else model.config
    check_experts(files.where, stored)
    with silent() as messages:
        try:
            _, about = type(model).from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=dict(stored),
                dtype=torch.float32,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{files.where}: its tensors do not make this model: {first_fault(error, messages)}"
            ) from error
    check_loaded(files.where, about, config, {name: tuple(tensor.shape) for name, tensor in stored.items()})
    for name, tensor in model.state_dict().items():
        entry = files.entries.get(name)
        if entry is not None and tensor.is_floating_point() and entry.dtype not in PLAIN:
            raise UserError(f"{files.where}: {name} is stored as {entry.dtype}, which is no plain weight")
    if ties(config):
        _check_tie(files, model)


def check_experts(where: str, names: Mapping[str, Any]) -> None:
    """Refuses experts whose numbers have a gap: they are stacked in the order in which they come.

    Raises:
        UserError: names the first that is missing.
    """
    found: dict[str, dict[str, set[int]]] = {}
    for name in names:
        if match := EXPERT.match(name):
            found.setdefault(match[1], {}).setdefault(match[3], set()).add(int(match[2]))
    for before, parts in found.items():
        last = max(max(numbers) for numbers in parts.values())
        for after, numbers in parts.items():
            if missing := sorted(set(range(last + 1)) - numbers):
                raise UserError(f"{where}: it has no tensor {before}{missing[0]}.{after}; take a complete copy")


def check_tied(where: str, model: PreTrainedModel) -> None:
    """Refuses a model whose config ties its head to the embeddings and whose weights have another head.

    transformers then keeps both and only logs it; most other programs tie them.

    Raises:
        UserError: as said.
    """
    if not ties(model.config):
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embeddings is None or head.weight is embeddings.weight:
        return
    import torch

    if "meta" in (head.weight.device.type, embeddings.weight.device.type):  # they lie on disk
        return
    if not torch.equal(head.weight, embeddings.weight.to(head.weight.device)):
        raise UserError(f"{where}: {OTHER_HEAD}")


def ties(config: PretrainedConfig) -> bool:
    """Whether a model of this config ties its output head to its embeddings, as transformers itself asks it."""
    return bool(getattr(config, "tie_word_embeddings", False))


def check_adapter(folder: Path, adapted: PeftModel) -> None:
    """Refuses an adapter of which a tensor was not in its file: PEFT starts that one at zero or anew, with a warning.

    Raises:
        UserError: names the first that is missing, or that the model has no place for.
    """
    from peft import get_peft_model_state_dict

    found = read_header(folder / "adapter_model.safetensors")
    needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT copies an adapted head or embedding into the file beside what it adds, and puts it back from there.
    places = needed.keys() | get_peft_model_state_dict(adapted, save_embedding_layers=True).keys()
    for key in sorted(needed.keys() - found.keys()):
        raise UserError(f"{folder}: the adapter has no tensor {key}, which its config asks for; take a complete copy")
    for key in sorted(found.keys() - places):
        raise UserError(f"{folder}: the adapter has a tensor {key}, for which this model has no place")


OTHER_HEAD = (
    "config.json ties the output head to the embeddings (tie_word_embeddings), but the weights have another head; set"
    " tie_word_embeddings to false if it is meant"
)


def save(
    model: PreTrainedModel,
    folder: Path,
    like: Path | None = None,
    state: dict[str, torch.Tensor] | None = None,
    check: bool = True,
) -> None:
    """Writes a model's weights and config as safetensors, and reads them back: what is on disk is what is in memory.

    transformers refuses to save generation settings that it finds odd (a temperature without sampling), after all the
    work is done; here they are copied as they stand in `like`. And it drops one of two tensors that share memory, also
    where the config does not say that they are tied; here each is written.

    Args:
        model: what is written.
        folder: where to.
        like: the folder of the model that it was made of; None: the one that it was read from, if any.
        state: tensors to write instead of the model's own, such as packed ones.
        check: whether what is on disk is read again.

    Raises:
        UserError: what was written is not what is in memory.
    """
    given = _unshared(model, state)
    with _plain_settings(model) as generation, no_stray_bars():
        model.save_pretrained(folder, **({"state_dict": dict(given)} if given else {}))
    if like is None and model.name_or_path:
        like = Path(model.name_or_path)
    if like is not None and (like / GENERATION_CONFIG).is_file():
        shutil.copyfile(like / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    elif generation is not None:
        generation.to_json_file(folder / GENERATION_CONFIG, keys_to_pop=["compile_config"])
    if check:
        _check_written(model, folder, given or dict(model.state_dict()))


@contextlib.contextmanager
def silent() -> Iterator[list[str]]:
    """Keeps transformers' table of missing tensors off the terminal, and yields it: what it says becomes one line."""
    logger = logging.getLogger("transformers.modeling_utils")
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        messages.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))
        return False

    logger.addFilter(keep)
    try:
        with no_stray_bars():
            yield messages
    finally:
        logger.removeFilter(keep)


def first_fault(error: BaseException, messages: Iterable[str] = ()) -> str:
    """Why a model could not be read, in a line.

    Args:
        error: what was raised.
        messages: what `silent` kept: it names the tensor where several that are fused do not fit.

    Raises:
        the error itself, where memory ran out: that is explained elsewhere.
    """
    if lacks_memory(error):
        raise error
    messages = list(messages)
    if any(
        LACKING.search(message) for message in messages
    ):  # transformers notes it of a tensor, and raises another error
        raise MemoryError(str(error)) from error
    for message in messages:
        if match := re.search(r"^(\S+)\s*\| CONVERSION", message, flags=re.M):
            return f"the tensors that make {match[1]} are not all there or do not fit together"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def harmless(key: str, config: PretrainedConfig | None, shape: tuple[int, ...] | None) -> bool:
    """Whether a tensor that a model has no place for is one that it does without.

    Args:
        key: its name.
        config: the model's.
        shape: its shape, where it is known.
    """
    if HARMLESS.search(key) or (CAUSAL_MASKS.search(key) and (shape is None or len(shape) in (0, 4))):
        return True
    match, text = LAYER.search(key), config.get_text_config() if config is not None else None
    if not match or text is None:
        return False
    layers = getattr(text, "num_hidden_layers", 0)
    return layers <= int(match[2]) < layers + max(int(getattr(text, name, None) or 0) for name in PREDICTORS)


def _check_tie(files: WeightFiles, model: PreTrainedModel) -> None:
    """Compares a head that is stored beside the embeddings that the config ties it to; the one read of weights here."""
    import torch

    names = {module: name for name, module in model.named_modules()}
    head, embeddings = (names.get(module) for module in (model.get_output_embeddings(), model.get_input_embeddings()))
    pair = [f"{name}.weight" for name in (head, embeddings)]  # not among the entries of pickled weights
    if all(name in files.entries for name in pair) and not torch.equal(*map(files.tensor, pair)):
        raise UserError(f"{files.where}: {OTHER_HEAD}")


def _unshared(model: PreTrainedModel, given: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor] | None:
    """The tensors with a copy of each that shares another's memory without being tied to it by the config.

    Args:
        model: the model.
        given: the tensors; None: its own, and none are returned where there is no such tensor.
    """
    state, tied = dict(given or model.state_dict()), getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    copied = given is not None
    for name, tensor in state.items():
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        place = tensor.untyped_storage().data_ptr()
        if place in seen and name not in tied and name not in tied.values():
            state[name], copied = tensor.clone(), True
        seen.add(place)
    return state if copied else None


@contextlib.contextmanager
def _plain_settings(model: PreTrainedModel) -> Iterator[Any]:
    """The model with generation settings that can be saved, in its config too; its own ones are yielded."""
    from transformers import GenerationConfig

    generation = getattr(model, "generation_config", None) if model.can_generate() else None
    config = model.config
    model.config = copy.deepcopy(config)
    for name in model.config._get_generation_parameters():
        delattr(model.config, name)
    if generation is not None:
        model.generation_config = GenerationConfig()
    try:
        yield generation
    finally:
        model.config = config
        if generation is not None:
            model.generation_config = generation


def _check_written(model: PreTrainedModel, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Holds what is on disk to the model, and compares every tensor there with the one in memory.

    Tensors that transformers stores under other names than it holds them (fused experts) are held to the model by
    their names and shapes.
    """
    import torch

    files = WeightFiles(folder, str(folder))
    if not any(PACKED.search(name) for name in state):
        check_files(files, model, type(model.config).from_pretrained(folder))
    for name, tensor in state.items():
        if tensor.device.type == "meta" or name not in files.entries:
            continue
        if not torch.equal(_bytes(files.tensor(name)), _bytes(tensor.detach().cpu())):
            raise UserError(f"{folder}: {name} on disk is not what was written; the disk or memory may be at fault")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its memory: two numbers that are no numbers are equal here."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _model(config: PretrainedConfig | None) -> str:
    return f"a {config.get_text_config().model_type} model" if config is not None else "the model"
