"""GPT-J: KoGPT 6B, GPT-J 6B and everything else of that class, as llama.cpp's ``phi2`` graph.

llama.cpp lists the name gptj but has no graph for it. That of Phi-2 computes the same function (src/models/
phi2.cpp): one LayerNorm feeds attention and feed-forward side by side, the first dimensions of each head are
rotated, GELU in its tanh form, a head with a bias. Phi-2 rotates the first half of those dimensions with the
second where GPT-J rotates neighbours, so rows of query and key change places; biases GPT-J lacks are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.model import MetadataValue
from ..activation_names import GELU, TANH_GELU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    decoder_notes,
    head_flags,
    refuse_activations_onnx_lacks,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row
from ..onnx.blocks import feed_forward, layer_norm
from ..onnx.causal import Heads, Positions, attention, begin, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..positions import gelu_remarks
from ..rope import Rope
from ..settings import Settings
from ..transforms import as_a_copy, halve_rotary

_LAYER = "transformer.h.{i}."
_SQUARE = ("heads * head_dim", "hidden")
_UP, _DOWN = ("ffn", "hidden"), ("hidden", "ffn")
_ORDER = halve_rotary("heads", "rotary")
_TIED = "tied"
_EMBEDDING, _OWN_HEAD = "transformer.wte.weight", "lm_head.weight"

# transformers makes a table of sines and cosines for so many positions; no such model goes beyond 8192.
_MOST_POSITIONS = 1 << 16


def _layer(target: str, source: str | None, shape: tuple[str, ...], **rest: object) -> Row:
    sources = () if source is None else (_LAYER + source,)
    return Row(f"blk.{{i}}.{target}", sources, shape, **rest)  # type: ignore[arg-type]


# llama.cpp's loader insists on attn_output.bias; older ones, which other programs still carry, on all four.
ROWS = (
    Row("token_embd.weight", (_EMBEDDING,), ("rows", "hidden")),
    _layer("attn_norm.weight", "ln_1.weight", ("hidden",)),
    _layer("attn_norm.bias", "ln_1.bias", ("hidden",)),
    _layer("attn_q.weight", "attn.q_proj.weight", _SQUARE, transform=_ORDER),
    _layer("attn_k.weight", "attn.k_proj.weight", _SQUARE, transform=_ORDER),
    _layer("attn_v.weight", "attn.v_proj.weight", _SQUARE),
    _layer("attn_output.weight", "attn.out_proj.weight", ("hidden", "heads * head_dim")),
    _layer("attn_q.bias", None, _SQUARE[:1]),
    _layer("attn_k.bias", None, _SQUARE[:1]),
    _layer("attn_v.bias", None, _SQUARE[:1]),
    _layer("attn_output.bias", None, ("hidden",)),
    _layer("ffn_up.weight", "mlp.fc_in.weight", _UP),
    _layer("ffn_up.bias", "mlp.fc_in.bias", _UP[:1]),
    _layer("ffn_down.weight", "mlp.fc_out.weight", _DOWN),
    _layer("ffn_down.bias", "mlp.fc_out.bias", _DOWN[:1]),
    Row("output_norm.weight", ("transformer.ln_f.weight",), ("hidden",)),
    Row("output_norm.bias", ("transformer.ln_f.bias",), ("hidden",)),
    Row("output.weight", (_OWN_HEAD,), ("rows", "hidden"), when=HEAD),
    # the phi2 graph knows no tied head
    Row(
        "output.weight",
        (_EMBEDDING,),
        ("rows", "hidden"),
        as_a_copy(),
        when=_TIED,
        back_to=(_OWN_HEAD,),
    ),
    Row("output.bias", ("lm_head.bias",), ("rows",)),
)  # fmt: skip


@dataclass(frozen=True)
class GptjFacts(DecoderFacts):
    """A GPT-J: as many key heads as query heads, of which the first ``rope.dimensions`` dimensions turn."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes."""
        return {**super().sizes, "rotary": self.rope.dimensions}


