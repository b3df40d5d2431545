"""What Gemma 2 and 3 share: norms before and behind attention and feed-forward, local layers.

The norms multiply by one more than their
weights, which llama.cpp's do not: the file has the sum. Heads turn in halves on both sides, and both multiply
the embedding by the root of its width (transformers rounds that root to the type it computes in; in float32,
as llama.cpp has it, nothing is lost).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ....core.errors import UnsupportedModel
from ....core.model import MetadataValue
from ...activation_names import TANH_GELU
from ...decoder_facts import (
    HEAD,
    DecoderFacts,
    Defaults,
    decoder_keys,
    read_decoder,
    refuse_activations_onnx_lacks,
    refuse_divided_frequencies,
    refuse_other_activations,
)
from ...family import Row
from ...layer_types import all_but_each, named_local_layers
from ...onnx.blocks import gated_feed_forward, head_norm, linear, rms_norm_plus_one
from ...onnx.causal import Heads, Positions, attention, begin, end, with_rope, with_window
from ...onnx.graph import Graph
from ...onnx.request import GraphRequest
from ...rope import Rope, refuse_partial_rotation
from ...settings import Settings
from ...transforms import plus_one
from ..qwen3 import EMBEDDING, FEED_FORWARD, OWN_HEAD, TABLE

_ACTIVATION = "hidden_activation"


def norm_row(target: str, source: str, words: str = "hidden", place: str = "blk.{i}") -> Row:
    """A norm's weights, with the one that is added to them."""
    name = f"model.layers.{{i}}.{source}.weight" if "{i}" in place else f"model.{source}.weight"
    return Row(f"{place}.{target}.weight".lstrip("."), (name,), (words,), transform=plus_one())


BEFORE_HEADS = (TABLE, norm_row("attn_norm", "input_layernorm"))
BEHIND_HEADS = (
    norm_row("post_attention_norm", "post_attention_layernorm"),
    norm_row("ffn_norm", "pre_feedforward_layernorm"),
    *FEED_FORWARD,
    norm_row("post_ffw_norm", "post_feedforward_layernorm"),
    norm_row("output_norm", "norm", place=""),
)


@dataclass(frozen=True)
class GemmaFacts(DecoderFacts):
    """``local`` says of each layer whether it sees only the last ``window`` tokens.

    ``scalar``: scores are divided by its root. ``score_cap`` and ``logit_cap`` bend scores and logits; None:
    they do not.
    """

    window: int
    local: tuple[bool, ...]
    scalar: int
    score_cap: float | None
    logit_cap: float | None


def read_gemma(settings: Settings, sizes: Mapping[str, Any], period: int, context: int) -> dict[str, Any]:
    """The fields of ``GemmaFacts`` but the caps; ``sizes`` stand in for what config.json leaves out.

    Every layer but each ``period``-th is local. Raises CheckpointError, UnsupportedModel.
    """
    given = {key: value for key, value in settings.values.items() if value is not None}
    settings = Settings({**sizes, **given}, settings.where)
    fields = read_decoder(settings, Defaults(context=context, epsilon=1e-6, head_dim=256, kv_heads=4))
    refuse_partial_rotation(settings, "Gemma")
    _refuse_what_no_gemma_has(settings)
    local = named_local_layers(settings, fields["layers"])
    if local is None:
        local = all_but_each(period, fields["layers"])
    return {
        **fields,
        "tied": settings.flag("tie_word_embeddings", True),
        "activation": settings.text("hidden_activation", "gelu_pytorch_tanh"),
        "window": settings.integer("sliding_window", 4096),
        "local": local,
        "scalar": settings.integer("query_pre_attn_scalar", 256),
    }


def _refuse_what_no_gemma_has(settings: Settings) -> None:
    for key, what in (
        ("attention_bias", "biases of attention, which no published Gemma has"),
        ("use_bidirectional_attention", "attention to what follows, which embedding models have"),
    ):
        if settings.flag(key):
            raise UnsupportedModel(
                f"{settings.where}: {key} is true; kconv does not support {what}",
                hint="open an issue with the model's name if you need it",
            )


def cap_of(settings: Settings, key: str, default: float | None) -> float | None:
    """A cap; null, which is not the same as missing, means that there is none."""
    if key not in settings:
        return None if key in settings.values else default
    return settings.real(key)


