"""What decoder-only models share as ONNX graphs: inputs, mask, rotary embedding, cache, logits.

Names of inputs and outputs are optimum's. Padding, left or right, is what ``attention_mask`` says it is, and
``position_ids`` say where each token stands; so a batch of texts gives what each text gives alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.tensor import Array
from ..rope import Rope
from .flavour import Given
from .graph import Element, Graph

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

    @property
    def rotary_part(self) -> int | None:
        """How many dimensions of a head turn; None where all do."""
        return None if self.rotary == self.size else self.rotary


@dataclass(frozen=True)
class Positions:
    """What each layer is given besides its rows; what a flavour does not need is empty.

    ``lengths`` is the shape (batch, length, -1), ``places (batch, length)`` are positions as numbers,
    ``cosines`` and ``sines`` (of batch, length and rotary / 2) are of their angles. ``mask (batch or 1, heads
    or 1, length, total)`` is what is added to scores, ``padding`` the attention_mask it comes from. Of the
    contrib flavour are ``numbers (batch, length)``, rows of cosines and sines; ``last (batch,)`` and the
    scalar ``total``, where each text and the longest row of the cache end; ``order (batch * length,)``, where
    the row of each id is; and ``window``.
    """

    lengths: str
    places: str
    mask: str = ""
    padding: str = ""
    cosines: str = ""
    sines: str = ""
    numbers: str = ""
    last: str = ""
    total: str = ""
    order: str = ""
    window: int | None = None


def begin(graph: Graph, table: str, rope: Rope) -> tuple[str, Positions]:
    """The inputs, and the embedded tokens as rows; ``rope`` tells how heads turn."""
    rows, positions = _inputs(graph, table)
    return rows, with_rope(graph, positions, rope)


def begin_learned(graph: Graph, table: str, places_table: str, offset: int = 0) -> tuple[str, Positions]:
    """The same with a row of ``places_table`` added for each position, the first of them row ``offset``."""
    rows, positions = _inputs(graph, table)
    places = positions.places
    if offset:
        places = graph.op("Add", places, graph.number(offset, Element.INT64))
    return _placed(graph, rows, graph.embedding(places, places_table), table), positions


def begin_sinusoidal(
    graph: Graph, table: str, frequencies: Array, offset: int, factor: float
) -> tuple[str, Positions]:
    """The same with sines, then cosines of ``(position + offset) * frequencies``; rows times ``factor``."""
    rows, positions = _inputs(graph, table)
    places = graph.op("Add", positions.places, graph.number(offset, Element.INT64))
    angles = _angles(graph, places, graph.constant(frequencies.astype(np.float32)))
    waves = graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=-1)
    scaled = graph.op("Mul", rows, graph.number(factor))
    return _placed(graph, scaled, graph.flowing(waves), table), positions


def begin_alibi(graph: Graph, table: str, slopes: Array) -> tuple[str, Positions]:
    """The same with scores that fall by a head's ``slopes (heads,)`` for each position further back."""
    rows, positions = _inputs(graph, table)
    return rows, graph.flavour.sloped(graph, positions, slopes)


def _placed(graph: Graph, rows: str, places: str, table: str) -> str:
    hidden = graph.tensors[table].shape[1]
    return graph.op("Add", rows, graph.op("Reshape", places, graph.integers(-1, hidden)))


def _inputs(graph: Graph, table: str) -> tuple[str, Positions]:
    """The embedded tokens as rows, and positions without angles."""
    ids = graph.input("input_ids", Element.INT64, (BATCH, LENGTH))
    padding = graph.input("attention_mask", Element.INT64, (BATCH, TOTAL))
    places = graph.input("position_ids", Element.INT64, (BATCH, LENGTH))
    ids, positions = graph.flavour.placed(graph, ids, padding, places)
    hidden = graph.tensors[table].shape[1]
    return graph.op("Reshape", graph.embedding(ids, table), graph.integers(-1, hidden)), positions


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
    factor = graph.number(stretch.attention, Element.FLOAT)
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
    """The same for layers that turn so."""
    turns = (graph.flowing(each) for each in _turns(graph, positions.places, rope))
    return graph.flavour.turned(graph, positions, *turns)


def with_window(graph: Graph, positions: Positions, window: int) -> Positions:
    """The same for layers in which a query sees no further back than ``window`` positions, itself counted."""
    return graph.flavour.near(graph, positions, window)


def attention(graph: Graph, layer: int, positions: Positions, heads: Heads, rows: Mapping[str, str]) -> str:
    """Attention of one layer with its cache, of ``rows`` q, k and v; returns rows (n, heads * size)."""
    shape = (BATCH, heads.keys, PAST, heads.size)
    past = [graph.input(f"past_key_values.{layer}.{each}", graph.flow, shape) for each in ("key", "value")]
    present = [f"present.{layer}.{each}" for each in ("key", "value")]
    values = {name: graph.op("Reshape", each, positions.lengths) for name, each in rows.items()}
    query, key = values["q"], values["k"]
    if heads.rotary:
        query = graph.flavour.rotated(graph, query, positions, heads, heads.queries)
        key = graph.flavour.rotated(graph, key, positions, heads, heads.keys)
    given = Given(query, key, values["v"], past, present)
    attended = graph.flavour.attended(graph, given, positions, heads)
    for name in present:
        graph.output(name, graph.flow, (BATCH, heads.keys, TOTAL, heads.size))
    return graph.op("Reshape", attended, graph.integers(-1, heads.queries * heads.size))


def softcapped(graph: Graph, values: str, cap: float | None) -> str:
    """``cap * tanh(values / cap)``; None: the values as they are."""
    if cap is None:
        return values
    bent = graph.op("Tanh", graph.op("Div", values, graph.number(cap)))
    return graph.op("Mul", bent, graph.number(cap))


def end(
    graph: Graph,
    rows: str,
    positions: Positions,
    head: str,
    bias: str | None = None,
    cap: float | None = None,
) -> None:
    """The logits ``(batch, length, vocabulary)``, FLOAT, the first output; ``cap`` as of ``Heads``."""
    rows = graph.flavour.restored(graph, rows, positions)
    logits = graph.exact(softcapped(graph, graph.linear(rows, head, bias), cap))
    graph.op("Reshape", logits, positions.lengths, name="logits")
    graph.output("logits", Element.FLOAT, (BATCH, LENGTH, graph.tensors[head].shape[0]))
    graph.outputs.insert(0, graph.outputs.pop())
