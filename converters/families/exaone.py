"""EXAONE 3.0, 3.5 and Deep: a Llama under other names.

transformers has no class for it, so the reference is Llama's under renamed tensors and keys. Keys and tensors
of the file as llama.cpp reads them in src/models/exaone.cpp; heads turn in halves on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.tensor import Tensor
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
    refuse_longrope,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row, Sizes
from ..onnx.activation_operators import apply_activation
from ..onnx.blocks import linear, rms_norm
from ..onnx.causal import Heads, attention, begin, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings

_TABLE, _OWN_HEAD = "transformer.wte.weight", "lm_head.weight"
_KEY = ("kv_heads * head_dim", "hidden")

# By the names in files: the GGUF's, Llama's, and the shape.
_OF_LAYERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "ln_1": ("attn_norm", "input_layernorm", ("hidden",)),
    "attn.attention.q_proj": ("attn_q", "self_attn.q_proj", ("heads * head_dim", "hidden")),
    "attn.attention.k_proj": ("attn_k", "self_attn.k_proj", _KEY),
    "attn.attention.v_proj": ("attn_v", "self_attn.v_proj", _KEY),
    "attn.attention.out_proj": ("attn_output", "self_attn.o_proj", ("hidden", "heads * head_dim")),
    "ln_2": ("ffn_norm", "post_attention_layernorm", ("hidden",)),
    "mlp.c_fc_0": ("ffn_gate", "mlp.gate_proj", ("ffn", "hidden")),
    "mlp.c_fc_1": ("ffn_up", "mlp.up_proj", ("ffn", "hidden")),
    "mlp.c_proj": ("ffn_down", "mlp.down_proj", ("hidden", "ffn")),
}
_LLAMAS = {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm"}

ROWS = (
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden")),
    *(
        Row(f"blk.{{i}}.{target}.weight", (f"transformer.h.{{i}}.{source}.weight",), shape)
        for source, (target, _, shape) in _OF_LAYERS.items()
    ),
    Row("output_norm.weight", ("transformer.ln_f.weight",), ("hidden",)),
    Row("output.weight", (_OWN_HEAD,), ("rows", "hidden"), when=HEAD),
)


def _facts(settings: Settings) -> DecoderFacts:
    llamas = Settings(_keys_of_llama(settings), settings.where)
    fields = read_decoder(llamas, Defaults(context=2048, epsilon=1e-5, stretched=True))
    refuse_partial_rotation(settings, "EXAONE 3")
    width = fields["hidden"] // fields["heads"]
    if fields["head_dim"] != width:
        raise settings.refuse("head_dim", fields["head_dim"], f"{width}, hidden_size by num_attention_heads")
    return DecoderFacts(**fields)


def _keys_of_llama(settings: Settings) -> dict[str, Any]:
    """config.json under the names of Llama's class, with the defaults of EXAONE's."""
    hidden = settings.integer("hidden_size")
    return {
        **settings.values,
        "num_hidden_layers": settings.either("num_layers", "num_hidden_layers"),
        "intermediate_size": settings.integer("intermediate_size", 4 * hidden),
        "hidden_act": settings.text("activation_function", "silu"),
        "rms_norm_eps": settings.real("layer_norm_epsilon", 1e-5),
        "max_position_embeddings": settings.integer("max_position_embeddings", 2048),
        "tie_word_embeddings": settings.flag("tie_word_embeddings", True),
    }


def _for_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**_keys_of_llama(Settings(config, "config.json")), "model_type": "llama"}


def _flags(facts: DecoderFacts, checkpoint: Checkpoint) -> frozenset[str]:
    return head_flags(facts, checkpoint, _TABLE, _OWN_HEAD)


def _in_llama(name: str) -> str:
    """Llama's name of a module or tensor."""
    stem, dot, key = name.rpartition(".")
    if key not in ("weight", "bias"):
        stem, dot, key = name, "", ""
    parts = stem.split(".", 3)
    if parts[:2] == ["transformer", "h"] and parts[3:] and parts[3] in _OF_LAYERS:
        stem = f"model.layers.{parts[2]}.{_OF_LAYERS[parts[3]][1]}"
    return _LLAMAS.get(stem, stem) + dot + key


def _named_as_llama(tensors: Mapping[str, Tensor], sizes: Sizes) -> Mapping[str, Tensor]:
    return {_in_llama(name): tensor for name, tensor in tensors.items()}


def _describe(graph: Graph, request: GraphRequest[DecoderFacts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions)
    rows, positions = begin(graph, _TABLE, facts.rope)
    for layer in range(facts.layers):
        place = f"transformer.h.{layer}"
        inner = rms_norm(graph, rows, f"{place}.ln_1", facts.epsilon)
        given = {each: linear(graph, inner, f"{place}.attn.attention.{each}_proj") for each in "qkv"}
        attended = attention(graph, layer, positions, heads, given)
        rows = graph.op("Add", rows, linear(graph, attended, f"{place}.attn.attention.out_proj"))
        inner = rms_norm(graph, rows, f"{place}.ln_2", facts.epsilon)
        gate = apply_activation(graph, linear(graph, inner, f"{place}.mlp.c_fc_0"), facts.activation)
        inner = graph.op("Mul", gate, linear(graph, inner, f"{place}.mlp.c_fc_1"))
        rows = graph.op("Add", rows, linear(graph, inner, f"{place}.mlp.c_proj"))
    rows = rms_norm(graph, rows, "transformer.ln_f", facts.epsilon)
    end(graph, rows, positions, _OWN_HEAD if HEAD in request.flags else _TABLE)


def _limits_of_llama_cpp(facts: DecoderFacts) -> None:
    refuse_other_activations(facts, SILU, "exaone graph supports only silu", "activation_function")
    refuse_longrope(facts, "exaone")


EXAONE = Family(
    name="exaone",
    title="EXAONE 3",
    models=("EXAONE 3.0 7.8B, EXAONE 3.5 2.4B to 32B, EXAONE Deep and their fine-tunes",),
    hf_classes=("ExaoneForCausalLM",),
    arch="exaone",
    facts=_facts,
    flags=_flags,
    keys=decoder_keys,
    rows=ROWS,
    limits={
        "llama.cpp": _limits_of_llama_cpp,
        "ONNX": lambda facts: refuse_activations_onnx_lacks(facts, "activation_function"),
    },
    reference=InTransformers(
        "LlamaForCausalLM",
        config=_for_transformers,
        tensors=_named_as_llama,
        module=lambda name: _in_llama(name).removesuffix(".weight"),
    ),
    graphs=one_graph(_describe),
    dropped=(
        "transformer.rotary.inv_freq",
        "transformer.h.{i}.attn.attention.rotary.inv_freq",
        "transformer.h.{i}.attn.attention.rotary_emb.inv_freq",
        _OWN_HEAD,
    ),
    extra=lambda facts: facts.rope.tensors(),
    notes=decoder_notes,
)
