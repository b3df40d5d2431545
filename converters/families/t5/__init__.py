"""T5 and mT5: rows and keys, facts, and the graphs of encoder and decoders in ONNX."""

from .family import MT5, T5

__all__ = ["MT5", "T5"]
