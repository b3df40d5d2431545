"""Rotary positions as config.json describes them, in transformers 4's or 5's layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..core.errors import UnsupportedModel
from ..core.input_files import quoted
from ..core.model import MetadataValue, Note
from ..core.tensor import Array, DType, Tensor
from .rope_stretch import Stretch, powers, read_longrope, read_yarn, usual_attention
from .settings import Settings

_BASE = 10000.0
_SUPPORTED = ("default", "linear", "llama3", "dynamic")
_STRETCHES = {"yarn": read_yarn, "longrope": read_longrope}
_EXACT = 1e-9  # an attention factor this close to 1 is one
_HINT = "open an issue with the model's name if you need it"


@dataclass(frozen=True)
class Rope:
    """``dimensions`` of each head turn with the position; their angles are powers of ``base``.

    ``scaling`` is transformers' name of it: with ``linear`` positions are divided by ``factor``, with
    ``llama3`` each frequency by one of ``divisors (dimensions / 2,)`` in float32. ``stretch`` is what
    ``yarn`` and ``longrope`` make of them; where llama.cpp's YaRN is another (it knows no ``beta_fast``,
    ``beta_slow`` and ``truncate``), it takes the frequencies by ``divisors`` as well.
    """

    base: float
    dimensions: int
    scaling: str = "default"
    factor: float = 1.0
    divisors: Array | None = field(default=None, compare=False)
    stretch: Stretch | None = field(default=None, compare=False)

    def frequencies(self) -> Array:
        """Radians per position of each pair of dimensions, ``(dimensions / 2,)``, in float32.

        In the order of transformers' operations, so that the bits are the same (modeling_rope_utils.py).
        """
        if self.stretch is not None:
            return self.stretch.frequencies
        turned = base_frequencies(self.base, self.dimensions) / np.float32(self.factor)
        divided: Array = turned if self.divisors is None else turned / self.divisors
        return divided

    def scaling_keys(self) -> dict[str, MetadataValue]:
        """The GGUF keys of a scaling that llama.cpp computes itself."""
        keys: dict[str, MetadataValue] = {}
        if self.scaling == "linear":
            keys = {"rope.scaling.type": "linear", "rope.scaling.factor": self.factor}
        stretch = self.stretch
        if stretch is None:
            return keys
        attention = stretch.attention
        if self.divisors is None:
            keys = {
                "rope.scaling.type": self.scaling,
                "rope.scaling.original_context_length": stretch.original,
            }
            if stretch.by_keys:
                keys["rope.scaling.factor"] = stretch.factor
                attention /= usual_attention(stretch.factor)
        return keys if abs(attention - 1) < _EXACT else {**keys, "rope.scaling.attn_factor": attention}

    def tensors(self) -> tuple[Tensor, ...]:
        """What llama.cpp divides frequencies by: ``rope_freqs.weight``, or LongRoPE's two."""
        stretch = self.stretch
        found = {"rope_freqs": self.divisors}
        if stretch is not None:
            found |= {"rope_factors_long": stretch.long, "rope_factors_short": stretch.short}
        return tuple(
            Tensor(
                f"{name}.weight",
                divisors.shape,
                DType.F32,
                partial(_rows_of, divisors),
                origin="config.json: rope scaling",
                computed=True,
            )
            for name, divisors in found.items()
            if divisors is not None
        )

    def notes(self) -> tuple[Note, ...]:
        """What there is to say of it."""
        if self.scaling == "dynamic":
            message = "rope scaling 'dynamic' has no effect within the trained context and is left out"
        elif self.stretch is not None and self.stretch.beyond is not None:
            original = self.stretch.original
            message = (
                f"rope scaling 'longrope': transformers and ONNX rotate texts of over {original} tokens "
                "otherwise than shorter ones; llama.cpp decides by the context it is started with, so "
                f"texts up to {original} tokens are exact with a context (-c) of up to {original}, longer "
                "ones with a larger context"
            )
        else:
            return ()
        return (Note("rope-scaling", message, warning=True),)


def _rows_of(values: Array, start: int, stop: int) -> Array:
    return values[start:stop]


def rope_section(settings: Settings) -> Settings | None:
    """The object that describes a scaling, if there is one.

    Version 4 of transformers writes rope_theta and rope_scaling {type or rope_type, …}, version 5 one object
    rope_parameters with both. Where a file has both, rope_scaling counts, unless it is empty
    (modeling_rope_utils.py, convert_rope_params_to_dict).
    """
    section = settings.section("rope_scaling")
    if section is None or not section.values:
        section = settings.section("rope_parameters")
    return section


