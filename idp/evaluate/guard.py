"""Whether a model is computed here as it computes itself, tried out before any work on a small one of its class.

The packed pass, prefixes and decoding believe that tokens meet in attention alone, that masks are what this project
makes them, and that positions are what they are told. A model for which that is not so would give numbers that look
like any others. So a small model of the same class and layer pattern, with random weights, runs a few rows each way,
and is held to its own plain forward pass over each row alone.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idp.errors import UserError
from idp.evaluate.trial import GENERATION, PACKED, PARTS, differences
from idp.hub import first_line
from idp.store import Identity, Product, Store, digest, hash_file, write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from idp import config as schema
    from idp.models import ModelSource

log = logging.getLogger(__name__)

VERSION = 1
ANSWER = "forward.json"
TOLERANCE = 1e-4  # of the logits' spread, in float32
NAMES = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures")  # decide nothing
OWN = ("guard.py", "trial.py", "shrink.py", "engine.py", "batching.py", "generation.py")
STATEFUL = ("linear", "mamba", "conv", "recurrent", "rwkv", "lstm", "ssm", "delta", "hybrid", "moe_mamba")


def check(config: PretrainedConfig, store: Store, parts: Sequence[str] = PARTS, remote_code: bool = False) -> None:
    """Refuses a model that this project would compute otherwise than the model itself does.

    The answer is kept in the store, by the model's class, the config's pattern (sizes aside), and the versions.

    Args:
        config: the model's.
        store: where the answer is kept.
        parts: those of `PARTS` that a run needs.
        remote_code: whether a model's own code may be run.

    Raises:
        UserError: one line that names the class, what differs, by how much, and what to do.
    """
    identity = identity_of(config, remote_code)
    if identity is None:
        return

    def make(folder: Path) -> None:
        if identity.key not in _answered:
            _answered[identity.key] = answers(config, remote_code)
        write_json(folder / ANSWER, _answered[identity.key])

    _refuse(store.obtain(identity, make), parts)


def check_known(
    config: PretrainedConfig, store: Store, parts: Sequence[str] = PARTS, remote_code: bool = False
) -> None:
    """As `check`, as far as it is known already; nothing is computed.

    Raises:
        UserError: as `check`.
    """
    identity = identity_of(config, remote_code)
    product = store.finished(identity) if identity is not None else None
    if product is not None:
        _refuse(product, parts)


def identity_of(config: PretrainedConfig, remote_code: bool = False) -> Identity | None:
    """What the answer is as a product; None for what is no causal language model: loading it says so.

    Raises:
        UserError: the class and the config say by themselves that the model cannot be right.
    """
    if class_of(config) is None and not remote_code:
        return None
    known = refused_by_class(config)
    if known is not None:
        raise UserError(known)
    return Identity("guard", None, _identity(config), VERSION, _name(config))


def _refuse(product: Product, parts: Sequence[str]) -> None:
    found = product.read(ANSWER)
    for part in parts:
        if found[part] is not None:
            raise UserError(found[part])


_answered: dict[str, dict[str, Any]] = {}  # in this process, for whichever store


def config_of(source: ModelSource, model: schema.Model, folder: Path | None = None) -> PretrainedConfig | None:
    """A model's config, without its weights; None for a GGUF file, whose config is in its product once it is read.

    Args:
        source: what `models.find` found.
        model: the model's options.
        folder: of the loaded model, where there is one already.

    Raises:
        UserError: it has none that transformers can read.
    """
    from transformers import AutoConfig

    options = {"trust_remote_code": model.trust_remote_code}
    try:
        if folder is not None:
            return AutoConfig.from_pretrained(folder, **options)
        if source.kind == "random":
            values = dict(source.identity["architecture"])
            return AutoConfig.for_model(values.pop("model_type"), **values)
        if source.kind == "hub" and source.place is None:
            return AutoConfig.from_pretrained(model.path, revision=source.identity["commit"], **options)
        return AutoConfig.from_pretrained(source.place, **options) if source.kind != "gguf" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = "model.architecture" if source.kind == "random" else str(folder or source.place or model.path)
        raise UserError(f"{where}: not a causal language model: {first_line(error)}") from error


def refused_by_class(config: PretrainedConfig) -> str | None:
    """Why a model cannot be right, where its class and config say so by themselves; else None."""
    model_class = class_of(config)
    if model_class is None:
        return None
    name = model_class.__name__
    kinds = layer_kinds(config)
    stateful = sorted(kind for kind in kinds if any(word in kind for word in STATEFUL))
    if getattr(model_class, "_is_stateful", False) or stateful:
        what = f"its layers of type {', '.join(stateful)}" if stateful else "its recurrent layers"
        return (
            f"{name}: {what} pass state from token to token outside attention, which rows that share a pass, and"
            " prompts kept as keys and values, would lose; use a model whose layers mix tokens by attention alone"
        )
    if not getattr(model_class, "_supports_attention_backend", True):
        return (
            f"{name}: its attention does not go through transformers' AttentionInterface, so it cannot be replaced to"
            " score packed rows; use a model whose attention does"
        )
    return None


def class_of(config: PretrainedConfig) -> type | None:
    """The causal language model's class that transformers makes of a config; None where only remote code knows it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        return None


