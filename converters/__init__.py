"""From a checkpoint to a file: recipes, the pipeline and the GGUF writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Conversion, Output, to_gguf

__all__ = ["Conversion", "Output", "to_gguf"]


def __getattr__(name: str) -> Any:
    """Load the pipeline, and numpy with it, only when something of it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pipeline

    return getattr(pipeline, name)
