"""Qwen3: a Llama with a norm on every head's query and key, whose heads turn in halves as llama.cpp's do.

Keys and tensors as llama.cpp reads them in src/models/qwen3.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ..activation_names import SILU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    Defaults,
    decoder_keys,
    decoder_notes,
    head_flags,
    read_decoder,
    refuse_activations_onnx_lacks,
    refuse_divided_frequencies,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row
from ..onnx.blocks import gated_feed_forward, head_norm, linear, rms_norm
from ..onnx.causal import Heads, attention, begin, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings

EMBEDDING, OWN_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_UP, _DOWN = ("ffn", "hidden"), ("hidden", "ffn")
_KEY = ("kv_heads * head_dim", "hidden")


def layer_row(target: str, source: str, *shape: str) -> Row:
    """A row of every layer."""
    return Row(f"blk.{{i}}.{target}.weight", (f"model.layers.{{i}}.{source}.weight",), shape)


HEADS = (
    layer_row("attn_q", "self_attn.q_proj", "heads * head_dim", "hidden"),
    layer_row("attn_k", "self_attn.k_proj", *_KEY),
    layer_row("attn_v", "self_attn.v_proj", *_KEY),
    layer_row("attn_output", "self_attn.o_proj", "hidden", "heads * head_dim"),
    layer_row("attn_q_norm", "self_attn.q_norm", "head_dim"),
    layer_row("attn_k_norm", "self_attn.k_norm", "head_dim"),
)
ATTENTION = (
    layer_row("attn_norm", "input_layernorm", "hidden"),
    *HEADS,
    layer_row("ffn_norm", "post_attention_layernorm", "hidden"),
)
FEED_FORWARD = (
    layer_row("ffn_gate", "mlp.gate_proj", *_UP),
    layer_row("ffn_up", "mlp.up_proj", *_UP),
    layer_row("ffn_down", "mlp.down_proj", *_DOWN),
)
TABLE = Row("token_embd.weight", (EMBEDDING,), ("rows", "hidden"))
END = (
    Row("output_norm.weight", ("model.norm.weight",), ("hidden",)),
    Row("output.weight", (OWN_HEAD,), ("rows", "hidden"), when=HEAD),
)


@dataclass(frozen=True)
class Qwen3Facts(DecoderFacts):
    """A Qwen3; ``window`` is how far back some layers see, None where all see everything."""

    window: int | None


def read_facts(settings: Settings) -> Qwen3Facts:
    """A dense Qwen3. Raises CheckpointError, UnsupportedModel."""
    fields = read_decoder(
        settings, Defaults(context=32768, epsilon=1e-6, head_dim=128, kv_heads=32, stretched=True)
    )
    refuse_partial_rotation(settings, "Qwen3")
    refuse_attention_bias(settings)
    windowed = settings.flag("use_sliding_window") and _reaches_a_layer(settings, fields["layers"])
    return Qwen3Facts(**fields, window=settings.integer("sliding_window", 4096) if windowed else None)


def _reaches_a_layer(settings: Settings, layers: int) -> bool:
    """Whether any layer has the window: those from max_window_layers on."""
    return settings.integer("max_window_layers", 28, least=0) < layers


def refuse_attention_bias(settings: Settings) -> None:
    """Raise UnsupportedModel for biases neither the graphs nor any published Qwen3 have."""
    if settings.flag("attention_bias"):
        raise UnsupportedModel(
            f"{settings.where}: attention_bias is true; kconv does not support these biases, which no "
            "published Qwen3 has",
            hint="open an issue with the model's name if you need it",
        )


def _refuse_window(facts: Qwen3Facts) -> None:
    """Raise UnsupportedModel where layers see a part of the text only, which the graphs do not compute."""
    if facts.window is not None:
        raise UnsupportedModel(
            f"{facts.where}: use_sliding_window with a window of {facts.window} tokens; in the qwen3 "
            "graphs every layer attends to the whole text",
            hint="set use_sliding_window to false if texts stay within the window",
        )


def limits_of_llama_cpp(facts: Qwen3Facts) -> None:
    """Raises UnsupportedModel for what the graphs qwen3 and qwen3moe do not compute."""
    _refuse_window(facts)
    refuse_other_activations(facts, SILU, "qwen3 graphs support only silu")
    refuse_divided_frequencies(facts, "qwen3")


def limits_of_onnx(facts: Qwen3Facts) -> None:
    """Raises UnsupportedModel for a window and for activations kconv has no operators of."""
    _refuse_window(facts)
    refuse_activations_onnx_lacks(facts)


def flags(facts: DecoderFacts, checkpoint: Checkpoint) -> frozenset[str]:
    """Whether the head is its own."""
    return head_flags(facts, checkpoint, EMBEDDING, OWN_HEAD)


def normed_heads(graph: Graph, rows: str, place: str, facts: DecoderFacts) -> dict[str, str]:
    """Query, key and value of a layer at ``place``, the first two normed head by head."""
    given = {each: linear(graph, rows, f"{place}.self_attn.{each}_proj") for each in "qkv"}
    for each in "qk":
        norm = f"{place}.self_attn.{each}_norm"
        given[each] = head_norm(graph, given[each], norm, facts.head_dim, facts.epsilon)
    return given


def describe(
    graph: Graph, request: GraphRequest[Any], feed_forward: Callable[[Graph, str, str], str]
) -> None:
    """The graph; ``feed_forward`` is given rows and the checkpoint's name of a layer's ``mlp``."""
    facts: Qwen3Facts = request.facts
    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions)
    rows, positions = begin(graph, EMBEDDING, facts.rope)
    for layer in range(facts.layers):
        place = f"model.layers.{layer}"
        inner = rms_norm(graph, rows, f"{place}.input_layernorm", facts.epsilon)
        attended = attention(graph, layer, positions, heads, normed_heads(graph, inner, place, facts))
        rows = graph.op("Add", rows, linear(graph, attended, f"{place}.self_attn.o_proj"))
        inner = rms_norm(graph, rows, f"{place}.post_attention_layernorm", facts.epsilon)
        rows = graph.op("Add", rows, feed_forward(graph, inner, f"{place}.mlp"))
    rows = rms_norm(graph, rows, "model.norm", facts.epsilon)
    end(graph, rows, positions, OWN_HEAD if HEAD in request.flags else EMBEDDING)


def _describe(graph: Graph, request: GraphRequest[Qwen3Facts]) -> None:
    describe(graph, request, partial(gated_feed_forward, activation=request.facts.activation))


QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    models=("Qwen3 0.6B to 32B",),
    hf_classes=("Qwen3ForCausalLM",),
    arch="qwen3",
    facts=read_facts,
    flags=flags,
    keys=decoder_keys,
    rows=(TABLE, *ATTENTION, *FEED_FORWARD, *END),
    limits={"llama.cpp": limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers("Qwen3ForCausalLM"),
    graphs=one_graph(_describe),
    dropped=(OWN_HEAD,),
    notes=decoder_notes,
)
