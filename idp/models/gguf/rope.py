"""Rotary positions as a GGUF file states them: scaling in its metadata, or factors in tensors of their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from idp.errors import UserError

if TYPE_CHECKING:
    from idp.models.gguf.header import HeaderReader

FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FACTORS, LONG_FACTORS, SHORT_FACTORS)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CLOSE = 1e-4  # relative, between the factors in the file and those that parameters give


def parameters(read: HeaderReader, dimensions: int, positions: int) -> dict[str, Any]:
    """`rope_parameters` of transformers for `dimensions` rotated dimensions of a head and a context of `positions`.

    Raises:
        UserError: a scaling that transformers cannot state.
    """
    theta = float(read("rope.freq_base", 10000.0))
    scaling = _scaling(read, theta, positions)
    tensors = read.header.tensors
    if FACTORS in tensors:
        factors = read.header.numbers(FACTORS)
        if scaling["rope_type"] != "default" or len(factors) != dimensions // 2:
            raise UserError(f"{read.where}: its {FACTORS} does not go with its rope.scaling and rope.dimension_count")
        return of_factors(factors, theta, positions)
    return scaling


def of_factors(factors: list[float], theta: float, positions: int) -> dict[str, Any]:
    """`rope_parameters` that divide each frequency by its factor: Llama 3's where they are, else the factors as such.

    Args:
        factors: [dimensions / 2], by which the frequencies are divided.
        theta: the base of the frequencies.
        positions: the context's length, for scalings that ask for one.
    """
    if all(math.isclose(factor, 1.0, rel_tol=CLOSE) for factor in factors):
        return {"rope_type": "default", "rope_theta": theta}
    for candidate in _llama3_candidates(factors, theta):
        if same_factors(factors, llama3_factors(candidate, theta, 2 * len(factors))):
            return {"rope_type": "llama3", "rope_theta": theta, **candidate}
    return {
        "rope_type": "longrope",  # the one scaling that takes factors; the same ones for every length
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": positions,
    }


def llama3_factors(scaling: dict[str, Any], theta: float, dimensions: int) -> list[float]:
    """By what Llama 3's scaling divides each frequency (the Llama 3.1 release's `apply_scaling`)."""
    factor, low, high = (float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    found = []
    for dimension in range(0, dimensions, 2):
        turns = context * theta ** (-dimension / dimensions) / (2 * math.pi)  # in the context that it was trained on
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def same_factors(first: list[float], second: list[float]) -> bool:
    """Whether two rows of factors are the same but for single precision."""
    return len(first) == len(second) and all(
        math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(first, second, strict=True)
    )


def _llama3_candidates(factors: list[float], theta: float) -> list[dict[str, Any]]:
    """Parameters of Llama 3's scaling that might give these factors, those of the published models first.

    Only the ratios of the context and the two limits matter, so that the lower limit is taken as 1.
    """
    factor = _round(max(factors))
    dimensions = 2 * len(factors)
    frequency = [theta ** (-2 * number / dimensions) / (2 * math.pi) for number in range(len(factors))]
    smooth = [(1 / value - 1 / factor) / (1 - 1 / factor) for value in factors]
    between = [number for number, value in enumerate(smooth) if 1e-3 < value < 1 - 1e-3]
    found = [{"factor": factor, **LLAMA3}]
    if len(between) > 1:  # smooth = (context x frequency - low) / (high - low), a line
        first, last = between[0], between[-1]
        slope = (smooth[first] - smooth[last]) / (frequency[first] - frequency[last])
        start = smooth[first] - slope * frequency[first]
        if start < 0:
            high = _round(1 - 1 / start)
            found.append(_llama3(factor, high, slope * (high - 1)))
    elif between:
        number = between[0]
        found.append(_llama3(factor, 4.0, (3 * smooth[number] + 1) / frequency[number]))
    else:  # no frequency lies between the limits: any context that keeps it so
        kept = [value for value, share in zip(frequency, smooth, strict=True) if share > 0.5]
        scaled = [value for value, share in zip(frequency, smooth, strict=True) if share <= 0.5]
        if kept and scaled:
            least, most = 4 / min(kept), 1 / max(scaled)
            found.append(_llama3(factor, 4.0, math.sqrt(least * most)))
        elif scaled:
            found.append(_llama3(factor, 4.0, 0.5 / max(scaled)))
    return found


def _llama3(factor: float, high: float, context: float) -> dict[str, Any]:
    names = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high}
    return {**names, "original_max_position_embeddings": max(1, round(context))}


def _round(value: float) -> float:
    """The value without what single precision added to it."""
    near = round(value, 2)
    return near if math.isclose(near, value, rel_tol=CLOSE) else value


def _scaling(read: HeaderReader, theta: float, positions: int) -> dict[str, Any]:
    """What the metadata says, by llama.cpp's rules: a factor without a type is linear."""
    factor = float(read("rope.scaling.factor", 0.0) or read("rope.scale_linear", 0.0) or 1.0)
    kind = str(read("rope.scaling.type", "linear"))
    context = read("rope.scaling.original_context_length", None)
    attention = read("rope.scaling.attn_factor", None)
    plain = {"rope_type": "default", "rope_theta": theta}
    if LONG_FACTORS in read.header.tensors or SHORT_FACTORS in read.header.tensors:
        return _long(read, theta, positions, context, attention)
    if kind == "longrope" and not math.isclose(factor, 1.0):
        raise UserError(f"{read.where}: rope.scaling.type=longrope, and it has no {LONG_FACTORS}")
    if attention is not None and not math.isclose(attention, 1.0):
        raise UserError(f"{read.where}: rope.scaling.attn_factor={attention} without {LONG_FACTORS} is not read")
    if kind in ("none", "longrope") or (math.isclose(factor, 1.0) and kind == "linear"):
        return plain
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind != "yarn":
        raise UserError(f"{read.where}: rope.scaling.type={kind} is not read; none, linear, yarn and longrope are")
    return _yarn(read, theta, factor, context)


def _yarn(read: HeaderReader, theta: float, factor: float, context: int | None) -> dict[str, Any]:
    # What these multiply has changed between versions of llama.cpp.
    for name, neutral in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        value = read(f"rope.scaling.{name}", neutral)
        if not math.isclose(value, neutral):
            raise UserError(f"{read.where}: rope.scaling.{name}={value:g} is not read; take the model as safetensors")
    if context is None:
        raise UserError(f"{read.where}: rope.scaling.type=yarn without rope.scaling.original_context_length")
    found = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": context}
    for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        found[name] = float(read(f"rope.scaling.yarn_{name}", default))
    return found


def _long(
    read: HeaderReader, theta: float, positions: int, context: int | None, attention: float | None
) -> dict[str, Any]:
    tensors = read.header.tensors
    if LONG_FACTORS not in tensors or SHORT_FACTORS not in tensors or context is None:
        raise UserError(
            f"{read.where}: LongRoPE needs {LONG_FACTORS}, {SHORT_FACTORS} and rope.scaling.original_context_length"
        )
    if attention is None:  # llama.cpp takes 1; the converter writes it wherever there are factors
        attention = 1.0
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": read.header.numbers(SHORT_FACTORS),
        "long_factor": read.header.numbers(LONG_FACTORS),
        "attention_factor": float(attention),
        "original_max_position_embeddings": int(context),
    }