def read_rope(
    settings: Settings,
    dimensions: int,
    *,
    context: int,
    base_key: str = "rope_theta",
    stretched: bool = False,
) -> Rope:
    """The rotary positions of a model whose heads turn in that many dimensions.

    ``context`` counts as the trained length where config.json names no other, ``base_key`` is the family's
    own name of the base in files of transformers 4, ``stretched`` says that the family takes YaRN and
    LongRoPE. Raises UnsupportedModel for a scaling kconv does not know, CheckpointError for numbers that make
    no sense.
    """
    section = rope_section(settings)
    base = settings.real(base_key, _BASE)
    if section is None:
        return Rope(base, dimensions)
    base = section.real("rope_theta", base)
    scaling = section.text("rope_type", section.text("type", "default"))
    supported = (*_SUPPORTED, *_STRETCHES) if stretched else _SUPPORTED
    if scaling not in supported:
        listed = ", ".join(each for each in supported if each != "dynamic")
        raise UnsupportedModel(
            f"{settings.where}: rope scaling {quoted(scaling)} is not supported ({listed} are)", hint=_HINT
        )
    if scaling == "linear":
        return Rope(base, dimensions, scaling, section.real("factor"))
    # The key beside the section counts before the one in it (standardize_rope_params).
    key = "original_max_position_embeddings"
    if scaling == "llama3":
        trained = settings.integer(key) if key in settings else section.integer(key, context)
        return Rope(base, dimensions, scaling, divisors=llama3_divisors(base, dimensions, section, trained))
    if scaling in _STRETCHES:
        trained = (settings if key in settings else section).integer(key, context, least=2)
        return _stretched(base, dimensions, scaling, section, context, trained)
    return Rope(base, dimensions, scaling)


@np.errstate(all="ignore")  # what overflows is refused at the end
def _stretched(
    base: float, dimensions: int, scaling: str, section: Settings, context: int, trained: int
) -> Rope:
    if base <= 1:
        raise section.refuse("rope_theta", base, f"more than 1 with rope scaling {scaling}")
    stretch = _STRETCHES[scaling](base, dimensions, section, context, trained)
    divisors = None
    if scaling == "yarn" and not stretch.by_keys:
        divisors = base_frequencies(base, dimensions) / stretch.frequencies
    frequencies = stretch.frequencies
    if not (np.isfinite(frequencies) & (frequencies > 0)).all():
        raise section.refuse("factor", stretch.factor, "a scaling of sensible size")
    return Rope(base, dimensions, scaling, stretch.factor, divisors, stretch)


def refuse_partial_rotation(settings: Settings, title: str) -> None:
    """Raise UnsupportedModel where only a part of each head turns, for families that turn whole heads."""
    for place in (settings, rope_section(settings)):
        factor = None if place is None else place.values.get("partial_rotary_factor")
        if place is not None and factor not in (None, 1, 1.0):
            raise UnsupportedModel(
                f"{place.where}: partial_rotary_factor is {quoted(factor)}; {title} models rotate "
                "whole heads",
                hint=_HINT,
            )


def base_frequencies(base: float, dimensions: int) -> Array:
    """Radians per position of each pair of dimensions without a scaling, in float32 as transformers has."""
    frequencies: Array = np.float32(1) / powers(base, dimensions)
    return frequencies


@np.errstate(all="ignore")  # what overflows is refused at the end
def llama3_divisors(base: float, dimensions: int, section: Settings, trained: int) -> Array:
    """By what each frequency of the rotary embedding is divided, ``(dimensions / 2,)`` in float32.

    Llama 3.1's scaling: short wavelengths stay, long ones are stretched by ``factor``, between them the
    two are blended (transformers, modeling_rope_utils.py; llama.cpp takes the divisors as rope_freqs).
    ``trained`` is the context the model had before.
    """
    factor = section.real("factor")
    low, high = section.real("low_freq_factor"), section.real("high_freq_factor")
    if high <= low:
        raise section.refuse("high_freq_factor", high, f"more than low_freq_factor {low}")
    # In float32 and in the order of PyTorch's operations (a number over a tensor is the number times the
    # reciprocal), so that the bits are those transformers and llama.cpp's converter get.
    f32 = np.float32
    wavelengths = f32(1) / base_frequencies(base, dimensions) * f32(2 * math.pi)
    smooth = (f32(1) / wavelengths * f32(trained) - f32(low)) / f32(high - low)
    blended = f32(1) / ((f32(1) - smooth) / f32(factor) + smooth)
    stretched = np.where(wavelengths > f32(trained / low), f32(factor), blended)
    divisors: Array = np.where(wavelengths < f32(trained / high), f32(1), stretched)
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise section.refuse("factor", factor, "a scaling of sensible size")
    return divisors
