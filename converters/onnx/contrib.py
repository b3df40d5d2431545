"""The contrib flavour: onnxruntime's own operators beside those of opset 21, for GPUs, browsers and genai.

GroupQueryAttention counts no padding: a row of its cache is a text from its first token on, and ``seqlens_k``
says where the text ends. Providers differ in whether they take a mask besides, so none is used: the tokens of
a text are moved to the front of its row, whatever ``attention_mask`` says of their places, and the rows of
hidden states go back to their places before the logits are made. What a cache holds behind a text's last
token is overwritten by the next.

Behind a cache onnxruntime reads one token of each text at a time, as texts are generated, or one text in
pieces; several tokens each of several texts it refuses (group_query_attention_helper.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...core.tensor import Array
from ...quant.formats import Format
from ...quant.onnx_packing import BLOCK, bits, zero
from .causal import Heads, Positions
from .flavour import Given
from .graph import MICROSOFT, SIMPLIFIED, Element, Graph
from .masks import for_queries


@dataclass(frozen=True)
class Contrib:
    """See ``Flavour``."""

    name: str = "contrib"
    opset: int = 21
    ir_version: int = 10
    shares_cache: bool = True

    def rms_norm(self, graph: Graph, rows: str, weights: str, epsilon: float) -> str:
        """``SimplifiedLayerNormalization``; together with the addition that made ``rows`` where it is new.

        The former stands in ONNX's own domain, where onnxruntime has it and ONNX does not.
        """
        added = graph.taken_back(rows) if _is_sum(graph, rows) else None
        if added is None:
            return graph.op(SIMPLIFIED, rows, weights, axis=-1, epsilon=epsilon)
        kind, names = "SkipSimplifiedLayerNormalization", (None, "", "", rows)
        given = (*added.inputs, weights)
        return graph.ops(kind, *given, outputs=names, domain=MICROSOFT, epsilon=epsilon)[0]

    def looked_up(self, graph: Graph, ids: str, blocks: str, scales: str, format: Format) -> str:
        """Rows of bytes, then arithmetic, whose products are the same floats to the bit.

        The WASM that browsers load for WebGPU has no GatherBlockQuantized on the CPU (onnxruntime-web 1.31).
        """
        numbers = graph.cast(graph.op("Gather", blocks, ids), graph.flow)
        if bits(format) == 4:  # two in a byte, the first in the low half
            high = graph.op("Floor", graph.op("Mul", numbers, graph.number(1 / 16)))
            low = graph.op("Sub", numbers, graph.op("Mul", high, graph.number(16.0)))
            pair = (graph.op("Unsqueeze", each, graph.integers(-1)) for each in (low, high))
            numbers = graph.op("Concat", *pair, axis=-1)
        centred = graph.op("Sub", numbers, graph.number(float(zero(format))))
        each = graph.op("Unsqueeze", graph.op("Gather", scales, ids), graph.integers(-1))
        in_blocks = graph.op("Concat", graph.op("Shape", each, end=-1), graph.integers(BLOCK), axis=0)
        weights = graph.op("Mul", graph.op("Reshape", centred, in_blocks), each)
        rows = graph.op("Concat", graph.op("Shape", ids), graph.integers(-1), axis=0)
        return graph.op("Reshape", weights, rows)

    def placed(self, graph: Graph, ids: str, mask: str, places: str) -> tuple[str, Positions]:
        """The tokens of each text first, then its padding."""
        axis, one = graph.integers(1), graph.integers(1)
        length, total = graph.op("Shape", ids, start=1), graph.op("Shape", mask, start=1)
        text = graph.cast(graph.cast(mask, Element.BOOL), Element.INT64)
        new = graph.op("Slice", text, graph.op("Sub", total, length), total, axis)
        there = graph.op("ReduceSum", new, axis)
        counted = graph.op("CumSum", new, graph.number(1, Element.INT64))
        columns = _range(graph, graph.op("Squeeze", length))
        behind = graph.op("Add", graph.op("Sub", columns, counted), there)  # padding, in its own order
        order = graph.op("Where", graph.cast(new, Element.BOOL), graph.op("Sub", counted, one), behind)
        before = graph.op(
            "Sub", graph.op("ReduceSum", text, axis, keepdims=0), graph.op("Squeeze", there, axis)
        )
        last = graph.op("Sub", graph.op("Add", before, length), one)
        lengths = graph.op("Concat", graph.op("Shape", ids), graph.integers(-1), axis=0)
        positions = Positions(
            lengths,
            graph.op("ScatterElements", places, order, places, axis=1),
            order=_flat(graph, order, ids, length),
            last=graph.cast(last, Element.INT32),
            total=graph.cast(graph.op("Squeeze", total), Element.INT32),
        )
        return graph.op("ScatterElements", ids, order, ids, axis=1), positions

    def turned(self, graph: Graph, positions: Positions, cosines: str, sines: str) -> Positions:
        """As a table with a row for each token, which RotaryEmbedding looks up by the token's number."""
        rows = graph.op("Shape", positions.places)
        count = graph.op("ReduceProd", rows, graph.integers(0), keepdims=0)
        numbers = graph.op("Reshape", _range(graph, count), rows)
        turns = (graph.op("Flatten", each, axis=2) for each in (cosines, sines))
        return replace(positions, numbers=numbers, cosines=next(turns), sines=next(turns))

    def near(self, graph: Graph, positions: Positions, window: int) -> Positions:
        """An attribute of GroupQueryAttention."""
        return replace(positions, window=window)

    def sloped(self, graph: Graph, positions: Positions, slopes: Array) -> Positions:
        """``attention_bias`` of GroupQueryAttention, which not every provider takes.

        Keys further back lose more; what all keys of a query lose alike, softmax takes no notice of. In half
        precision such common numbers would cost the small ones beside them, so each query counts from itself.
        """
        if graph.flow != Element.FLOAT:
            return replace(positions, mask=_falling(graph, positions, slopes))
        one = graph.number(1, Element.INT64)
        total = graph.cast(positions.total, Element.INT64)
        keys = graph.cast(graph.op("Range", graph.op("Sub", one, total), one, one), Element.FLOAT)
        bias = graph.op("Mul", keys, graph.constant(slopes.astype(np.float32).reshape(1, -1, 1, 1)))
        length = graph.op("Shape", positions.places, start=1)
        return replace(positions, mask=for_queries(graph, bias, length))

    def rotated(self, graph: Graph, values: str, positions: Positions, heads: Heads, count: int) -> str:
        """``RotaryEmbedding`` of onnxruntime."""
        return graph.ops(
            "RotaryEmbedding",
            *(values, positions.numbers, positions.cosines, positions.sines),
            outputs=(None,),
            domain=MICROSOFT,
            num_heads=count,
            interleaved=int(heads.neighbours),
            rotary_embedding_dim=heads.rotary_part,
        )[0]

    def attended(self, graph: Graph, given: Given, positions: Positions, heads: Heads) -> str:
        """``GroupQueryAttention``."""
        ends = (positions.last, positions.total)
        return graph.ops(
            "GroupQueryAttention",
            *(*given.rows, *given.past, *ends, None, None, None, positions.mask),
            outputs=(None, *given.present),
            domain=MICROSOFT,
            num_heads=heads.queries,
            kv_num_heads=heads.keys,
            scale=heads.scale,
            softcap=heads.cap,
            local_window_size=positions.window,
        )[0]

    def restored(self, graph: Graph, rows: str, positions: Positions) -> str:
        """Each row where its token was."""
        return graph.op("Gather", rows, positions.order)

    def attended_all(
        self, graph: Graph, given: Given, bias: str, heads: int, scale: float | None = None
    ) -> str:
        """``MultiHeadAttention``."""
        return graph.ops(
            "MultiHeadAttention",
            *(*given.rows, None, None, bias, *given.past),
            outputs=(None, *given.present),
            domain=MICROSOFT,
            num_heads=heads,
            scale=scale,
        )[0]

    def attended_across(
        self, graph: Graph, queries: str, crossing: Sequence[str], bias: str, heads: int, size: int
    ) -> str:
        """``MultiHeadAttention``, which takes keys and values by head."""
        inputs = (queries, *crossing, None, None, bias)
        return graph.ops(
            "MultiHeadAttention", *inputs, outputs=(None,), domain=MICROSOFT, num_heads=heads, scale=1.0
        )[0]


