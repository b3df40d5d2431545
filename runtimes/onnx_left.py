"""What providers of onnxruntime leave to the CPU, as ``make providers`` has found (docs/en/onnx.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

_LEFT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "WebGPU": ("Attention",),
        "OpenVINO": (
            *("Attention", "RMSNormalization", "RotaryEmbedding", "com.microsoft.RotaryEmbedding"),
            *("com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention"),
            "com.microsoft.GatherBlockQuantized",
        ),
    }
)
"""onnxruntime-web 1.31 and onnxruntime-openvino 1.24. Nodes about indices, shapes and masks do not count."""


def left_to_cpu(operators: Collection[str]) -> dict[str, list[str]]:
    """By provider the kinds of nodes (given with their domain) that it does not take.

    What other providers lack nobody has asked.
    """
    return {
        provider: [kind.rpartition(".")[2] for kind in kinds if kind in operators]
        for provider, kinds in _LEFT.items()
    }
