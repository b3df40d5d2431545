"""GPT-2: ko-gpt-trinity, KoGPT2, PolyLM and everything else of that class.

Keys and tensors as llama.cpp reads them in src/models/gpt2.cpp. Matrices are Conv1D in the checkpoint: (in,
out), where GGUF and ONNX have (out, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.checkpoint import Checkpoint
from ...core.tensor import Tensor
from ..activation_names import GELU, TANH_GELU
from ..decoder_facts import (
    HEAD,
    DecoderFacts,
    decoder_notes,
    head_flags,
    refuse_activations_onnx_lacks,
    refuse_other_activations,
)
from ..family import Family, InTransformers, Row, Sizes
from ..onnx.blocks import feed_forward, layer_norm, linear
from ..onnx.causal import Heads, attention, begin_learned, end, three_parts
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..positions import gelu_remarks, layer_norm_keys, refuse_set, unrotated
from ..reshaping import transpose, upright
from ..settings import Settings

_TABLE, _PLACES, _HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
_TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def _layer(target: str, source: str, *shape: str) -> Row:
    transform = transpose() if source in _TURNED else None
    return Row(f"blk.{{i}}.{target}", (f"transformer.h.{{i}}.{source}",), shape, transform)


ROWS = (
    Row("token_embd.weight", (_TABLE,), ("rows", "hidden")),
    Row("position_embd.weight", (_PLACES,), ("context", "hidden")),
    _layer("attn_norm.weight", "ln_1.weight", "hidden"),
    _layer("attn_norm.bias", "ln_1.bias", "hidden"),
    _layer("attn_qkv.weight", "attn.c_attn.weight", "hidden", "three * hidden"),
    _layer("attn_qkv.bias", "attn.c_attn.bias", "three * hidden"),
    _layer("attn_output.weight", "attn.c_proj.weight", "hidden", "hidden"),
    _layer("attn_output.bias", "attn.c_proj.bias", "hidden"),
    _layer("ffn_norm.weight", "ln_2.weight", "hidden"),
    _layer("ffn_norm.bias", "ln_2.bias", "hidden"),
    _layer("ffn_up.weight", "mlp.c_fc.weight", "hidden", "ffn"),
    _layer("ffn_up.bias", "mlp.c_fc.bias", "ffn"),
    _layer("ffn_down.weight", "mlp.c_proj.weight", "ffn", "hidden"),
    _layer("ffn_down.bias", "mlp.c_proj.bias", "hidden"),
    Row("output_norm.weight", ("transformer.ln_f.weight",), ("hidden",)),
    Row("output_norm.bias", ("transformer.ln_f.bias",), ("hidden",)),
    Row("output.weight", (_HEAD,), ("rows", "hidden"), when=HEAD),
)


@dataclass(frozen=True)
class Gpt2Facts(DecoderFacts):
    """A GPT-2; its ``context`` is the number of rows of the table of positions."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes; ``three`` are query, key and value."""
        return {**super().sizes, "three": 3, "context": self.context}


def _facts(settings: Settings) -> Gpt2Facts:
    hidden = settings.either("n_embd", "hidden_size")
    heads = settings.either("n_head", "num_attention_heads")
    context = settings.either("n_positions", "max_position_embeddings", 1024)
    for key, wanted, why in (
        ("scale_attn_by_inverse_layer_idx", False, "llama.cpp's graph scales all layers alike"),
        ("scale_attn_weights", True, "llama.cpp's graph divides scores by the root of the head's size"),
        ("add_cross_attention", False, "only decoders by themselves are supported"),
    ):
        refuse_set(settings, key, wanted, why)
    return Gpt2Facts(
        **unrotated(settings, hidden, heads, context, "n_head"),
        layers=settings.either("n_layer", "num_hidden_layers"),
        ffn=settings.integer("n_inner", 4 * hidden),
        rows=settings.integer("vocab_size"),
        epsilon=settings.real("layer_norm_epsilon", 1e-5),
        activation=settings.text("activation_function", "gelu_new"),
        tied=settings.flag("tie_word_embeddings", True),
    )


def _flags(facts: Gpt2Facts, checkpoint: Checkpoint) -> frozenset[str]:
    return head_flags(facts, checkpoint, _TABLE, _HEAD)


def _limits_of_llama_cpp(facts: Gpt2Facts) -> None:
    refuse_other_activations(facts, GELU | TANH_GELU, "gpt2 graph supports only GELU", "activation_function")


def _upright(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return upright(tensors, lambda name: name.endswith(_TURNED))


def _in_transformers(tensors: Mapping[str, Tensor], sizes: Sizes) -> Mapping[str, Tensor]:
    return _upright(tensors)


def _describe(graph: Graph, request: GraphRequest[Gpt2Facts]) -> None:
    facts = request.facts
    heads = Heads(facts.heads, facts.heads, facts.head_dim, 0)
    rows, positions = begin_learned(graph, _TABLE, _PLACES)
    for layer in range(facts.layers):
        place = f"transformer.h.{layer}"
        inner = layer_norm(graph, rows, f"{place}.ln_1", facts.epsilon)
        given = three_parts(graph, linear(graph, inner, f"{place}.attn.c_attn"))
        seen = attention(graph, layer, positions, heads, given)
        rows = graph.op("Add", rows, linear(graph, seen, f"{place}.attn.c_proj"))
        inner = layer_norm(graph, rows, f"{place}.ln_2", facts.epsilon)
        fed = feed_forward(graph, inner, f"{place}.mlp.c_fc", f"{place}.mlp.c_proj", facts.activation)
        rows = graph.op("Add", rows, fed)
    rows = layer_norm(graph, rows, "transformer.ln_f", facts.epsilon)
    end(graph, rows, positions, _HEAD if HEAD in request.flags else _TABLE)


GPT2 = Family(
    name="gpt2",
    title="GPT-2",
    models=("ko-gpt-trinity 1.2B, KoGPT2, PolyLM",),
    hf_classes=("GPT2LMHeadModel",),
    arch="gpt2",
    facts=_facts,
    flags=_flags,
    keys=layer_norm_keys,
    rows=ROWS,
    limits={
        "llama.cpp": _limits_of_llama_cpp,
        "ONNX": lambda facts: refuse_activations_onnx_lacks(facts, "activation_function"),
    },
    reference=InTransformers("GPT2LMHeadModel", tensors=_in_transformers),
    graphs=one_graph(_describe),
    dropped=(
        "transformer.h.{i}.attn.bias",  # the causal mask
        "transformer.h.{i}.attn.masked_bias",
        _HEAD,
    ),
    notes=decoder_notes,
    remarks={"llama.cpp": gelu_remarks},
    upright=_upright,
    gelu=True,
)
