"""Where a file went wrong: by its weights or in its runtime, and from which layer on."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..converters.family import AnyFamily
from ..converters.mapping import unmapped
from ..core.checkpoint import Checkpoint
from ..core.language import phrase
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..reference.model import Reference
from ..reference.reading import Reading
from ..reference.recompute import nmse
from ..runtimes.reader import WindowReader
from .proof import Diagnosis, LayerError, TensorError, layer_name

_TOKENS = 128
_WORST = 8
# What llama.cpp's arithmetic may add, as NMSE, by the coarsest format of the weights: it rounds activations
# to the type the weights are multiplied in, 8 bits for quantized ones (ggml-cpu, vec_dot_type).
_ARITHMETIC = {"f32": 1e-8, "f16": 1e-5, "bf16": 1e-3}
_ARITHMETIC_QUANTIZED = 1e-2
_GELU = 1e-4  # its table of half floats
_FLOOR = 1e-8  # of rounding in fp32, wherever it is done
_MATRICES = 3  # whose rounding adds up in what leaves a layer, as a rule
_JUMP = 4.0
_LARGEST = sys.float_info.max  # JSON knows no infinity


def diagnose(
    checkpoint: Checkpoint,
    family: AnyFamily,
    file: GgufFile,
    reader: WindowReader,
    window: Window,
    tensors: Sequence[TensorError],
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Read a window three times: the checkpoint in fp32, the file's weights in fp32, the file in its runtime.

    The second differs from the first by the weights alone and from the third by the runtime alone. Families
    with a GELU are read a fourth time, the file's weights in fp32 with llama.cpp's GELU. Raises
    RuntimeFailure, ChildDied.
    """
    window = replace(window, ids=window.ids[:_TOKENS], scored_from=0)
    original = Reference(checkpoint, family, threads=threads)
    truth = original.read([window], layers_of=window, progress=progress)
    stored = {info.name: file.tensor(info) for info in file.header.tensors}
    weights = unmapped(family, checkpoint, stored)
    same = Reference(checkpoint, family, weights=weights, threads=threads)
    dequantized = same.read([window], layers_of=window, progress=progress)
    outputs = reader.layers(window)
    layers = tuple(
        LayerError(i, nmse(with_weights, expected), nmse(got, with_weights))
        for i, (expected, with_weights, got) in enumerate(
            zip(truth.layers, dequantized.layers, outputs, strict=True)
        )
    )
    by_weights, by_runtime = _of_logits(truth, dequantized, reader, window)
    same_gelu = None
    if family.gelu:
        rounded = Reference(checkpoint, family, weights=weights, llama_cpps_gelu=True, threads=threads)
        alike = rounded.read([window], progress=progress)
        same_gelu = _of_logits(alike, alike, reader, window)[1]
    floor, arithmetic = _expected(tensors, gelu=family.gelu)
    first = _first(layers, floor, arithmetic)
    worst = tuple(tensor.name for tensor in _farthest(tensors))
    return Diagnosis(
        layers,
        by_weights,
        by_runtime,
        first,
        worst,
        _conclusion(layers, original.encoder_layers, first, by_weights, by_runtime, floor, arithmetic, worst),
        original.encoder_layers,
        same_gelu,
    )


def _of_logits(
    truth: Reading, dequantized: Reading, reader: WindowReader, window: Window
) -> tuple[float, float]:
    """NMSE of the logits of a window by the weights and by the runtime."""
    weights = runtime = 0.0
    blocks = 0
    for block in reader.logits([window]):
        stop = block.start + len(block.logits)
        middle = dequantized.logits(0, block.start, stop)
        weights += nmse(middle, truth.logits(0, block.start, stop)) * len(block.logits)
        runtime += nmse(block.logits, middle) * len(block.logits)
        blocks += len(block.logits)
    return min(weights / max(blocks, 1), _LARGEST), min(runtime / max(blocks, 1), _LARGEST)


def _expected(tensors: Sequence[TensorError], *, gelu: bool) -> tuple[float, float]:
    """The NMSE a layer may have by the format of its weights, and by llama.cpp's arithmetic with them."""
    own = [tensor.own_error for tensor in tensors if math.isfinite(tensor.own_error)]
    arithmetic = max(
        (_ARITHMETIC.get(tensor.format, _ARITHMETIC_QUANTIZED) for tensor in tensors),
        default=_ARITHMETIC_QUANTIZED,
    )
    weights = _MATRICES * max(own, default=0.0) ** 2
    return max(weights, _FLOOR), max(arithmetic, _GELU if gelu else 0.0)


def _first(layers: Sequence[LayerError], floor: float, arithmetic: float) -> int | None:
    """The first layer whose error is beyond the format's and several times that of the layer before."""
    before = (floor, arithmetic)
    for layer in layers:
        for error, last, allowed in zip(
            (layer.weights, layer.runtime), before, (floor, arithmetic), strict=True
        ):
            if error > _JUMP * max(last, allowed):
                return layer.layer
        before = (max(layer.weights, floor), max(layer.runtime, arithmetic))
    return None


def _farthest(tensors: Sequence[TensorError]) -> list[TensorError]:
    """Tensors whose error is largest beside that of their format."""
    ranked = sorted(tensors, key=lambda tensor: tensor.error / max(tensor.own_error, 1e-6), reverse=True)
    return [tensor for tensor in ranked[:_WORST] if tensor.state != "identical"]


def _conclusion(
    layers: Sequence[LayerError],
    encoder_layers: int,
    first: int | None,
    by_weights: float,
    by_runtime: float,
    floor: float,
    arithmetic: float,
    worst: Sequence[str],
) -> str:
    if first is not None:
        layer = layers[first]
        weights = layer.weights > _JUMP * floor and layer.weights >= layer.runtime
        error = max(layer.weights, layer.runtime)
        size = f"NMSE {error:.2g}" if error < _LARGEST else phrase("too large for a number")
        place = phrase("{layer} is the first whose output differs ({size})")
        place = place.of(layer=layer_name(first, encoder_layers), size=size)
        if weights:
            named = phrase("; check {tensors}").of(tensors=", ".join(worst[:3])) if worst else ""
            return phrase("{place}: the cause is the file's weights, not llama.cpp's computation{named}").of(
                place=place, named=named
            )
        return phrase(
            "{place}: llama.cpp computes something else from the same weights, so check the metadata"
        ).of(place=place)
    if by_weights > _JUMP * floor and by_weights >= by_runtime:
        return phrase(
            "the layers agree, but the logits do not: check the output matrix, its norm, and the embedding"
        )
    if by_runtime > _JUMP * arithmetic:
        return phrase("the layers agree, but llama.cpp computes other logits from them: check the metadata")
    share = by_weights / max(by_weights + by_runtime, 1e-30)
    return phrase(
        "no layer stands out: {share:.0%} of the error comes from rounding the weights, the rest "
        "from llama.cpp's arithmetic; if that is too much, the type is too coarse for this model"
    ).of(share=share)
