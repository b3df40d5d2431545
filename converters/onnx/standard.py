"""The standard flavour: ONNX's own operators, of opset 23, which any runtime of that opset computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...core.tensor import Array
from ...quant.formats import Format
from ...quant.onnx_packing import gather_attributes
from .causal import Heads, Positions, softcapped
from .flavour import Given
from .graph import MICROSOFT, Element, Graph
from .masks import least_float

_TURNED = (0, 2, 1, 3)


@dataclass(frozen=True)
class Standard:
    """See ``Flavour``. Masks are added to scores: 0.0, or the least float for what is not to be seen."""

    name: str = "standard"
    opset: int = 23  # the first with Attention, RMSNormalization and RotaryEmbedding
    ir_version: int = 11
    shares_cache: bool = False

    def rms_norm(self, graph: Graph, rows: str, weights: str, epsilon: float) -> str:
        """``RMSNormalization``."""
        return graph.op("RMSNormalization", rows, weights, axis=-1, epsilon=epsilon)

    def looked_up(self, graph: Graph, ids: str, blocks: str, scales: str, format: Format) -> str:
        """``GatherBlockQuantized``: of packed matrices ONNX itself knows nothing."""
        given, attributes = (blocks, ids, scales), gather_attributes(format)
        return graph.ops("GatherBlockQuantized", *given, outputs=(None,), domain=MICROSOFT, **attributes)[0]

    def placed(self, graph: Graph, ids: str, mask: str, places: str) -> tuple[str, Positions]:
        """The ids as they are, and a mask of queries by keys."""
        lengths = graph.op("Concat", graph.op("Shape", ids), graph.integers(-1), axis=0)
        return ids, Positions(lengths, places, mask=_mask(graph, ids, mask), padding=mask)

    def turned(self, graph: Graph, positions: Positions, cosines: str, sines: str) -> Positions:
        """As they are: RotaryEmbedding takes them by batch and length."""
        return replace(positions, cosines=cosines, sines=sines)

    def near(self, graph: Graph, positions: Positions, window: int) -> Positions:
        """Masked beyond the window, padding not counted."""
        near = graph.op("Greater", _since(graph, positions), graph.number(-window, Element.INT64))
        return replace(positions, mask=graph.op("Where", near, positions.mask, least_float(graph)))

    def sloped(self, graph: Graph, positions: Positions, slopes: Array) -> Positions:
        """The slopes are a part of the mask; in half precision each query counts from itself (contrib.py)."""
        if graph.flow != Element.FLOAT:
            since = graph.op("Min", _since(graph, positions), graph.number(0, Element.INT64))
            factors = graph.constant(slopes.astype(np.float32).reshape(-1, 1, 1))
            bias = graph.op("Mul", graph.cast(since, Element.FLOAT), factors)
            return replace(positions, mask=graph.op("Add", positions.mask, graph.flowing(bias)))
        keys = graph.op("Unsqueeze", _places_of_keys(graph, positions), graph.integers(1, 2))
        total = graph.op("ReduceMax", keys, keepdims=1)
        since = graph.cast(graph.op("Sub", keys, total), Element.FLOAT)
        factors = graph.constant(slopes.astype(np.float32).reshape(-1, 1, 1))
        return replace(positions, mask=graph.op("Add", positions.mask, graph.op("Mul", since, factors)))

    def rotated(self, graph: Graph, values: str, positions: Positions, heads: Heads, count: int) -> str:
        """``RotaryEmbedding``."""
        return graph.op(
            "RotaryEmbedding",
            *(values, positions.cosines, positions.sines),
            num_heads=count,
            interleaved=int(heads.neighbours),
            rotary_embedding_dim=heads.rotary_part,
        )

    def attended(self, graph: Graph, given: Given, positions: Positions, heads: Heads) -> str:
        """``Attention``, or what it consists of where scores are capped."""
        if heads.cap is not None:
            return _capped(graph, given, positions.mask, heads)
        return graph.ops(
            "Attention",
            *(*given.rows, positions.mask, *given.past),
            outputs=(None, *given.present),
            q_num_heads=heads.queries,
            kv_num_heads=heads.keys,
            scale=heads.scale,
        )[0]

    def restored(self, graph: Graph, rows: str, positions: Positions) -> str:
        """As they are."""
        return rows

    def attended_all(
        self, graph: Graph, given: Given, bias: str, heads: int, scale: float | None = None
    ) -> str:
        """``Attention``."""
        return graph.ops(
            "Attention",
            *(*given.rows, bias, *given.past),
            outputs=(None, *given.present),
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=scale,
        )[0]

    def attended_across(
        self, graph: Graph, queries: str, crossing: Sequence[str], bias: str, heads: int, size: int
    ) -> str:
        """``Attention``, which takes queries by head where keys are by head."""
        split = graph.op("Reshape", queries, graph.integers(0, 0, heads, size))
        by_head = graph.op("Transpose", split, perm=_TURNED)
        attended = graph.op("Attention", by_head, *crossing, bias, scale=1.0)
        return graph.op("Transpose", attended, perm=_TURNED)


STANDARD = Standard()


def _places_of_keys(graph: Graph, positions: Positions) -> str:
    """Where each key stands in its text ``(batch, total)``, whatever padding lies between."""
    text = graph.cast(graph.cast(positions.padding, Element.BOOL), Element.INT64)
    return graph.op("CumSum", text, graph.number(1, Element.INT64))


def _since(graph: Graph, positions: Positions) -> str:
    """Where each key stands from each query ``(batch, 1, length, total)``, negative before it."""
    keys = _places_of_keys(graph, positions)
    length, total = (graph.op("Shape", each, start=1) for each in (positions.places, keys))
    queries = graph.op("Slice", keys, graph.op("Sub", total, length), total, graph.integers(1))
    rows = graph.op("Unsqueeze", queries, graph.integers(1, 3))
    return graph.op("Sub", graph.op("Unsqueeze", keys, graph.integers(1, 2)), rows)


def _mask(graph: Graph, ids: str, mask: str) -> str:
    """0.0 where a query may see a key: one of the same text, not after it; else the least float."""
    one, axis = graph.number(1, Element.INT64), graph.integers(1)
    length = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2))
    total = graph.op("Squeeze", graph.op("Shape", mask, start=1, end=2))
    keys = graph.op("Range", graph.number(0, Element.INT64), total, one)
    queries = graph.op("Range", graph.op("Sub", total, length), total, one)
    before = graph.op("LessOrEqual", keys, graph.op("Unsqueeze", queries, axis))
    text = graph.op("Unsqueeze", graph.cast(mask, Element.BOOL), graph.integers(1, 2))
    seen = graph.op("And", before, text)
    return graph.op("Where", seen, graph.number(0.0), least_float(graph))


def _capped(graph: Graph, given: Given, mask: str, heads: Heads) -> str:
    """The same in single steps: ONNX's Attention bends masked scores, too, which then count again."""
    groups = heads.queries // heads.keys
    query, *held = given.rows
    shape = graph.integers(0, 0, heads.queries, heads.size)
    query = graph.op("Transpose", graph.op("Reshape", query, shape), perm=_TURNED)
    query = graph.op("Reshape", query, graph.integers(0, heads.keys, groups, -1, heads.size))
    whole = []
    for rows, before, name in zip(held, given.past, given.present, strict=True):
        new = graph.op("Reshape", rows, graph.integers(0, 0, heads.keys, heads.size))
        new = graph.op("Concat", before, graph.op("Transpose", new, perm=_TURNED), axis=2, name=name)
        whole.append(graph.op("Unsqueeze", new, graph.integers(2)))
    key, value = whole
    scale = heads.size**-0.5 if heads.scale is None else heads.scale
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=(0, 1, 2, 4, 3)))
    scores = softcapped(graph, graph.op("Mul", scores, graph.number(scale)), heads.cap)
    scores = graph.op("Add", scores, graph.op("Unsqueeze", mask, graph.integers(1)))
    attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    attended = graph.op("Reshape", attended, graph.integers(0, heads.queries, -1, heads.size))
    return graph.op("Transpose", attended, perm=_TURNED)
