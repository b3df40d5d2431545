"""What llama.cpp multiplies each matrix of a file by: kconv's side of ``llama_inputs.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import llama_inputs as protocol
from .reader import Floats, RuntimeFailure

_MOST_NAME = 64  # ggml.h, GGML_MAX_NAME
_MOST_BYTES = 1 << 32  # of one input


@dataclass(frozen=True)
class MatrixInput:
    """The input of a matrix ``(tokens, columns)``; of experts' matrices ``(tokens, slots, columns)``.

    ``experts`` are those chosen for each token, ``(tokens, experts)``. There is one slot for all of them, or
    one for each. A matrix with a part for each head has a slot for each, and no experts. ``rounded`` is what
    the product was made with, where the runtime tells that as well.
    """

    values: Floats
    experts: npt.NDArray[np.int32] | None = None
    rounded: Floats | None = None


def read_inputs(take: Callable[[memoryview], None]) -> dict[str, MatrixInput]:
    """All inputs of what was decoded at once; ``take`` fills a buffer with what comes next.

    Raises RuntimeFailure where that is nothing llama_inputs sends.
    """
    found: dict[str, MatrixInput] = {}
    while True:
        head = bytearray(protocol.HEAD.size)
        take(memoryview(head))
        kind, length, columns, slots, tokens, experts = protocol.HEAD.unpack(head)
        if kind == protocol.END:
            return found
        size = 4 * columns * slots * tokens
        if kind not in (protocol.INPUT, protocol.SAME) or length > _MOST_NAME or size > _MOST_BYTES:
            raise RuntimeFailure(f"the process that runs llama.cpp answered {kind}, which is no input")
        name = _text(take, length)
        if kind == protocol.SAME:
            found[name] = found[_text(take, min(columns, _MOST_NAME))]
            continue
        apart = experts or slots > 1
        values = np.empty((tokens, slots, columns) if apart else (tokens, columns), "<f4")
        take(values.reshape(-1).view(np.uint8).data)
        chosen = np.empty((tokens, experts), "<i4") if experts else None
        if chosen is not None:
            take(chosen.reshape(-1).view(np.uint8).data)
        found[name] = MatrixInput(values, chosen)


def _text(take: Callable[[memoryview], None], length: int) -> str:
    data = bytearray(length)
    take(memoryview(data))
    return data.decode("utf-8", "replace")


def joined(pieces: Sequence[dict[str, MatrixInput]]) -> dict[str, MatrixInput]:
    """The inputs of a text that was read in pieces; what all pieces read alike, an encoder's text, once."""
    names = {
        name: [piece[name] for piece in pieces if name in piece] for name in {n for p in pieces for n in p}
    }
    return {name: _joined(parts) for name, parts in names.items()}


def _joined(parts: Sequence[MatrixInput]) -> MatrixInput:
    if len(parts) == 1:
        return parts[0]
    values = np.concatenate([part.values for part in parts])
    experts = [part.experts for part in parts if part.experts is not None]
    return MatrixInput(values, np.concatenate(experts) if experts else None)
