"""What each tensor would lose in each format: the menu its shape allows, and its relative errors.

The error of a tensor in a format is tr(E D E^T) / tr(W D W^T), E = Ŵ − W, with D the importance data (mean
squared inputs of the columns; ones where there are none): about how much of what the matrix gives is noise.
How much that costs the model is measured (reference/probes.py); errors carry it from the format that was
measured to the others, and within a group of tensors from all to each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..core.errors import InputError, UsageError
from ..core.tensor import Array, DType, Tensor
from .encoders import Encoder, encoder_of
from .formats import F16, FORMATS, Format, parse_format
from .ggml import Floats, dequantize, widened
from .importance import Importance, values_of
from .requirements import fitting, has_to_be_weighed
from .slabs import Scratch, convert_slab

MENU = tuple(FORMATS[name] for name in ("q2_K", "q3_K", "iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0"))
"""What is chosen among where nobody says: fast in llama.cpp on every machine, and from 2.6 to 8.5 bits."""

_SAMPLE = 1 << 20  # weights of a tensor whose error is measured; of more, rows spread over it
_RUNS = 16  # in which these rows lie


def parse_menu(names: Sequence[str]) -> tuple[Format, ...]:
    """The formats of a menu, from the smallest to the largest. Raises UsageError."""
    menu = {parse_format(name): None for name in names}
    if odd := [format.name for format in menu if not format.quantized and format != F16]:
        raise UsageError(
            f"--menu {odd[0]}: a tensor is chosen a quantized format or f16", hint="leave it out of the menu"
        )
    return tuple(sorted(menu, key=_bits))


def _bits(format: Format) -> float:
    return 8 * format.block_bytes / format.block_size


def offered(tensor: Tensor, menu: Sequence[Format], importance: Importance | None) -> tuple[Format, ...]:
    """The formats of ``menu`` a tensor can have; where its rows are no whole blocks, what recipes give then.

    Formats that need importance data are offered where there are some. Never empty: where nothing is left,
    F16. Raises InputError for data of another model.
    """
    weighed = values_of(tensor, importance) is not None
    columns, found = tensor.shape[-1], dict[Format, None]()
    for wanted in menu:
        try:
            given = fitting(wanted, columns, tensor.name)
        except InputError:  # no relative of smaller blocks
            continue
        if (given != F16 or wanted == F16) and (weighed or not has_to_be_weighed(given, tensor.name)):
            found[given] = None
    return tuple(sorted(found, key=_bits)) or (F16,)


@dataclass(frozen=True)
class Errors:
    """Relative errors of a tensor by format, and its ``power``: the mean square of what it gives."""

    of: Mapping[Format, float]
    power: float


def relative_errors(tensor: Tensor, formats: Sequence[Format], importance: Importance | None) -> Errors:
    """tr(E D E^T) / tr(W D W^T) in each format, on about a million weights spread over the tensor.

    Infinite where libggml cannot encode the weights in a format. Raises what reading raises.
    """
    lost, whole, count = dict.fromkeys(formats, 0.0), 0.0, 0
    scratch = Scratch()
    encoder = encoder_of(tensor, formats, importance)
    for start, stop in _sample(tensor):
        rows = np.ascontiguousarray(tensor.read(start, stop))
        weights = widened(rows, tensor.dtype)
        columns = weights.shape[-1]
        known = encoder.importance_of(rows, start)
        scale = np.ones((1, 1, columns)) if known is None else known.reshape(-1, 1, columns)
        stacked = weights.reshape(len(scale), -1, columns)
        whole, count = whole + _weighed(stacked, scale), count + len(weights.reshape(-1, columns))
        slab = convert_slab(rows, tensor.dtype, formats, scratch, known)
        for format, data in zip(formats, slab.data, strict=True):
            if format in slab.impossible or format in slab.overflowed:
                lost[format] = float("inf")
                continue
            decoded = dequantize(format, data, weights.shape).reshape(stacked.shape)
            lost[format] += _weighed(decoded - stacked, scale)
    of = {format: error / whole if whole else 0.0 for format, error in lost.items()}
    return Errors(of, whole / max(1, count))


def _weighed(values: Floats, scale: Array) -> float:
    """The sum of squares, each column's times its importance; ``(stacks, rows, columns)``."""
    return float((np.einsum("src,src->sc", values, values, dtype=np.float64) * scale[:, 0]).sum())


def _sample(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Runs of rows, all of a small tensor; they begin and end where nothing is read in vain."""
    grain = tensor.granule
    wanted = max(1, _SAMPLE // max(1, tensor.row_elements))
    if wanted >= tensor.rows:
        yield 0, tensor.rows
        return
    runs = min(_RUNS, max(1, wanted // grain))
    each = max(grain, wanted // runs // grain * grain)
    for run in range(runs):
        start = run * tensor.rows // runs // grain * grain
        yield start, min(start + each, tensor.rows)


def as_floats(tensor: Tensor) -> Tensor:
    """The tensor in float32, lazily, so that it can be joined with others that are."""
    if tensor.dtype is DType.F32:
        return tensor
    return replace(tensor, dtype=DType.F32, read=partial(_read_floats, tensor), stored=None)


def _read_floats(tensor: Tensor, start: int, stop: int) -> Floats:
    return widened(tensor.read(start, stop), tensor.dtype)


def as_stored(tensor: Tensor, format: Format, importance: Importance | None) -> Tensor:
    """The tensor as a file in that format gives it back, lazily: encoded and decoded when it is read."""
    if format.name == tensor.dtype.name.lower():
        return as_floats(tensor)
    encoder = encoder_of(tensor, (format,), importance)
    return replace(tensor, dtype=DType.F32, read=partial(_stored, tensor, format, encoder), stored=None)


def _stored(tensor: Tensor, format: Format, encoder: Encoder, start: int, stop: int) -> Floats:
    rows = np.ascontiguousarray(tensor.read(start, stop))
    slab = encoder.encode(rows, tensor.dtype, Scratch(), start)
    if slab.impossible or slab.overflowed:
        raise InputError(
            f"{tensor.name} has weights {format.display} cannot hold",
            hint="leave that format out with --menu",
        )
    return dequantize(format, slab.data[0], rows.shape)
