"""Rotary positions stretched beyond the trained context: YaRN and LongRoPE, as transformers computes them.

In float32 and in the order of transformers' operations (modeling_rope_utils.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.tensor import Array
from .settings import Settings

_FAST, _SLOW = 32.0, 1.0
_SAME = 1e-6  # relative: what is left between the two programs' own roundings


@dataclass(frozen=True)
class Stretch:
    """``frequencies (dimensions / 2,)`` are radians per position; sines and cosines are multiplied by
    ``attention``. ``original`` is the context before it was stretched, ``factor`` by how much.

    ``by_keys`` says that llama.cpp's own YaRN gives the same. With LongRoPE ``beyond`` are the frequencies of
    texts longer than ``original``, and ``short`` and ``long`` what frequencies are divided by.
    """

    frequencies: Array
    attention: float
    original: int
    factor: float
    by_keys: bool = False
    beyond: Array | None = None
    short: Array | None = None
    long: Array | None = None


def powers(base: float, dimensions: int) -> Array:
    """``base ** (2i / dimensions)`` of each pair of dimensions i, in float32 as transformers has them."""
    exponents = np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
    return np.power(float(np.float32(base)), exponents.astype(np.float64)).astype(np.float32)


def read_yarn(base: float, dimensions: int, section: Settings, context: int, original: int) -> Stretch:
    """YaRN's frequencies. Raises CheckpointError for numbers that make no sense."""
    factor = _factor(section, context, original)
    truncate = section.values.get("truncate", True)
    if truncate is not None and not isinstance(truncate, bool):
        raise section.refuse("truncate", truncate, "true or false")
    fast, slow = _optional(section, "beta_fast") or _FAST, _optional(section, "beta_slow") or _SLOW
    low, high = (_turning(turns, base, dimensions, original) for turns in (fast, slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    frequencies = _blended(base, dimensions, factor, max(low, 0), min(high, dimensions - 1))
    usual = (math.floor, math.ceil)
    theirs = [
        rounded(np.float32(_turning(turns, base, dimensions, original)))
        for rounded, turns in zip(usual, (_FAST, _SLOW), strict=True)
    ]
    in_llama_cpp = _blended(base, dimensions, factor, max(theirs[0], 0), min(theirs[1], dimensions - 1))
    same = bool(np.allclose(in_llama_cpp, frequencies, rtol=_SAME, atol=0.0))
    return Stretch(frequencies, _attention_of_yarn(section, factor), original, factor, by_keys=same)


def read_longrope(base: float, dimensions: int, section: Settings, context: int, original: int) -> Stretch:
    """LongRoPE's two sets of frequencies. Raises CheckpointError for numbers that make no sense."""
    factor = _factor(section, context, original)
    attention = _optional(section, "attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (_divisors(section, key, dimensions // 2) for key in ("short_factor", "long_factor"))
    near, far = (np.float32(1) / (each * powers(base, dimensions)) for each in (short, long))
    return Stretch(near, attention, original, factor, beyond=far, short=short, long=long)


def usual_attention(factor: float) -> float:
    """By what YaRN multiplies sines and cosines where nothing else is said; llama.cpp does always."""
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0


def _factor(section: Settings, context: int, original: int) -> float:
    """How many times longer the context has become; null means by the lengths themselves."""
    if "factor" not in section and ("factor" in section.values or "short_factor" in section):
        return max(context / original, 1.0)
    factor = section.real("factor")
    if factor < 1:
        raise section.refuse("factor", factor, "1 or more")
    return factor


def _attention_of_yarn(section: Settings, factor: float) -> float:
    given = _optional(section, "attention_factor")
    if given is not None:
        return given
    scale, everywhere = _optional(section, "mscale"), _optional(section, "mscale_all_dim")
    if not scale or not everywhere or factor <= 1:
        return usual_attention(factor)
    above, below = (0.1 * each * math.log(factor) + 1.0 for each in (scale, everywhere))
    return above / below


def _optional(section: Settings, key: str) -> float | None:
    """A positive number; None where it is missing, null, or a 0 that transformers takes for missing."""
    value = section.values.get(key)
    zero = value == 0 and not isinstance(value, bool) and key != "attention_factor"
    return None if value is None or zero else section.real(key)


def _turning(turns: float, base: float, dimensions: int, original: int) -> float:
    """The dimension that turns that many times over the original context."""
    return (dimensions * math.log(original / (turns * 2 * math.pi))) / (2 * math.log(base))


def _blended(base: float, dimensions: int, factor: float, low: float, high: float) -> Array:
    """Frequencies up to pair ``low`` as they are, from ``high`` on divided by ``factor``, blended between."""
    f32 = np.float32
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dimensions // 2, dtype=f32) - f32(low)) / f32(high - low), 0, 1)
    kept = f32(1) - ramp
    whole = powers(base, dimensions)
    blended: Array = f32(1) / (f32(factor) * whole) * (f32(1) - kept) + f32(1) / whole * kept
    return blended


def _divisors(section: Settings, key: str, count: int) -> Array:
    values = section.values.get(key)
    given = values if isinstance(values, list) else []
    sound = all(type(each) in (int, float) and 2.0**-100 < each < 2.0**100 for each in given)
    if not sound or len(given) != count:
        raise section.refuse(
            key, values, f"{count} positive numbers, one for each pair of a head's dimensions"
        )
    return np.array(given, np.float32)
