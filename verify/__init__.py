"""Proving a converted file against the fp32 checkpoint: tokens, metadata, weights, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..flows.verify import verify
    from .proof import Proof

__all__ = ["Proof", "verify"]


def __getattr__(name: str) -> Any:
    """Load what is asked for, and numpy with it, only then."""
    if name == "Proof":
        from .proof import Proof

        return Proof
    if name == "verify":
        from ..flows.verify import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
