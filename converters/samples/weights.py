"""Random weights, written as a Hugging Face folder holds them.

Every tensor has its own random stream, seeded by its name, so the weights do not depend on the order,
the number of shards, the file format or who writes them. Files are written by the libraries themselves,
safetensors and torch, which need all weights of a file at once; bench/weights.py writes what no memory holds.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ...core.errors import UsageError
from ...core.tensor import DType

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
WeightFormat = Literal["safetensors", "bin"]
Writer = Callable[[Path, Mapping[str, Shape], DType, int], None]
"""Writes a file of random tensors of those shapes; last comes the seed."""

_SLAB = 1 << 20  # elements made at a time


def llama_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of the tensors a ``LlamaForCausalLM`` of that config.json has, in model order.

    Follows transformers' modeling_llama.py: linear weights are ``(out, in)``; ``lm_head.weight`` is
    missing when the head is tied.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    linear: dict[str, tuple[int, int, bool]] = {
        "self_attn.q_proj": (heads * head_dim, hidden, bool(config.get("attention_bias"))),
        "self_attn.k_proj": (groups * head_dim, hidden, bool(config.get("attention_bias"))),
        "self_attn.v_proj": (groups * head_dim, hidden, bool(config.get("attention_bias"))),
        "self_attn.o_proj": (hidden, heads * head_dim, bool(config.get("attention_bias"))),
        "mlp.gate_proj": (inner, hidden, bool(config.get("mlp_bias"))),
        "mlp.up_proj": (inner, hidden, bool(config.get("mlp_bias"))),
        "mlp.down_proj": (hidden, inner, bool(config.get("mlp_bias"))),
    }
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns, bias) in linear.items():
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    *,
    dtype: DType = DType.F32,
    shards: int = 1,
    seed: int = 0,
    weight_format: WeightFormat = "safetensors",
    shapes: Mapping[str, Shape] | None = None,
    writer: Writer | None = None,
) -> tuple[Path, ...]:
    """Write config.json and random weights into ``folder``: of those ``shapes``, by default a Llama's.

    Matrices are normal with a standard deviation of 1/sqrt(columns), norms lie around 1, biases around 0,
    so that activations neither vanish nor overflow in half precision. A shard at a time is in memory, unless
    ``writer`` writes the files and needs less. Returns the weight files. Files of the same names are
    replaced. Raises UsageError for more shards than tensors.
    """
    shapes = llama_shapes(config) if shapes is None else shapes
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config, "torch_dtype": _TORCH_NAMES[dtype]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    parts = _split(shapes, shards)
    stem, suffix = ("model", "safetensors") if weight_format == "safetensors" else ("pytorch_model", "bin")
    write = writer or (_write_safetensors if weight_format == "safetensors" else _write_bin)
    files = []
    for number, part in enumerate(parts, start=1):
        name = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number:05d}-of-{shards:05d}.{suffix}"
        write(folder / name, {tensor: shapes[tensor] for tensor in part}, dtype, seed)
        files.append(folder / name)
    if shards > 1:
        index = {
            "metadata": {"total_size": sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize},
            "weight_map": {
                tensor: file.name for part, file in zip(parts, files, strict=True) for tensor in sorted(part)
            },
        }
        index_name = f"{stem}.{suffix}.index.json"
        (folder / index_name).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return tuple(files)


def random_slabs(name: str, shape: Shape, dtype: DType, seed: int) -> Iterator[npt.NDArray[Any]]:
    """Yield the elements of that tensor in order, as flat arrays of ``dtype.storage``.

    The buffer is used again for the next slab.
    """
    centre, deviation = _distribution(name, shape)
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    total = math.prod(shape)
    buffer = np.empty(min(total, _SLAB), np.float32)
    for begin in range(0, total, _SLAB):
        values = buffer[: min(_SLAB, total - begin)]
        random.standard_normal(out=values, dtype=np.float32)
        values *= np.float32(deviation)
        if centre:
            values += np.float32(centre)
        yield _cast(values, dtype)


def _distribution(name: str, shape: Shape) -> tuple[float, float]:
    """Centre and standard deviation of that tensor's elements."""
    if name.endswith(".bias"):
        return 0.0, 0.1
    if len(shape) == 1:
        return 1.0, 0.1
    return 0.0, 1.0 / math.sqrt(shape[-1])


def _cast(values: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[Any]:
    if dtype is DType.F32:
        return values.astype("<f4", copy=False)
    if dtype is DType.F16:
        return values.astype("<f2")
    bits = values.view(np.uint32) + np.uint32(0x8000)  # to the nearest; ties away from zero
    return (bits >> np.uint32(16)).astype("<u2")


def _write_safetensors(path: Path, shapes: Mapping[str, Shape], dtype: DType, seed: int) -> None:
    from safetensors.torch import save

    # Since 0.8 a file that save_file itself writes can be read by its owner only.
    path.write_bytes(save(random_state(shapes, dtype, seed), {"format": "pt"}))


def _write_bin(path: Path, shapes: Mapping[str, Shape], dtype: DType, seed: int) -> None:
    import torch

    torch.save(random_state(shapes, dtype, seed), path)


def random_state(shapes: Mapping[str, Shape], dtype: DType, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of those shapes, as ``write_checkpoint`` writes them."""
    import torch

    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        values = np.concatenate([slab.copy() for slab in random_slabs(name, shape, dtype, seed)])
        tensor = torch.from_numpy(values.view(np.int16) if dtype is DType.BF16 else values)
        state[name] = (tensor.view(torch.bfloat16) if dtype is DType.BF16 else tensor).reshape(shape)
    return state


def _split(shapes: Mapping[str, Shape], shards: int) -> list[list[str]]:
    """The names in model order, cut into ``shards`` runs of about equal size, none empty."""
    names = list(shapes)
    if not 1 <= shards <= len(names):
        raise UsageError(f"{shards} shards for {len(names)} tensors, expected 1 to {len(names)}")
    target = sum(math.prod(shape) for shape in shapes.values()) / shards
    parts: list[list[str]] = [[]]
    filled = 0
    for position, name in enumerate(names):
        left = shards - len(parts)
        if parts[-1] and left and (filled >= target * len(parts) or len(names) - position <= left):
            parts.append([])
        parts[-1].append(name)
        filled += math.prod(shapes[name])
    return parts


def write_json(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write several JSON files, by name, as Hugging Face formats them."""
    for name, value in contents.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_readme(folder: Path, title: str, languages: Sequence[str], text: str) -> None:
    """Write the card; it says in its first sentence that the weights are random."""
    front = "\n".join(
        ["---", "license: apache-2.0", "language:", *(f"- {name}" for name in languages), "---"]
    )
    body = (
        f"# {title}\n\n**The weights are random**, made by `kconv`; this model has learned nothing and says "
        f"nothing. It has the layout of a family so that tools can be tried on it.\n\n{text.strip()}\n"
    )
    (folder / "README.md").write_text(f"{front}\n{body}", "utf-8")


_TORCH_NAMES = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}
