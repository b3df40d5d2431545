"""T5, mT5 and UMT5: rows and keys, facts, and the graphs of encoder and decoders in ONNX."""

from .family import MT5, T5, UMT5

__all__ = ["MT5", "T5", "UMT5"]
