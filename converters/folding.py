"""Numbers a graph does not multiply by, multiplied into the matrices around the place: lazily, and back.

A factor travels among the sizes of a family's shapes, which are whole numbers, as two of them: every float is
a ratio of whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.tensor import Tensor
from .family import Sizes, Transform
from .reshaping import multiply


def factor_sizes(word: str, factor: float) -> dict[str, int]:
    """``factor`` as words of a family's sizes, for ``times(word)``."""
    above, below = factor.as_integer_ratio()
    return {f"{word}, above": above, f"{word}, below": below}


def times(word: str, *, copy: bool = False) -> Transform:
    """The source times the factor ``word``; ``copy`` as of ``multiply``."""
    return multiply(lambda sizes: sizes[f"{word}, above"] / sizes[f"{word}, below"], copy=copy)


def followed_by(first: Transform, second: Transform) -> Transform:
    """``second`` of what ``first`` makes of its sources."""

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        return second.apply((first.apply(sources, sizes),), sizes)

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        (made,) = second.undo(target, sizes)
        return first.undo(made, sizes)

    return Transform(apply, undo)
