"""Llama (42dot LLM, EAGLE, Llama-3-Ko) as one graph with a cache."""

from __future__ import annotations

import numpy as np

from ...core.model import Model
from ..settings import Settings
from .activation import activated
from .causal import Heads, Positions, attention, begin, end, frequencies
from .graph import Graph


def describe_llama(graph: Graph, model: Model, activation: str = "silu") -> None:
    """Add the model to ``graph``, whose tensors are the checkpoint's; ``model`` is what the recipe made.

    ``activation`` is that of the feed-forward layers, one of ``activations.IN_ONNX``.
    Rotary embedding turns the first half of a head with the second, as the checkpoint has them, so no row
    changes its place.
    """
    keys = Settings(model.hparams, "the recipe")
    epsilon = keys.real("llama.attention.layer_norm_rms_epsilon")
    size = keys.integer("llama.attention.key_length")
    queries = keys.integer("llama.attention.head_count")
    heads = Heads(queries, keys.integer("llama.attention.head_count_kv"), size, size)
    turned = frequencies(keys.real("llama.rope.freq_base"), size)
    turned = turned / np.float32(keys.real("llama.rope.scaling.factor", 1.0))
    targets = {tensor.name: tensor for tensor in model.tensors}
    if "rope_freqs.weight" in targets:  # Llama 3.1's scaling: by what each frequency is divided
        turned = turned / targets["rope_freqs.weight"].read(0, size // 2)
    rows, positions = begin(graph, "model.embed_tokens.weight", turned)
    for layer in range(keys.integer("llama.block_count")):
        rows = _layer(graph, layer, rows, positions, heads, epsilon, activation)
    rows = _norm(graph, rows, "model.norm", epsilon)
    head = "lm_head.weight" if "output.weight" in targets else "model.embed_tokens.weight"
    end(graph, rows, positions, head)


def _layer(
    graph: Graph, layer: int, rows: str, positions: Positions, heads: Heads, epsilon: float, activation: str
) -> str:
    place = f"model.layers.{layer}"
    inner = _norm(graph, rows, f"{place}.input_layernorm", epsilon)
    given = {each: _linear(graph, inner, f"{place}.self_attn.{each}_proj") for each in "qkv"}
    found = attention(graph, layer, positions, heads, given)
    rows = graph.op("Add", rows, _linear(graph, found, f"{place}.self_attn.o_proj"))
    inner = _norm(graph, rows, f"{place}.post_attention_layernorm", epsilon)
    gate = activated(graph, _linear(graph, inner, f"{place}.mlp.gate_proj"), activation)
    inner = graph.op("Mul", gate, _linear(graph, inner, f"{place}.mlp.up_proj"))
    return graph.op("Add", rows, _linear(graph, inner, f"{place}.mlp.down_proj"))


def _norm(graph: Graph, rows: str, place: str, epsilon: float) -> str:
    return graph.op("RMSNormalization", rows, graph.weight(f"{place}.weight"), axis=-1, epsilon=epsilon)


def _linear(graph: Graph, rows: str, place: str) -> str:
    bias = f"{place}.bias"
    return graph.linear(rows, f"{place}.weight", bias if bias in graph.tensors else None)
