"""OPT, as llama.cpp's ``mpt`` graph (src/models/mpt.cpp), which can divide what leaves GELU by a tensor.

OPT has ReLU, the graph GELU: GELU(s x) / s is ReLU(x) but for at most 0.17 / s, and exactly so beyond 10 / s
(ggml-cpu/vec.h). So fc1 and its bias are multiplied by s, a power of two, and ``ffn.act.scales`` holds s. The
same graph takes learned positions, which here begin at row 2 of their table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.checkpoint import Checkpoint
from ...core.model import MetadataValue, Note
from ...core.tensor import Tensor
from ..activation_names import RELU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    decoder_notes,
    head_flags,
    refuse_activations_onnx_lacks,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row, Transform
from ..onnx.blocks import feed_forward, layer_norm, linear
from ..onnx.causal import Heads, Positions, attention, begin_learned, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..positions import layer_norm_keys, refuse_set, unrotated
from ..reshaping import computed, join, multiply, without_first
from ..settings import Settings

OFFSET = 2
STEEPNESS = 4096.0
"""The s of GELU(s x) / s: an NMSE of 1e-12, and halves hold fc1 times it as long as no weight exceeds 16."""

_BASE = "model.decoder."
_TABLE, _PLACES, _HEAD = f"{_BASE}embed_tokens.weight", f"{_BASE}embed_positions.weight", "lm_head.weight"
_BIAS = "biases"


def layer_rows(base: str, *, fc1: Transform | None = None, biases: str | None = None) -> tuple[Row, ...]:
    """The rows of a layer under fairseq's names, as OPT and XGLM have it, behind ``base``.

    ``fc1`` is done to that matrix and its bias; matrices have biases under the flag ``biases``, or always.
    """

    def row(target: str, sources: str | tuple[str, ...], *shape: str, **rest: Any) -> Row:
        names = (sources,) if isinstance(sources, str) else sources
        return Row(
            f"blk.{{i}}.{target}", tuple(f"{base}layers.{{i}}.{name}" for name in names), shape, **rest
        )

    qkv = tuple(f"self_attn.{each}_proj" for each in "qkv")
    return (
        row("attn_norm.weight", "self_attn_layer_norm.weight", "hidden"),
        row("attn_norm.bias", "self_attn_layer_norm.bias", "hidden"),
        row("attn_qkv.weight", tuple(f"{n}.weight" for n in qkv), "hidden", "hidden", transform=join(3)),
        row("attn_qkv.bias", tuple(f"{n}.bias" for n in qkv), "hidden", transform=join(3), when=biases),
        row("attn_output.weight", "self_attn.out_proj.weight", "hidden", "hidden"),
        row("attn_output.bias", "self_attn.out_proj.bias", "hidden", when=biases),
        row("ffn_norm.weight", "final_layer_norm.weight", "hidden"),
        row("ffn_norm.bias", "final_layer_norm.bias", "hidden"),
        row("ffn_up.weight", "fc1.weight", "ffn", "hidden", transform=fc1),
        row("ffn_up.bias", "fc1.bias", "ffn", transform=fc1, when=biases),
        row("ffn_down.weight", "fc2.weight", "hidden", "ffn"),
        row("ffn_down.bias", "fc2.bias", "hidden", when=biases),
    )


ROWS = (
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden")),
    Row("position_embd.weight", (_PLACES,), ("places", "hidden"), without_first(OFFSET)),
    *layer_rows(_BASE, fc1=multiply(lambda sizes: STEEPNESS), biases=_BIAS),
    Row("output_norm.weight", (f"{_BASE}final_layer_norm.weight",), ("hidden",)),
    Row("output_norm.bias", (f"{_BASE}final_layer_norm.bias",), ("hidden",)),
    Row("output.weight", (_HEAD,), ("rows", "hidden"), when=HEAD),
)


@dataclass(frozen=True)
class OptFacts(DecoderFacts):
    """``biased``: every matrix has a bias."""

    biased: bool

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes; ``places`` are the rows of the table of positions."""
        return {**super().sizes, "places": self.context + OFFSET}


