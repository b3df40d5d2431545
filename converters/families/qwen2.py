"""Qwen2 and Qwen2.5: a Llama with biases on query, key and value, whose heads turn in halves as llama.cpp's.

Keys and tensors as llama.cpp reads them in src/models/qwen2.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import UnsupportedModel
from ..activation_names import SILU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    Defaults,
    decoder_keys,
    decoder_notes,
    read_decoder,
    refuse_activations_onnx_lacks,
    refuse_divided_frequencies,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row
from ..layer_types import named_local_layers, types_of
from ..onnx.blocks import gated_feed_forward, linear, rms_norm
from ..onnx.causal import Heads, attention, begin, end, with_window
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings
from .qwen3 import EMBEDDING, END, FEED_FORWARD, OWN_HEAD, TABLE, flags, layer_row


def _bias(target: str, source: str, width: str) -> Row:
    return Row(f"blk.{{i}}.{target}.bias", (f"model.layers.{{i}}.{source}.bias",), (width,))


_QUERIES, _KEYS = "heads * head_dim", "kv_heads * head_dim"
ROWS = (
    TABLE,
    layer_row("attn_norm", "input_layernorm", "hidden"),
    layer_row("attn_q", "self_attn.q_proj", _QUERIES, "hidden"),
    layer_row("attn_k", "self_attn.k_proj", _KEYS, "hidden"),
    layer_row("attn_v", "self_attn.v_proj", _KEYS, "hidden"),
    _bias("attn_q", "self_attn.q_proj", _QUERIES),
    _bias("attn_k", "self_attn.k_proj", _KEYS),
    _bias("attn_v", "self_attn.v_proj", _KEYS),
    layer_row("attn_output", "self_attn.o_proj", "hidden", _QUERIES),
    layer_row("ffn_norm", "post_attention_layernorm", "hidden"),
    *FEED_FORWARD,
    *END,
)


@dataclass(frozen=True)
class Qwen2Facts(DecoderFacts):
    """``local`` says of each layer whether it sees only the last ``window`` tokens (None: none does)."""

    window: int | None
    local: tuple[bool, ...]


def _facts(settings: Settings) -> Qwen2Facts:
    fields = read_decoder(settings, Defaults(context=32768, epsilon=1e-6, stretched=True))
    refuse_partial_rotation(settings, "Qwen2")
    local = (False,) * fields["layers"]
    if settings.flag("use_sliding_window"):
        local = _local(settings, fields["layers"])
    window = settings.integer("sliding_window", 4096) if any(local) else None
    return Qwen2Facts(**fields, window=window, local=local)


def _local(settings: Settings, layers: int) -> tuple[bool, ...]:
    """Where there is a window at all: the layers layer_types names, else those from max_window_layers on."""
    named = named_local_layers(settings, layers)
    if named is not None:
        return named
    first = settings.integer("max_window_layers", 28, least=0)
    return tuple(layer >= first for layer in range(layers))


def _limits_of_llama_cpp(facts: Qwen2Facts) -> None:
    """Raises UnsupportedModel for what the graph qwen2 does not compute."""
    if facts.window is not None and facts.window < facts.context:
        raise UnsupportedModel(
            f"{facts.where}: use_sliding_window with a window of {facts.window} tokens; in llama.cpp's qwen2 "
            "graph every layer attends to the whole text",
            hint="kconv to-onnx supports it; or set use_sliding_window to false if texts stay within the "
            "window",
        )
    refuse_other_activations(facts, SILU, "qwen2 graph supports only silu")
    refuse_divided_frequencies(facts, "qwen2")
    if facts.heads * facts.head_dim != facts.hidden:
        raise UnsupportedModel(
            f"{facts.where}: {facts.heads} heads of {facts.head_dim} do not add up to hidden_size "
            f"{facts.hidden}; llama.cpp's qwen2 graph requires a square output matrix",
            hint="kconv to-onnx supports it",
        )


def _for_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With layer_types written out, which transformers 4's files do not have."""
    return {**config, "layer_types": types_of(_facts(Settings(config, "config.json")).local)}


def _describe(graph: Graph, request: GraphRequest[Qwen2Facts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions)
    rows, everywhere = begin(graph, EMBEDDING, facts.rope)
    near = everywhere if facts.window is None else with_window(graph, everywhere, facts.window)
    for layer, local in enumerate(facts.local):
        place = f"model.layers.{layer}"
        inner = rms_norm(graph, rows, f"{place}.input_layernorm", facts.epsilon)
        given = {each: linear(graph, inner, f"{place}.self_attn.{each}_proj") for each in "qkv"}
        attended = attention(graph, layer, near if local else everywhere, heads, given)
        rows = graph.op("Add", rows, linear(graph, attended, f"{place}.self_attn.o_proj"))
        inner = rms_norm(graph, rows, f"{place}.post_attention_layernorm", facts.epsilon)
        rows = graph.op("Add", rows, gated_feed_forward(graph, inner, f"{place}.mlp", facts.activation))
    rows = rms_norm(graph, rows, "model.norm", facts.epsilon)
    end(graph, rows, everywhere, OWN_HEAD if HEAD in request.flags else EMBEDDING)


QWEN2 = Family(
    name="qwen2",
    title="Qwen2",
    models=("Qwen2 and Qwen2.5 0.5B to 72B and their fine-tunes", "A.X 4.0"),
    hf_classes=("Qwen2ForCausalLM",),
    arch="qwen2",
    facts=_facts,
    flags=flags,
    keys=decoder_keys,
    rows=ROWS,
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": refuse_activations_onnx_lacks},
    reference=InTransformers("Qwen2ForCausalLM", config=_for_transformers),
    graphs=one_graph(_describe),
    dropped=(OWN_HEAD,),
    notes=decoder_notes,
)
