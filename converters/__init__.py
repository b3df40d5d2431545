"""From a checkpoint, or another GGUF, to a file: recipes, the pipeline and the GGUF writer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Conversion, Output, to_gguf
    from .requantize import Requantization, quantize

__all__ = ["Conversion", "Output", "Requantization", "quantize", "to_gguf"]


def __getattr__(name: str) -> Any:
    """Load the pipeline, and numpy with it, only when something of it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "requantize" if name in ("Requantization", "quantize") else "pipeline"
    return getattr(import_module(f".{module}", __package__), name)
