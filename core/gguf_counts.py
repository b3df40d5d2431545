"""Numbers in a GGUF's header that its own tensors contradict, or that no model can have.

llama.cpp multiplies and divides by them, and ends its process over some. What is found here needs no more
than the header, so that a damaged file is refused at once, also by commands that never load it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import GgufError
from .gguf_file import GgufHeader, TensorInfo, shown

_LAYER = re.compile(r"(?P<stack>blk|enc\.blk|dec\.blk)\.(?P<number>\d{1,9})\.(?P<part>.+)")
_LARGEST = 2**31 - 1
# what of a layer has rows for each head, and the key that counts those
_HEADS = {"attn_q.weight": "attention.head_count", "attn_k.weight": "attention.head_count_kv"}


def check_counts(path: Path, header: GgufHeader) -> None:
    """Raises GgufError, which names every number that cannot be right."""
    faults = list(contradictions(header))
    if faults:
        raise GgufError(
            f"{path}: the header contradicts itself: {'; '.join(faults)}",
            hint="the file is damaged; download it or convert the checkpoint again",
        )


def contradictions(header: GgufHeader) -> Iterator[str]:
    """What is wrong with the numbers of a header, in words."""
    own = {
        key.removeprefix(f"{header.arch}."): value
        for key, value in header.metadata.items()
        if header.arch and key.startswith(f"{header.arch}.")
    }
    layers = [match for info in header.tensors if (match := _LAYER.fullmatch(info.name))]
    yield from _layers(own, layers)
    yield from _heads(own, header.tensors)
    context = own.get("context_length")
    if context is not None and not (type(context) is int and 0 < context <= _LARGEST):
        yield f"context_length is {shown(context)}"
    for key, value in own.items():
        if key.endswith("epsilon") and not (type(value) is float and 0 <= value < math.inf):
            yield f"{key} is {shown(value)}, expected a small positive number"


def _layers(own: Mapping[str, Any], layers: Sequence[re.Match[str]]) -> Iterator[str]:
    """block_count counts an encoder's layers, and those of its decoder that has no key of its own."""
    stated = {stack: own.get("block_count") for stack in ("blk", "enc.blk", "dec.blk")}
    stated["dec.blk"] = own.get("decoder_block_count", stated["dec.blk"])
    for stack, count in stated.items():
        numbers = {int(match["number"]) for match in layers if match["stack"] == stack}
        if not numbers or count is None:
            continue
        most = max(numbers) + 1
        if type(count) is not int or not (count == most or _explained(own, count, most)):
            decoder = "decoder_" if stack == "dec.blk" and "decoder_block_count" in own else ""
            yield (
                f"{decoder}block_count says {shown(count)} layers, but its tensors ({stack}.N) show {most:,}"
            )


def _explained(own: Mapping[str, Any], count: int, shown_layers: int) -> bool:
    """Whether layers may have no tensors (lists with a number for each say so), or tensors no layer."""
    predicting = own.get("nextn_predict_layers", 0)
    if type(predicting) is int and 0 < abs(count - shown_layers) <= predicting <= shown_layers:
        return True
    lists = (value for value in own.values() if isinstance(value, tuple))
    return shown_layers < count and any(len(value) == count for value in lists)


def _heads(own: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> Iterator[str]:
    """A layer that has such a matrix has at least one head."""
    reported = set()
    for info in tensors:
        match = _LAYER.fullmatch(info.name)
        key = _HEADS.get(match["part"]) if match else None
        if match is None or key is None or key not in own or key in reported:
            continue
        value, number = own[key], int(match["number"])
        count = value[number] if isinstance(value, tuple) and number < len(value) else value
        if type(count) is not int or not 0 < count <= _LARGEST:
            reported.add(key)
            yield f"{key} is {shown(count)}, but there is a tensor {info.name}"
