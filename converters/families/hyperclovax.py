"""HyperCLOVA X SEED Think: a Llama with norms behind attention and feed-forward, and four scalars.

llama.cpp has no graph of that name. Its glm4 graph (src/models/glm4.cpp) computes the same once the scalars
are multiplied into matrices and norms; without the norms behind, its llama graph does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...core.checkpoint import Checkpoint
from ...core.model import Note
from ..activation_names import SILU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    Defaults,
    decoder_keys,
    decoder_notes,
    read_decoder,
    refuse_activations_onnx_lacks,
    refuse_biases,
    refuse_divided_frequencies,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row, Transform
from ..folding import factor_sizes, followed_by, times
from ..onnx.blocks import gated_feed_forward, linear, multiplied, rms_norm
from ..onnx.causal import Heads, Positions, attention, begin, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..reshaping import join
from ..rope import refuse_partial_rotation
from ..settings import Settings
from ..transforms import interleave_heads
from .llama import EMBEDDING, LLAMA, OWN_HEAD, limits_of_llama_cpp
from .qwen3 import END, FEED_FORWARD, flags, layer_row

_TIED = "tied head with scalars of its own"
_EMBEDDED, _LOGITS, _QUERY, _RESIDUAL = "embedding", "logits", "query", "residual"  # factors among sizes
_TABLE = ("rows", "hidden")


def _row(target: str, source: str, *shape: str, by: Transform | None = None) -> Row:
    return replace(layer_row(target, source, *shape), transform=by)


_QUERIES = followed_by(interleave_heads("heads"), times(_QUERY))
_SHAPE, _KEY = ("heads * head_dim", "hidden"), ("kv_heads * head_dim", "hidden")
_OUTPUT = ("attn_output", "self_attn.o_proj", *_SHAPE[::-1])
_DOWN = ("ffn_down", "mlp.down_proj", "hidden", "ffn")
_GATE_UP = tuple(f"model.layers.{{i}}.mlp.{each}_proj.weight" for each in ("gate", "up"))
_BEGIN = (
    Row("token_embd.weight", (EMBEDDING,), _TABLE, times(_EMBEDDED)),
    _row("attn_norm", "input_layernorm", "hidden"),
    _row("attn_q", "self_attn.q_proj", *_SHAPE, by=_QUERIES),
    _row("attn_k", "self_attn.k_proj", *_KEY, by=interleave_heads("kv_heads")),
    _row("attn_v", "self_attn.v_proj", *_KEY),
    _row("ffn_norm", "post_attention_layernorm", "hidden"),
)
_HEAD_ROWS = (
    END[0],
    Row("output.weight", (OWN_HEAD,), _TABLE, times(_LOGITS), when=HEAD),
    Row("output.weight", (EMBEDDING,), _TABLE, times(_LOGITS, copy=True), when=_TIED, back_to=(OWN_HEAD,)),
)
ROWS = (
    *_BEGIN,
    _row(*_OUTPUT),
    _row("post_attention_norm", "post_norm1", "hidden", by=times(_RESIDUAL)),
    Row("blk.{i}.ffn_up.weight", _GATE_UP, ("ffn", "hidden"), join(2)),
    _row(*_DOWN),
    _row("post_ffw_norm", "post_norm2", "hidden", by=times(_RESIDUAL)),
    *_HEAD_ROWS,
)
_ROWS_OF_LLAMA = (
    *_BEGIN,
    _row(*_OUTPUT, by=times(_RESIDUAL)),
    *FEED_FORWARD[:2],
    _row(*_DOWN, by=times(_RESIDUAL)),
    *_HEAD_ROWS,
)


@dataclass(frozen=True)
class HyperClovaXFacts(DecoderFacts):
    """By what embedding, what each half of a layer adds, logits and scores are multiplied; norms behind."""

    embedding: float
    residual: float
    logits: float
    attention: float
    normed: bool

    @property
    def query(self) -> float:
        """What queries are multiplied by where scores are divided by the root of ``head_dim``."""
        return 1.0 if self.attention == self.head_dim**-0.5 else self.attention * math.sqrt(self.head_dim)

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes, and the factors."""
        return {
            **super().sizes,
            **factor_sizes(_EMBEDDED, self.embedding),
            **factor_sizes(_RESIDUAL, self.residual),
            **factor_sizes(_LOGITS, self.logits),
            **factor_sizes(_QUERY, self.query),
        }


