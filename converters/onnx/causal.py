"""What decoder-only models share as ONNX graphs: inputs, mask, rotary embedding, cache, logits.

Names of inputs and outputs are optimum's. Padding, left or right, is what ``attention_mask`` says it is, and
``position_ids`` say where each token stands; so a batch of texts gives what each text gives alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...core.tensor import Array
from ..rope import Rope
from .graph import Element, Graph
from .masks import least_float

BATCH, LENGTH = "batch_size", "sequence_length"
PAST = "past_sequence_length"
TOTAL = f"{PAST} + {LENGTH}"  # optimum computes the lengths of results from their names


@dataclass(frozen=True)
class Heads:
    """How attention is divided: ``rotary`` dimensions of a head turn (0: none), neighbours or halves.

    Scores are multiplied by ``scale`` (None: by one over the root of ``size``); those beyond ``cap`` are
    bent towards it by a hyperbolic tangent (None: they are not).
    """

    queries: int
    keys: int
    size: int
    rotary: int
    neighbours: bool = False
    scale: float | None = None
    cap: float | None = None


@dataclass(frozen=True)
class Positions:
    """What each layer is given besides its rows.

    ``lengths`` is the shape (batch, length, -1), ``mask (batch, 1, length, total)`` what is added to scores,
    ``cosines`` and ``sines (batch, length, rotary / 2)`` are of the angles of each position.
    """

    lengths: str
    mask: str
    cosines: str
    sines: str


def begin(graph: Graph, table: str, rope: Rope) -> tuple[str, Positions]:
    """The inputs, and the embedded tokens as rows; ``rope`` tells how heads turn."""
    rows, places, positions = _inputs(graph, table)
    cosines, sines = _turns(graph, places, rope)
    return rows, replace(positions, cosines=cosines, sines=sines)


def begin_learned(graph: Graph, table: str, places_table: str, offset: int = 0) -> tuple[str, Positions]:
    """The same with a row of ``places_table`` added for each position, the first of them row ``offset``."""
    rows, places, positions = _inputs(graph, table)
    if offset:
        places = graph.op("Add", places, graph.number(offset, Element.INT64))
    return _placed(graph, rows, graph.embedding(places, places_table), table), positions


def begin_sinusoidal(
    graph: Graph, table: str, frequencies: Array, offset: int, factor: float
) -> tuple[str, Positions]:
    """The same with sines, then cosines of ``(position + offset) * frequencies``; rows times ``factor``."""
    rows, places, positions = _inputs(graph, table)
    places = graph.op("Add", places, graph.number(offset, Element.INT64))
    angles = _angles(graph, places, graph.constant(frequencies.astype(np.float32)))
    waves = graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=-1)
    scaled = graph.op("Mul", rows, graph.number(factor))
    return _placed(graph, scaled, waves, table), positions


def begin_alibi(graph: Graph, table: str, slopes: Array) -> tuple[str, Positions]:
    """The same with scores that fall by a head's ``slopes (heads,)`` for each position further back."""
    rows, _, positions = _inputs(graph, table)
    total = graph.op("Squeeze", graph.op("Shape", positions.mask, start=3, end=4))
    one = graph.number(1, Element.INT64)
    keys = graph.op("Range", graph.op("Sub", one, total), one, one)  # the last is 0: softmax takes no notice
    bias = graph.op(
        "Mul", graph.cast(keys, Element.FLOAT), graph.constant(slopes.astype(np.float32).reshape(-1, 1, 1))
    )
    return rows, replace(positions, mask=graph.op("Add", positions.mask, bias))


def _placed(graph: Graph, rows: str, places: str, table: str) -> str:
    hidden = graph.tensors[table].shape[1]
    return graph.op("Add", rows, graph.op("Reshape", places, graph.integers(-1, hidden)))


