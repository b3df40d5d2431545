"""Activations under transformers' names (activations.py), sorted by what is computed, and who computes it."""

from __future__ import annotations

from ..core.errors import UnsupportedModel
from ..core.input_files import quoted

SILU = frozenset({"silu", "swish"})
TANH_GELU = frozenset({"gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"})
GELU = frozenset({"gelu", "gelu_python"})
QUICK_GELU = frozenset({"quick_gelu"})
RELU = frozenset({"relu"})
RELU2 = frozenset({"relu2"})

IN_ONNX = SILU | TANH_GELU | GELU | QUICK_GELU | RELU | RELU2
"""All that kconv writes in ONNX."""

NOT_IN_LLAMA_CPP = "this checkpoint cannot run on stock llama.cpp; try kconv to-onnx"


def refuse_unless_in_onnx(name: str, where: str) -> None:
    """Raise UnsupportedModel, with ``where`` naming file and key, for an activation kconv has no graph of."""
    if name not in IN_ONNX:
        raise UnsupportedModel(
            f"{where} is {quoted(name)}; kconv's ONNX graphs support only {', '.join(sorted(IN_ONNX))}",
            hint="open an issue with the model's name if you need it",
        )
