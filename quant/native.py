"""Kernels that encode as libggml does, many blocks side by side, in quant/kernels/*.c.

They are built for several instruction sets; the widest that runs here is taken, or the one that the variable
``KCONV_KERNELS`` names (``libggml`` takes none). Their bytes are libggml's: before a process first uses one,
a few hundred blocks of the data at hand are encoded by libggml too, and a kernel that differs is not used.
libggml's own bytes depend on how it was built, so this is what keeps files the same as llama.cpp's here.

Without a C compiler at installation there are none, and libggml encodes everything. ctypes releases the GIL
during each call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentProblem
from ..core.model import Note
from ..core.tensor import Array, DType
from .formats import ENCODABLE, Format
from .grids import DISTANCES, grid_codes
from .late_checks import Key, LateChecks

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# As module.c numbers them, the widest last.
SETS = ("baseline", "avx2", "avx512")
LIBGGML = "libggml"
VARIABLE = "KCONV_KERNELS"

Kernels = Literal["chosen", "other", "none"]
"""Whose bytes: the kernels of this machine, those of another instruction set that runs here, or libggml's."""

# Blocks that libggml encodes too before a kernel is trusted: some milliseconds.
_CHECKED_BLOCKS = 512

# What kconv_interface says of a library that fits this file: an older build may lie here.
_INTERFACE = 4

INFINITY = 0x7F800000  # its bits; NaNs lie above
_KINDS = {DType.F32: 0, DType.F16: 1, DType.BF16: 2}


@dataclass(frozen=True)
class Chosen:
    """``name`` is one of SETS, or libggml where no kernel is used; ``why`` says so in words."""

    name: str
    why: str


@functools.cache
def chosen() -> Chosen:
    """What encodes in this process. Raises EnvironmentProblem if ``KCONV_KERNELS`` asks for what is not."""
    available, wanted = available_sets(), os.environ.get(VARIABLE)
    if wanted == LIBGGML:
        return Chosen(LIBGGML, f"chosen by {VARIABLE}")
    if wanted in available:
        return Chosen(wanted, f"chosen by {VARIABLE}")
    if wanted:
        known = "does not run here" if wanted in SETS else "is not known"
        raise EnvironmentProblem(
            f"{VARIABLE}={wanted} {known}",
            hint=f"set it to {' or '.join((*available, LIBGGML))}, or unset it",
        )
    if available:
        return Chosen(available[-1], "the widest instruction set that runs here")
    return Chosen(
        LIBGGML,
        "kconv's kernels were not built, or not for this system and version; to build them, install "
        "kconv again with a C compiler present",
    )


@functools.cache
def other() -> str:
    """The widest instruction set that runs here but the chosen one; libggml where there is none."""
    name = chosen().name
    rest = [each for each in available_sets() if each != name]
    return rest[-1] if rest and name != LIBGGML else LIBGGML


def available_sets() -> tuple[str, ...]:
    """The instruction sets with kernels that this processor runs, the widest last."""
    library = _library()
    return () if library is None else tuple(s for i, s in enumerate(SETS) if library.kconv_runs(i))


def has_kernel(set: str, format: Format, *, weighed: bool) -> bool:
    """Whether ``set``, an available one, has a kernel for the format (``weighed``: with importance)."""
    library = _library()
    return library is not None and bool(library.kconv_encodes(SETS.index(set), format.ggml_type, weighed))


def encode(
    format: Format,
    rows: Floats,
    out: Bytes,
    importance: Floats | None,
    ggml: Any,
    *,
    finite: bool,
    kernels: Kernels = "chosen",
) -> bool:
    """Encode as ggml.encode does, and return True; False if libggml has to.

    ``ggml`` is its ggml_quantize_chunk. ``finite`` says that all weights are known to be: the others are
    libggml's.
    """
    if kernels == "none":
        return False
    name = chosen().name if kernels == "chosen" else other()
    if name == LIBGGML or not has_kernel(name, format, weighed=importance is not None):
        return False
    if not finite and (widen(rows, DType.F32, None) or 0) >= INFINITY:
        return False
    if not _trusted(name, format, rows, importance, ggml):
        return False
    run(name, format, rows, out, importance, ggml)
    return True


def run(set: str, format: Format, rows: Floats, out: Bytes, importance: Floats | None, ggml: Any) -> None:
    """Encode finite ``rows`` with the kernel of an available ``set``, which there must be, unchecked."""
    library = _library()
    assert library is not None
    if format.name in DISTANCES:
        _set_grid(format)
    weights = None if importance is None else importance.ctypes.data
    library.kconv_encode(
        SETS.index(set), format.ggml_type, rows.ctypes.data, out.ctypes.data, *rows.shape, weights,
        ctypes.cast(ggml, ctypes.c_void_p),
    )  # fmt: skip


_grids = threading.Lock()


@functools.cache
def _set_grid(format: Format) -> None:
    """Give the kernels the grid of a format, of which they make tables in some hundredths of a second."""
    library = _library()
    assert library is not None
    weights, codes = grid_codes(format)
    with _grids:
        if not library.kconv_set_grid(
            format.ggml_type, weights, codes.ctypes.data, codes.size, DISTANCES[format.name]
        ):
            raise MemoryError(f"no memory for the grid of {format.display}")


def widen(source: Array, dtype: DType, out: Floats | None) -> int | None:
    """The float32 bits, sign aside, of the largest magnitude in ``source``, which is written to ``out``.

    None if there are no kernels, and nothing was done.
    """
    name = chosen().name
    library = _library()
    if name == LIBGGML or library is None:
        return None
    to = None if out is None else out.ctypes.data
    return int(library.kconv_widen(SETS.index(name), _KINDS[dtype], source.ctypes.data, to, source.size))


