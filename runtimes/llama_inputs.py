"""What llama.cpp multiplies each matrix of a file by, sent as it is computed: a part of ``llama_child.py``.

llama.cpp calls back for every node of its graph. A product with a matrix is known by its operation and by the
name of its first source, which is the tensor's name in the file, whatever the architecture.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

INPUT, SAME, END = 4, 5, 6
HEAD = struct.Struct("<BIIIII")
"""Kind; bytes of the name; columns, slots and tokens of the input; experts chosen for each token.

After INPUT and the name come float32 ``(tokens, slots, columns)`` and int32 ``(tokens, experts)``, in which a
slot is an expert's, a head's where a matrix has a part for each, or the only one. SAME, with the matrix's
name and, in ``columns``, the bytes of another matrix's that follows it: both have one input. END ends the
inputs of what was decoded at once.
"""
_PRODUCTS = (b"MUL_MAT", b"MUL_MAT_ID")
_F32, _I32 = 0, 26  # ggml.h, enum ggml_type
_MOST_OPERATIONS = 64  # of enum ggml_op, until both products are found


def copier(library: Any) -> Callable[[int], ctypes.Array[ctypes.c_char]]:
    """A function that copies the bytes of the tensor at an address, wherever its back end has them."""
    ggml = library._lib  # finds the symbols of the libraries it is linked with, too
    size_of = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(("ggml_nbytes", ggml))
    copy = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)(
        ("ggml_backend_tensor_get", ggml)
    )

    def copied(tensor: int) -> ctypes.Array[ctypes.c_char]:
        data = ctypes.create_string_buffer(size_of(tensor))
        copy(tensor, data, 0, len(data))
        return data

    return copied


class _Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h; ``right`` tells whether this llama.cpp has it so."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Inputs:
    """A callback for llama.cpp that sends the inputs of all products with matrices through ``write``.

    ``problem`` says, once something was computed, why they cannot be had; then nothing was sent. ``paused``:
    of what is computed meanwhile nothing is wanted.
    """

    def __init__(self, library: Any, write: Callable[[Any], None]) -> None:
        ggml = library._lib  # finds the symbols of the libraries it is linked with, too
        self._name_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("ggml_get_name", ggml))
        self._copied = copier(library)
        name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(("ggml_op_name", ggml))
        self._products = {number for number in range(_MOST_OPERATIONS) if name(number) in _PRODUCTS}
        self._write = write
        self._sent: dict[int, bytes] = {}  # by the address of the input, which is one tensor of the graph
        self.problem = ""
        self.paused = False
        self.callback = library.ggml_backend_sched_eval_callback(self._on_node)

    def end(self) -> None:
        """What was decoded at once is done."""
        self._sent.clear()
        self._write(HEAD.pack(END, 0, 0, 0, 0, 0))

    def _on_node(self, address: int, asked: bool, _: Any) -> bool:
        """Asked first whether a node is needed, and again when it is computed; see ``_capture``."""
        node = _Tensor.from_address(address)
        if self.paused or self.problem or node.op not in self._products:
            return not asked
        if self._name_of(address) != address + _Tensor.name.offset:
            self.problem = "its tensors do not lie in memory as kconv expects"
            return not asked
        matrix = _Tensor.from_address(node.src[0])
        if matrix.view_src or not matrix.name.endswith(b".weight"):
            return not asked
        if not asked:
            self._send(matrix.name, node)
        return True

    def _send(self, name: bytes, node: _Tensor) -> None:
        place = node.src[1]
        if place in self._sent:
            other = self._sent[place]
            self._write(HEAD.pack(SAME, len(name), len(other), 0, 0, 0) + name + other)
            return
        values = _Tensor.from_address(place)
        chosen = _Tensor.from_address(node.src[2]) if node.src[2] else None
        if values.type != _F32 or (chosen is not None and chosen.type != _I32):
            self.problem = f"what {name.decode('utf-8', 'replace')} is multiplied by is no float32"
            return
        columns, rows, more = values.ne[0], values.ne[1], values.ne[2] * values.ne[3]
        heads = chosen is None and _Tensor.from_address(node.src[0]).ne[2] > 1
        slots, tokens = (rows, more) if chosen is not None else (more, rows) if heads else (1, rows * more)
        experts = 0 if chosen is None else chosen.ne[0]
        self._write(HEAD.pack(INPUT, len(name), columns, slots, tokens, experts) + name)
        for data in self._rows(place, values, across=heads):
            self._write(data)
        for data in self._rows(node.src[2], chosen) if chosen else ():
            self._write(data)
        self._sent[place] = name

    def _rows(self, place: int, tensor: _Tensor, *, across: bool = False) -> Iterator[Any]:
        """The bytes of a tensor of numbers of 4 bytes, by rows; ``across``: the third axis runs first."""
        data = self._copied(place)
        row = 4 * tensor.ne[0]
        if tensor.nb[1] == row and tensor.nb[2] == row * tensor.ne[1] and not across:
            yield data
            return
        seconds, thirds = range(tensor.ne[1]), range(tensor.ne[2])
        pairs = product(seconds, thirds) if across else ((b, c) for c, b in product(thirds, seconds))
        for second, third in pairs:
            start = third * tensor.nb[2] + second * tensor.nb[1]
            yield memoryview(data)[start : start + row]
