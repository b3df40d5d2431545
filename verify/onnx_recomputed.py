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

from ..converters.mapping import sources_of
from ..converters.pieces import Piece
from ..core.errors import InputError
from ..core.input_files import InputFile
from ..core.tensor import Array, DType, Tensor
from ..core.windows import Window
from ..reference.copies import Matrix, MatrixInput
from ..reference.model import Reference
from ..reference.recompute import Recomputation
from ..runtimes.onnx_experts import by_position
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_process import OnnxProcess
from .inputs import Expected, VerifyOptions
from .onnx_graphs import is_own
from .onnx_weights import Pair, counterpart, read_part, weights_of
from .proof import RuntimePart
from .recomputed import QUICK, Sample, runtime_part, sample_of

_STEPS = 8
_HEADS = ("output.weight", "token_embd.weight")  # what the output matrix is called in a GGUF


def check_folder_runtime(
    folder: OnnxFolder, expected: Expected, window: Window, options: VerifyOptions
) -> tuple[RuntimePart, Sample | None]:
    """Compute the first positions of a window again, which were read at once and, the last, one by one.

    ``not run`` where the folder does not have the weights under the checkpoint's names and where its decoder
    is a merged one, whose matrices lie in branches. Raises RuntimeFailure where onnxruntime cannot read the
    folder, ChildDied, which says nothing about it.
    """
    if not is_own(folder):
        return RuntimePart("not run"), None
    weights = _weights(folder, expected.checkpoint.tensors)
    try:
        options.progress("starting the reference", 0, 0)
        reference = Reference(expected.checkpoint, expected.family, weights=weights, threads=options.threads)
    except InputError:  # what is missing the weights part names
        return RuntimePart("not run"), None
    window = replace(window, ids=window.ids[:QUICK], scored_from=0)
    with OnnxProcess(folder, threads=options.threads, tapped=True) as process:
        if expected.family.encoder_only:
            logits = process.embed(window.ids)[0][0]
        else:
            process.begin(window.source)
            logits = np.concatenate([process.read(piece, len(piece)) for piece in _pieces(window.ids)])
        tapped = process.inputs()
    head = _head(expected, tapped)
    if head is None and not expected.family.encoder_only:
        return RuntimePart("not run"), None
    roundings = {
        name: Matrix(name, "int8" if level == 4 else "none", None) for name, (_, level) in tapped.items()
    }
    module = expected.family.reference.module
    matrices = {module(name): matrix for name, matrix in roundings.items() if name != head}
    last = None if head is None else roundings[head]
    recomputation = Recomputation(reference, matrices, last, gelu_table=False)
    inputs: Mapping[str, MatrixInput] = by_position({name: values for name, (values, _) in tapped.items()})
    free = not expected.family.encoder_only  # an encoder has no logits to sample
    computed = recomputation.compute(window, inputs, logits, options.progress, free=free)
    part = runtime_part(computed, len(window.ids), gelu=False, runtime="onnxruntime")
    return part, sample_of(computed, logits)


def _pieces(ids: Sequence[int]) -> list[Sequence[int]]:
    """What is read at once, so that a wrong cache departs like any other wrong graph."""
    first = max(1, len(ids) - _STEPS)
    return [ids[:first], *((token,) for token in ids[first:])]


def _head(expected: Expected, tapped: Mapping[str, object]) -> str | None:
    """The output matrix, in the checkpoint's words; None where nothing was seen to be multiplied by it."""
    sources = sources_of(expected.family, expected.checkpoint)
    names = (name for target in _HEADS for name in sources.get(target, ()))
    return next((name for name in names if name in tapped), None)


def _weights(folder: OnnxFolder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What onnxruntime computes with, by the checkpoint's names, lazily."""
    found: dict[str, Tensor] = {}
    for file in folder.models:
        stored = file.external
        for name, tensor in tensors.items():
            pair = None if name in found else counterpart(name, tensor, stored)
            if isinstance(pair, Pair):
                files = {part.path: InputFile(part.path) for part in pair.parts}
                found[name] = replace(tensor, dtype=DType.F32, read=partial(_read, pair, files))
    return found


def _read(pair: Pair, files: Mapping[Path, InputFile], start: int, stop: int) -> Array:
    tensor, rows = pair.tensor, Piece(0, start, stop)
    raw = [read_part(part, files[part.path], tensor.rows, rows) for part in pair.parts]
    values = weights_of(pair, raw, (stop - start, math.prod(tensor.shape[1:])))
    return values.reshape(stop - start, *tensor.shape[1:])