def _facts(settings: Settings) -> HyperClovaXFacts:
    fields = read_decoder(settings, Defaults(context=2048, epsilon=1e-6, stretched=True))
    refuse_partial_rotation(settings, "HyperCLOVA X")
    refuse_biases(settings, "attention_bias", "mlp_bias")
    return HyperClovaXFacts(
        **fields,
        embedding=settings.real("embedding_multiplier", 1.0),
        residual=settings.real("residual_multiplier", 1.0),
        logits=settings.real("logits_scaling", 1.0),
        attention=settings.real("attention_multiplier", fields["head_dim"] ** -0.5),
        normed=settings.flag("use_post_norm", True),
    )


def _flags(facts: HyperClovaXFacts, checkpoint: Checkpoint) -> frozenset[str]:
    found = flags(facts, checkpoint)
    return found if HEAD in found or facts.embedding == facts.logits else frozenset({_TIED})


def _notes(facts: HyperClovaXFacts, found: frozenset[str]) -> tuple[Note, ...]:
    notes = decoder_notes(facts, found)
    if _TIED in found:
        message = (
            "lm_head is tied to the embedding, but each is multiplied by a number of its own: the GGUF gets "
            "an output.weight beside the embedding"
        )
        notes = (*notes, Note("scaled-head", message))
    return notes


def _limits_of_glm4(facts: HyperClovaXFacts) -> None:
    refuse_other_activations(facts, SILU, "glm4 graph supports only silu")
    refuse_divided_frequencies(facts, "glm4")


def _describe(graph: Graph, request: GraphRequest[HyperClovaXFacts]) -> None:
    facts = request.facts
    rows, positions = begin(graph, EMBEDDING, facts.rope)
    rows = multiplied(graph, rows, facts.embedding)
    for layer in range(facts.layers):
        rows = _layer(graph, f"model.layers.{layer}", layer, rows, positions, facts)
    rows = multiplied(graph, rms_norm(graph, rows, "model.norm", facts.epsilon), facts.logits)
    end(graph, rows, positions, OWN_HEAD if HEAD in request.flags else EMBEDDING)


def _layer(
    graph: Graph, place: str, layer: int, rows: str, positions: Positions, facts: HyperClovaXFacts
) -> str:
    def added(rows: str, made: str, norm: str) -> str:
        if facts.normed:
            made = rms_norm(graph, made, f"{place}.{norm}", facts.epsilon)
        return graph.op("Add", rows, multiplied(graph, made, facts.residual))

    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions)
    inner = rms_norm(graph, rows, f"{place}.input_layernorm", facts.epsilon)
    given = {each: linear(graph, inner, f"{place}.self_attn.{each}_proj") for each in "qkv"}
    given["q"] = multiplied(graph, given["q"], facts.query)
    attended = attention(graph, layer, positions, heads, given)
    rows = added(rows, linear(graph, attended, f"{place}.self_attn.o_proj"), "post_norm1")
    inner = rms_norm(graph, rows, f"{place}.post_attention_layernorm", facts.epsilon)
    return added(rows, gated_feed_forward(graph, inner, f"{place}.mlp", facts.activation), "post_norm2")


HYPERCLOVAX = Family(
    name="hyperclovax",
    title="HyperCLOVA X",
    models=("HyperCLOVA X SEED Think 14B and its fine-tunes",),
    hf_classes=("HyperCLOVAXForCausalLM",),
    arch="glm4",
    facts=_facts,
    flags=_flags,
    keys=decoder_keys,
    rows=ROWS,
    limits={"llama.cpp": _limits_of_glm4, "ONNX": refuse_activations_onnx_lacks},
    reference=InTransformers("HyperCLOVAXForCausalLM"),
    graphs=one_graph(_describe),
    dropped=("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", OWN_HEAD),
    extra=lambda facts: facts.rope.tensors(),
    notes=_notes,
    instead=lambda config: WITHOUT_NORMS if config.get("use_post_norm") is False else None,
)
WITHOUT_NORMS: Family[HyperClovaXFacts] = replace(
    HYPERCLOVAX,
    arch=LLAMA.arch,
    rows=_ROWS_OF_LLAMA,
    limits={"llama.cpp": limits_of_llama_cpp, "ONNX": refuse_activations_onnx_lacks},
)
