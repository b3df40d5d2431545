"""Llama: 42dot LLM, ETRI EAGLE 3B, Llama-3-Ko and everything else of that class.

Keys and tensors as llama.cpp reads them in src/llama-model.cpp and src/models/llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.checkpoint import Checkpoint
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
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row
from ..onnx.blocks import gated_feed_forward, linear, rms_norm
from ..onnx.causal import Heads, Positions, attention, begin, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings
from ..transforms import interleave_heads

_LAYER = "model.layers.{i}."
_QUERY = ("heads * head_dim", "hidden")
_KEY = ("kv_heads * head_dim", "hidden")
_DOWN, _UP = ("hidden", "ffn"), ("ffn", "hidden")
_Q_ORDER, _K_ORDER = interleave_heads("heads"), interleave_heads("kv_heads")
_ATTENTION, _MLP = "attention_bias", "mlp_bias"  # config.json's names of the flags
EMBEDDING, OWN_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _layer(target: str, source: str, shape: tuple[str, ...], **rest: object) -> Row:
    return Row(f"blk.{{i}}.{target}", (_LAYER + source,), shape, **rest)  # type: ignore[arg-type]


ROWS = (
    Row("token_embd.weight", (EMBEDDING,), ("rows", "hidden")),
    _layer("attn_norm.weight", "input_layernorm.weight", ("hidden",)),
    _layer("attn_q.weight", "self_attn.q_proj.weight", _QUERY, transform=_Q_ORDER),
    _layer("attn_k.weight", "self_attn.k_proj.weight", _KEY, transform=_K_ORDER),
    _layer("attn_v.weight", "self_attn.v_proj.weight", _KEY),
    _layer("attn_output.weight", "self_attn.o_proj.weight", ("hidden", "heads * head_dim")),
    _layer("attn_q.bias", "self_attn.q_proj.bias", _QUERY[:1], transform=_Q_ORDER, when=_ATTENTION),
    _layer("attn_k.bias", "self_attn.k_proj.bias", _KEY[:1], transform=_K_ORDER, when=_ATTENTION),
    _layer("attn_v.bias", "self_attn.v_proj.bias", _KEY[:1], when=_ATTENTION),
    _layer("attn_output.bias", "self_attn.o_proj.bias", ("hidden",), when=_ATTENTION),
    _layer("ffn_norm.weight", "post_attention_layernorm.weight", ("hidden",)),
    _layer("ffn_gate.weight", "mlp.gate_proj.weight", _UP),
    _layer("ffn_up.weight", "mlp.up_proj.weight", _UP),
    _layer("ffn_down.weight", "mlp.down_proj.weight", _DOWN),
    _layer("ffn_gate.bias", "mlp.gate_proj.bias", _UP[:1], when=_MLP),
    _layer("ffn_up.bias", "mlp.up_proj.bias", _UP[:1], when=_MLP),
    _layer("ffn_down.bias", "mlp.down_proj.bias", _DOWN[:1], when=_MLP),
    Row("output_norm.weight", ("model.norm.weight",), ("hidden",)),
    Row("output.weight", (OWN_HEAD,), ("rows", "hidden"), when=HEAD),
)  # fmt: skip


@dataclass(frozen=True)
class LlamaFacts(DecoderFacts):
    """A Llama; attention and feed-forward layers have biases in a few."""

    attention_bias: bool
    mlp_bias: bool


def _facts(settings: Settings) -> LlamaFacts:
    fields = read_decoder(settings, Defaults(context=2048, epsilon=1e-6, stretched=True))
    refuse_partial_rotation(settings, "Llama")
    biases = {"attention_bias": settings.flag(_ATTENTION), "mlp_bias": settings.flag(_MLP)}
    return LlamaFacts(**{**fields, **biases})


def _flags(facts: LlamaFacts, checkpoint: Checkpoint) -> frozenset[str]:
    biases = {flag for flag in (_ATTENTION, _MLP) if getattr(facts, flag)}
    return head_flags(facts, checkpoint, EMBEDDING, OWN_HEAD) | biases


def limits_of_llama_cpp(facts: DecoderFacts) -> None:
    """Raises UnsupportedModel for what the llama graph does not compute."""
    refuse_other_activations(facts, SILU, "llama graph supports only silu")


def _describe(graph: Graph, request: GraphRequest[LlamaFacts]) -> None:
    """Rotary embedding turns the first half of a head with the second, as the checkpoint has them, so no row
    changes its place.
    """
    facts = request.facts
    rows, positions = begin(graph, EMBEDDING, facts.rope)
    for layer in range(facts.layers):
        rows = described_layer(graph, f"model.layers.{layer}", layer, rows, positions, facts)
    rows = rms_norm(graph, rows, "model.norm", facts.epsilon)
    end(graph, rows, positions, OWN_HEAD if HEAD in request.flags else EMBEDDING)


def described_layer(
    graph: Graph, place: str, layer: int, rows: str, positions: Positions, facts: DecoderFacts
) -> str:
    """The rows behind a layer at ``place``, whose attention sees what ``positions`` let it."""
    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions)
    inner = rms_norm(graph, rows, f"{place}.input_layernorm", facts.epsilon)
    given = {each: linear(graph, inner, f"{place}.self_attn.{each}_proj") for each in "qkv"}
    attended = attention(graph, layer, positions, heads, given)
    rows = graph.op("Add", rows, linear(graph, attended, f"{place}.self_attn.o_proj"))
    inner = rms_norm(graph, rows, f"{place}.post_attention_layernorm", facts.epsilon)
    return graph.op("Add", rows, gated_feed_forward(graph, inner, f"{place}.mlp", facts.activation))


LLAMA = Family(
    name="llama",
    title="Llama",
    models=(
        "42dot LLM PLM/SFT 1.3B",
        "ETRI EAGLE 3B",
        "Llama-3-Ko 8B and its fine-tunes (AOG)",
        "Bllossom",
        "SOLAR 10.7B",
        "EEVE 10.8B",
        "Kanana nano 2.1B, 1.5 2.1B and 8B",
        "A.X 3.1",
        "Mi:dm 2.0",
        "Trillion 7B",
        "KORani",
        "KULLM3",
        "HyperCLOVA X SEED 0.5B, 1.5B",
    ),
    hf_classes=("LlamaForCausalLM",),
    arch="llama",
    facts=_facts,
    flags=_flags,
    keys=decoder_keys,
    rows=ROWS,
    limits={
        "llama.cpp": limits_of_llama_cpp,
        "ONNX": refuse_activations_onnx_lacks,
    },
    reference=InTransformers("LlamaForCausalLM"),
    graphs=one_graph(_describe),
    dropped=(
        "model.layers.{i}.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        OWN_HEAD,
    ),
    extra=lambda facts: facts.rope.tensors(),
    notes=decoder_notes,
)