def _facts(settings: Settings) -> GptjFacts:
    hidden = settings.either("n_embd", "hidden_size")
    heads = settings.either("n_head", "num_attention_heads")
    if hidden % heads:
        raise settings.refuse("n_embd", hidden, f"a multiple of n_head {heads}")
    head_dim = hidden // heads
    positions = settings.either("n_positions", "max_position_embeddings", 2048)
    if positions > _MOST_POSITIONS:
        raise settings.refuse("n_positions", positions, f"at most {_MOST_POSITIONS}")
    return GptjFacts(
        where=settings.where,
        layers=settings.either("n_layer", "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn=settings.integer("n_inner", 4 * hidden),
        rows=settings.integer("vocab_size"),
        context=positions,
        epsilon=settings.real("layer_norm_epsilon", 1e-5),
        activation=settings.text("activation_function", "gelu_new"),
        rope=Rope(10000.0, _rotary(settings, head_dim)),
        tied=settings.flag("tie_word_embeddings"),
    )


def _rotary(settings: Settings, head_dim: int) -> int:
    """How many dimensions of a head are rotated: 64 where the key is missing, the whole head for null."""
    stated = "rotary_dim" in settings.values
    rotary = settings.integer("rotary_dim", head_dim if stated else 64)
    if rotary % 2 or rotary > head_dim:
        raise settings.refuse(
            "rotary_dim",
            rotary,
            f"an even number (dimensions are rotated in pairs) up to the head's {head_dim}",
        )
    return rotary


def _flags(facts: GptjFacts, checkpoint: Checkpoint) -> frozenset[str]:
    return head_flags(facts, checkpoint, _EMBEDDING, _OWN_HEAD) or frozenset({_TIED})


def _limits_of_llama_cpp(facts: GptjFacts) -> None:
    graph = "phi2 graph, which GPT-J runs as, supports only GELU"
    refuse_other_activations(facts, GELU | TANH_GELU, graph, "activation_function")


def _keys(facts: GptjFacts) -> dict[str, MetadataValue]:
    return {
        "block_count": facts.layers,
        "context_length": facts.context,
        "embedding_length": facts.hidden,
        "feed_forward_length": facts.ffn,
        "attention.head_count": facts.heads,
        "attention.head_count_kv": facts.heads,
        "attention.layer_norm_epsilon": facts.epsilon,
        "rope.dimension_count": facts.rope.dimensions,
        "rope.freq_base": facts.rope.base,
    }


def _for_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A null rotary_dim, which means the whole head, written out: transformers 5 refuses it."""
    if config.get("rotary_dim", 64) is not None:
        return config
    return {**config, "rotary_dim": _facts(Settings(config, "config.json")).head_dim}


def _describe(graph: Graph, request: GraphRequest[GptjFacts]) -> None:
    """Rotary embedding turns neighbours, as the checkpoint has them, so no row changes its place, and none of
    the zeros llama.cpp's graph insists on are needed.
    """
    facts = request.facts
    rows, positions = begin(graph, _EMBEDDING, facts.rope)
    for layer in range(facts.layers):
        rows = _described_layer(graph, layer, rows, positions, facts)
    rows = layer_norm(graph, rows, "transformer.ln_f", facts.epsilon)
    end(graph, rows, positions, _OWN_HEAD if HEAD in request.flags else _EMBEDDING, "lm_head.bias")


def _described_layer(graph: Graph, layer: int, rows: str, positions: Positions, facts: GptjFacts) -> str:
    """One normalization feeds attention and feed-forward, side by side."""
    place = f"transformer.h.{layer}"
    heads = Heads(facts.heads, facts.heads, facts.head_dim, facts.rope.dimensions, neighbours=True)
    inner = layer_norm(graph, rows, f"{place}.ln_1", facts.epsilon)
    given = {each: graph.linear(inner, f"{place}.attn.{each}_proj.weight") for each in "qkv"}
    seen = attention(graph, layer, positions, heads, given)
    attended = graph.linear(seen, f"{place}.attn.out_proj.weight")
    fed = feed_forward(graph, inner, f"{place}.mlp.fc_in", f"{place}.mlp.fc_out", facts.activation)
    return graph.op("Add", rows, graph.op("Add", attended, fed))


GPTJ = Family(
    name="gptj",
    title="GPT-J",
    models=("KoGPT 6B",),
    hf_classes=("GPTJForCausalLM",),
    arch="phi2",
    facts=_facts,
    flags=_flags,
    keys=_keys,
    rows=ROWS,
    limits={
        "llama.cpp": _limits_of_llama_cpp,
        "ONNX": lambda facts: refuse_activations_onnx_lacks(facts, "activation_function"),
    },
    reference=InTransformers("GPTJForCausalLM", config=_for_transformers),
    graphs=one_graph(_describe),
    dropped=(
        "transformer.h.{i}.attn.bias",  # the causal mask, of whatever type
        "transformer.h.{i}.attn.masked_bias",
        "transformer.h.{i}.attn.embed_positions",
        _OWN_HEAD,
    ),
    notes=decoder_notes,
    remarks={"llama.cpp": gelu_remarks},
    gelu=True,
)