# Blocks that a set's kernel for a format, without or with importance, and libggml made the same of so far.
_checks: dict[tuple[str, str, bool], int] = {}
_DIFFER = -1
_lock = threading.Lock()


def _trusted(name: str, format: Format, rows: Floats, importance: Floats | None, ggml: Any) -> bool:
    """Whether the kernel gave libggml's bytes when it was first used in this process, which may be now.

    Of small tensors all blocks are compared, until there were enough.
    """
    key = name, format.name, importance is not None
    if _checks.get(key, 0) >= _CHECKED_BLOCKS:
        return True
    with _lock:
        seen = _checks.get(key, 0)
        if not 0 <= seen < _CHECKED_BLOCKS:
            return seen != _DIFFER
        late = _late if format.name in DISTANCES else None
        blocks, some = rows.size // format.block_size, _some(format, rows)
        if late is None:
            _judged(key, blocks, _agrees(name, format, some, importance, ggml))
            return _checks[key] != _DIFFER
        if seen + late.asked(key) < _CHECKED_BLOCKS:
            weights = None if importance is None else importance.copy()
            late.ask(key, blocks, partial(_agrees, name, format, some.copy(), weights, ggml))
        return True


def _judged(key: Key, blocks: int, agreed: bool) -> None:
    """So many blocks were compared."""
    _checks[key] = _checks.get(key, 0) + blocks if agreed and _checks.get(key, 0) >= 0 else _DIFFER


def _judged_later(key: Key, blocks: int, agreed: bool) -> None:
    with _lock:
        _judged(key, blocks, agreed)


def _some(format: Format, rows: Floats) -> Floats:
    """Rows from all over ``rows``, all if there are few."""
    count, columns = rows.shape
    wanted = max(1, _CHECKED_BLOCKS * format.block_size // columns)
    return np.ascontiguousarray(rows[:: max(1, count // wanted)][:wanted])


def _agrees(name: str, format: Format, some: Floats, importance: Floats | None, ggml: Any) -> bool:
    """Whether kernel and libggml make the same of ``some`` rows."""
    columns = some.shape[1]
    ours = np.empty(len(some) * format.row_bytes(columns), np.uint8)
    theirs = np.empty_like(ours)
    run(name, format, some, ours, importance, ggml)
    weights = None if importance is None else importance.ctypes.data
    ggml(format.ggml_type, some.ctypes.data, theirs.ctypes.data, 0, len(some), columns, weights)
    return np.array_equal(ours, theirs)


_late: LateChecks | None = None


@contextlib.contextmanager
def checking_late() -> Iterator[LateChecks]:
    """Compare kernels for grids with libggml beside what is encoded meanwhile; the caller asks how it came
    out, and encodes again what has to be, before anything is finished (late_checks.py).
    """
    global _late
    before, _late = _late, LateChecks(_judged_later)
    try:
        yield _late
    finally:
        _late = before


def notes(formats: Iterable[Format]) -> tuple[Note, ...]:
    """What there is to say of kernels for ``formats`` that differed from libggml in this process."""
    set, names = chosen().name, {format.name for format in formats}
    with _lock:
        differ = [key for key, seen in _checks.items() if seen == _DIFFER]
    wrong = sorted(key[1:] for key in differ if key[0] == set and key[1] in names)
    if not wrong:
        return ()
    listed = ", ".join(starmap(_title, wrong))
    message = f"libggml encoded {listed}: kconv's {set} kernels do not produce the same bytes as this libggml"
    return (Note("kernel-differs", message, warning=True),)


def tried(ggml: Any) -> dict[str, tuple[str, ...]]:
    """The formats with kernels whose bytes on random weights are ``equal`` to libggml's, or ``different``.

    Without those on grids, for which libggml would take seconds to get ready: they are tried where used.
    """
    name = chosen().name
    results: dict[bool, list[str]] = {True: [], False: []}
    rows = np.random.default_rng(0).standard_normal((64, 2048), np.float32)
    for format in ENCODABLE if name != LIBGGML else ():
        if format.name in DISTANCES:
            continue
        for weights in (None, np.square(rows[0])):
            if has_kernel(name, format, weighed=weights is not None):
                title = _title(format.name, weights is not None)
                results[_agrees(name, format, _some(format, rows), weights, ggml)].append(title)
    return {"equal": tuple(results[True]), "different": tuple(results[False])}


def _title(name: str, weighed: bool) -> str:
    return f"{name} with importance" if weighed else name


def built() -> ctypes.CDLL | None:
    """The library itself, for those who call more of it (feedback.py); None where it was not built."""
    return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The built kernels, or None."""
    spec = PathFinder.find_spec("_kernels", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        fits = library.kconv_interface() == _INTERFACE
    except (OSError, AttributeError):  # built for another system, or long ago
        return None
    if not fits:
        return None
    pointer, number, int64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.kconv_runs.argtypes = (number,)
    library.kconv_encodes.argtypes = (number, number, number)
    library.kconv_encode.argtypes = (number, number, pointer, pointer, int64, int64, pointer, pointer)
    library.kconv_encode.restype = None
    library.kconv_set_grid.argtypes = (number, number, pointer, number, number)
    library.kconv_widen.argtypes = (number, number, pointer, pointer, int64)
    library.kconv_widen.restype = ctypes.c_uint32
    library.kconv_factor.argtypes = (number, pointer, int64, pointer)
    library.kconv_refine.argtypes = (number, pointer, int64, pointer, pointer, number, pointer)
    library.kconv_refine.restype = None
    library.kconv_measure.argtypes = (number, pointer, int64, pointer, pointer, pointer, pointer)
    library.kconv_measure.restype = None
    return library
