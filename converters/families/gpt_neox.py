"""GPT-NeoX: Polyglot-Ko, KoAlpaca-Polyglot and everything else of that class.

Keys and tensors as llama.cpp reads them in src/models/gptneox.cpp. query_key_value holds query, key and value
of head 0, then of head 1 …; llama.cpp wants all queries first. The head is embed_out in files, and lm_head in
the class of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ...core.model import MetadataValue
from ...core.tensor import Tensor
from ..activation_names import GELU, TANH_GELU
from ..decoder_facts import (
    DecoderFacts,
    refuse_activations_onnx_lacks,
    refuse_divided_frequencies,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row, Sizes
from ..onnx.blocks import feed_forward, layer_norm, linear
from ..onnx.causal import Heads, attention, begin, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..positions import gelu_remarks, layer_norm_keys
from ..rope import read_rope, rope_section
from ..settings import Settings
from ..transforms import group_by_part

_TABLE, _HEAD, _OTHER_HEAD = "gpt_neox.embed_in.weight", "embed_out.weight", "lm_head.weight"
_QKV = "heads * three * head_dim"
_BIAS, _NO_BIAS, _RENAMED = "attention bias", "no attention bias", "head under transformers 5's name"
_BY_PART = group_by_part("heads", "three")


def _layer(target: str, source: str | None, *shape: str, **rest: object) -> Row:
    sources = () if source is None else (f"gpt_neox.layers.{{i}}.{source}",)
    return Row(f"blk.{{i}}.{target}", sources, shape, **rest)  # type: ignore[arg-type]


ROWS = (
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden")),
    _layer("attn_norm.weight", "input_layernorm.weight", "hidden"),
    _layer("attn_norm.bias", "input_layernorm.bias", "hidden"),
    _layer("attn_qkv.weight", "attention.query_key_value.weight", _QKV, "hidden", transform=_BY_PART),
    _layer("attn_qkv.bias", "attention.query_key_value.bias", _QKV, transform=_BY_PART, when=_BIAS),
    _layer("attn_qkv.bias", None, _QKV, when=_NO_BIAS),  # the graph insists on biases
    _layer("attn_output.weight", "attention.dense.weight", "hidden", "hidden"),
    _layer("attn_output.bias", "attention.dense.bias", "hidden", when=_BIAS),
    _layer("attn_output.bias", None, "hidden", when=_NO_BIAS),
    _layer("ffn_norm.weight", "post_attention_layernorm.weight", "hidden"),
    _layer("ffn_norm.bias", "post_attention_layernorm.bias", "hidden"),
    _layer("ffn_up.weight", "mlp.dense_h_to_4h.weight", "ffn", "hidden"),
    _layer("ffn_up.bias", "mlp.dense_h_to_4h.bias", "ffn"),
    _layer("ffn_down.weight", "mlp.dense_4h_to_h.weight", "hidden", "ffn"),
    _layer("ffn_down.bias", "mlp.dense_4h_to_h.bias", "hidden"),
    Row("output_norm.weight", ("gpt_neox.final_layer_norm.weight",), ("hidden",)),
    Row("output_norm.bias", ("gpt_neox.final_layer_norm.bias",), ("hidden",)),
    Row("output.weight", (_HEAD,), ("rows", "hidden"), when=_HEAD),
    Row("output.weight", (_OTHER_HEAD,), ("rows", "hidden"), when=_RENAMED),
)


@dataclass(frozen=True)
class NeoxFacts(DecoderFacts):
    """``parallel``: attention and feed-forward read the same rows, and both are added to them."""

    parallel: bool
    attention_bias: bool

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes; ``three`` are query, key and value."""
        return {**super().sizes, "three": 3}