def layer_kinds(config: PretrainedConfig) -> set[str]:
    """What kinds of layers a config names: `full_attention`, `conv`, `mamba` and the like."""
    config = config.get_text_config()
    kinds: set[str] = set()
    for name in ("layer_types", "layers_block_type", "block_types"):
        stated = getattr(config, name, None)
        if isinstance(stated, (list, tuple)):
            kinds |= {str(kind) for kind in stated}
    return kinds


def answers(config: PretrainedConfig, remote_code: bool = False) -> dict[str, Any]:
    """What differs in each of `PARTS`, as the line to raise; None where nothing does.

    A class of which no small model can be built is refused in every part: nobody knows then.
    """
    from idp.evaluate.shrink import random_model

    started, name = time.perf_counter(), _name(config)
    try:
        model = random_model(config, remote_code=remote_code)
    except Exception as error:
        line = (
            f"{name}: no small model of its class could be built to hold this project's forward pass to its own"
            f" ({first_line(error)}); use another model"
        )
        return dict.fromkeys(PARTS, line)
    found: dict[str, Any] = {part: _line(model, part, difference) for part, difference in differences(model).items()}
    log.info("%s: held to its own forward pass in %.1f s", name, time.perf_counter() - started)
    return found


def _line(model: PreTrainedModel, part: str, difference: float | str) -> str | None:
    if not isinstance(difference, str) and difference <= TOLERANCE:
        return None
    name = type(model).__name__
    kinds = sorted(layer_kinds(model.config)) or [_decoder_layer(model)]
    how = (
        f"cannot be computed ({difference})"
        if isinstance(difference, str)
        else f"differ from the model's own forward pass by {difference:.2g} of the logits' spread"
    )
    hint = "use another model" if part in (PACKED, GENERATION) else "use another model, or recovery=none or lora"
    return f"{name} (layers: {', '.join(kinds)}): {part} {how}, tried on a small random one; {hint}"


def _decoder_layer(model: PreTrainedModel) -> str:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module):
            return type(module[0]).__name__
    return type(model).__name__


def _name(config: PretrainedConfig) -> str:
    found = class_of(config)
    return found.__name__ if found is not None else type(config).__name__


def _identity(config: PretrainedConfig) -> dict[str, Any]:
    """What decides the answer: the class and its code, the config but for its names and sizes, this code, versions."""
    import torch
    import transformers

    from idp import __version__
    from idp.evaluate.shrink import shrunken

    try:
        values = next(shrunken(config)).to_diff_dict()
    except Exception:  # a class that checks its sizes
        values = config.to_diff_dict()
    for name in NAMES:
        values.pop(name, None)
    source = inspect.getsourcefile(type(config))
    package = Path(__file__).parent.parent
    files = [*package.glob("prompting/**/*.py"), *(package / "evaluate" / name for name in OWN)]
    return {
        "class": f"{type(config).__module__}.{type(config).__qualname__}",
        "code": hash_file(Path(source)) if source else None,
        "config": json.loads(json.dumps(values, default=str)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "idp": [__version__, digest([hash_file(file) for file in sorted(files)])],
    }
