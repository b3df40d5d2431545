"""GPT-J (KoGPT) as one graph with a cache."""

from __future__ import annotations

from ...core.model import Model
from ..settings import Settings
from .activation import activated
from .causal import Heads, Positions, attention, begin, end, frequencies
from .graph import Graph


def describe_gptj(graph: Graph, model: Model, activation: str = "gelu_new") -> None:
    """Add the model to ``graph``, whose tensors are the checkpoint's; ``model`` is what the recipe made.

    ``activation`` is that of the feed-forward layers, one of ``activations.IN_ONNX``.
    Rotary embedding turns neighbours, as the checkpoint has them, so no row changes its place, and none of
    the zeros llama.cpp's graph insists on are needed.
    """
    keys = Settings(model.hparams, "the recipe")
    epsilon, count = keys.real("phi2.attention.layer_norm_epsilon"), keys.integer("phi2.attention.head_count")
    rotary = keys.integer("phi2.rope.dimension_count")
    heads = Heads(count, count, keys.integer("phi2.embedding_length") // count, rotary, neighbours=True)
    turned = frequencies(keys.real("phi2.rope.freq_base"), rotary)
    rows, positions = begin(graph, "transformer.wte.weight", turned)
    for layer in range(keys.integer("phi2.block_count")):
        rows = _layer(graph, layer, rows, positions, heads, epsilon, activation)
    rows = _norm(graph, rows, "transformer.ln_f", epsilon)
    tied = model.tensor("output.weight").computed
    head = "transformer.wte.weight" if tied else "lm_head.weight"
    end(graph, rows, positions, head, "lm_head.bias")


def _layer(
    graph: Graph, layer: int, rows: str, positions: Positions, heads: Heads, epsilon: float, activation: str
) -> str:
    """One normalization feeds attention and feed-forward, side by side."""
    place = f"transformer.h.{layer}"
    inner = _norm(graph, rows, f"{place}.ln_1", epsilon)
    given = {each: graph.linear(inner, f"{place}.attn.{each}_proj.weight") for each in "qkv"}
    found = attention(graph, layer, positions, heads, given)
    attended = graph.linear(found, f"{place}.attn.out_proj.weight")
    inner = graph.linear(inner, f"{place}.mlp.fc_in.weight", f"{place}.mlp.fc_in.bias")
    inner = activated(graph, inner, activation)
    fed = graph.linear(inner, f"{place}.mlp.fc_out.weight", f"{place}.mlp.fc_out.bias")
    return graph.op("Add", rows, graph.op("Add", attended, fed))


def _norm(graph: Graph, rows: str, place: str, epsilon: float) -> str:
    weight, bias = graph.weight(f"{place}.weight"), graph.weight(f"{place}.bias")
    return graph.op("LayerNormalization", rows, weight, bias, axis=-1, epsilon=epsilon)
