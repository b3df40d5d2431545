"""The child that tries onnxruntime on this machine; imports nothing of kconv but its side of a child.

It computes the square of a matrix with a graph of one node, of the opset kconv writes, and answers one byte.
Exit code CANNOT_LOAD: onnxruntime itself; WRONG: it computed something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core import child

CANNOT_LOAD, WRONG = 11, 12
_SECONDS = 60.0  # of processor time
_FLOAT = 1
_OPSET, _IR_VERSION = 23, 10


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _part(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2, len(data)]) + data


def model() -> bytes:
    """``y = MatMul(x, x)`` for float matrices of 2 by 2, as onnx.proto has it."""
    shape = _part(2, b"".join(_part(1, _number(1, 2)) for _ in range(2)))
    type = _part(2, _part(1, _number(1, _FLOAT) + shape))
    node = _part(1, _part(1, b"x") + _part(1, b"x") + _part(2, b"y") + _part(4, b"MatMul"))
    graph = node + _part(2, b"square") + _part(11, _part(1, b"x") + type) + _part(12, _part(1, b"y") + type)
    return _number(1, _IR_VERSION) + _part(7, graph) + _part(8, _number(2, _OPSET))


def main(arguments: Sequence[str]) -> int:
    """Try it; the arguments are none."""
    try:
        import numpy as np
        import onnxruntime
    except (ImportError, OSError) as error:
        raise child.Stop(CANNOT_LOAD, str(error)) from error
    child.limit_time(_SECONDS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model(), options, providers=["CPUExecutionProvider"])
    x = np.array([[1, 2], [3, 4]], np.float32)
    (y,) = session.run(None, {"x": x})
    if not np.array_equal(y, [[7, 10], [15, 22]]):
        raise child.Stop(WRONG, f"the square of a matrix is {y.tolist()}")
    child.write(b"\x01")
    child.take(1)  # until the parent is done
    return 0
