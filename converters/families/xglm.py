"""XGLM, as llama.cpp's ``gpt2`` graph (src/models/gpt2.cpp).

Positions are sinusoids, which no checkpoint holds: the table transformers computes is written as if it had
been learned. Embeddings are multiplied by the root of the width; the head that shares them is not, so that it
becomes a matrix of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ...core.model import Note
from ...core.tensor import Array, Tensor
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
from ..onnx.blocks import layer_norm
from ..onnx.causal import Heads, begin_sinusoidal, end
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..positions import gelu_remarks, layer_norm_keys, refuse_set, unrotated
from ..reshaping import computed, multiply
from ..settings import Settings
from ..transforms import as_a_copy
from .opt import OFFSET, described_layer, layer_rows

_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SCALED, _UNSCALED, _SCALED_TIED = "scaled", "not scaled", "scaled and tied"
_ROOT = multiply(lambda sizes: math.sqrt(sizes["hidden"]))


ROWS = (
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden"), _ROOT, when=_SCALED),
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden"), when=_UNSCALED),
    *layer_rows("model."),
    Row("output_norm.weight", ("model.layer_norm.weight",), ("hidden",)),
    Row("output_norm.bias", ("model.layer_norm.bias",), ("hidden",)),
    Row("output.weight", (_HEAD,), ("rows", "hidden"), when=HEAD),
    Row("output.weight", (_TABLE,), ("rows", "hidden"), as_a_copy(), when=_SCALED_TIED, back_to=(_HEAD,)),
)


@dataclass(frozen=True)
class XglmFacts(DecoderFacts):
    """``scaled``: embeddings are multiplied by the root of the width; ``padding`` has no position."""

    scaled: bool
    padding: int


def _facts(settings: Settings) -> XglmFacts:
    hidden, heads = (
        settings.either("d_model", "hidden_size"),
        settings.either("attention_heads", "num_attention_heads"),
    )
    context = settings.integer("max_position_embeddings", 2048)
    refuse_set(settings, "add_cross_attention", False, "only decoders by themselves are supported")
    if hidden < 4 or hidden % 2:
        raise settings.refuse("d_model", hidden, "an even number from 4 on")
    return XglmFacts(
        **unrotated(settings, hidden, heads, context, "attention_heads"),
        layers=settings.either("num_layers", "num_hidden_layers"),
        ffn=settings.integer("ffn_dim"),
        rows=settings.integer("vocab_size"),
        epsilon=1e-5,
        activation=settings.text("activation_function", "gelu"),
        tied=settings.flag("tie_word_embeddings", True),
        scaled=settings.flag("scale_embedding", True),
        padding=settings.integer("pad_token_id", 1, least=0),
    )


def _flags(facts: XglmFacts, checkpoint: Checkpoint) -> frozenset[str]:
    head = head_flags(facts, checkpoint, _TABLE, _HEAD)
    tied = frozenset({_SCALED_TIED} if facts.scaled and not head else ())
    return head | tied | {_SCALED if facts.scaled else _UNSCALED}


def _limits_of_llama_cpp(facts: XglmFacts) -> None:
    graph = "gpt2 graph, which XGLM runs as, supports only GELU"
    refuse_other_activations(facts, GELU | TANH_GELU, graph, "activation_function")


def frequencies(hidden: int) -> Array:
    """Radians per position of each sine and cosine, ``(hidden / 2,)``, as transformers computes them."""
    half = hidden // 2
    step = np.float32(math.log(10000) / (half - 1))
    powers: Array = np.exp(np.arange(half, dtype=np.float32) * -step)
    return powers


def _places(facts: XglmFacts) -> list[Tensor]:
    angles = np.arange(OFFSET, facts.context + OFFSET, dtype=np.float32)[:, None] * frequencies(facts.hidden)
    values = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return [computed("position_embd.weight", values, "sinusoids, by config.json")]


def _limits_of_both(facts: XglmFacts) -> None:
    if OFFSET <= facts.padding < facts.context + OFFSET:
        raise UnsupportedModel(
            f"{facts.where}: pad_token_id is {facts.padding}; transformers gives position "
            f"{facts.padding - OFFSET} no sinusoid then, which kconv does not support",
            hint="compare the file with the published one, where it is 1",
        )


def _remarks(facts: XglmFacts) -> tuple[Note, ...]:
    message = "the sinusoids of positions, which no checkpoint holds, are written as position_embd.weight"
    return (Note("sinusoids", message), *gelu_remarks(facts))


def _describe(graph: Graph, request: GraphRequest[XglmFacts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.heads, facts.head_dim, 0)
    factor = math.sqrt(facts.hidden) if facts.scaled else 1.0
    rows, positions = begin_sinusoidal(graph, _TABLE, frequencies(facts.hidden), OFFSET, factor)
    for layer in range(facts.layers):
        rows = described_layer(graph, layer, f"model.layers.{layer}", rows, positions, heads, facts)
    rows = layer_norm(graph, rows, "model.layer_norm", facts.epsilon)
    end(graph, rows, positions, _HEAD if HEAD in request.flags else _TABLE)


def _of_llama_cpp(facts: XglmFacts) -> None:
    _limits_of_both(facts)
    _limits_of_llama_cpp(facts)


def _of_onnx(facts: XglmFacts) -> None:
    _limits_of_both(facts)
    refuse_activations_onnx_lacks(facts, "activation_function")


XGLM = Family(
    name="xglm",
    title="XGLM",
    models=("XGLM 564M to 7.5B",),
    hf_classes=("XGLMForCausalLM",),
    arch="gpt2",
    facts=_facts,
    flags=_flags,
    keys=layer_norm_keys,
    rows=ROWS,
    limits={"llama.cpp": _of_llama_cpp, "ONNX": _of_onnx},
    reference=InTransformers("XGLMForCausalLM"),
    graphs=one_graph(_describe),
    dropped=("model.embed_positions.weights", _HEAD),
    extra=_places,
    notes=decoder_notes,
    remarks={"llama.cpp": _remarks},
    gelu=True,
    tokenizer_class="XGLMTokenizer",
)
