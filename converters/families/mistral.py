"""Mistral: a Llama without biases, in whose first models (7B v0.1) every layer has a window.

Keys and tensors as llama.cpp reads them in src/models/llama.cpp. That graph has no window, so one narrower
than the context is refused there; the ONNX graph has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import UnsupportedModel
from ..activation_names import SILU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    Defaults,
    decoder_keys,
    decoder_notes,
    read_decoder,
    refuse_activations_onnx_lacks,
    refuse_other_activations,
)
from ..family import Family, InTransformers
from ..onnx.blocks import rms_norm
from ..onnx.causal import begin, end, with_window
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings
from .llama import EMBEDDING, LLAMA, OWN_HEAD, ROWS, described_layer
from .qwen3 import flags

_WINDOW = "sliding_window"


@dataclass(frozen=True)
class MistralFacts(DecoderFacts):
    """A Mistral; ``window`` is how far back a token sees, None where that is the whole context."""

    window: int | None


def _facts(settings: Settings) -> MistralFacts:
    fields = read_decoder(settings, Defaults(context=131072, epsilon=1e-6, kv_heads=8, stretched=True))
    refuse_partial_rotation(settings, "Mistral")
    return MistralFacts(**fields, window=_window(settings, fields["context"]))


def _window(settings: Settings, context: int) -> int | None:
    """The window, if it is narrower than the context; null, which is not the same as missing, means none."""
    if _WINDOW in settings.values and _WINDOW not in settings:
        return None
    window = settings.integer(_WINDOW, 4096)
    return window if window < context else None


def _limits_of_llama_cpp(facts: MistralFacts) -> None:
    refuse_other_activations(facts, SILU, "llama graph supports only silu")
    if facts.window is not None:
        raise UnsupportedModel(
            f"{facts.where}: {_WINDOW} is {facts.window}, less than max_position_embeddings {facts.context}; "
            "llama.cpp's llama graph has no window, so it would attend further back than in training",
            hint="kconv to-onnx supports it; if a context as long as the window is enough, set "
            f"max_position_embeddings to {facts.window} in config.json, and the graph is exact",
        )


def _describe(graph: Graph, request: GraphRequest[MistralFacts]) -> None:
    facts = request.facts
    rows, positions = begin(graph, EMBEDDING, facts.rope)
    if facts.window is not None:
        positions = with_window(graph, positions, facts.window)
    for layer in range(facts.layers):
        rows = described_layer(graph, f"model.layers.{layer}", layer, rows, positions, facts)
    rows = rms_norm(graph, rows, "model.norm", facts.epsilon)
    end(graph, rows, positions, OWN_HEAD if HEAD in request.flags else EMBEDDING)


MISTRAL = Family(
    name="mistral",
    title="Mistral",
    models=("Mistral 7B from v0.2 on", "Mistral Nemo 12B", "Mistral Small 24B"),
    hf_classes=("MistralForCausalLM",),
    arch="llama",
    facts=_facts,
    flags=flags,
    keys=decoder_keys,
    rows=ROWS,
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": refuse_activations_onnx_lacks},
    reference=InTransformers("MistralForCausalLM", nulls=frozenset({_WINDOW})),
    graphs=one_graph(_describe),
    dropped=LLAMA.dropped,
    extra=lambda facts: facts.rope.tensors(),
    notes=decoder_notes,
)
