"""Small random checkpoints of Qwen2 and Gemma; names and shapes are those of transformers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .decoders import _common, _write
from .weights import Shape, llama_shapes


def write_qwen2(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Qwen2: biases on query, key and value, rows of 832 weights, a tied head.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config = {**_common("Qwen2ForCausalLM", "qwen2"), "head_dim": None, "intermediate_size": 832}
    config |= {"max_window_layers": 3, "sliding_window": 4096, "use_sliding_window": False}
    config |= {"tie_word_embeddings": True, **changes}
    if config["head_dim"] is None:  # as in the published files
        del config["head_dim"]
    return _write(folder, config, _qwen2_shapes, "A Qwen2-like demo checkpoint", dtype, seed)


def _qwen2_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, shape in llama_shapes(config).items():
        shapes[name] = shape
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            shapes[name.removesuffix("weight") + "bias"] = shape[:1]
    return shapes
