"""Gemma 3, its text: a norm on every head's query and key; five of six layers are local and turn faster.

Keys and tensors as llama.cpp reads them in src/models/gemma3.cpp. Global layers turn by rope_theta, with a
linear scaling in the larger models, local ones by rope_local_base_freq without any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....core.errors import UnsupportedModel
from ....core.model import MetadataValue
from ...decoder_facts import decoder_notes
from ...family import Family, InTransformers
from ...layer_types import EVERYWHERE, LOCAL
from ...onnx.request import one_graph
from ...rope import Rope, read_rope
from ...settings import Settings
from ..qwen3 import END, HEADS, OWN_HEAD, flags
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
    norm_row,
    read_gemma,
)

_SIZES = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
_SIZES |= {"vocab_size": 262208}
_27B_LAYERS = 62  # by which llama.cpp knows that one (gemma3.cpp, load_arch_hparams)
_PERIOD, _CONTEXT = 6, 131072
_BASES = {EVERYWHERE: 1_000_000.0, LOCAL: 10_000.0}
_ROPE_KEYS = {"rope_scaling": None, "rope_parameters": None, "rope_local_base_freq": None}


@dataclass(frozen=True)
class Gemma3Facts(GemmaFacts):
    """A Gemma 3; ``local_rope`` is how local layers turn, ``rope`` how the others do."""

    local_rope: Rope


def _facts(settings: Settings) -> Gemma3Facts:
    turning = {kind: _turning(settings, kind) for kind in _BASES}
    plain = Settings({**settings.values, **_ROPE_KEYS, **turning[EVERYWHERE]}, settings.where)
    period = settings.integer("sliding_window_pattern", _PERIOD)
    fields = read_gemma(plain, _SIZES, period=period, context=_CONTEXT)
    local = read_rope(Settings(turning[LOCAL], settings.where), fields["head_dim"], context=fields["context"])
    for rope in (fields["rope"], local):
        if rope.scaling not in ("default", "linear"):
            raise UnsupportedModel(
                f"{settings.where}: rope scaling {rope.scaling!r}; kconv supports linear scaling in Gemma 3",
                hint="open an issue with the model's name if you need it",
            )
    cap = cap_of(settings, "final_logit_softcapping", None)
    return Gemma3Facts(**fields, score_cap=None, logit_cap=cap, local_rope=local)


def _turning(settings: Settings, kind: str) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of local or global layers, out of transformers 4's keys or 5's.

    As Gemma3TextConfig.convert_rope_params_to_dict puts them together: rope_scaling goes into what
    rope_parameters says of global layers, keys of a base count where that names none.
    """
    parameters = settings.section("rope_parameters")
    own = parameters.section(kind) if parameters is not None else None
    scaling = dict(own.values) if own is not None else {}
    key = "rope_local_base_freq"
    if kind == EVERYWHERE:
        key, older = "rope_theta", settings.section("rope_scaling")
        scaling |= older.values if older is not None else {}
    base = scaling.pop("rope_theta", None)
    return {"rope_theta": settings.real(key, _BASES[kind]) if base is None else base, "rope_scaling": scaling}


def _keys(facts: Gemma3Facts) -> dict[str, MetadataValue]:
    return {**gemma_keys(facts), "rope.freq_base_swa": facts.local_rope.base}


def _limits_of_llama_cpp(facts: Gemma3Facts) -> None:
    gemma_limits(facts, "gemma3", _27B_LAYERS)
    if facts.local_rope.scaling != "default":
        raise UnsupportedModel(
            f"{facts.where}: rope scaling {facts.local_rope.scaling!r} in local layers; llama.cpp's gemma3 "
            "graph scales positions in global layers only",
            hint="kconv to-onnx supports it",
        )


GEMMA3 = Family(
    name="gemma3_text",
    title="Gemma 3",
    models=("Gemma 3 270M to 27B (text only)",),
    hf_classes=("Gemma3ForCausalLM",),
    arch="gemma3",
    facts=_facts,
    flags=flags,
    keys=_keys,
    left_out=lambda facts: gemma_left_out(facts, _PERIOD) | {"rope.freq_base_swa": 10000.0},
    rows=(
        *BEFORE_HEADS,
        *HEADS[:4],
        norm_row("attn_q_norm", "self_attn.q_norm", "head_dim"),
        norm_row("attn_k_norm", "self_attn.k_norm", "head_dim"),
        *BEHIND_HEADS,
        END[1],
    ),
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers("Gemma3ForCausalLM"),
    graphs=one_graph(lambda graph, request: describe(graph, request, request.facts.local_rope, normed=True)),
    dropped=(OWN_HEAD,),
    notes=decoder_notes,
    gelu=True,
)
