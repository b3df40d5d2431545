"""Gemma 2: scores and logits are bent by a hyperbolic tangent, every other layer is local.

Keys and tensors as llama.cpp reads them in src/models/gemma2.cpp; its head is always the embedding.
"""

from __future__ import annotations

from ....core.checkpoint import Checkpoint
from ....core.errors import UnsupportedModel
from ....core.model import MetadataValue
from ...decoder_facts import decoder_notes
from ...family import Family, InTransformers
from ...onnx.request import one_graph
from ...settings import Settings
from ..qwen3 import HEADS, OWN_HEAD, flags
from .common import (
    BEFORE_HEADS,
    BEHIND_HEADS,
    GemmaFacts,
    cap_of,
    describe,
    gemma_keys,
    gemma_left_out,
    gemma_limits,
    limits_of_onnx,
    read_gemma,
)

_SIZES = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
_SIZES |= {"vocab_size": 256000}
_27B_LAYERS = 46  # by which llama.cpp knows that one (gemma2.cpp, load_arch_hparams)
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_USUAL_CAPS = (50.0, 30.0)  # of the class and of the graph
_PERIOD = 2


def _facts(settings: Settings) -> GemmaFacts:
    fields = read_gemma(settings, _SIZES, period=_PERIOD, context=8192)
    scores, logits = (cap_of(settings, *each) for each in zip(_CAPS, _USUAL_CAPS, strict=True))
    return GemmaFacts(**fields, score_cap=scores, logit_cap=logits)


def _keys(facts: GemmaFacts) -> dict[str, MetadataValue]:
    keys = gemma_keys(facts)
    return keys if facts.score_cap is None else {**keys, "attn_logit_softcapping": facts.score_cap}


def _limits_of_llama_cpp(facts: GemmaFacts) -> None:
    gemma_limits(facts, "gemma2", _27B_LAYERS)
    for key, cap in zip(_CAPS, (facts.score_cap, facts.logit_cap), strict=True):
        if cap is None:
            raise UnsupportedModel(
                f"{facts.where}: {key} is null; llama.cpp's gemma2 graph always caps scores and logits",
                hint="kconv to-onnx supports it",
            )
    if not any(facts.local):
        raise UnsupportedModel(
            f"{facts.where}: no layer has a sliding window; llama.cpp's gemma2 graph dies without one",
            hint="kconv to-onnx supports it",
        )


def _flags(facts: GemmaFacts, checkpoint: Checkpoint) -> frozenset[str]:
    """None; raises UnsupportedModel for an output matrix of its own, which the graph has no place for."""
    if flags(facts, checkpoint):
        raise UnsupportedModel(
            f"{checkpoint.folder}: the output matrix ({OWN_HEAD}) is not the embedding, as it is in every "
            "published Gemma 2 and in llama.cpp's gemma2 graph",
            hint="fine-tune without training the output matrix, or save the model with it tied",
        )
    return frozenset()


GEMMA2 = Family(
    name="gemma2",
    title="Gemma 2",
    models=("Gemma 2 2B, 9B and 27B",),
    hf_classes=("Gemma2ForCausalLM",),
    arch="gemma2",
    facts=_facts,
    flags=_flags,
    keys=_keys,
    left_out=lambda facts: gemma_left_out(facts, _PERIOD) | dict(zip(_CAPS, _USUAL_CAPS, strict=True)),
    rows=(*BEFORE_HEADS, *HEADS[:4], *BEHIND_HEADS),
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers("Gemma2ForCausalLM", nulls=frozenset(_CAPS)),
    graphs=one_graph(lambda graph, request: describe(graph, request, request.facts.rope, normed=False)),
    dropped=(OWN_HEAD,),
    notes=decoder_notes,
    gelu=True,
)
