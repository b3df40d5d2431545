"""What a flavour of ONNX graphs has to know: which operators norms, rotations and attention become.

Families describe a model once (causal.py, encoder.py, blocks.py) and ask ``graph.flavour`` wherever ONNX's
own operators and onnxruntime's differ. The flavours are standard.py and contrib.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ...core.tensor import Array
from ...quant.formats import Format

if TYPE_CHECKING:
    from .causal import Heads, Positions
    from .graph import Graph


class Given(NamedTuple):
    """Queries, keys and values ``(batch, length, heads * size)`` of a layer, and its cache if it has one.

    ``past`` are keys and values of the tokens before, ``present`` names for those of all, which are results;
    each ``(batch, heads, length, size)``.
    """

    queries: str
    keys: str
    values: str
    past: Sequence[str] = ()
    present: Sequence[str] = ()

    @property
    def rows(self) -> tuple[str, str, str]:
        """What is new."""
        return self.queries, self.keys, self.values


class Flavour(Protocol):
    """Operators of one kind; a value of ``Positions`` is only understood by the flavour that made it."""

    @property
    def name(self) -> str:
        """What ``--flavour`` calls it."""
        ...

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        ...

    @property
    def ir_version(self) -> int:
        """The version of the file format, that of the same release of ONNX (onnx/helper.py)."""
        ...

    @property
    def shares_cache(self) -> bool:
        """Whether attention may write its results into the very cache it is given."""
        ...

    def rms_norm(self, graph: Graph, rows: str, weights: str, epsilon: float) -> str:
        """Each of ``rows (n, width)`` divided by its root mean square, times ``weights (width,)``."""
        ...

    def looked_up(self, graph: Graph, ids: str, blocks: str, scales: str, format: Format) -> str:
        """The rows ``ids`` of a packed table (quant/onnx_packing.py): ``(*ids, hidden)``."""
        ...

    def placed(self, graph: Graph, ids: str, mask: str, places: str) -> tuple[str, Positions]:
        """Ids in the order they are to be computed in, and the positions of a decoder's tokens.

        ``ids`` and ``places`` are ``(batch, length)``, ``mask (batch, total)`` is 0 for padding.
        """
        ...

    def turned(self, graph: Graph, positions: Positions, cosines: str, sines: str) -> Positions:
        """The same with the cosines and sines ``(batch, length, rotary / 2)`` of its angles."""
        ...

    def near(self, graph: Graph, positions: Positions, window: int) -> Positions:
        """The same for a query that sees no further back than ``window`` positions, itself counted."""
        ...

    def sloped(self, graph: Graph, positions: Positions, slopes: Array) -> Positions:
        """The same with scores that fall by a head's ``slopes (heads,)`` for each position further back."""
        ...

    def rotated(self, graph: Graph, values: str, positions: Positions, heads: Heads, count: int) -> str:
        """``values (batch, length, count * size)`` turned by their angles."""
        ...

    def attended(self, graph: Graph, given: Given, positions: Positions, heads: Heads) -> str:
        """Causal attention: ``(batch, length, width)``."""
        ...

    def restored(self, graph: Graph, rows: str, positions: Positions) -> str:
        """Rows as ``placed`` has ordered them, in the order of the ids that were given."""
        ...

    def attended_all(
        self, graph: Graph, given: Given, bias: str, heads: int, scale: float | None = None
    ) -> str:
        """Attention to whatever ``bias (batch or 1, heads or 1, length, total)`` lets through.

        ``scale`` None is one over the root of a head's size.
        """
        ...

    def attended_across(
        self, graph: Graph, queries: str, crossing: Sequence[str], bias: str, heads: int, size: int
    ) -> str:
        """T5's attention to an encoder's keys and values ``(batch, heads, positions, size)``, not scaled.

        ``queries`` are ``(batch, length, heads * size)``; the result can be reshaped to rows of that width.
        """
        ...
