"""Small GGUF files of every kind, and what llama_model_quantize makes of them with every switch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from quant_material import Floats, llama_tensors, write_llama

QUANTIZED_KEYS = ("general.quantization_version", "general.file_type")


def theirs(
    source: Path,
    target: Path,
    file_type: int,
    *,
    importance: Mapping[str, Floats] | None = None,
    overrides: Sequence[tuple[str, int]] = (),
    **switches: int,
) -> bool:
    """llama_model_quantize, with fields of its parameters as ``switches``; whether it succeeded."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, 2
    for name, value in switches.items():
        setattr(parameters, name, value)
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (tensor, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = tensor.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = entries
    if overrides:
        asked = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for override, (pattern, ggml_type) in zip(asked, overrides, strict=False):
            override.pattern, override.type = pattern.encode(), ggml_type
        parameters.tt_overrides = asked
    names = str(source).encode(), str(target).encode()
    return bool(llama_cpp.llama_model_quantize(*names, ctypes.byref(parameters)) == 0)


def llama_file(path: Path, *, bf16: bool = False, layers_of_rows: int = 64, **sizes: int) -> Path:
    """A Llama of two layers as F32, or BF16 with F32 vectors; sizes as ``llama_tensors`` takes them."""
    sizes = {"hidden": 256, "feed_forward": 512, "vocabulary": layers_of_rows, **sizes}
    tensors = llama_tensors(**sizes)  # type: ignore[arg-type]
    write_llama(path, tensors, bf16=bf16, experts=sizes.get("experts", 0))
    return path


def half_file(path: Path, source: Path) -> Path:
    """The same file as F16, by llama_model_quantize."""
    assert theirs(source, path, 1)
    return path


def odd_file(path: Path) -> Path:
    """A file with keys of every type there is, texts that are no UTF-8, and names out of order."""
    writer = gguf.GGUFWriter(path, "llama")
    hidden = 256
    for key, value in {
        "context_length": 64, "embedding_length": hidden, "block_count": 11, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 32,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    kinds = gguf.GGUFValueType
    for number, (kind, scalar) in enumerate(
        {
            kinds.UINT8: 200, kinds.INT8: -7, kinds.UINT16: 60000, kinds.INT16: -30000, kinds.INT32: -(2**30),
            kinds.UINT64: 2**63, kinds.INT64: -(2**62), kinds.FLOAT64: 0.1, kinds.BOOL: True,
        }.items()
    ):  # fmt: skip
        writer.add_key_value(f"odd.{number}", scalar, kind)
    writer.add_array("odd.bools", [True, False, True])
    writer.add_array("odd.texts", ["한", "국", ""])
    writer.add_key_value("odd.bytes", b"\xff\xfe no text", kinds.STRING)
    writer.add_key_value("odd.longs", [2**40, 1], kinds.ARRAY, sub_type=kinds.UINT64)
    writer.add_string("quantize.imatrix.file", "from before")
    writer.add_quantization_version(1)
    generator = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (32, hidden), "output_norm.weight": (hidden,)}
    for layer in (10, 2, 0, 1, 9):
        shapes[f"blk.{layer}.ffn_down.weight"] = (4, hidden)
        shapes[f"blk.{layer}.attn_q.weight"] = (1, hidden)  # one row: a vector for ggml
        shapes[f"blk.{layer}.attn_norm.weight"] = (hidden,)
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