def _facts(settings: Settings) -> OptFacts:
    hidden = settings.integer("hidden_size")
    post = "norms behind the layers (OPT-350m) fit no graph of llama.cpp and are not supported"
    for key, wanted, why in (
        ("do_layer_norm_before", True, post),
        ("word_embed_proj_dim", hidden, f"embeddings of another width than hidden_size {hidden} do not fit"),
        ("_remove_final_layer_norm", False, "models without the last norm are not supported"),
        ("layer_norm_elementwise_affine", True, "norms without weights are not supported"),
    ):
        refuse_set(settings, key, wanted, why)
    heads = settings.integer("num_attention_heads")
    context = settings.integer("max_position_embeddings", 2048)
    return OptFacts(
        **unrotated(settings, hidden, heads, context, "num_attention_heads"),
        layers=settings.integer("num_hidden_layers"),
        ffn=settings.integer("ffn_dim"),
        rows=settings.integer("vocab_size"),
        epsilon=1e-5,
        activation=settings.text("activation_function", "relu"),
        tied=settings.flag("tie_word_embeddings", True),
        biased=settings.flag("enable_bias", True),
    )


def _flags(facts: OptFacts, checkpoint: Checkpoint) -> frozenset[str]:
    biases = frozenset({_BIAS} if facts.biased else ())
    return biases | head_flags(facts, checkpoint, _TABLE, _HEAD)


def _limits_of_llama_cpp(facts: OptFacts) -> None:
    graph = "mpt graph, which OPT runs as, supports only relu here"
    refuse_other_activations(facts, RELU, graph, "activation_function")


def _keys(facts: OptFacts) -> dict[str, MetadataValue]:
    return {**layer_norm_keys(facts), "attention.max_alibi_bias": 0.0}


def _divisors(facts: OptFacts) -> list[Tensor]:
    values = np.full(facts.ffn, STEEPNESS, np.float32)
    names = (f"blk.{layer}.ffn.act.scales" for layer in range(facts.layers))
    return [computed(name, values, f"{STEEPNESS:g}, by which fc1 is multiplied") for name in names]


def _remarks_on_llama_cpp(facts: OptFacts) -> tuple[Note, ...]:
    message = (
        f"llama.cpp has no ReLU for OPT: it computes GELU({STEEPNESS:g} x) / {STEEPNESS:g}, which differs "
        f"from it by less than {0.17 / STEEPNESS:.0e}"
    )
    return (Note("relu", message),)


def _describe(graph: Graph, request: GraphRequest[OptFacts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.heads, facts.head_dim, 0)
    rows, positions = begin_learned(graph, _TABLE, _PLACES, OFFSET)
    for layer in range(facts.layers):
        rows = described_layer(graph, layer, f"{_BASE}layers.{layer}", rows, positions, heads, facts)
    rows = layer_norm(graph, rows, f"{_BASE}final_layer_norm", facts.epsilon)
    end(graph, rows, positions, _HEAD if HEAD in request.flags else _TABLE)


def described_layer(
    graph: Graph, layer: int, place: str, rows: str, positions: Positions, heads: Heads, facts: DecoderFacts
) -> str:
    """A layer under fairseq's names, as OPT and XGLM have it."""
    inner = layer_norm(graph, rows, f"{place}.self_attn_layer_norm", facts.epsilon)
    given = {each: linear(graph, inner, f"{place}.self_attn.{each}_proj") for each in "qkv"}
    seen = attention(graph, layer, positions, heads, given)
    rows = graph.op("Add", rows, linear(graph, seen, f"{place}.self_attn.out_proj"))
    inner = layer_norm(graph, rows, f"{place}.final_layer_norm", facts.epsilon)
    return graph.op("Add", rows, feed_forward(graph, inner, f"{place}.fc1", f"{place}.fc2", facts.activation))


OPT = Family(
    name="opt",
    title="OPT",
    models=("OPT 125M to 66B but for 350M",),
    hf_classes=("OPTForCausalLM",),
    arch="mpt",
    facts=_facts,
    flags=_flags,
    keys=_keys,
    rows=ROWS,
    limits={
        "llama.cpp": _limits_of_llama_cpp,
        "ONNX": lambda facts: refuse_activations_onnx_lacks(facts, "activation_function"),
    },
    reference=InTransformers("OPTForCausalLM"),
    graphs=one_graph(_describe),
    dropped=(_HEAD,),
    extra=_divisors,
    notes=decoder_notes,
    remarks={"llama.cpp": _remarks_on_llama_cpp},
)
