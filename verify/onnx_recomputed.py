"""Whether onnxruntime computes what a folder contains: what enters every matrix, computed again.

As for llama.cpp (recomputed.py), with the same limit. The graph is run with what flows into its matrices as
outputs besides; nothing else of it changes. Measured in f32, f16, q8_0 and q4_0 at accuracy levels 0 and 4,
42dot and KEByT5: the largest NMSE was 3e-13. At level 4 inputs become 8-bit numbers in blocks of 32; on x86
FLOAT16 matrices are multiplied in float32, and no input is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of
from ..converters.pieces import Piece
from ..core.errors import InputError
from ..core.input_files import InputFile, quoted
from ..core.language import phrase
from ..core.tensor import Array, DType, Tensor
from ..core.windows import Window
from ..quant.ggml import Floats
from ..quant.onnx_packing import BLOCK
from ..reference.copies import Matrix
from ..reference.ggml_rounding import Rounding
from ..reference.model import Reference
from ..reference.recompute import LOGITS, Recomputation
from ..runtimes.matrix_inputs import MatrixInput
from ..runtimes.onnx_blocks import graph_of, whole_in
from ..runtimes.onnx_experts import by_position
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_process import OnnxProcess
from ..runtimes.onnx_taps import HALF, WHOLE
from .inputs import Expected, VerifyOptions
from .onnx_graphs import is_own
from .onnx_matched import Match, matches_of
from .onnx_tied import by_use, head_name
from .onnx_weights import Pair, counterpart, read_part, weights_of
from .proof import Finding, RuntimePart
from .recomputed import LIMIT, QUICK, Sample, runtime_part, sample_of

_STEPS = 8
_ROUNDINGS: Mapping[int, Rounding] = {
    16: "int8_16", BLOCK: "int8", 64: "int8_64", 128: "int8_128", 256: "int8_256"
}  # fmt: skip
LIMIT_IN_HALVES = 1e-5
"""Of the NMSE of what enters a matrix where all that flows is FLOAT16."""
_NO_OUTPUT = phrase("no product with the output matrix is found in the graph")
_EXPERTS = phrase("experts of a graph made elsewhere are not followed")
_UNKNOWN = phrase("it is not known which of the checkpoint's matrices {name} is, in whole numbers")
_TWO_WAYS = phrase("{name} is stored in two ways, of which the reference can hold one")
_LARGE_BLOCKS = phrase("at accuracy level 4 inputs are rounded in blocks of {size}, which is not followed")
_OPERATORS = phrase("the graph multiplies by quantized weights with {operators}, which is not followed")
_QUANTIZED = frozenset(
    {
        "com.microsoft.DynamicQuantizeMatMul",
        "com.microsoft.MatMulIntegerToFloat",
        "com.microsoft.QMoE",
        "com.microsoft.MatMulBnb4",
        "com.microsoft.GatherBlockQuantized",
        "QLinearMatMul",
    }
)
_Tapped = Mapping[tuple[str, str], tuple[MatrixInput, int]]
_HEADS = ("output.weight", "token_embd.weight")  # what the output matrix is called in a GGUF


def check_folder_runtime(
    folder: OnnxFolder, expected: Expected, window: Window, options: VerifyOptions
) -> tuple[RuntimePart, Sample | None]:
    """Compute the first positions of a window again, which were read at once and, the last, one by one.

    In a folder made elsewhere matrices are known by their numbers (onnx_matched.py). A tensor that is not
    found there the checkpoint lends: with another one in its place the folder computes something else, which
    shows. ``not compared``, with the reason, where that cannot be done. Raises RuntimeFailure where
    onnxruntime cannot read the folder, ChildDied, which says nothing about it.
    """
    own = is_own(folder)
    reason = None if own else _not_followed(folder, expected)
    if reason is not None:
        return _not_compared(reason), None
    tensors = expected.checkpoint.tensors
    matches = [] if own else by_use(folder, matches_of(folder, tensors), expected)
    if not own and (reason := _unfound(folder, matches)) is not None:
        return _not_compared(reason), None
    weights = (
        _weights(folder, expected.family, tensors)
        if own
        else {**tensors, **{each.tensor.name: each.stored for each in matches}}
    )
    try:
        options.progress("starting the reference", 0, 0)
        reference = Reference(expected.checkpoint, expected.family, weights=weights, threads=options.threads)
    except InputError as error:  # what is missing the weights part names
        return _not_compared(error.message), None
    window = replace(window, ids=window.ids[:QUICK], scored_from=0)
    names = {(each.path.name, each.name): each.tensor.name for each in matches}
    logits, every = _read_tapped(folder, expected, window, options)
    tapped = _by_tensor(every, None if own else names)
    head = _head(expected, tapped)
    if head is None and own and not expected.family.encoder_only:
        return _not_compared(_NO_OUTPUT), None
    sizes = {each.tensor.name: each.blocks.size for each in matches if each.blocks is not None}
    roundings = {
        name: Matrix(name, _ROUNDINGS[sizes.get(name, BLOCK)] if level & ~HALF == 4 else "none", None)
        for name, (_, level) in tapped.items()
    }
    module = expected.family.reference.module
    matrices = {module(name): matrix for name, matrix in roundings.items() if name != head}
    last = None if expected.family.encoder_only else Matrix(LOGITS, "none", None)
    last = last if head is None else roundings[head]
    recomputation = Recomputation(reference, matrices, last, gelu_table=False)
    inputs: Mapping[str, MatrixInput] = by_position({name: values for name, (values, _) in tapped.items()})
    told = any(level & WHOLE for _, level in tapped.values())  # how inputs are rounded only onnxruntime says
    free = not expected.family.encoder_only and not told  # an encoder has no logits to sample
    computed = recomputation.compute(window, inputs, logits, options.progress, free=free)
    if not own:  # what was not seen to be multiplied may be multiplied otherwise
        computed = replace(computed, unused=())
    halves = any(level & HALF for _, level in tapped.values())
    limit = LIMIT_IN_HALVES if halves else LIMIT
    part = runtime_part(computed, len(window.ids), gelu=False, runtime="onnxruntime", limit=limit)
    return part, sample_of(computed, logits)


def _read_tapped(
    folder: OnnxFolder, expected: Expected, window: Window, options: VerifyOptions
) -> tuple[Floats, _Tapped]:
    """What onnxruntime makes of the window, and what it multiplied on the way."""
    with OnnxProcess(folder, threads=options.threads, tapped=True) as process:
        if expected.family.encoder_only:
            logits = process.embed(window.ids)[0][0]
        else:
            process.begin(window.source)
            logits = np.concatenate([process.read(piece, len(piece)) for piece in _pieces(window.ids)])
        return logits, process.inputs()


def _by_tensor(
    tapped: _Tapped, names: Mapping[tuple[str, str], str] | None
) -> dict[str, tuple[MatrixInput, int]]:
    """By the checkpoint's names, if the graphs do not have these; the decoders' one after the other."""
    found: dict[str, tuple[MatrixInput, int]] = {}
    for key, (given, level) in tapped.items():
        name = key[1] if names is None else names.get(key)
        if name is None:
            continue
        parts = [*([found[name][0]] if name in found else []), given]
        rounded = [each.rounded for each in parts if each.rounded is not None]
        values = np.concatenate([each.values for each in parts])
        found[name] = (MatrixInput(values, rounded=np.concatenate(rounded) if rounded else None), level)
    return found


def _not_compared(reason: str) -> RuntimePart:
    return RuntimePart("not compared", findings=(Finding("graph", reason, grave=False),))


def _not_followed(folder: OnnxFolder, expected: Expected) -> str | None:
    """Why what a folder made elsewhere computes cannot be computed again; None where it can."""
    if any(".experts." in name for name in expected.checkpoint.tensors):
        return _EXPERTS
    unknown = sorted(folder.operators & _QUANTIZED)
    if unknown:
        return _OPERATORS.of(operators=", ".join(each.rpartition(".")[2] for each in unknown))
    return None


def _unfound(folder: OnnxFolder, matches: Sequence[Match]) -> str | None:
    """Why matrices in blocks cannot be computed with, if some cannot."""
    known = {(each.path, each.name) for each in matches if each.blocks or each.scaled}
    kinds: dict[str, object] = {}
    for each in matches:
        kind = each.stored.dtype, each.blocks and (each.blocks.bits, each.blocks.size), _scale_of(each)
        if kinds.setdefault(each.tensor.name, kind) != kind:
            return _TWO_WAYS.of(name=each.tensor.name)
    for file in folder.models:
        for node, name in whole_in(graph_of(file)):
            attributes = {each.name: each.i for each in node.attribute}
            if (file.path, name) not in known:
                return _UNKNOWN.of(name=quoted(name)[1:-1])
            if attributes.get("accuracy_level", 0) == 4 and attributes.get("block_size") not in _ROUNDINGS:
                return _LARGE_BLOCKS.of(size=attributes.get("block_size", 0))
    return None


def _scale_of(match: Match) -> object:
    return match.scaled and (match.scaled.scale.tobytes(), match.scaled.zero.tobytes())


def _pieces(ids: Sequence[int]) -> list[Sequence[int]]:
    """What is read at once, so that a wrong cache departs like any other wrong graph."""
    first = max(1, len(ids) - _STEPS)
    return [ids[:first], *((token,) for token in ids[first:])]


def _head(expected: Expected, tapped: Mapping[str, object]) -> str | None:
    """The output matrix, in the checkpoint's words; None where nothing was seen to be multiplied by it."""
    sources = sources_of(expected.family, expected.checkpoint)
    names = (name for target in _HEADS for name in sources.get(target, ()))
    return next((name for name in (head_name(expected), *names) if name in tapped), None)


def _weights(folder: OnnxFolder, family: AnyFamily, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What onnxruntime computes with, by the checkpoint's names and turned as there, lazily."""
    found: dict[str, Tensor] = {}
    for file in folder.models:
        stored = file.external
        for name, tensor in family.upright(tensors).items():
            pair = None if name in found else counterpart(name, tensor, stored)
            if isinstance(pair, Pair):
                files = {part.path: InputFile(part.path) for part in pair.parts}
                found[name] = replace(tensor, dtype=DType.F32, read=partial(_read, pair, files))
    return family.upright(found)


def _read(pair: Pair, files: Mapping[Path, InputFile], start: int, stop: int) -> Array:
    tensor, rows = pair.tensor, Piece(0, start, stop)
    raw = [read_part(part, files[part.path], tensor.rows, rows) for part in pair.parts]
    values = weights_of(pair, raw, (stop - start, math.prod(tensor.shape[1:])))
    return values.reshape(stop - start, *tensor.shape[1:])
