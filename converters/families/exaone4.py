"""EXAONE 4.0: norms behind attention and feed-forward, a norm on every head's query and key.

Keys and tensors as llama.cpp reads them in src/models/exaone4.cpp. The 32B has a window in three of four
layers, which turn; the others see everything and do not turn. llama.cpp's graph has that at 64 layers only,
with this very pattern; models without a window (the 1.2B) it computes at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.errors import UnsupportedModel
from ...core.model import MetadataValue
from ..activation_names import SILU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    Defaults,
    decoder_keys,
    decoder_notes,
    read_decoder,
    refuse_activations_onnx_lacks,
    refuse_longrope,
    refuse_other_activations,
)
from ..family import Family, InTransformers
from ..layer_types import all_but_each, named_local_layers, types_of
from ..onnx.blocks import gated_feed_forward, linear, rms_norm
from ..onnx.causal import Heads, attention, begin, end, with_window
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings
from .qwen3 import EMBEDDING, END, FEED_FORWARD, HEADS, OWN_HEAD, TABLE, flags, layer_row, normed_heads

_WINDOWED_LAYERS, _PERIOD = 64, 4  # exaone4.cpp, load_arch_hparams

ROWS = (
    TABLE,
    *HEADS,
    layer_row("post_attention_norm", "post_attention_layernorm", "hidden"),
    *FEED_FORWARD,
    layer_row("post_ffw_norm", "post_feedforward_layernorm", "hidden"),
    *END,
)


@dataclass(frozen=True)
class Exaone4Facts(DecoderFacts):
    """``window`` is how far back a local layer sees; ``local`` says of each layer whether it is one."""

    window: int | None
    local: tuple[bool, ...]


def _facts(settings: Settings) -> Exaone4Facts:
    fields = read_decoder(settings, Defaults(context=2048, epsilon=1e-5, kv_heads=32, stretched=True))
    refuse_partial_rotation(settings, "EXAONE 4")
    # null, which is not the same as missing, means that there is no window
    none = "sliding_window" in settings.values and "sliding_window" not in settings
    window = None if none else settings.integer("sliding_window", 4096)
    local = _local(settings, fields["layers"], windowed=window is not None)
    return Exaone4Facts(**fields, window=window, local=local)


def _local(settings: Settings, layers: int, *, windowed: bool) -> tuple[bool, ...]:
    """Which layers are local: by layer_types, else sliding_window_pattern (a period, or L and G)."""
    named = named_local_layers(settings, layers)
    if named is not None:
        return named
    if not windowed:
        return (False,) * layers
    pattern = settings.values.get("sliding_window_pattern", _PERIOD)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return tuple(pattern[i % len(pattern)] == "L" for i in range(layers))
    if pattern is None:
        return (False,) * layers
    period = settings.integer("sliding_window_pattern", _PERIOD)
    return all_but_each(period, layers)


def _keys(facts: Exaone4Facts) -> dict[str, MetadataValue]:
    keys: dict[str, MetadataValue] = decoder_keys(facts)
    if facts.window is not None:
        keys |= {
            "attention.sliding_window": facts.window,
            "attention.sliding_window_pattern": facts.local,
        }
    return keys


def _limits_of_llama_cpp(facts: Exaone4Facts) -> None:
    refuse_other_activations(facts, SILU, "exaone4 graph supports only silu")
    refuse_longrope(facts, "exaone4")
    if facts.heads * facts.head_dim != facts.hidden:
        raise UnsupportedModel(
            f"{facts.where}: {facts.heads} heads of {facts.head_dim} do not add up to hidden_size "
            f"{facts.hidden}; llama.cpp's exaone4 graph requires a square output matrix",
            hint="kconv to-onnx supports it",
        )
    if (facts.window is None) != (facts.layers != _WINDOWED_LAYERS):
        what = "no sliding window" if facts.window is None else f"a sliding window of {facts.window}"
        raise UnsupportedModel(
            f"{facts.where}: {facts.layers} layers with {what}; llama.cpp's exaone4 graph uses a "
            f"window for models of {_WINDOWED_LAYERS} layers, and only for those",
            hint="kconv to-onnx supports it",
        )


def _for_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With layer_types written out: transformers divides by a pattern of 0 where there is no window."""
    local = _facts(Settings(config, "config.json")).local
    return {**config, "layer_types": types_of(local)}


def _describe(graph: Graph, request: GraphRequest[Exaone4Facts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.kv_heads, facts.head_dim, facts.rope.dimensions)
    rows, everywhere = begin(graph, EMBEDDING, facts.rope)
    near = everywhere if facts.window is None else with_window(graph, everywhere, facts.window)
    for layer, local in enumerate(facts.local):
        place = f"model.layers.{layer}"
        given = normed_heads(graph, rows, place, facts)
        turning = heads if local or facts.window is None else replace(heads, rotary=0)
        attended = attention(graph, layer, near if local else everywhere, turning, given)
        attended = linear(graph, attended, f"{place}.self_attn.o_proj")
        rows = graph.op(
            "Add", rows, rms_norm(graph, attended, f"{place}.post_attention_layernorm", facts.epsilon)
        )
        fed = gated_feed_forward(graph, rows, f"{place}.mlp", facts.activation)
        rows = graph.op(
            "Add", rows, rms_norm(graph, fed, f"{place}.post_feedforward_layernorm", facts.epsilon)
        )
    rows = rms_norm(graph, rows, "model.norm", facts.epsilon)
    end(graph, rows, everywhere, OWN_HEAD if HEAD in request.flags else EMBEDDING)


EXAONE4 = Family(
    name="exaone4",
    title="EXAONE 4",
    models=("EXAONE 4.0 1.2B and 32B",),
    hf_classes=("Exaone4ForCausalLM",),
    arch="exaone4",
    facts=_facts,
    flags=flags,
    keys=_keys,
    left_out=lambda facts: {"attention.sliding_window_pattern": all_but_each(_PERIOD, facts.layers)},
    rows=ROWS,
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": refuse_activations_onnx_lacks},
    reference=InTransformers(
        "Exaone4ForCausalLM", config=_for_transformers, nulls=frozenset({"sliding_window"})
    ),
    graphs=one_graph(_describe),
    dropped=(OWN_HEAD,),
    extra=lambda facts: facts.rope.tensors(),
    notes=decoder_notes,
)
