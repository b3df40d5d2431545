"""The weights of an ONNX folder against the checkpoint's, where it keeps their names, as kconv does.

A matrix in blocks of whole numbers is two initializers, ``<name>.blocks`` and ``<name>.scales`` (see
quant/onnx_packing.py). What is compared are the weights onnxruntime computes with: they have to be those of
the checkpoint stored in that format, which are those of a GGUF.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of
from ..converters.pieces import Piece, cut, work_through
from ..core.checkpoint import Checkpoint
from ..core.input_files import InputFile, quoted
from ..core.language import phrase
from ..core.progress import Progress, silent
from ..core.tensor import DType, Tensor
from ..quant.encoders import Encoder, encoder_of
from ..quant.formats import BF16, F16, F32, FORMATS, Q8_0, Format
from ..quant.ggml import Bytes, Floats, dequantize, widened
from ..quant.importance import Importance
from ..quant.onnx_packing import Packed, packed_shapes, unpacked
from ..quant.slabs import Scratch
from ..runtimes.onnx_blocks import Scaled
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_model_file import Initializer
from .chosen_codes import LARGER
from .onnx_codes import FolderCodes, bounded
from .onnx_graphs import is_own, with_todays
from .onnx_matched import Match, matches_of
from .onnx_rounding import nearest_scaled, rounded_in_blocks
from .proof import Finding, TensorError, TensorState, WeightsPart, verdict_of
from .weight_errors import Compared, measure, total

_FLOAT, _UINT8, _FLOAT16 = 1, 2, 10  # onnx.proto, TensorProto.DataType
_WHOLE = {_FLOAT: (F32, "<f4"), _FLOAT16: (F16, "<f2")}
_STORED_AS = {DType.F32: F32, DType.F16: F16, DType.BF16: BF16}
NOTHING_FOUND = phrase("none of the checkpoint's tensors is found in the graphs, by name or by its numbers")
_LAYER = re.compile(r"\.(?:layers|block|h)\.(\d+)\.")
_MOST = 8  # findings
_LARGER, _SLOPE = 2.0, 0.02  # blocks of others: times the error of the nearest numbers, and what is scaled


@dataclass(frozen=True)
class Pair:
    """A tensor of the checkpoint, and what it is in the folder.

    ``stored`` are its numbers in a folder made elsewhere, in the checkpoint's orientation; ``block`` columns
    share a scale, or all, as ``scaled`` says (0 and None: they are floats). ``chosen``: its codes were chosen
    by statistics nobody has here.
    """

    tensor: Tensor
    format: Format
    parts: tuple[Initializer, ...]
    stored: Tensor | None = None
    block: int = 0
    scaled: Scaled | None = None
    chosen: bool = False


def check_folder_weights(
    folder: OnnxFolder,
    checkpoint: Checkpoint,
    family: AnyFamily,
    *,
    threads: int,
    progress: Progress = silent,
    codes: FolderCodes | None = None,
) -> WeightsPart:
    """Compare what the folder has under names of the checkpoint; ``not run`` where it has none of them.

    ``codes`` say how those of its quantized matrices were chosen, if they were.

    What kconv has written holds every weight under such a name, and nothing else; others keep some of the
    names. Raises CheckpointError and EnvironmentProblem where one of the two cannot be read.
    """
    if not is_own(folder):
        return _of_others(folder, checkpoint, family, threads, progress)
    both = [
        counterpart(name, tensor, file.external)
        for file in folder.models
        for name, tensor in family.upright(checkpoint.tensors).items()
    ]
    pairs = list({each.parts: each for each in both if isinstance(each, Pair)}.values())  # graphs share them
    findings = [each for each in dict.fromkeys(both) if isinstance(each, Finding)]
    findings += _one_sided(folder, checkpoint, family)
    if not pairs and not findings:
        return WeightsPart("not run")
    importance = None if codes is None else codes.importance
    if codes is not None and importance is None:
        pairs = [replace(pair, chosen=len(pair.parts) > 1) for pair in pairs]
    return _part(pairs, findings, threads, progress, importance)


def _of_others(
    folder: OnnxFolder, checkpoint: Checkpoint, family: AnyFamily, threads: int, progress: Progress
) -> WeightsPart:
    """What is found by names and numbers; what is not (1 + a norm's weights) the runtime part judges."""
    matches = matches_of(folder, checkpoint.tensors)
    pairs = [
        Pair(
            each.tensor,
            _format_of(each),
            (),
            each.stored,
            0 if each.blocks is None else each.blocks.size,
            each.scaled,
        )
        for each in matches
    ]
    found = {each.tensor.name for each in matches}
    found |= {alias for alias, of in checkpoint.aliases.items() if of in found}
    found |= {of for alias, of in checkpoint.aliases.items() if alias in found}
    used = dict.fromkeys(name for each in sources_of(family, checkpoint).values() for name in each)
    missing = [name for name in used if name in checkpoint.tensors and name not in found]
    if not pairs:
        return WeightsPart("not compared", (), (Finding("weights", NOTHING_FOUND, grave=False),))
    part = _part(pairs, [], threads, progress)
    if not missing:
        return part
    message = phrase("not found among the graphs' weights, by name or by numbers: {names}")
    message = message.of(names=", ".join(missing[:_MOST]) + (" …" if len(missing) > _MOST else ""))
    findings = (*part.findings, Finding(missing[0], message, grave=False))
    return replace(part, verdict=verdict_of(findings), findings=findings, not_compared=len(missing))


def _part(
    pairs: Sequence[Pair],
    findings: list[Finding],
    threads: int,
    progress: Progress,
    importance: Importance | None = None,
) -> WeightsPart:
    every = _compare(pairs, threads, progress, importance)
    errors = [_error(pair, compared) for pair, compared in zip(pairs, every, strict=True)]
    wrong = [error for error in errors if error.state == "differs"]
    findings += [_finding(error) for error in wrong[:_MOST]]
    if len(wrong) > _MOST:
        findings.append(
            Finding("weights", phrase("{count} more tensors have other weights").of(count=len(wrong) - _MOST))
        )
    return WeightsPart(verdict_of(tuple(findings)), tuple(errors), tuple(findings))


def _one_sided(folder: OnnxFolder, checkpoint: Checkpoint, family: AnyFamily) -> Iterator[Finding]:
    """Tensors only the checkpoint or only a folder of kconv's has."""
    for file, graph in with_todays(folder, checkpoint, family):
        stored = {re.sub(r"\.(blocks|scales)$", "", name) for name in file.external}
        for name in (name for name in graph.weights if name not in stored):
            shape = str(list(graph.weights[name].tensor.shape))
            message = phrase("tensor {name} of the checkpoint is not among the weights of {file}").of(
                name=name, file=file.path.name
            )
            yield Finding(name, message, shape, "missing")
        for name in sorted(stored - graph.weights.keys()):
            shown = quoted(name)[1:-1]
            message = phrase("{file} has a tensor {shown} that the checkpoint does not have there").of(
                file=file.path.name, shown=shown
            )
            yield Finding(shown, message, "none", phrase("a tensor of that name"))


def counterpart(name: str, tensor: Tensor, stored: Mapping[str, Initializer]) -> Pair | Finding | None:
    """The tensor's counterpart, what is wrong with it, or None where the folder has none of that name."""
    whole, blocks, scales = (stored.get(f"{name}{end}") for end in ("", ".blocks", ".scales"))
    if whole is not None:
        if whole.shape == tensor.shape and whole.element in _WHOLE:
            return Pair(tensor, _WHOLE[whole.element][0], (whole,))
        return _misshapen(name, tensor, whole)
    if blocks is None or scales is None:
        return None
    if len(tensor.shape) == 2 and blocks.element == _UINT8 and scales.element in _WHOLE:
        for format in (FORMATS["q4_0"], Q8_0):
            if tensor.shape[1] % format.block_size:
                continue
            shapes = packed_shapes(format, tensor.shape)
            if math.prod(blocks.shape) == math.prod(shapes.weights) and scales.shape == shapes.scales:
                return Pair(tensor, format, (blocks, scales))
    return _misshapen(name, tensor, blocks)


def _misshapen(name: str, tensor: Tensor, stored: Initializer) -> Finding:
    message = phrase("{name} does not have the shape or type expected for the checkpoint's").of(name=name)
    return Finding(
        name, message, str(list(tensor.shape)), f"{list(stored.shape)}, element type {stored.element}"
    )


def _compare(
    pairs: Sequence[Pair], threads: int, progress: Progress, importance: Importance | None
) -> list[Compared]:
    files = {part.path: InputFile(part.path) for pair in pairs for part in pair.parts}
    results: dict[Piece, Compared] = {}

    def work(rows: Piece, scratch: Scratch) -> int:
        pair = pairs[rows.index]
        results[rows] = _compare_piece(pair, files, rows, scratch, importance)
        return pair.tensor.nbytes * (rows.stop - rows.start) // max(1, pair.tensor.rows)

    tensors = [pair.tensor for pair in pairs]
    size = sum(tensor.nbytes for tensor in tensors)
    work_through(cut(tensors), work, threads=threads, stage="weights", total=size, progress=progress)
    parts: list[list[tuple[int, Compared]]] = [[] for _ in pairs]
    for rows, compared in results.items():
        parts[rows.index].append((rows.start, compared))
    return [total(compared for _, compared in sorted(part, key=lambda item: item[0])) for part in parts]


def _compare_piece(
    pair: Pair,
    files: Mapping[Path, InputFile],
    rows: Piece,
    scratch: Scratch,
    importance: Importance | None,
) -> Compared:
    tensor, format = pair.tensor, pair.format
    matrix = len(tensor.shape) > 1
    shape = (rows.stop - rows.start, tensor.row_elements) if matrix else (1, rows.stop - rows.start)
    source = tensor.read(rows.start, rows.stop)
    formats = (F32,) if pair.block or pair.scaled else (F32, format)
    encoder = Encoder(formats, kernels="none")
    if importance is not None:
        encoder = encoder_of(tensor, formats, importance)
    slab = encoder.encode(source, tensor.dtype, scratch, rows.start)
    weights = slab.data[0].view(np.float32).reshape(shape)
    if pair.scaled is not None:
        right = nearest_scaled(weights, pair.scaled, slice(rows.start, rows.stop), tensor.shape)
    elif pair.block:
        right = rounded_in_blocks(weights, pair.block, 8 if format == Q8_0 else 4)
    else:
        right = weights if format == F32 else dequantize(format, slab.data[1], shape)
    if pair.stored is not None:
        ours = widened(pair.stored.read(rows.start, rows.stop), pair.stored.dtype).reshape(shape)
    else:
        raw = [read_part(part, files[part.path], tensor.rows, rows) for part in pair.parts]
        ours = weights_of(pair, raw, shape)
    ours, right = (np.ascontiguousarray(each, np.float32) for each in (ours, right))
    compared = measure(weights, _bytes(ours), _bytes(right), F32, rows.start if matrix else 0)
    if not pair.chosen:
        return compared
    least = -128 if format == Q8_0 else -8
    return bounded(compared, weights, ours, _scales(pair, raw, shape[0]), least, rows.start)


def _scales(pair: Pair, raw: Sequence[bytes], rows: int) -> Floats:
    """Those of a matrix in blocks, ``(rows, blocks)``."""
    stored = np.frombuffer(raw[1], _WHOLE[pair.parts[1].element][1])
    return stored.astype(np.float32).reshape(rows, -1)


def _bytes(values: Floats) -> Bytes:
    return values.reshape(-1).view(np.uint8)


def read_part(part: Initializer, file: InputFile, count: int, rows: Piece) -> bytes:
    """The bytes of some of the ``count`` rows of a part."""
    assert part.offset is not None
    size = part.nbytes // max(1, count)
    return file.read(part.offset + size * rows.start, size * (rows.stop - rows.start))


def weights_of(pair: Pair, raw: Sequence[bytes], shape: tuple[int, int]) -> Floats:
    """The weights (rows, columns) onnxruntime computes with."""
    if len(raw) == 1:
        stored = np.frombuffer(raw[0], _WHOLE[pair.parts[0].element][1])
        return stored.astype(np.float32).reshape(shape)
    blocks = shape[1] // pair.format.block_size
    numbers = np.frombuffer(raw[0], np.uint8).reshape(shape[0], blocks, -1)
    return unpacked(pair.format, Packed(numbers, _scales(pair, raw, shape[0])))


def _error(pair: Pair, compared: Compared) -> TensorError:
    layer = _LAYER.search(pair.tensor.name)
    return TensorError(
        pair.tensor.name,
        pair.format.name,
        int(layer[1]) if layer else None,
        _state(pair, compared),
        compared.stored.error,
        compared.own.error if compared.own is not None else compared.stored.error,
        compared.worst_row,
        compared.worst_row_error,
        compared.stored.slope,
    )


def _state(pair: Pair, compared: Compared) -> TensorState:
    if compared.same:
        return "identical"
    own = compared.own
    if not (pair.block or pair.scaled or pair.chosen) or own is None or compared.not_finite:
        return "differs"
    error, slope = compared.stored.error, compared.stored.slope
    larger = LARGER if pair.chosen else _LARGER
    near = error <= larger * own.error and abs(slope - 1) <= _SLOPE + own.error**2
    return "within" if near and not compared.far.count else "differs"


def _format_of(match: Match) -> Format:
    if match.scaled is not None:
        return Q8_0
    if match.blocks is None:
        return _STORED_AS[match.stored.dtype]
    return Q8_0 if match.blocks.bits == 8 else FORMATS["q4_0"]


def _finding(error: TensorError) -> Finding:
    message = phrase("{name} differs from the checkpoint's weights stored as {format}").of(
        name=error.name, format=error.format
    )
    own, actual = (phrase("relative error {error:.4g}").of(error=e) for e in (error.own_error, error.error))
    return Finding(error.name, message, own, actual)
