"""Which windows the fp32 reference computes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Windows go together up to these limits. Every token takes memory for some three rows of the feed-forward
# layer, and attention scores stand twice in memory, a square matrix a head and window.
_TOKENS = 2048
_SCORES = 128 << 20  # bytes
_TABLES = 128 << 20  # bytes of the model's buffers


def first_context(config: Any) -> int | None:
    """The tokens beyond which LongRoPE turns all positions otherwise, by transformers' configuration.

    transformers asks that of the longest text of a batch (modeling_rope_utils.py, dynamic_rope_update).
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, Mapping) or rope.get("rope_type") != "longrope":
        return None
    return int(rope["original_max_position_embeddings"])


def batches_of(
    sizes: Sequence[tuple[int, int]], heads: int, buffers: int, apart: int | None = None
) -> list[list[int]]:
    """Windows to compute together, by index: the longest first, so that like goes with like.

    ``sizes`` are tokens of the source and of the window proper, ``heads`` those of the model's attention,
    ``buffers`` the bytes of its largest buffer: GPT-J copies its table for each window. Windows of more than
    ``apart`` tokens and others are not computed together.
    """
    most = max(1, _TABLES // max(1, buffers))  # windows together
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: (-max(sizes[index]), -sum(sizes[index]))):
        if batches and _alike(sizes[batches[-1][0]], sizes[index], apart) and len(batches[-1]) < most:
            together = [sizes[each] for each in (*batches[-1], index)]
            longest = [max(column) for column in zip(*together, strict=True)]
            scores = 4 * len(together) * heads * max(longest) ** 2
            if len(together) * sum(longest) <= _TOKENS and scores <= _SCORES:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


def _alike(one: tuple[int, int], other: tuple[int, int], apart: int | None) -> bool:
    return apart is None or (max(one) > apart) == (max(other) > apart)
