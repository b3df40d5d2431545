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
from .settings import Settings

_BASE = 10000.0
_SUPPORTED = ("default", "linear", "llama3", "dynamic")
_HINT = "open an issue with the model's name if you need it"


@dataclass(frozen=True)
class Rope:
    """``dimensions`` of each head turn with the position; their angles are powers of ``base``.

    ``scaling`` is transformers' name of it: with ``linear`` positions are divided by ``factor``, with
    ``llama3`` each frequency by one of ``divisors (dimensions / 2,)`` in float32.
    """

    base: float
    dimensions: int
    scaling: str = "default"
    factor: float = 1.0
    divisors: Array | None = field(default=None, compare=False)

    def frequencies(self) -> Array:
        """Radians per position of each pair of dimensions, ``(dimensions / 2,)``, in float32.

        In the order of transformers' operations, so that the bits are the same (modeling_rope_utils.py).
        """
        turned = base_frequencies(self.base, self.dimensions) / np.float32(self.factor)
        divided: Array = turned if self.divisors is None else turned / self.divisors
        return divided

    def scaling_keys(self) -> dict[str, MetadataValue]:
        """The GGUF keys of a linear scaling; none for others."""
        if self.scaling != "linear":
            return {}
        return {"rope.scaling.type": "linear", "rope.scaling.factor": self.factor}

    def tensors(self) -> tuple[Tensor, ...]:
        """``rope_freqs.weight``, by which llama.cpp divides frequencies, where there are divisors."""
        divisors = self.divisors
        if divisors is None:
            return ()
        return (
            Tensor(
                "rope_freqs.weight",
                divisors.shape,
                DType.F32,
                partial(_rows_of, divisors),
                origin="config.json: rope scaling",
                computed=True,
            ),
        )

    def notes(self) -> tuple[Note, ...]:
        """What there is to say of it."""
        if self.scaling != "dynamic":
            return ()
        message = "rope scaling 'dynamic' has no effect within the trained context and is left out"
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


def read_rope(settings: Settings, dimensions: int, *, context: int, base_key: str = "rope_theta") -> Rope:
    """The rotary positions of a model whose heads turn in that many dimensions.

    ``context`` counts as the trained length where config.json names no other, ``base_key`` is the family's
    own name of the base in files of transformers 4. Raises UnsupportedModel for a scaling kconv does not
    know, CheckpointError for numbers that make no sense.
    """
    section = rope_section(settings)
    base = settings.real(base_key, _BASE)
    if section is None:
        return Rope(base, dimensions)
    base = section.real("rope_theta", base)
    scaling = section.text("rope_type", section.text("type", "default"))
    if scaling not in _SUPPORTED:
        raise UnsupportedModel(
            f"{settings.where}: rope scaling {quoted(scaling)} is not supported (default, linear and llama3 "
            "are)",
            hint=_HINT,
        )
    if scaling == "linear":
        return Rope(base, dimensions, scaling, section.real("factor"))
    if scaling == "llama3":
        # The key beside the section counts before the one in it (standardize_rope_params).
        key = "original_max_position_embeddings"
        trained = settings.integer(key) if key in settings else section.integer(key, context)
        return Rope(base, dimensions, scaling, divisors=llama3_divisors(base, dimensions, section, trained))
    return Rope(base, dimensions, scaling)


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
    exponents = np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
    powers = np.power(float(np.float32(base)), exponents.astype(np.float64)).astype(np.float32)
    frequencies: Array = np.float32(1) / powers
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
