"""Checkpoints of full size with random weights, and vocabularies built by rule (vocabularies.py)."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from vocabularies import write_42dot_tokenizer, write_llama_3_tokenizer, write_sentencepiece
from weights import write_safetensors

from kconv.converters.samples.weights import llama_shapes, write_checkpoint
from kconv.core.tensor import DType


def write_llama(folder: Path, shape: Shape, threads: int) -> None:
    """Write config.json and random weights as safetensors files."""
    writer = functools.partial(write_safetensors, threads=threads)
    write_checkpoint(folder, shape.config, dtype=shape.dtype, shards=shape.shards, seed=1, writer=writer)


@dataclass(frozen=True)
class Shape:
    """A checkpoint to write: config.json, the weights' type and files, and who writes its tokenizer and them.

    ``tensors`` gives names and shapes of the weights of a configuration.
    """

    name: str
    config: Mapping[str, Any]
    dtype: DType
    shards: int
    write_tokenizer: Callable[[Path], None]
    write_weights: Callable[[Path, Shape, int], None] = write_llama
    tensors: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]] = llama_shapes

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(prod(shape) for shape in self.tensors(self.config).values())


def scratch() -> Path:
    """The folder for large files: KCONV_SCRATCH, or .dev/bench in the clone, which git ignores."""
    return Path(os.environ.get("KCONV_SCRATCH") or Path(__file__).resolve().parent.parent / ".dev" / "bench")


def prepared(shape: Shape) -> Path:
    """The folder of that checkpoint, written unless it is there whole."""
    folder = scratch() / shape.name
    stamp = folder / ".complete"
    if stamp.is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape.write_tokenizer(folder)
    threads = len(os.sched_getaffinity(0))
    shape.write_weights(folder, shape, threads)
    stamp.touch()
    return folder


_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_SMALLER: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
_1_3B: Mapping[str, Any] = {
    **_LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
}
_42DOT: Mapping[str, Any] = {
    **_1_3B,
    "vocab_size": 50304,
    "bos_token_id": 50257,
    "eos_token_id": 50256,
    "pad_token_id": 50258,
}
_LLAMA_3: Mapping[str, Any] = {
    **_LLAMA,
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

SENTENCEPIECE_1_3B = Shape(
    "llama-1.3b-sentencepiece",
    {**_1_3B, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2},
    DType.BF16,
    1,
    write_sentencepiece,
)


def sentencepiece(*, small: bool = False) -> Shape:
    """The shape llama.cpp's converter takes, too; ``small``: of 0.3 billion weights."""
    if not small:
        return SENTENCEPIECE_1_3B
    return replace(
        SENTENCEPIECE_1_3B,
        name="llama-0.3b-sentencepiece",
        config={**SENTENCEPIECE_1_3B.config, **_SMALLER},
    )


DOT42_BF16 = Shape("42dot-1.3b-bf16", _42DOT, DType.BF16, 1, write_42dot_tokenizer)
DOT42_SMALL = Shape(
    "42dot-0.4b-bf16",
    {**_42DOT, **_SMALLER},
    DType.BF16,
    1,
    write_42dot_tokenizer,
)
DOT42_3B = Shape(
    "42dot-3b-bf16",
    {**_42DOT, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "num_key_value_heads": 8},
    DType.BF16,
    2,
    write_42dot_tokenizer,
)
DOT42_F32 = Shape("42dot-1.3b-f32", _42DOT, DType.F32, 2, write_42dot_tokenizer)
LLAMA_3_8B = Shape("llama-3-8b-bf16", _LLAMA_3, DType.BF16, 4, write_llama_3_tokenizer)