def gemma_keys(facts: GemmaFacts) -> dict[str, MetadataValue]:
    """The GGUF keys both graphs read."""
    keys: dict[str, MetadataValue] = decoder_keys(facts)
    if any(facts.local):
        keys |= {
            "attention.sliding_window": facts.window,
            "attention.sliding_window_pattern": facts.local,
        }
    return keys if facts.logit_cap is None else {**keys, "final_logit_softcapping": facts.logit_cap}


def gemma_left_out(facts: GemmaFacts, period: int) -> dict[str, MetadataValue]:
    """What both graphs take where a file has no such keys; every ``period``-th layer sees everything."""
    return {"attention.sliding_window_pattern": all_but_each(period, facts.layers)}


def gemma_limits(facts: GemmaFacts, graph: str, layers_of_27b: int) -> None:
    """Raises UnsupportedModel for what neither graph of llama.cpp computes.

    The graph divides scores by the root of head_dim, in models of ``layers_of_27b`` layers by that of the
    width of a head as hidden_size would have it.
    """
    refuse_other_activations(facts, TANH_GELU, f"{graph} graph supports only gelu_pytorch_tanh", _ACTIVATION)
    refuse_divided_frequencies(facts, graph)
    scalar = facts.hidden // facts.heads if facts.layers == layers_of_27b else facts.head_dim
    if facts.scalar != scalar:
        raise UnsupportedModel(
            f"{facts.where}: query_pre_attn_scalar is {facts.scalar}; llama.cpp's {graph} graph takes "
            f"{scalar} for a model of {facts.layers} layers with heads of {facts.head_dim}",
            hint="kconv to-onnx supports it",
        )


def limits_of_onnx(facts: GemmaFacts) -> None:
    """Raises UnsupportedModel for activations kconv has no operators of."""
    refuse_activations_onnx_lacks(facts, _ACTIVATION)


def describe(graph: Graph, request: GraphRequest[Any], rope_of_local: Rope, *, normed: bool) -> None:
    """The graph; ``rope_of_local`` is how local layers turn, ``normed`` says that queries and keys are."""
    facts: GemmaFacts = request.facts
    scale, cap = facts.scalar**-0.5, facts.score_cap
    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions, scale=scale, cap=cap)
    rows, everywhere = begin(graph, EMBEDDING, facts.rope)
    rows = graph.op("Mul", rows, graph.number(facts.hidden**0.5))
    near = everywhere
    if any(facts.local):
        near = with_window(graph, everywhere, facts.window)
    if rope_of_local != facts.rope:
        near = with_rope(graph, near, rope_of_local)
    for layer, local in enumerate(facts.local):
        rows = _layer(graph, rows, layer, near if local else everywhere, heads, facts, normed)
    rows = rms_norm_plus_one(graph, rows, "model.norm", facts.epsilon)
    end(graph, rows, everywhere, OWN_HEAD if HEAD in request.flags else EMBEDDING, cap=facts.logit_cap)


def _layer(
    graph: Graph, rows: str, layer: int, positions: Positions, heads: Heads, facts: GemmaFacts, normed: bool
) -> str:
    place = f"model.layers.{layer}"
    norm = partial(rms_norm_plus_one, graph, epsilon=facts.epsilon)
    inner = norm(rows, f"{place}.input_layernorm")
    given = {each: linear(graph, inner, f"{place}.self_attn.{each}_proj") for each in "qkv"}
    for each in "qk" if normed else "":
        weights = f"{place}.self_attn.{each}_norm"
        given[each] = head_norm(
            graph, given[each], weights, facts.head_dim, facts.epsilon, norm=rms_norm_plus_one
        )
    attended = linear(graph, attention(graph, layer, positions, heads, given), f"{place}.self_attn.o_proj")
    rows = graph.op("Add", rows, norm(attended, f"{place}.post_attention_layernorm"))
    inner = norm(rows, f"{place}.pre_feedforward_layernorm")
    fed = gated_feed_forward(graph, inner, f"{place}.mlp", facts.activation)
    return graph.op("Add", rows, norm(fed, f"{place}.post_feedforward_layernorm"))
