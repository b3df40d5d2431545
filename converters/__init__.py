"""What files are made from, and how they are written: families, plans, GGUF, ONNX, samples."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..flows.convert import to_gguf
    from ..flows.quantize import Requantization, quantize
    from ..flows.results import Conversion, OnnxConversion
    from ..flows.to_onnx import to_onnx
    from .results import Output

__all__ = ["Conversion", "OnnxConversion", "Output", "Requantization", "quantize", "to_gguf", "to_onnx"]

# What the README has always imported from here lies in flows/ now; only these names point up.
_ELSEWHERE = {
    "Conversion": "..flows.results",
    "Output": ".results",
    "OnnxConversion": "..flows.results",
    "Requantization": "..flows.quantize",
    "quantize": "..flows.quantize",
    "to_gguf": "..flows.convert",
    "to_onnx": "..flows.to_onnx",
}


def __getattr__(name: str) -> Any:
    """Load a flow, and numpy with it, only when something of it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE[name], __package__), name)
