"""Which windows llama.cpp's process is asked for at once, and in what pieces it answers.

With LongRoPE llama.cpp chooses frequencies by the size of the context and not by a text's length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.windows import Window


def first_context(metadata: Mapping[str, Any]) -> int | None:
    """The size of a context beyond which a file's other frequencies are taken; None where it has one set."""
    arch = metadata.get("general.architecture")
    size = metadata.get(f"{arch}.rope.scaling.original_context_length")
    longrope = metadata.get(f"{arch}.rope.scaling.type") == "longrope"
    return size if longrope and isinstance(size, int) else None


def runs(parts: Sequence[Window], first: int | None) -> Iterator[tuple[int, list[Window]]]:
    """Consecutive windows that may share a context, each with the index of the first of them."""
    at = 0
    for _, run in itertools.groupby(parts, lambda part: first is not None and len(part.ids) > first):
        together = list(run)
        yield at, together
        at += len(together)


def answers(parts: Sequence[Window], size: int) -> Iterator[tuple[int, int, int]]:
    """Part, first position and the one behind the last of each answer to a request for logits."""
    for at, part in enumerate(parts):
        for start in range(0, len(part.ids), size):
            stop = min(start + size, len(part.ids))
            yield at, min(max(part.scored_from, start), stop), stop
