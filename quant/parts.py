"""What llama-quantize asks of a tensor and of its model before it chooses a type (src/llama-quant.cpp).

All of it is read off names, shapes and a few keys: the part a matrix plays, whether it may be quantized at
all, and where it stands among the matrices of its part, in llama.cpp's own order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ..core.model import MetadataValue, Model


class Part(Enum):
    """What a matrix is for (tensor_get_category)."""

    OUTPUT = "output"  # makes the logits: output.weight, or the token embedding where there is none
    EMBEDDING = "token embedding"
    ATTENTION_V = "attention value"  # alone or fused with what else attention needs
    ATTENTION_K = "attention key"
    ATTENTION_Q = "attention query"
    ATTENTION_OUTPUT = "attention output"
    FFN_UP = "feed-forward up"
    FFN_GATE = "feed-forward gate"
    FFN_DOWN = "feed-forward down"
    OTHER = "other"


# What a name contains, the first that fits. T5's attn_o is none of them, its cross_attn_v is a value.
_PARTS: tuple[tuple[str, Part], ...] = (
    ("attn_qkv.weight", Part.ATTENTION_V),
    ("attn_kv_b.weight", Part.ATTENTION_V),
    ("attn_v.weight", Part.ATTENTION_V),
    ("attn_k.weight", Part.ATTENTION_K),
    ("attn_q.weight", Part.ATTENTION_Q),
    ("attn_output.weight", Part.ATTENTION_OUTPUT),
    ("ffn_up", Part.FFN_UP),
    ("ffn_gate", Part.FFN_GATE),
    ("ffn_down", Part.FFN_DOWN),
)
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"
_EMBEDDINGS = (EMBEDDING, "per_layer_token_embd.weight")

# Matrices llama_model_quantize leaves as they are (tensor_allows_quantization): whole names and pieces.
_KEPT = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PIECES: tuple[str, ...] = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "attn_rel_b.weight",
    "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip

FOREIGN = frozenset({"glm5-next", "bailingmoe3"})
"""Architectures llama-quantize has more rules for, which kconv does not know."""

# Models llama.cpp calls 70B, by their number of layers (src/models/*.cpp, load_arch_hparams).
_LARGE: Mapping[str, int] = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


def part_of(name: str, *, tied: bool) -> Part:
    """The part of the tensor of that GGUF name; ``tied`` where the model has no output matrix of its own."""
    if name == HEAD:
        return Part.OUTPUT
    if name in _EMBEDDINGS:
        return Part.OUTPUT if tied else Part.EMBEDDING
    return next((part for piece, part in _PARTS if piece in name), Part.OTHER)


def is_embedding(name: str) -> bool:
    """Whether it is a table of token embeddings, tied or not."""
    return name in _EMBEDDINGS


def may_be_quantized(name: str, shape: Sequence[int]) -> bool:
    """Whether llama_model_quantize touches a tensor of that name and ``shape`` (PyTorch order)."""
    return (
        _axes(shape) >= 2
        and name.endswith("weight")
        and name not in _KEPT
        and not any(piece in name for piece in _KEPT_PIECES)
    )


def _axes(shape: Sequence[int]) -> int:
    """Axes as ggml counts them: the slowest ones do not count while they have length 1."""
    axes = len(shape)
    while axes > 1 and shape[-axes] == 1:
        axes -= 1
    return axes


def llama_cpp_order(name: str) -> tuple[int, str]:
    """What llama.cpp sorts tensors by: the layer of ``blk.N.``, -1 for all others, then the name.

    So T5's ``dec.blk.10`` comes before ``dec.blk.2``, and all of the decoder before the encoder
    (src/llama-model-loader.h, weight_name_comparer).
    """
    layer = _layer(name)
    return (-1 if layer is None else layer), name


def _layer(name: str) -> int | None:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Kind:
    """What a rule may ask of a model.

    ``layers`` is its block count, ``gqa`` the number of queries that share a key, ``large`` whether llama.cpp
    calls it 70B, ``values`` how many attention value matrices it has.
    """

    arch: str
    layers: int
    experts: int
    gqa: int
    large: bool
    tied: bool
    values: int


def kind_of(model: Model) -> Kind:
    """Read it off the model's keys and names."""
    names = [tensor.name for tensor in model.tensors]
    heads = _count(model, "attention.head_count")
    key_heads = _count(model, "attention.head_count_kv", heads)
    layers = _count(model, "block_count")
    return Kind(
        model.arch,
        layers,
        _count(model, "expert_count"),
        heads // key_heads if key_heads else 0,
        _LARGE.get(model.arch) == layers and not (model.arch == "llama" and heads == key_heads),
        HEAD not in names,
        sum(part_of(name, tied=False) is Part.ATTENTION_V for name in names),
    )


def _count(model: Model, key: str, default: int = 0) -> int:
    """A key of the architecture; the first layer's where there is one for each."""
    value: MetadataValue = model.hparams.get(f"{model.arch}.{key}", default)
    if isinstance(value, tuple):
        value = value[0] if value else default
    return value if isinstance(value, int) else default


class Places:
    """Counts the matrices of each part while they are gone through in llama.cpp's order."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._seen = dict.fromkeys(Part, 0)

    def next(self, part: Part, name: str) -> tuple[int, int]:
        """Where this matrix stands among those of its part: counted in order, and by its layer.

        With experts the feed-forward matrices of a layer may be many; then the layer is that of the name.
        """
        counted = self._seen[part]
        self._seen[part] += 1
        layer = _layer(name)
        several = self._kind.experts > 1 and part in (Part.FFN_UP, Part.FFN_GATE, Part.FFN_DOWN)
        return counted, layer if several and layer is not None else counted
