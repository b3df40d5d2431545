"""libggml-base, the library llama.cpp quantizes with, called through ctypes.

It comes with llama-cpp-python, which is not imported: loading llama.cpp takes far longer than loading this
one library. ctypes releases the GIL during each call, so several threads may encode at once.

Nothing has to be initialised: ggml-base converts half floats by arithmetic (the lookup tables are the CPU
back end's), and ``ggml_quantize_chunk`` itself prepares, behind ggml's own lock, the grids that only the iq
formats need (ggml.c, ggml_quantize_init).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.cores import few_spins
from ..core.errors import EnvironmentProblem, UsageError
from ..core.system_processes import library_names
from ..core.tensor import Array, DType
from . import native
from .formats import ENCODABLE, F32, GRIDS, NEEDS_IMPORTANCE, Format

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def to_float32(source: Array, dtype: DType, out: Floats, *, finite: bool = False) -> None:
    """Write the weights of ``source``, contiguous and in ``dtype.storage``, to ``out`` as float32, exactly.

    Both have the same number of elements. ``finite`` says that the caller has seen that all weights are
    finite, which makes F16 twice as fast.
    """
    _expect(source, dtype.storage, "source")
    _expect(out, np.dtype(np.float32), "out")
    if source.size != out.size:
        raise UsageError(f"{source.size} weights do not fit into {out.size} places")
    flat = source.reshape(-1)
    if dtype is DType.F32:
        np.copyto(out.reshape(-1), flat)
    elif dtype is DType.BF16:
        library().ggml_bf16_to_fp32_row(flat.ctypes.data, out.ctypes.data, flat.size)
    elif finite:
        _halves_to_float32(flat, out.reshape(-1))
    else:
        library().ggml_fp16_to_fp32_row(flat.ctypes.data, out.ctypes.data, flat.size)


def widened(source: Array, dtype: DType, *, finite: bool = False) -> Floats:
    """The weights of ``source`` as ``to_float32`` writes them, in an array of their own."""
    out = np.empty(source.shape, np.float32)
    to_float32(np.ascontiguousarray(source), dtype, out, finite=finite)
    return out


def _halves_to_float32(source: Array, out: Floats) -> None:
    """Finite half floats to float32: move the bits into place and correct the exponent's bias.

    Extending the sign leaves it in bit 31 after the shift and copies of it in bits 28 to 30, which are
    cleared. The product is exact, also for denormal halves.
    """
    bits = out.view(np.int32)
    np.copyto(bits, source.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)


def can_encode(format: Format, largest: float, importance: Floats | None = None) -> bool:
    """Whether libggml encodes weights of at most that magnitude in ``format`` and does not abort.

    On grids it compares squares of sums of products of weights with importance or with their own squares.
    """
    if format not in GRIDS:
        return True
    if importance is None:
        return largest <= _LARGEST_ON_GRID
    heaviest = float(importance.max(initial=0)) * largest * largest
    return (
        largest <= _LARGEST_ON_GRID
        and float(importance.min(initial=0)) >= 0
        and heaviest <= _HEAVIEST_ON_GRID
    )


# What is compared is at most some 2e6 times the square of the second, which leaves room below 3e38.
_LARGEST_ON_GRID = 65504.0
_HEAVIEST_ON_GRID = 1e15


def encode(
    format: Format,
    rows: Floats,
    out: Bytes,
    importance: Floats | None = None,
    *,
    finite: bool = False,
    kernels: native.Kernels = "chosen",
) -> None:
    """Write ``rows`` (rows, columns) to ``out``, as many bytes as ``format.row_bytes(columns) * rows``.

    ``importance`` (columns,) weighs the error of each column. The bytes are those of ggml_quantize_chunk,
    which is what llama-quantize calls, and do not depend on how a tensor is cut; kconv's own kernels make
    them where there is one for the format, of the set that ``kernels`` says. ``finite`` says that the caller
    has seen that all weights are finite, which saves looking. Raises UsageError.
    """
    if format not in _ENCODABLE:
        raise UsageError(f"kconv does not encode {format.display}")
    _expect(rows, np.dtype(np.float32), "rows")
    _expect(out, np.dtype(np.uint8), "out")
    count, columns = rows.shape
    if out.size != count * format.row_bytes(columns):
        raise UsageError(
            f"{count} rows of {columns} weights are {count * format.row_bytes(columns)} bytes of "
            f"{format.display}, not {out.size}"
        )
    if importance is not None:
        _expect(importance, np.dtype(np.float32), "importance")
        if importance.size != columns:
            raise UsageError(f"{importance.size} values of importance for {columns} columns")
    elif format in NEEDS_IMPORTANCE:  # libggml would abort
        raise UsageError(f"{format.display} cannot be encoded without importance data")
    if format in GRIDS and not can_encode(format, float(np.abs(rows).max(initial=0)), importance):
        raise UsageError(f"weights or importance values are NaN or too large for {format.display}")
    chunk = library().ggml_quantize_chunk
    if rows.size and not native.encode(format, rows, out, importance, chunk, finite=finite, kernels=kernels):
        weighed = None if importance is None else importance.ctypes.data
        chunk(format.ggml_type, rows.ctypes.data, out.ctypes.data, 0, count, columns, weighed)


def can_dequantize(format: Format) -> bool:
    """Whether ggml turns the format into floats. Raises EnvironmentProblem."""
    return format == F32 or bool(_traits(format).to_float)


def dequantize(format: Format, data: Array, shape: Sequence[int], out: Floats | None = None) -> Floats:
    """The float32 weights of ``shape`` (PyTorch order) that ``data``, a tensor's bytes, stands for.

    They are written to ``out`` (of that shape) where it is given. Raises UsageError if a size is wrong or
    ggml cannot decode the format.
    """
    raw = np.require(data, requirements=["C", "A"]).reshape(-1).view(np.uint8)
    if raw.size != format.tensor_bytes(shape):
        raise UsageError(
            f"a {format.display} tensor of shape {tuple(shape)} takes {format.tensor_bytes(shape)} bytes, "
            f"not {raw.size}"
        )
    if out is None:
        out = np.empty(tuple(shape), np.float32)
    _expect(out, np.dtype(np.float32), "out")
    if out.shape != tuple(shape):
        raise UsageError(f"weights of shape {tuple(shape)} cannot be written to {out.shape}")
    if format == F32:
        np.copyto(out.reshape(-1).view(np.uint8), raw)
        return out
    traits = _traits(format)
    if not traits.to_float:
        raise UsageError(f"ggml cannot turn {format.display} into floats")
    traits.to_float(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def _traits(format: Format) -> _TypeTraits:
    """What ggml says of a format, checked."""
    traits: _TypeTraits = library().ggml_get_type_traits(format.ggml_type).contents
    if traits.type_name != format.name.encode() or traits.type_size != format.block_bytes:
        raise EnvironmentProblem(
            f"libggml describes format {format.name} differently than expected", hint=_REINSTALL
        )
    return traits


def _expect(array: Array, dtype: np.dtype[np.generic], what: str) -> None:
    """Refuse arrays that C code would misread."""
    if array.dtype != dtype or not array.flags.c_contiguous or not array.flags.aligned:
        raise UsageError(f"{what} must be a contiguous array of {dtype}, not {array.dtype}")


_ENCODABLE = frozenset(ENCODABLE)

_REINSTALL = "install llama-cpp-python 0.3.36 into the environment kconv runs in"


@functools.cache
def library() -> ctypes.CDLL:
    """libggml-base with its prototypes declared, loaded at the first call.

    Two threads that come first at once may both load it; the system hands out the same library twice.
    Raises EnvironmentProblem if it is missing or does not have the formats kconv knows.
    """
    if sys.byteorder != "little":
        raise EnvironmentProblem("kconv supports little-endian machines only")
    path = library_path()
    try:
        with few_spins():  # it brings the libgomp that torch computes with, too
            loaded = ctypes.CDLL(str(path))
        _declare(loaded)
    except (OSError, AttributeError) as error:
        raise EnvironmentProblem(f"cannot use {path}: {error}", hint=_REINSTALL) from error
    for format in ENCODABLE:
        candidates = (
            loaded.ggml_type_name(format.ggml_type),
            loaded.ggml_blck_size(format.ggml_type),
            loaded.ggml_type_size(format.ggml_type),
        )
        if candidates != (format.name.encode(), format.block_size, format.block_bytes):
            raise EnvironmentProblem(
                f"{path} does not have the format {format.name} as kconv knows it (found: {candidates})",
                hint=_REINSTALL,
            )
    return loaded


def library_path() -> Path:
    """Where libggml-base of the installed llama-cpp-python lies. Raises EnvironmentProblem."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")  # llama-cpp-python's own variable
    if override is not None:
        folder = Path(override)
    else:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise EnvironmentProblem("llama-cpp-python is not installed", hint=_REINSTALL)
        folder = Path(spec.origin).parent / "lib"
    names = library_names("ggml-base")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EnvironmentProblem(f"no {' or '.join(names)} in {folder}", hint=_REINSTALL)


def _declare(loaded: ctypes.CDLL) -> None:
    """Prototypes of ggml.h."""
    pointer, int64, type_number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    for function in (loaded.ggml_fp16_to_fp32_row, loaded.ggml_bf16_to_fp32_row):
        function.argtypes = (pointer, pointer, int64)
        function.restype = None
    loaded.ggml_quantize_chunk.argtypes = (type_number, pointer, pointer, int64, int64, int64, pointer)
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_type_name.argtypes = (type_number,)
    loaded.ggml_type_name.restype = ctypes.c_char_p
    loaded.ggml_blck_size.argtypes = (type_number,)
    loaded.ggml_blck_size.restype = int64
    loaded.ggml_type_size.argtypes = (type_number,)
    loaded.ggml_type_size.restype = ctypes.c_size_t
    loaded.ggml_get_type_traits.argtypes = (type_number,)
    loaded.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