CONTRIB = Contrib()


def _is_sum(graph: Graph, rows: str) -> bool:
    """Whether ``rows`` are the sum of two values of that shape: no bias, which is a weight."""
    made = next((node for node in reversed(graph.nodes) if rows in node.outputs), None)
    fixed = graph.weights.keys() | graph.constants.keys()
    return made is not None and made.kind == "Add" and fixed.isdisjoint(made.inputs)


def _falling(graph: Graph, positions: Positions, slopes: Array) -> str:
    """What scores lose by the distance of each key before its query ``(batch, heads, length, total)``."""
    length = graph.op("Squeeze", graph.op("Shape", positions.places, start=1))
    begins = graph.op("Sub", graph.cast(positions.last, Element.INT64), graph.op("Sub", length, _one(graph)))
    begins = graph.op("Unsqueeze", begins, graph.integers(1, 2, 3))
    queries = graph.op("Unsqueeze", _range(graph, length), graph.integers(1))
    keys = _range(graph, graph.cast(positions.total, Element.INT64))
    since = graph.op("Sub", graph.op("Sub", keys, queries), begins)  # above 0: behind the query, not seen
    since = graph.cast(graph.op("Min", since, graph.number(0, Element.INT64)), Element.FLOAT)
    factors = graph.constant(slopes.astype(np.float32).reshape(1, -1, 1, 1))
    return graph.flowing(graph.op("Mul", since, factors))


def _one(graph: Graph) -> str:
    return graph.number(1, Element.INT64)


def _range(graph: Graph, count: str) -> str:
    return graph.op("Range", graph.number(0, Element.INT64), count, graph.number(1, Element.INT64))


def _flat(graph: Graph, order: str, ids: str, length: str) -> str:
    """Columns ``(batch, length)`` as numbers of rows ``(batch * length,)``."""
    texts = _range(graph, graph.op("Squeeze", graph.op("Shape", ids, end=1)))
    begins = graph.op("Unsqueeze", graph.op("Mul", texts, length), graph.integers(1))
    return graph.op("Reshape", graph.op("Add", order, begins), graph.integers(-1))
