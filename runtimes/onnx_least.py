"""The least onnxruntime that computes a graph, by its opset and by what operators have not always meant.

Measured with folders of kconv's in onnxruntime 1.20 to 1.31 on the CPU. MatMulNBits takes 8 bits since
1.22. Up to 1.23 GroupQueryAttention's ``local_window_size`` lets a query see one position more than since.
"""

from __future__ import annotations

from typing import Any

Release = tuple[int, int]

_OF_OPSET = {22: (1, 20), 23: (1, 23), 24: (1, 24)}
_KNOWN_BIAS = 10  # inputs GroupQueryAttention has without a bias, most of them left out
WINDOW = "local_window_size"
"""The attribute of GroupQueryAttention that says how far back a query sees."""
OLDEST: Release = (1, 20)
"""The oldest onnxruntime that was asked."""


def least_for_opset(version: int) -> Release:
    """The first onnxruntime whose CPU provider has ONNX's operators of that version."""
    return max((release for opset, release in _OF_OPSET.items() if opset <= version), default=OLDEST)


def windows_of(node: Any) -> list[int]:
    """The window of a GroupQueryAttention that has one."""
    if node.domain != "com.microsoft" or node.op_type != "GroupQueryAttention":
        return []
    return [each.i for each in node.attribute if each.name == WINDOW and each.i >= 0]


def least_for_node(node: Any) -> Release:
    """The first onnxruntime that takes a node as it is and computes it as kconv means it."""
    if node.domain != "com.microsoft":
        return OLDEST
    attributes = {each.name for each in node.attribute}
    if node.op_type == "MatMulNBits" and any(each.name == "bits" and each.i == 8 for each in node.attribute):
        return (1, 22)
    if node.op_type == "GatherBlockQuantized" and "bits" in attributes:
        return (1, 23)
    if node.op_type == "GroupQueryAttention":
        if WINDOW in attributes:
            return (1, 24)
        return (1, 22) if len(node.input) > _KNOWN_BIAS else OLDEST
    return OLDEST