def _facts(settings: Settings) -> NeoxFacts:
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if hidden % heads:
        raise settings.refuse("hidden_size", hidden, f"a multiple of num_attention_heads {heads}")
    head_dim = hidden // heads
    context = settings.integer("max_position_embeddings", 2048)
    rotary = int(head_dim * _rotary_share(settings))
    if rotary % 2 or not rotary:
        even = f"an even number of the head's {head_dim} dimensions"
        raise settings.refuse("rotary_pct", rotary / head_dim, even)
    if settings.flag("tie_word_embeddings"):
        raise UnsupportedModel(
            f"{settings.where}: tie_word_embeddings is true; a GPT-NeoX model has an lm_head of its own",
            hint="compare the file with the published one",
        )
    return NeoxFacts(
        where=settings.where,
        layers=settings.integer("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn=settings.integer("intermediate_size"),
        rows=settings.integer("vocab_size"),
        context=context,
        epsilon=settings.real("layer_norm_eps", 1e-5),
        activation=settings.text("hidden_act", "gelu"),
        rope=read_rope(settings, rotary, context=context, base_key="rotary_emb_base", stretched=True),
        tied=False,
        parallel=settings.flag("use_parallel_residual", True),
        attention_bias=settings.flag("attention_bias", True),
    )


def _rotary_share(settings: Settings) -> float:
    """Which part of each head turns: rotary_pct, in files of transformers 5 partial_rotary_factor."""
    section = rope_section(settings)
    share = settings.real("rotary_pct", 0.25)
    return share if section is None else section.real("partial_rotary_factor", share)


def _flags(facts: NeoxFacts, checkpoint: Checkpoint) -> frozenset[str]:
    renamed = _HEAD not in checkpoint.tensors and _OTHER_HEAD in checkpoint.tensors
    return frozenset({_BIAS if facts.attention_bias else _NO_BIAS, _RENAMED if renamed else _HEAD})


def _keys(facts: NeoxFacts) -> dict[str, MetadataValue]:
    return {
        **layer_norm_keys(facts),
        "use_parallel_residual": facts.parallel,
        "rope.dimension_count": facts.rope.dimensions,
        "rope.freq_base": facts.rope.base,
        **facts.rope.scaling_keys(),
    }


def _limits_of_llama_cpp(facts: NeoxFacts) -> None:
    refuse_other_activations(facts, GELU | TANH_GELU, "gptneox graph supports only GELU")
    refuse_divided_frequencies(facts, "gptneox")


def _in_transformers(tensors: Mapping[str, Tensor], sizes: Sizes) -> Mapping[str, Tensor]:
    return {_OTHER_HEAD if name == _HEAD else name: tensor for name, tensor in tensors.items()}


def _describe(graph: Graph, request: GraphRequest[NeoxFacts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.heads, facts.head_dim, facts.rope.dimensions)
    rows, positions = begin(graph, _TABLE, facts.rope)
    for layer in range(facts.layers):
        place = f"gpt_neox.layers.{layer}"
        inner = layer_norm(graph, rows, f"{place}.input_layernorm", facts.epsilon)
        given = _by_part(graph, linear(graph, inner, f"{place}.attention.query_key_value"), facts)
        seen = attention(graph, layer, positions, heads, given)
        attended = graph.op("Add", rows, linear(graph, seen, f"{place}.attention.dense"))
        before = rows if facts.parallel else attended
        inner = layer_norm(graph, before, f"{place}.post_attention_layernorm", facts.epsilon)
        names = (f"{place}.mlp.dense_h_to_4h", f"{place}.mlp.dense_4h_to_h")
        rows = graph.op("Add", attended, feed_forward(graph, inner, *names, facts.activation))
    rows = layer_norm(graph, rows, "gpt_neox.final_layer_norm", facts.epsilon)
    end(graph, rows, positions, _HEAD if _HEAD in request.flags else _OTHER_HEAD)


def _by_part(graph: Graph, rows: str, facts: NeoxFacts) -> dict[str, str]:
    """Rows of (heads, 3, head_dim) as rows of queries, keys and values."""
    split = graph.op("Reshape", rows, graph.integers(-1, facts.heads, 3, facts.head_dim))
    parts = graph.ops("Split", split, outputs=(None,) * 3, axis=2, num_outputs=3)
    return {
        name: graph.op("Reshape", part, graph.integers(-1, facts.hidden))
        for name, part in zip("qkv", parts, strict=True)
    }


GPT_NEOX = Family(
    name="gpt_neox",
    title="GPT-NeoX",
    models=("Polyglot-Ko 1.3B to 12.8B", "KoAlpaca-Polyglot", "egpt-1.3b-preview"),
    hf_classes=("GPTNeoXForCausalLM",),
    arch="gptneox",
    facts=_facts,
    flags=_flags,
    keys=_keys,
    rows=ROWS,
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": refuse_activations_onnx_lacks},
    reference=InTransformers(
        "GPTNeoXForCausalLM",
        tensors=_in_transformers,
        module=lambda name: {_HEAD: "lm_head"}.get(name, name.removesuffix(".weight")),
    ),
    graphs=one_graph(_describe),
    dropped=(
        "gpt_neox.layers.{i}.attention.bias",  # the causal mask
        "gpt_neox.layers.{i}.attention.masked_bias",
        "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq",
    ),
    notes=lambda facts, flags: facts.rope.notes(),
    remarks={"llama.cpp": gelu_remarks},
    gelu=True,
)
