"""Which initializers of an ONNX folder made elsewhere are which tensors of the checkpoint.

Exporters keep the names of embeddings, norms and biases, and call matrices ``onnx::MatMul_743``, transposed.
So a tensor is first looked for by its name and then by its numbers, each way round: a few hundred of them are
enough to tell any two matrices of a model apart. Each graph of a folder is looked through by itself, since
two decoders may hold the same weights twice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.input_files import InputFile
from ..core.tensor import Array, DType, Tensor
from ..quant.ggml import widened
from ..runtimes.onnx_blocks import Blocks, Scaled, blocks_in, graph_of, scaled_in
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_model_file import Initializer, ModelFile
from ..runtimes.onnx_stored import stored_in

_KINDS = {1: DType.F32, 10: DType.F16, 16: DType.BF16}  # onnx.proto, TensorProto.DataType
_WHOLE = {2: np.dtype("u1"), 3: np.dtype("i1")}
_ROWS, _COLUMNS = 8, 256  # that are looked at
_FAR = 0.7  # relative error of what is still taken for the same matrix, changed
_FAR_VECTOR = 1e-2  # norms look alike
_MERGED = "_merged_0"  # what optimum adds to names where it joins two decoders

Shape = tuple[int, ...]
Floats64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """The initializer ``name`` of the graph ``path`` is ``tensor`` of the checkpoint.

    ``stored`` are its numbers in the checkpoint's orientation; ``blocks`` or ``scaled`` say how whole ones
    stand for them.
    """

    path: Path
    name: str
    tensor: Tensor
    stored: Tensor
    blocks: Blocks | None = None
    scaled: Scaled | None = None


def matches_of(folder: OnnxFolder, tensors: Mapping[str, Tensor]) -> list[Match]:
    """All that are found. Raises CheckpointError, InputError and EnvironmentProblem for unreadable files."""
    found = []
    samples = {name: _sample(tensor) for name, tensor in tensors.items()}
    for model in folder.models:
        stored = _numbers_of(model)
        named = list(_by_name(tensors, stored, samples))
        pairs, rest = named, {source for _, source, _ in named}
        for exclusive in (True, False):  # in the end tied matrices, and those that are there twice
            names = {name for name, *_ in pairs}
            left = {name: each for name, each in stored.items() if name not in names}
            wanted = {name: each for name, each in tensors.items() if not exclusive or name not in rest}
            pairs = [*pairs, *_by_numbers(wanted, left, samples, exclusive=exclusive)]
        for name, source, turned in pairs:
            each = stored[name]
            numbers = Tensor(source, tensors[source].shape, each.dtype, partial(each.read, turned))
            found.append(Match(model.path, name, tensors[source], numbers, each.blocks, each.scaled))
    return found


def _by_name(
    tensors: Mapping[str, Tensor], stored: Mapping[str, _Numbers], samples: Mapping[str, Floats64]
) -> Iterator[tuple[str, str, bool]]:
    """Initializer, tensor, and whether it is transposed, which of a square matrix the numbers say."""
    for source, tensor in tensors.items():
        for name in (source, source + _MERGED):
            shape = stored[name].shape if name in stored else None
            if shape == tensor.shape:
                yield name, source, _is_turned(stored[name], samples[source])
            elif shape is not None and shape == tensor.shape[::-1] and stored[name].blocks is None:
                yield name, source, True


def _is_turned(stored: _Numbers, sample: Floats64) -> bool:
    """Whether numbers of the tensor's shape are rather those of its transpose."""
    if stored.blocks is not None or len(stored.shape) != 2 or stored.shape[0] != stored.shape[1]:
        return False
    with np.errstate(all="ignore"):
        straight, turned = (((stored.sample(way) - sample) ** 2).sum() for way in (False, True))
    return bool(turned < straight)


def _by_numbers(
    tensors: Mapping[str, Tensor],
    stored: Mapping[str, _Numbers],
    samples: Mapping[str, Floats64],
    *,
    exclusive: bool,
) -> list[tuple[str, str, bool]]:
    """The closest ones, each initializer once and, if ``exclusive``, each tensor."""
    shapes: defaultdict[Shape, list[str]] = defaultdict(list)
    for source, tensor in tensors.items():
        shapes[tensor.shape].append(source)
    candidates: list[tuple[float, str, str, bool]] = []
    for shape, sources in shapes.items():
        right = np.stack([samples[source] for source in sources])
        for turned in (False, True) if len(shape) == 2 else (False,):
            names = [
                name
                for name, each in stored.items()
                if each.shape == (shape[::-1] if turned else shape) and not (turned and each.blocks)
            ]
            if not names or not right.size:
                continue
            theirs = np.stack([stored[name].sample(turned) for name in names])
            far = _FAR if len(shape) > 1 else _FAR_VECTOR
            for row, column, error in _close(theirs, right, far):
                candidates.append((error, names[row], sources[column], turned))
    return list(_chosen(sorted(candidates), exclusive=exclusive))


def _close(theirs: Floats64, right: Floats64, far: float) -> Iterator[tuple[int, int, float]]:
    """Rows of the two whose relative error is at most ``far``, and that."""
    with np.errstate(all="ignore"):
        squares, own = (theirs**2).sum(axis=1)[:, None], (right**2).sum(axis=1)
        errors = np.sqrt(np.maximum(squares + own - 2 * theirs @ right.T, 0) / np.maximum(own, 1e-300))
    for row, column in np.argwhere(errors <= far):
        exact = theirs[row] - right[column]
        yield int(row), int(column), float(np.sqrt((exact**2).sum() / max(own[column], 1e-300)))


