"""Gemma 2 and 3, and what the two share."""

from .gemma2 import GEMMA2
from .gemma3 import GEMMA3

__all__ = ["GEMMA2", "GEMMA3"]
