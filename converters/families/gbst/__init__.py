"""GBST T5: the rows of its body, and its front end in numpy, torch and ONNX."""

from .family import GBSWT5

__all__ = ["GBSWT5"]
