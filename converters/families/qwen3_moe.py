"""Qwen3-MoE: a Qwen3 whose feed-forward layers are a router and many small networks, the experts.

Keys and tensors as llama.cpp reads them in src/models/qwen3moe.cpp: each layer's gate, up and down matrices
of all experts are one tensor of three axes. transformers 5 keeps gate and up of an expert as one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ...core.errors import UnsupportedModel
from ...core.input_files import quoted
from ...core.model import MetadataValue
from ...core.tensor import Tensor
from ..decoder_facts import Defaults, decoder_keys, decoder_notes, read_decoder
from ..family import Family, InTransformers, Row, Sizes
from ..onnx.experts import experts
from ..onnx.graph import Graph
from ..onnx.request import GraphRequest, one_graph
from ..rope import refuse_partial_rotation
from ..settings import Settings
from ..transforms import concatenated, stack, stacked
from .qwen3 import (
    ATTENTION,
    END,
    OWN_HEAD,
    TABLE,
    Qwen3Facts,
    describe,
    flags,
    layer_row,
    limits_of_llama_cpp,
    limits_of_onnx,
    refuse_attention_bias,
)

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.0\.gate_proj\.weight")


@dataclass(frozen=True)
class Qwen3MoeFacts(Qwen3Facts):
    """``used`` of ``experts``, each ``expert_ffn`` wide, compute a token; ``normed``: weights add to 1."""

    experts: int
    used: int
    expert_ffn: int
    normed: bool

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes."""
        return {**super().sizes, "experts": self.experts, "expert_ffn": self.expert_ffn}


def _facts(settings: Settings) -> Qwen3MoeFacts:
    fields = read_decoder(settings, Defaults(context=32768, epsilon=1e-6, kv_heads=4, stretched=True))
    refuse_partial_rotation(settings, "Qwen3-MoE")
    refuse_attention_bias(settings)
    _refuse_dense_layers(settings)
    experts = settings.either("num_experts", "num_local_experts", 128)  # transformers 4 and 5
    used = settings.integer("num_experts_per_tok", 8)
    if used > experts:
        raise settings.refuse("num_experts_per_tok", used, f"at most num_experts {experts}")
    return Qwen3MoeFacts(
        **fields,
        window=settings.integer("sliding_window", 4096) if settings.flag("use_sliding_window") else None,
        experts=experts,
        used=used,
        expert_ffn=settings.integer("moe_intermediate_size", 768),
        normed=settings.flag("norm_topk_prob"),
    )


def _refuse_dense_layers(settings: Settings) -> None:
    dense, step = settings.values.get("mlp_only_layers"), settings.integer("decoder_sparse_step", 1)
    if dense or step != 1:
        raise UnsupportedModel(
            f"{settings.where}: mlp_only_layers is {quoted(dense)} and decoder_sparse_step {step}; "
            "llama.cpp's qwen3moe graph expects experts in every layer",
            hint="open an issue with the model's name if you need it",
        )


def _limits_of_llama_cpp(facts: Qwen3MoeFacts) -> None:
    limits_of_llama_cpp(facts)
    if not facts.normed:
        raise UnsupportedModel(
            f"{facts.where}: norm_topk_prob is false; llama.cpp's qwen3moe graph normalizes the "
            "weights of the chosen experts to sum to 1",
            hint="compare config.json with the published one: it is true in every Qwen3-MoE",
        )


def _expert_row(target: str, source: str, *shape: str) -> Row:
    names = (f"model.layers.{{i}}.mlp.experts.{{e}}.{source}.weight",)
    return Row(f"blk.{{i}}.{target}.weight", names, shape, transform=stack())


def _keys(facts: Qwen3MoeFacts) -> dict[str, MetadataValue]:
    return {
        **decoder_keys(facts),
        "expert_count": facts.experts,
        "expert_used_count": facts.used,
        "expert_feed_forward_length": facts.expert_ffn,
    }


def _in_transformers(tensors: Mapping[str, Tensor], sizes: Sizes) -> Mapping[str, Tensor]:
    """Experts as transformers 5 has them: ``gate_up_proj (experts, 2 * ffn, hidden)`` and ``down_proj``."""
    renamed = dict(tensors)
    for place in [match[1] for name in tensors if (match := _EXPERT.fullmatch(name))]:
        parts = {
            each: [renamed.pop(f"{place}.{e}.{each}_proj.weight") for e in range(sizes["experts"])]
            for each in ("gate", "up", "down")
        }
        pairs = zip(parts["gate"], parts["up"], strict=True)
        renamed[f"{place}.gate_up_proj"] = stacked([concatenated(pair) for pair in pairs])
        renamed[f"{place}.down_proj"] = stacked(parts["down"])
    return renamed


def _describe(graph: Graph, request: GraphRequest[Qwen3MoeFacts]) -> None:
    facts = request.facts
    networks = partial(
        experts, count=facts.experts, used=facts.used, normed=facts.normed, activation=facts.activation
    )
    describe(graph, request, networks)


QWEN3_MOE = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    models=("Qwen3 30B-A3B", "Qwen3 235B-A22B"),
    hf_classes=("Qwen3MoeForCausalLM",),
    arch="qwen3moe",
    facts=_facts,
    flags=flags,
    keys=_keys,
    rows=(
        TABLE,
        *ATTENTION,
        layer_row("ffn_gate_inp", "mlp.gate", "experts", "hidden"),
        _expert_row("ffn_gate_exps", "gate_proj", "expert_ffn", "hidden"),
        _expert_row("ffn_up_exps", "up_proj", "expert_ffn", "hidden"),
        _expert_row("ffn_down_exps", "down_proj", "hidden", "expert_ffn"),
        *END,
    ),
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers("Qwen3MoeForCausalLM", tensors=_in_transformers),
    graphs=one_graph(_describe),
    dropped=(OWN_HEAD,),
    notes=decoder_notes,
)
