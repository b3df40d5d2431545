"""Files of full statistics: an imatrix that also holds how the inputs of matrices correlate.

llama.cpp and everything else that takes an imatrix reads such a file as one. Matrices that get the same input
share a *site*: their queries, keys and values, say. Of a site the sums of squares of its inputs and their
correlations, strictly below the diagonal, row by row, are kept as half floats (an error of at most 0.0003),
of each half of the text apart: what is chosen on one half is tried on the other.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.gguf_file import GgufHeader, TensorInfo, read_header, shown
from ..core.system_files import bytes_at
from .formats import F16, F32
from .imatrix_file import ActivationSums, write_imatrix

Floats = npt.NDArray[np.float32]

HALVES = 2
_KEYS = "kconv.statistics."
VERSION, MEMBERS, COUNTS, TEXTS = (_KEYS + key for key in ("version", "members", "counts", "texts_sha256"))
_VERSION = 1
_SQUARES, _CORRELATIONS = ".squares", ".correlations"
_MAKE = "make one of this checkpoint: kconv imatrix CHECKPOINT --full --text FILE"
# Rows of correlations unpacked at once.
ROWS = 64


def triangle(columns: int) -> int:
    """Numbers below the diagonal of a square matrix."""
    return columns * (columns - 1) // 2


@dataclass(frozen=True)
class SiteSums:
    """What was gathered of one site.

    ``squares`` float32 ``(2, columns)`` sums of squares, ``counts`` the positions in each half of the text;
    ``path`` a file with the correlations of both halves as they will be stored.
    """

    squares: Floats
    counts: tuple[int, int]
    path: Path


Member = tuple[str, int]
"""A matrix of a file: a tensor's name, and of a stack of experts' matrices which one."""


def write_statistics(
    path: Path,
    activations: ActivationSums,
    sites: Sequence[SiteSums],
    members: Mapping[Member, int],
    *,
    arch: str,
    texts_sha256: str,
    force: bool = False,
) -> None:
    """Write an imatrix with full statistics. ``members`` say which site each matrix belongs to.

    Raises OutputExists and EnvironmentProblem.
    """
    infos, sources = [], []
    for number, site in enumerate(sites):
        columns = site.squares.shape[1]
        infos.append(
            TensorInfo(_name(number, _SQUARES), site.squares.shape, F32.ggml_type, site.squares.nbytes)
        )
        sources.append(_array(site.squares))
        shape = (HALVES, triangle(columns))
        infos.append(TensorInfo(_name(number, _CORRELATIONS), shape, F16.ggml_type, 2 * math.prod(shape)))
        sources.append(_file(site.path))
    keys = {
        VERSION: _VERSION,
        MEMBERS: tuple(f"{name}:{expert}:{site}" for (name, expert), site in members.items()),
        COUNTS: tuple(count for site in sites for count in site.counts),
        TEXTS: texts_sha256,
    }
    more = list(zip(infos, sources, strict=True))
    write_imatrix(path, activations, arch=arch, force=force, keys=keys, more=more)


def _name(number: int, part: str) -> str:
    return f"site.{number}{part}"


def _array(values: Floats) -> Callable[[Any], None]:
    return lambda out: out.write(np.ascontiguousarray(values, "<f4").tobytes())


def _file(path: Path) -> Callable[[Any], None]:
    def copy(out: Any) -> None:
        with open(path, "rb") as source:
            shutil.copyfileobj(source, out, 1 << 24)

    return copy


@dataclass(frozen=True)
class Site:
    """A site in a file: its number, columns, positions in each half, and where its numbers lie."""

    number: int
    columns: int
    counts: tuple[int, int]
    squares_at: int
    correlations_at: int


@dataclass(frozen=True)
class FullStatistics:
    """A file of full statistics, opened by its header; correlations are read when they are asked for."""

    path: Path
    members: Mapping[Member, Site]
    sha256: str = ""

    def squares(self, site: Site) -> npt.NDArray[np.float32]:
        """Sums of squares of each half, float32 ``(2, columns)``. Raises InputError."""
        values = np.frombuffer(self._read(site.squares_at, 4 * HALVES * site.columns), "<f4")
        if not np.isfinite(values).all() or (values < 0).any():
            raise _refused(self.path, f"site {site.number} contains no sums of squares")
        return values.reshape(HALVES, site.columns)

    def correlations(self, site: Site, half: int, columns: int) -> Iterator[Floats]:
        """Those of the first ``columns`` inputs, ROWS rows at a time; from the diagonal on they are 0.

        Raises InputError where they are none.
        """
        base = site.correlations_at + 2 * half * triangle(site.columns)
        for start in range(0, columns, ROWS):
            stop = min(start + ROWS, columns)
            first, last = triangle(start), triangle(stop)
            packed = np.frombuffer(self._read(base + 2 * first, 2 * (last - first)), "<f2").astype(np.float32)
            if packed.size and not np.abs(packed).max() <= 1:
                raise _refused(self.path, f"site {site.number} contains values that are not correlations")
            rows = np.zeros((stop - start, stop), np.float32)
            for row in range(start, stop):
                rows[row - start, :row] = packed[triangle(row) - first : triangle(row + 1) - first]
            yield rows

    def _read(self, offset: int, count: int) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            data = bytes_at(file.fileno(), count, offset)
            while len(data) < count:  # more than two gigabytes come in parts
                more = bytes_at(file.fileno(), count - len(data), offset + len(data))
                if not more:
                    raise _refused(self.path, "was cut while it was in use")
                data += more
        return data


def is_full(header: GgufHeader) -> bool:
    """Whether an imatrix holds full statistics."""
    return VERSION in header.metadata


def read_statistics(path: Path, sha256: str = "") -> FullStatistics | None:
    """The full statistics of an imatrix file that was read before; None where it has none.

    Raises InputError where they are damaged, GgufError where the file is.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return None
    header = read_header(path)
    if not is_full(header):
        return None
    version = header.metadata[VERSION]
    if version != _VERSION:
        raise _refused(path, f"its statistics are of version {shown(version)}, expected {_VERSION}")
    sites = _sites(path, header)
    members: dict[Member, Site] = {}
    for text in _texts(path, header):
        name, _, rest = text.partition(":")
        expert, _, number = rest.partition(":")
        if not (expert.isdecimal() and number.isdecimal() and int(number) < len(sites)):
            raise _refused(path, f"{MEMBERS} contains {shown(text)}, expected a tensor, an expert and a site")
        members[name, int(expert)] = sites[int(number)]
    return FullStatistics(path, members, sha256)