def _inputs(graph: Graph, table: str) -> tuple[str, str, Positions]:
    """The embedded tokens as rows, the numbers of their positions, and positions without angles."""
    ids = graph.input("input_ids", Element.INT64, (BATCH, LENGTH))
    padding = graph.input("attention_mask", Element.INT64, (BATCH, TOTAL))
    places = graph.input("position_ids", Element.INT64, (BATCH, LENGTH))
    lengths = graph.op("Concat", graph.op("Shape", ids), graph.integers(-1), axis=0)
    hidden = graph.tensors[table].shape[1]
    mask = _mask(graph, ids, padding)
    rows = graph.op("Reshape", graph.embedding(ids, table), graph.integers(-1, hidden))
    return rows, places, Positions(lengths, mask, "", "")


def three_parts(graph: Graph, rows: str) -> dict[str, str]:
    """Rows of queries, keys and values side by side, as three."""
    parts = graph.ops("Split", rows, outputs=(None,) * 3, axis=1, num_outputs=3)
    return dict(zip("qkv", parts, strict=True))


def _turns(graph: Graph, places: str, rope: Rope) -> tuple[str, str]:
    """Cosines and sines ``(batch, length, rotary / 2)`` of the angles at these positions."""
    angles = _angles(graph, places, _frequencies(graph, places, rope))
    cosines, sines = graph.op("Cos", angles), graph.op("Sin", angles)
    stretch = rope.stretch
    if stretch is None or stretch.attention == 1:
        return cosines, sines
    factor = graph.number(stretch.attention)
    return graph.op("Mul", cosines, factor), graph.op("Mul", sines, factor)


def _angles(graph: Graph, places: str, frequencies: str) -> str:
    """Of each position, ``(batch, length, frequencies)``."""
    places = graph.op("Unsqueeze", graph.cast(places, Element.FLOAT), graph.integers(2))
    return graph.op("Mul", places, frequencies)


def _frequencies(graph: Graph, places: str, rope: Rope) -> str:
    """Radians per position; with LongRoPE those of long texts for each text longer than the first context.

    transformers asks for the longest text of a batch; here a text is read as it is by itself.
    """
    near = graph.constant(rope.frequencies().astype(np.float32))
    stretch = rope.stretch
    if stretch is None or stretch.beyond is None:
        return near
    columns = graph.op("Unsqueeze", places, graph.integers(2))
    last = graph.op("ReduceMax", columns, graph.integers(1), keepdims=1)
    beyond = graph.op("GreaterOrEqual", last, graph.number(stretch.original, Element.INT64))
    return graph.op("Where", beyond, graph.constant(stretch.beyond), near)


def with_rope(graph: Graph, positions: Positions, rope: Rope) -> Positions:
    """The same for layers that turn otherwise."""
    cosines, sines = _turns(graph, "position_ids", rope)
    return replace(positions, cosines=cosines, sines=sines)


def with_window(graph: Graph, positions: Positions, window: int) -> Positions:
    """The same for layers in which a query sees no further back than ``window`` positions, itself counted."""
    length = graph.op("Squeeze", graph.op("Shape", positions.mask, start=2, end=3))
    total = graph.op("Squeeze", graph.op("Shape", positions.mask, start=3, end=4))
    one, zero = graph.number(1, Element.INT64), graph.number(0, Element.INT64)
    keys = graph.op("Range", zero, total, one)
    queries = graph.op("Range", graph.op("Sub", total, length), total, one)
    since = graph.op("Sub", graph.op("Unsqueeze", queries, graph.integers(1)), keys)
    near = graph.op("Less", since, graph.number(window, Element.INT64))
    return replace(positions, mask=graph.op("Where", near, positions.mask, least_float(graph)))


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


