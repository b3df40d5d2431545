"""What llama.cpp itself computes inside a model, and imatrix files made with nothing of kconv."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Through its evaluation callback llama.cpp shows each product of matrices with its inputs (tools/imatrix does
# the same). The structure is struct ggml_tensor of ggml.h.
_WATCHER = """
import ctypes, json, sys
from pathlib import Path
import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np

class Tensor(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4), ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32), ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64)]

def at(pointer):
    return ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents

base = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))  # or a link to it
describe = ctypes.CDLL(str(base)).ggml_op_desc
describe.restype, describe.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)
sums, counts = {}, {}

def watch_experts(node):
    # MUL_MAT_ID: matrices of all experts (columns, rows, experts), inputs (columns, used or 1, tokens),
    # experts chosen (experts used, tokens)
    matrix, values, chosen = (at(node.src[number]) for number in range(3))
    name, columns, experts = matrix.name.decode(), values.ne[0], matrix.ne[2]
    inner, tokens, used = values.ne[1], values.ne[2], chosen.ne[0]
    flat = sums.setdefault(name, np.zeros(columns * experts))
    seen = counts.setdefault(name, np.zeros(columns * experts))
    for token in range(tokens):
        for place in range(used):
            where = chosen.data + token * chosen.nb[1] + place * chosen.nb[0]
            expert = ctypes.c_int32.from_address(where).value
            start = values.data + token * values.nb[2] + (place % inner) * values.nb[1]
            row = np.ctypeslib.as_array((ctypes.c_float * columns).from_address(start)).astype(np.float64)
            flat[expert * columns:(expert + 1) * columns] += row ** 2
            seen[expert * columns:(expert + 1) * columns] += 1

def watch(pointer, asked, _):
    if describe(pointer) == b"MUL_MAT_ID":
        if not asked:
            watch_experts(at(pointer))
        return True
    if describe(pointer) != b"MUL_MAT":
        return not asked
    matrix, values = at(at(pointer).src[0]), at(at(pointer).src[1])
    name, columns = matrix.name.decode(), values.ne[0]
    if not name.endswith(".weight"):
        return not asked
    if not asked:
        rows = values.ne[1] * values.ne[2] * values.ne[3]
        assert values.type == 0 and tuple(values.nb)[:2] == (4, 4 * columns)
        array = np.ctypeslib.as_array((ctypes.c_float * (columns * rows)).from_address(values.data))
        squares = np.square(array.reshape(rows, columns).astype(np.float64)).sum(0)
        sums[name] = sums.get(name, 0) + squares
        counts[name] = counts.get(name, 0) + rows
    return True

callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(watch)
quiet = api.llama_log_callback(lambda *arguments: None)
api.llama_log_set(quiet, ctypes.c_void_p(0))
api.llama_backend_init()
settings = api.llama_model_default_params()
settings.n_gpu_layers, settings.use_extra_bufts = 0, False
model = api.llama_model_load_from_file(sys.argv[1].encode(), settings)
windows = json.loads(Path(sys.argv[2]).read_text())
embedded = len(sys.argv) > 4 and dict(np.load(sys.argv[4]))

def run(compute, context, ids, floats=None):
    count = len(ids if floats is None else floats)
    batch = api.llama_batch_init(count, 0 if floats is None else floats.shape[1], 1)
    batch.n_tokens = count
    for place in range(count):
        if floats is None:
            batch.token[place] = ids[place]
        batch.pos[place], batch.n_seq_id[place] = place, 1
        batch.seq_id[place][0], batch.logits[place] = 0, 1
    if floats is not None:
        ctypes.memmove(batch.embd, np.ascontiguousarray(floats).ctypes.data, floats.nbytes)
    assert compute(context, batch) == 0
    api.llama_batch_free(batch)

for number, (ids, source) in enumerate(windows):
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(len(ids), len(source))
    settings.n_threads = settings.n_threads_batch = 2
    settings.flash_attn_type, settings.type_k, settings.type_v = 0, 0, 0
    settings.cb_eval = ctypes.cast(callback, type(settings.cb_eval))
    context = api.llama_init_from_model(model, settings)
    if source:
        run(api.llama_encode, context, source, embedded[str(number)] if embedded else None)
    run(api.llama_decode, context, ids)
    api.llama_free(context)
np.savez(sys.argv[3], **{name: values / np.maximum(counts[name], 1) for name, values in sums.items()})
"""


def llama_cpp_activations(
    model: Path,
    windows: Sequence[tuple[Sequence[int], Sequence[int]]],
    folder: Path,
    embedded: Sequence[Floats] = (),
) -> dict[str, Any]:
    """Mean squared inputs of every matrix by its name, as llama.cpp computes ``(ids, source)`` windows.

    ``embedded`` are what encoders read instead of the sources' ids.
    """
    (folder / "windows.json").write_text(json.dumps([[*map(list, pair)] for pair in windows]))
    words = [str(model), str(folder / "windows.json"), str(folder / "means.npz")]
    if embedded:
        np.savez(folder / "embedded.npz", **{str(at): values for at, values in enumerate(embedded)})
        words.append(str(folder / "embedded.npz"))
    done = subprocess.run(
        [sys.executable, "-c", _WATCHER, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "means.npz") as means:
        return dict(means)


def write_with_gguf_py(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF of those tensors as llama-imatrix lays one out; ``keys`` replace its own (None: left out)."""
    import gguf

    all_keys = {"imatrix.datasets": ["가.txt"], "imatrix.chunk_count": 3, "imatrix.chunk_size": 512}
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    for key, value in {**all_keys, **(keys or {})}.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy_bytes(
    entries: Mapping[str, tuple[int, Sequence[float]]], chunks: int | None = None, dataset: str = ""
) -> bytes:
    """A file of the older format: by name the number of chunks and means times that number."""
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name.encode())) + name.encode()
        data += struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    if chunks is not None:
        data += struct.pack("<ii", chunks, len(dataset.encode())) + dataset.encode()
    return data
