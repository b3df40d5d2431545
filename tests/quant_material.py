"""Small Llama models as GGUF files, and llama.cpp's own quantizer, for the tests of kconv.quant."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from kconv.core.model import Model
from kconv.core.tensor import DType, Tensor

Floats = npt.NDArray[np.float32]

LAYERS = 2
HEADS = 4


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def adversarial(count: int, columns: int, seed: int) -> Floats:
    """Rows (count, columns) exact in bf16: mostly normal weights, then rows meant to make trouble."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, columns), np.float32) * np.float32(0.02)
    special = rows[: min(count, 24)]
    for index, row in enumerate(special):
        match index % 12:
            case 0:
                row[:] = 0
            case 1:
                row[:] = -0.0
            case 2:
                row[::2] = -0.0
                row[1::2] = 0.0
            case 3:
                row[:] = 0.125
            case 4:
                row[:] = -3
            case 5:
                row *= np.float32(1e-38)  # denormal float32
            case 6:
                row *= np.float32(1e-6)  # scales that are denormal or zero as half floats
            case 7:
                row *= np.float32(4e5)  # up to some 40000
                np.clip(row, -60000, 60000, out=row)
            case 8:
                row[: columns // 2] = 0
            case 9:
                row[:] = np.resize(np.arange(-8, 8, dtype=np.float32) / 2, columns)  # ties
            case 10:
                row[:] = 0
                row[columns // 3] = -1
            case 11:
                row[:] = np.resize(np.array([1, -1], np.float32), columns)  # equal magnitudes
    return to_bf16(rows)


def to_bf16(rows: Floats) -> Floats:
    """The nearest bf16 numbers, as float32."""
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(rows, BF16), BF16), np.float32)


BF16 = gguf.GGMLQuantizationType.BF16


def llama_tensors(
    *,
    hidden: int,
    feed_forward: int,
    vocabulary: int,
    kv_heads: int = 2,
    tied: bool = False,
    experts: int = 0,
) -> dict[str, Floats]:
    """The tensors of a Llama in GGUF names and PyTorch shapes, exact in bf16."""
    key_rows = hidden // HEADS * kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, hidden),
        "output_norm.weight": (hidden,),
        "rope_freqs.weight": (hidden // HEADS // 2,),
    }
    if not tied:
        shapes["output.weight"] = (vocabulary, hidden)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {
            block + "attn_norm.weight": (hidden,),
            block + "attn_q.weight": (hidden, hidden),
            block + "attn_q.bias": (hidden,),
            block + "attn_k.weight": (key_rows, hidden),
            block + "attn_v.weight": (key_rows, hidden),
            block + "attn_output.weight": (hidden, hidden),
            block + "ffn_norm.weight": (hidden,),
        }
        if experts:
            shapes[block + "ffn_gate_inp.weight"] = (experts, hidden)
        several, suffix = ((experts,), "_exps") if experts else ((), "")
        shapes[block + f"ffn_gate{suffix}.weight"] = (*several, feed_forward, hidden)
        shapes[block + f"ffn_up{suffix}.weight"] = (*several, feed_forward, hidden)
        shapes[block + f"ffn_down{suffix}.weight"] = (*several, hidden, feed_forward)
    tensors = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        columns = shape[-1]
        rows = adversarial(int(np.prod(shape)) // columns, columns, seed)
        tensors[name] = (np.abs(rows) + 1 if len(shape) == 1 else rows).reshape(shape)
    return tensors


def write_llama(path: Path, tensors: Mapping[str, Floats], *, bf16: bool = False, experts: int = 0) -> None:
    """A GGUF of F32 tensors, or of BF16 matrices and F32 vectors, as llama.cpp's converter would write it."""
    hidden = tensors["token_embd.weight"].shape[1]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_file_type(32 if bf16 else 0)
    writer.add_quantization_version(2)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tensors["token_embd.weight"].shape[0])
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    for name, array in tensors.items():
        if bf16 and array.ndim > 1 and "ffn_gate_inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(array, BF16), raw_dtype=BF16)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quantize(
    source: Path, target: Path, file_type: int, *, pure: bool = False, threads: int = 1
) -> bool:
    """llama_model_quantize; whether it succeeded."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.pure = pure
    parameters.nthread = threads
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    return bool(status == 0)


def read_tensors(path: Path) -> dict[str, tuple[int, bytes]]:
    """Type number and bytes of every tensor, through gguf-py."""
    reader = gguf.GGUFReader(path)
    return {tensor.name: (int(tensor.tensor_type), tensor.data.tobytes()) for tensor in reader.tensors}


def stored(array: Floats, dtype: DType) -> npt.NDArray[Any]:
    """The array in a checkpoint's storage type."""
    if dtype is DType.F32:
        return array
    if dtype is DType.F16:
        return array.astype(np.float16)
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def as_model(tensors: Mapping[str, Floats], dtype: DType = DType.F32, *, experts: int = 0) -> Model:
    """A kconv model of these tensors."""

    def lazy(name: str, array: npt.NDArray[Any]) -> Tensor:
        return Tensor(name, array.shape, dtype, lambda start, stop: array[start:stop])

    hparams = {"llama.expert_count": experts} if experts else {}
    made = tuple(lazy(name, stored(array, dtype)) for name, array in tensors.items())
    return Model(arch="llama", hparams=hparams, tensors=made)
