"""T5, mT5 and UMT5: rows and keys, facts, and the graphs of encoder and decoders in ONNX."""

from .encoder import MT5_ENCODER, T5_ENCODER, UMT5_ENCODER
from .family import MT5, T5, UMT5

__all__ = ["MT5", "MT5_ENCODER", "T5", "T5_ENCODER", "UMT5", "UMT5_ENCODER"]
