"""From a checkpoint, or another GGUF, to files: recipes, the pipelines, the GGUF and the ONNX writer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx.pipeline import to_onnx
    from .onnx.results import OnnxConversion
    from .pipeline import Conversion, Output, to_gguf
    from .requantize import Requantization, quantize

__all__ = ["Conversion", "OnnxConversion", "Output", "Requantization", "quantize", "to_gguf", "to_onnx"]

_ELSEWHERE = {
    "OnnxConversion": "onnx.results",
    "Requantization": "requantize",
    "quantize": "requantize",
    "to_onnx": "onnx.pipeline",
}


def __getattr__(name: str) -> Any:
    """Load the pipeline, and numpy with it, only when something of it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ELSEWHERE.get(name, 'pipeline')}", __package__), name)