def attention(graph: Graph, layer: int, positions: Positions, heads: Heads, rows: Mapping[str, str]) -> str:
    """Attention of one layer with its cache, of ``rows`` q, k and v; returns rows (n, heads * size)."""
    shape = (BATCH, heads.keys, PAST, heads.size)
    past = [graph.input(f"past_key_values.{layer}.{each}", Element.FLOAT, shape) for each in ("key", "value")]
    present = [f"present.{layer}.{each}" for each in ("key", "value")]
    values = {name: graph.op("Reshape", each, positions.lengths) for name, each in rows.items()}
    query, key = values["q"], values["k"]
    if heads.rotary:
        query = _rotated(graph, query, positions, heads, heads.queries)
        key = _rotated(graph, key, positions, heads, heads.keys)
    attend = _attended if heads.cap is None else _capped
    attended = attend(graph, (query, key, values["v"]), positions.mask, heads, past, present)
    for name in present:
        graph.output(name, Element.FLOAT, (BATCH, heads.keys, TOTAL, heads.size))
    return graph.op("Reshape", attended, graph.integers(-1, heads.queries * heads.size))


def _attended(
    graph: Graph, given: tuple[str, str, str], mask: str, heads: Heads, past: list[str], present: list[str]
) -> str:
    attributes: dict[str, int | float] = {"q_num_heads": heads.queries, "kv_num_heads": heads.keys}
    if heads.scale is not None:
        attributes["scale"] = heads.scale
    outputs = (None, *present)
    return graph.ops("Attention", *given, mask, *past, outputs=outputs, domain="", **attributes)[0]


def _capped(
    graph: Graph, given: tuple[str, str, str], mask: str, heads: Heads, past: list[str], present: list[str]
) -> str:
    """The same in single steps: ONNX's Attention bends masked scores, too, which then count again."""
    groups, turned = heads.queries // heads.keys, (0, 2, 1, 3)
    query, *held = given
    shape = graph.integers(0, 0, heads.queries, heads.size)
    query = graph.op("Transpose", graph.op("Reshape", query, shape), perm=turned)
    query = graph.op("Reshape", query, graph.integers(0, heads.keys, groups, -1, heads.size))
    whole = []
    for rows, before, name in zip(held, past, present, strict=True):
        new = graph.op("Reshape", rows, graph.integers(0, 0, heads.keys, heads.size))
        new = graph.op("Concat", before, graph.op("Transpose", new, perm=turned), axis=2, name=name)
        whole.append(graph.op("Unsqueeze", new, graph.integers(2)))
    key, value = whole
    scale = heads.size**-0.5 if heads.scale is None else heads.scale
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=(0, 1, 2, 4, 3)))
    scores = softcapped(graph, graph.op("Mul", scores, graph.number(scale)), heads.cap)
    scores = graph.op("Add", scores, graph.op("Unsqueeze", mask, graph.integers(1)))
    attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    attended = graph.op("Reshape", attended, graph.integers(0, heads.queries, -1, heads.size))
    return graph.op("Transpose", attended, perm=turned)


def softcapped(graph: Graph, values: str, cap: float | None) -> str:
    """``cap * tanh(values / cap)``; None: the values as they are."""
    if cap is None:
        return values
    bent = graph.op("Tanh", graph.op("Div", values, graph.number(cap)))
    return graph.op("Mul", bent, graph.number(cap))


def _rotated(graph: Graph, values: str, positions: Positions, heads: Heads, count: int) -> str:
    attributes = {"num_heads": count, "interleaved": int(heads.neighbours)}
    if heads.rotary != heads.size:
        attributes["rotary_embedding_dim"] = heads.rotary
    return graph.op("RotaryEmbedding", values, positions.cosines, positions.sines, name=None, **attributes)


def end(
    graph: Graph,
    rows: str,
    positions: Positions,
    head: str,
    bias: str | None = None,
    cap: float | None = None,
) -> None:
    """The logits ``(batch, length, vocabulary)``, the first output; ``cap`` as of ``Heads``."""
    logits = softcapped(graph, graph.linear(rows, head, bias), cap)
    graph.op("Reshape", logits, positions.lengths, name="logits")
    graph.output("logits", Element.FLOAT, (BATCH, LENGTH, graph.tensors[head].shape[0]))
    graph.outputs.insert(0, graph.outputs.pop())