def texts_of(path: Path) -> str | None:
    """The SHA-256 of the texts an imatrix was made of; None where it says nothing."""
    found = read_header(path).metadata.get(TEXTS)
    return found if isinstance(found, str) else None


def _texts(path: Path, header: GgufHeader) -> tuple[str, ...]:
    found = header.metadata.get(MEMBERS, ())  # an empty list is not written
    if not isinstance(found, tuple) or not all(isinstance(each, str) for each in found):
        raise _refused(path, f"{MEMBERS} is missing or no list of names")
    return found


def _sites(path: Path, header: GgufHeader) -> list[Site]:
    infos = {info.name: info for info in header.tensors}
    counts = header.metadata.get(COUNTS, ())
    if not isinstance(counts, tuple) or len(counts) % HALVES or not all(type(n) is int for n in counts):
        raise _refused(path, f"{COUNTS} is missing or no list of numbers")
    sites = []
    for number in range(len(counts) // HALVES):
        squares, packed = infos.get(_name(number, _SQUARES)), infos.get(_name(number, _CORRELATIONS))
        columns = squares.shape[-1] if squares is not None else 0
        if (
            squares is None
            or packed is None
            or (squares.shape, squares.ggml_type) != ((HALVES, columns), F32.ggml_type)
            or (packed.shape, packed.ggml_type) != ((HALVES, triangle(columns)), F16.ggml_type)
        ):
            raise _refused(path, f"the statistics of site {number} are missing or of another size")
        places = (header.data_offset + squares.offset, header.data_offset + packed.offset)
        sites.append(Site(number, columns, (counts[2 * number], counts[2 * number + 1]), *places))
    return sites


def _refused(path: Path, what: str) -> InputError:
    return InputError(f"the statistics {path}: {what}", hint=_MAKE)
