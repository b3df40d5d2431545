"""The least cosine of a type's embeddings: the table of gates for encoders, and what it says of a file.

Nobody publishes such figures for llama.cpp's types over many models, so the limits are our own: two to three
times what is lost (1 - cosine) on a random encoder of klue/bert-base's size (12 layers, 768 wide;
docs/en/embeddings.md has the figures). Published beside: nomic-embed-text-v2-moe loses 0.00054 at q8_0 and
0.036 at q4_K (huggingface.co/cstr/nomic-embed-text-v2-moe-GGUF); the random one 0.00028, and 0.029 to 0.039.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ..converters.family import AnyFamily
from ..core.errors import UsageError
from ..core.language import phrase, phrases
from ..quant.gate_table import MIXTURES
from .embeddings_part import CosineGate, Similarity
from .findings import LIMIT, Finding
from .gates import known_type
from .inputs import VerifyOptions

_EXACT = phrase("fp32 sums in another order")
_GELU = phrase("llama.cpp computes GELU through a table of 16-bit numbers")
_MEASURED = phrase("two to three times what a random encoder of klue/bert-base's size loses")
_UNKNOWN = phrase("nothing is known of such a type in encoders")
_GIVEN = phrase("given for this run")
NMSE, GELU_NMSE = 1e-6, 1e-4
"""What f32 may differ by in its hidden states."""
_EXACT_LOSS = 1e-6
_DIGITS = 9
_UNSEEN = 3.0  # times the loss

# 1 - cosine by format.
_LOSSES: Mapping[str, float] = MappingProxyType(
    {
        "f16": 2e-5, "bf16": 2e-4, "q8_0": 1e-3, "q8_1": 1e-3, "q8_K": 1e-3, "q6_K": 7e-3, "q5_K": 0.02,
        "q5_1": 0.03, "q5_0": 0.04, "q4_K": 0.09, "iq4_nl": 0.1, "iq4_xs": 0.1, "q4_1": 0.12, "q4_0": 0.17,
        "nvfp4": 0.2, "mxfp4": 0.2, "q3_K": 0.35, "iq3_s": 0.35, "iq3_xxs": 0.5, "q2_K": 0.55, "iq2_s": 0.55,
    }
)  # fmt: skip


def cosine_gate(type_name: str, *, gelu: bool, least: float | None) -> CosineGate:
    """The gate of a type; ``least`` is the mean cosine below which any type fails. Raises UsageError."""
    name = known_type(type_name)
    format = MIXTURES.get(name, name)
    if format in ("f32", "f64"):
        nmse = GELU_NMSE if gelu else NMSE
        gate = CosineGate(
            name, 1 - (nmse / 2 if gelu else _EXACT_LOSS), True, nmse, _GELU if gelu else _EXACT
        )
    elif format in _LOSSES:
        gate = CosineGate(name, 1 - _LOSSES[format], False, None, _MEASURED)
    else:
        gate = CosineGate(name, 0.5, False, None, _UNKNOWN)
    if least is None or (gate.fails and gate.least >= least):
        return gate
    return CosineGate(name, least, True, gate.nmse, _GIVEN)


def stricter(gate: CosineGate) -> CosineGate:
    """The gate of a file whose computation was not checked: it fails where it loses three times as much."""
    return gate if gate.fails else replace(gate, least=1 - _UNSEEN * (1 - gate.least), fails=True)


def refuse_other_limits(family: AnyFamily, options: VerifyOptions) -> None:
    """Raise UsageError for limits that are those of another kind of model."""
    if family.encoder_only and (options.gates or options.max_kl is not None):
        raise UsageError(
            f"{family.title} models write no text, so there is no divergence to limit",
            hint="--min-cosine 0.99 sets the least mean cosine with the checkpoint's embeddings",
        )
    least = options.min_cosine
    if least is None:
        return
    if not family.encoder_only:
        raise UsageError(
            f"--min-cosine is for models that embed texts, and {family.title} models write them",
            hint="--max-kl sets the largest divergence from the checkpoint's predictions",
        )
    if not -1 <= least <= 1:
        raise UsageError(
            f"--min-cosine {least:g} is no cosine", hint="expected a number up to 1, such as 0.99"
        )


def judge_cosine(figures: Similarity, gate: CosineGate) -> tuple[Finding, ...]:
    """What the gate says of the figures; texts whose numbers are NaN always fail."""
    findings: list[Finding] = []
    if figures.not_finite:
        texts = phrases("{count} text", "{count} texts", figures.not_finite)
        message = phrase("hidden states are NaN or infinite in {texts}").of(texts=texts)
        findings.append(Finding("embeddings", message, phrase("numbers"), phrase("NaN or infinite")))
    if not figures.texts:
        if not findings:
            findings.append(Finding("embeddings", phrase("no text was measured, so nothing was proven")))
        return tuple(findings)
    shown, least = cosine_text(figures.cosine_mean), cosine_text(gate.least)
    if not figures.cosine_mean >= gate.least:
        given = gate.source == _GIVEN
        message = phrase(
            "the mean cosine with the checkpoint's embeddings is {value}, below {least} for {type}"
        )
        message = message.of(value=shown, least=least, type=gate.type)
        expected = phrase("at least {limit}").of(limit=least)
        findings.append(Finding(LIMIT if given else "embeddings", message, expected, shown, gate.fails))
    if gate.nmse is not None and not figures.nmse <= gate.nmse:
        message = phrase(
            "the normalized squared error of the hidden states is {value}, above {limit} for {type}"
        )
        message = message.of(value=f"{figures.nmse:.2g}", limit=f"{gate.nmse:g}", type=gate.type)
        expected = phrase("at most {limit}").of(limit=f"{gate.nmse:g}")
        findings.append(Finding("embeddings", message, expected, f"{figures.nmse:.2g}"))
    return tuple(findings)


def cosine_text(value: float) -> str:
    """A cosine with its nines and two digits behind, nine in all at most: ``0.99946``, ``0.999999992``."""
    lost = 1 - value
    if not math.isfinite(value):
        return f"{value:g}"
    digits = _DIGITS if lost < 10.0**-_DIGITS else max(2, 1 - math.floor(math.log10(lost)))
    return f"{value:.{min(digits, _DIGITS)}f}"
