"""Names of ONNX graphs in a folder, here or on the Hub, that holds the same ones in several types."""

from __future__ import annotations

_SUFFIXES = ("", "_fp16", "_q4", "_q8", "_quantized", "_q4f16", "_int8", "_uint8", "_bnb4")
"""What Transformers.js and optimum put behind a graph's name for its type, in the order they are tried."""


def graph_names(stem: str) -> list[str]:
    """The file names a graph may have, the first that is there counts."""
    return [f"{stem}{suffix}.onnx" for suffix in _SUFFIXES]
