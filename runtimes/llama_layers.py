"""What leaves each layer of a file as llama.cpp computes it: a part of ``llama_child.py``."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from .llama_inputs import copier

# What leaves a layer is called so in nearly all of src/models/*.cpp, llama, phi2 and t5 among them; views of
# it carry longer names. t5 calls what leaves the last layer result_embd.
_LAYER_NAME = re.compile(rb"l_out-(\d+)|result_embd")
_callbacks: list[Any] = []  # llama.cpp keeps pointers to them

Captured = dict[int, "ctypes.Array[ctypes.c_char]"]


def capture(library: Any, captured: Captured) -> Any:
    """A callback for every node of the graph that copies what leaves each layer.

    It is asked first whether a node is needed, and called again when that is computed
    (ggml-backend.cpp, ggml_backend_sched_compute_splits).
    """
    ggml = library._lib  # finds the symbols of the libraries it is linked with, too
    name_of = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("ggml_get_name", ggml))
    copied = copier(library)

    def on_node(tensor: int, asked: bool, _: Any) -> bool:
        match = _LAYER_NAME.fullmatch(name_of(tensor))
        if match and not asked:
            captured[int(match[1]) if match[1] else len(captured)] = copied(tensor)
        return bool(match) or not asked

    callback = library.ggml_backend_sched_eval_callback(on_node)
    _callbacks.append(callback)
    return callback
