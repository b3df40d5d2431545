"""MPT: ALiBi instead of positions, no biases, clipped queries, keys and values.

Keys and tensors as llama.cpp reads them in src/models/mpt.cpp. What transformers' class leaves out although
config.json may ask for it (norms of queries and keys, several kinds of norm and attention) is refused: there
would be nothing to prove a file against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.checkpoint import Checkpoint
from ...core.model import MetadataValue
from ...core.tensor import Array
from ..decoder_facts import HEAD, DecoderFacts, decoder_notes, head_flags
from ..family import Family, InTransformers, Row
from ..onnx.blocks import feed_forward, linear
from ..onnx.causal import Heads, attention, begin_alibi, end, three_parts
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..positions import gelu_remarks, layer_norm_keys, refuse_set, unrotated
from ..settings import Settings

_TABLE, _HEAD = "transformer.wte.weight", "lm_head.weight"
_WIDER = 4  # of transformers' MptMLP, whatever expansion_ratio says


def _layer(target: str, source: str, *shape: str) -> Row:
    return Row(f"blk.{{i}}.{target}.weight", (f"transformer.blocks.{{i}}.{source}.weight",), shape)


ROWS = (
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden")),
    _layer("attn_norm", "norm_1", "hidden"),
    _layer("attn_qkv", "attn.Wqkv", "three * hidden", "hidden"),
    _layer("attn_output", "attn.out_proj", "hidden", "hidden"),
    _layer("ffn_norm", "norm_2", "hidden"),
    _layer("ffn_up", "ffn.up_proj", "ffn", "hidden"),
    _layer("ffn_down", "ffn.down_proj", "hidden", "ffn"),
    Row("output_norm.weight", ("transformer.norm_f.weight",), ("hidden",)),
    Row("output.weight", (_HEAD,), ("rows", "hidden"), when=HEAD),
)


@dataclass(frozen=True)
class MptFacts(DecoderFacts):
    """``bias_max`` is ALiBi's, ``clip`` the most q, k and v may be (0: anything)."""

    bias_max: float
    clip: float

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes; ``three`` are query, key and value."""
        return {**super().sizes, "three": 3}

    def slopes(self) -> Array:
        """By how much a head's scores fall for each position further back, ``(heads,)`` in float32."""
        power = 2 ** math.ceil(math.log2(self.heads))
        base = np.arange(1, power + 1, dtype=np.float32) * np.float32(self.bias_max / power)
        slopes = (np.float32(1) / np.power(np.float32(2), base)).astype(np.float32)
        chosen: Array = slopes if power == self.heads else np.r_[slopes[1::2], slopes[::2]][: self.heads]
        return chosen


def _facts(settings: Settings) -> MptFacts:
    hidden, heads = (
        settings.either("d_model", "hidden_size"),
        settings.either("n_heads", "num_attention_heads"),
    )
    inner = settings.section("attn_config") or Settings({}, f"{settings.where}: attn_config")
    absent = "transformers' MptForCausalLM does not compute that, so that no file of it could be proven"
    for section, key, wanted in (
        (settings, "no_bias", True),
        (settings, "expansion_ratio", _WIDER),
        (settings, "logit_scale", None),
        (settings, "norm_type", "low_precision_layernorm"),
        (settings, "learned_pos_emb", True),  # has no effect beside ALiBi
        (settings, "embedding_fraction", 1),
        (inner, "attn_type", "multihead_attention"),
        (inner, "qk_ln", False),
        (inner, "prefix_lm", False),
        (inner, "alibi", True),
        (inner, "softmax_scale", None),
    ):
        refuse_set(section, key, wanted, absent)
    clip = inner.real("clip_qkv") if inner.values.get("clip_qkv") else 0.0  # 0 clips nothing either
    return MptFacts(
        **unrotated(
            settings,
            hidden,
            heads,
            settings.either("max_seq_len", "max_position_embeddings", 2048),
            "n_heads",
        ),
        layers=settings.either("n_layers", "num_hidden_layers"),
        ffn=_WIDER * hidden,
        rows=settings.integer("vocab_size"),
        epsilon=settings.real("layer_norm_epsilon", 1e-5),
        activation="gelu",
        tied=settings.flag("tie_word_embeddings", True),
        bias_max=float(inner.integer("alibi_bias_max", 8)),
        clip=clip,
    )


def _flags(facts: MptFacts, checkpoint: Checkpoint) -> frozenset[str]:
    return head_flags(facts, checkpoint, _TABLE, _HEAD)


def _keys(facts: MptFacts) -> dict[str, MetadataValue]:
    keys = {**layer_norm_keys(facts), "attention.max_alibi_bias": facts.bias_max}
    return {**keys, "attention.clamp_kqv": facts.clip} if facts.clip else keys


def _norm(graph: Graph, rows: str, place: str, facts: MptFacts) -> str:
    weight = graph.weight(f"{place}.weight")
    return graph.op("LayerNormalization", rows, weight, axis=-1, epsilon=facts.epsilon)


def _describe(graph: Graph, request: GraphRequest[MptFacts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.heads, facts.head_dim, 0)
    rows, positions = begin_alibi(graph, _TABLE, facts.slopes())
    for layer in range(facts.layers):
        place = f"transformer.blocks.{layer}"
        mixed = linear(graph, _norm(graph, rows, f"{place}.norm_1", facts), f"{place}.attn.Wqkv")
        if facts.clip:
            mixed = graph.op("Clip", mixed, graph.number(-facts.clip), graph.number(facts.clip))
        seen = attention(graph, layer, positions, heads, three_parts(graph, mixed))
        rows = graph.op("Add", rows, linear(graph, seen, f"{place}.attn.out_proj"))
        inner = _norm(graph, rows, f"{place}.norm_2", facts)
        fed = feed_forward(graph, inner, f"{place}.ffn.up_proj", f"{place}.ffn.down_proj", facts.activation)
        rows = graph.op("Add", rows, fed)
    rows = _norm(graph, rows, "transformer.norm_f", facts)
    end(graph, rows, positions, _HEAD if HEAD in request.flags else _TABLE)


MPT = Family(
    name="mpt",
    title="MPT",
    models=("MPT 7B and 30B in transformers' form",),
    hf_classes=("MptForCausalLM", "MPTForCausalLM"),
    arch="mpt",
    facts=_facts,
    flags=_flags,
    keys=_keys,
    rows=ROWS,
    limits={"llama.cpp": lambda facts: None, "ONNX": lambda facts: None},
    reference=InTransformers("MptForCausalLM"),
    graphs=one_graph(_describe),
    dropped=(_HEAD,),
    notes=decoder_notes,
    remarks={"llama.cpp": gelu_remarks},
    gelu=True,
)