def _chosen(
    candidates: Sequence[tuple[float, str, str, bool]], *, exclusive: bool
) -> Iterator[tuple[str, str, bool]]:
    names: set[str] = set()
    sources: set[str] = set()
    for _, name, source, turned in candidates:
        if name not in names and not (exclusive and source in sources):
            names.add(name)
            sources.add(source)
            yield name, source, turned


# Reading


@dataclass(frozen=True)
class _Numbers:
    """What a graph has under a name, of that shape: rows of it, or of its transpose (``turned``)."""

    shape: Shape
    dtype: DType
    read: Callable[[bool, int, int], Array]
    sample: Callable[[bool], Floats64]
    blocks: Blocks | None = None
    scaled: Scaled | None = None


def _numbers_of(model: ModelFile) -> dict[str, _Numbers]:
    every = stored_in(model)
    files = {each.path: InputFile(each.path) for each in every.values()}
    found = {}
    for name, each in every.items():
        if each.element in _KINDS:
            read, sample = partial(_read, each, files[each.path]), partial(_sample_of, each, files[each.path])
            found[name] = _Numbers(each.shape, _KINDS[each.element], read, sample)
    graph = graph_of(model)
    for name, blocks in blocks_in(graph, every).items():
        read = partial(_read_blocks, blocks, files)
        shape = (blocks.rows, blocks.columns)
        tensor = Tensor(name, shape, DType.F32, partial(read, False))
        found[name] = _Numbers(shape, DType.F32, read, partial(_sample_unturned, tensor), blocks)
    for name, scaled in scaled_in(graph, every).items():
        part, file = scaled.numbers, files[scaled.numbers.path]
        read = partial(_read_scaled, scaled, file)
        sample = partial(_sample_scaled, scaled, file)
        found[name] = _Numbers(part.shape, DType.F32, read, sample, scaled=scaled)
    return found


def _read_scaled(scaled: Scaled, file: InputFile, turned: bool, start: int, stop: int) -> Array:
    numbers = _read(scaled.numbers, file, turned, start, stop).astype(np.float32)
    scale, zero = scaled.scale, scaled.zero
    if turned:  # they are of the rows now
        scale, zero = (each if each.size == 1 else each[start:stop, None] for each in (scale, zero))
    made: Array = (numbers - zero) * scale
    return made


def _sample_scaled(scaled: Scaled, file: InputFile, turned: bool) -> Floats64:
    shape = scaled.numbers.shape[::-1] if turned else scaled.numbers.shape
    return _sample(Tensor("", shape, DType.F32, partial(_read_scaled, scaled, file, turned)))


def _read_blocks(
    blocks: Blocks, files: Mapping[Path, InputFile], turned: bool, start: int, stop: int
) -> Array:
    assert not turned
    return blocks.read(files, start, stop)


def _sample_unturned(tensor: Tensor, turned: bool) -> Floats64:
    assert not turned
    return _sample(tensor)


def _some(count: int, most: int) -> list[int]:
    """So many numbers below ``count``, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _places(shape: Shape) -> tuple[list[int], list[int]]:
    """Rows and columns that are looked at, of a vector as of a matrix of one row."""
    if len(shape) == 1:
        return [0], _some(shape[0], _ROWS * _COLUMNS)
    return _some(shape[0], _ROWS), _some(math.prod(shape[1:]), _COLUMNS)


def _sample(tensor: Tensor) -> Floats64:
    rows, columns = _places(tensor.shape)
    if len(tensor.shape) == 1:
        parts = [tensor.read(0, tensor.rows)]
    else:
        parts = [tensor.read(row, row + 1) for row in rows]
    return np.concatenate([widened(part, tensor.dtype).ravel()[columns] for part in parts]).astype(np.float64)


def _sample_of(stored: Initializer, file: InputFile, turned: bool) -> Floats64:
    """The same numbers of an initializer."""
    kind = _KINDS[stored.element]
    if not turned:
        return _sample(Tensor("", stored.shape, kind, partial(_rows, stored, file)))
    rows, columns = _places(stored.shape[::-1])
    assert stored.offset is not None
    size, width = kind.itemsize, stored.shape[1]
    places = (stored.offset + (column * width + row) * size for row in rows for column in columns)
    raw = b"".join(file.read(place, size) for place in places)
    return widened(np.frombuffer(raw, kind.storage), kind).astype(np.float64)


def _read(stored: Initializer, file: InputFile, turned: bool, start: int, stop: int) -> Array:
    """Rows of a tensor in the checkpoint's orientation."""
    return _columns(stored, file, range(start, stop)) if turned else _rows(stored, file, start, stop)


def _storage(stored: Initializer) -> np.dtype[Any]:
    return _WHOLE.get(stored.element) or _KINDS[stored.element].storage


def _rows(stored: Initializer, file: InputFile, start: int, stop: int) -> Array:
    kind, width = _storage(stored), math.prod(stored.shape[1:])
    assert stored.offset is not None
    size = width * kind.itemsize
    raw = file.read(stored.offset + start * size, (stop - start) * size)
    return np.frombuffer(raw, kind).reshape(stop - start, *stored.shape[1:])


def _columns(stored: Initializer, file: InputFile, columns: range) -> Array:
    """Neighbouring columns of a matrix, each as a row."""
    kind, (length, width) = _storage(stored), stored.shape
    assert stored.offset is not None
    if len(columns) * 8 > width:  # few reads of much
        whole = np.frombuffer(file.read(stored.offset, stored.nbytes), kind).reshape(length, width)
        return np.ascontiguousarray(whole[:, columns.start : columns.stop].T)
    size = kind.itemsize
    raw = b"".join(
        file.read(stored.offset + (row * width + columns.start) * size, len(columns) * size)
        for row in range(length)
    )
    return np.ascontiguousarray(np.frombuffer(raw, kind).reshape(length, len(columns)).T)
