"""GBST, the front end of GBST-KEByT5, as part of an encoder's graph.

The steps are those of kconv.converters.families.gbst.front_end, where they are explained (arXiv 2106.12672).
Everything is computed in float32 and laid out as convolutions want it: values ``(batch, width, length)``, the
mask ``(batch, 1, length)`` with 1.0 for text and 0.0 for padding.

Neighbours are averaged by pooling. Padding counts in no mean: values outside the mask are 0, and the pooled
values are divided by the pooled mask, so that the divisor (the block's size, at the end of the text too)
falls out. What pooling reads beyond the end is 0 in both. The embeddings of padding are 0 as well, which the
convolution reads at the end of a shorter text of a batch: each text is what it is by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...onnx.flavour import Given
from ...onnx.graph import Element, Graph
from ...onnx.masks import additive_mask, for_queries
from .settings import CONVOLUTION, EMBEDDING, NORM, NORM_EPSILON, PROJECTION, SCORE, GbstSettings


@dataclass(frozen=True)
class GbstFront:
    """A front end of those ``settings`` as the graphs of a T5 body know it (t5.shape.EncoderFront)."""

    settings: GbstSettings

    @property
    def embedding(self) -> str:
        """The table of byte embeddings."""
        return EMBEDDING

    @property
    def factor(self) -> int:
        """How many bytes become one position."""
        return self.settings.factor

    def embedded(self, graph: Graph, values: str, mask: str) -> tuple[str, str]:
        """See the function."""
        return embedded(graph, values, mask, self.settings)

    def resized_mask(self, graph: Graph, mask: str) -> str:
        """See the function."""
        return resized_mask(graph, mask, self.settings)


def embedded(graph: Graph, values: str, mask: str, settings: GbstSettings) -> tuple[str, str]:
    """Byte embeddings to what enters the encoder.

    ``values (batch, length, width)``, ``mask (batch, length)`` of int64 to values ``(batch, positions,
    width)`` and mask ``(batch, positions)``, for ``ceil(length / factor)`` positions.
    """
    attended = _attended(graph, mask)
    values = graph.op("Mul", graph.op("Transpose", values, perm=(0, 2, 1)), attended)
    values = graph.op("Mul", _convolved(graph, values, settings), attended)
    blocks, scores = _candidates(graph, values, attended, settings)
    weights = graph.op("Softmax", graph.op("Concat", *scores, axis=1), axis=1)
    if settings.consensus:
        weights = _consensus(graph, weights, mask)
    parts = graph.ops("Split", weights, outputs=[None] * len(blocks), axis=1, num_outputs=len(blocks))
    mixed = graph.op("Sum", *(graph.op("Mul", *pair) for pair in zip(blocks, parts, strict=True)))
    means = _means(graph, graph.op("Mul", mixed, attended), attended, settings.factor)
    return graph.op("Transpose", means, perm=(0, 2, 1)), resized_mask(graph, mask, settings)


def resized_mask(graph: Graph, mask: str, settings: GbstSettings) -> str:
    """Mask ``(batch, length)`` of the bytes to that of positions: 1 where any of its bytes is text."""
    pooled = _pooled(graph, "MaxPool", _attended(graph, mask), settings.factor)
    return graph.cast(graph.op("Squeeze", pooled, graph.integers(1)), Element.INT64)


def _attended(graph: Graph, mask: str) -> str:
    floats = graph.cast(graph.cast(mask, Element.BOOL), Element.FLOAT)
    return graph.op("Unsqueeze", floats, graph.integers(1))


def _pooled(graph: Graph, kind: str, values: str, size: int, **attributes: int) -> str:
    """Each ``size`` neighbours as one, the last block cut short by the end of the text."""
    windows = {"kernel_shape": (size,), "strides": (size,), "pads": (0, size - 1)}
    return graph.op(kind, values, name=None, **windows, **attributes)


def _convolved(graph: Graph, values: str, settings: GbstSettings) -> str:
    """Depth-wise convolution over the following positions, batch norm, 1×1 convolution."""
    kernel, bias = graph.weight(CONVOLUTION + "weight"), graph.weight(CONVOLUTION + "bias")
    values = graph.op("Conv", values, kernel, bias, group=settings.width, pads=(0, settings.kernel - 1))
    if settings.norm:
        terms = [graph.weight(NORM + key) for key in ("weight", "bias", "running_mean", "running_var")]
        values = graph.op("BatchNormalization", values, *terms, epsilon=NORM_EPSILON)
    return graph.op("Conv", values, graph.weight(PROJECTION + "weight"), graph.weight(PROJECTION + "bias"))


def _candidates(
    graph: Graph, values: str, attended: str, settings: GbstSettings
) -> tuple[list[str], list[str]]:
    """By size every position's block ``(batch, width, length)`` and its score ``(batch, 1, length)``."""
    length = graph.op("Squeeze", graph.op("Shape", values, start=2))
    positions = graph.op("Range", graph.number(0, Element.INT64), length, graph.number(1, Element.INT64))
    blocks, scores = [], []
    for size in settings.blocks:
        means = _means(graph, values, attended, size)
        score = graph.op("MatMul", graph.weight(SCORE + "weight"), means)
        score = graph.op("Add", score, graph.weight(SCORE + "bias"))
        block = graph.op("Div", positions, graph.number(size, Element.INT64))
        blocks.append(graph.op("Gather", means, block, axis=2))
        scores.append(graph.op("Gather", score, block, axis=2))
    return blocks, scores


def _means(graph: Graph, values: str, attended: str, size: int) -> str:
    """Means over the text among each ``size`` neighbours, 0 where there is none: (batch, width, blocks)."""
    if size == 1:
        return values
    sums = _pooled(graph, "AveragePool", values, size, count_include_pad=1)
    counts = _pooled(graph, "AveragePool", attended, size, count_include_pad=1)
    return graph.op("Div", sums, graph.op("Max", counts, graph.number(0.5 / size)))


def _consensus(graph: Graph, scores: str, mask: str) -> str:
    """Scores ``(batch, sizes, length)`` attending to each other: softmax(S·Sᵀ)·S over the text."""
    bias = for_queries(graph, additive_mask(graph, mask), graph.op("Shape", mask, start=1))
    rows = graph.op("Transpose", scores, perm=(0, 2, 1))
    averaged = graph.flavour.attended_all(graph, Given(rows, rows, rows), bias, 1, scale=1.0)
    return graph.op("Transpose", averaged, perm=(0, 2, 1))
