"""Proofs made by hand: one that passed, and ones that did not, with everything a proof can hold."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from kconv.cli.proof_text import part_text, proof_head, proof_rest
from kconv.verify.measurements import Figures, Guess, Positions, WorstToken
from kconv.verify.proof import (
    Diagnosis,
    Finding,
    Gate,
    LayerError,
    LogitsPart,
    MetadataPart,
    Proof,
    TensorError,
    TokensPart,
    WeightsPart,
)
from kconv.vocab.parity import Parity

FIGURES = Figures(
    positions=510,
    windows=2,
    kl_mean=0.0341,
    kl_mean_error=0.0012,
    kl_median=0.02,
    kl_99=0.31,
    kl_999=0.7,
    kl_max=1.25,
    same_top1=0.931,
    same_top1_error=0.011,
    top5_overlap=0.9,
    dp_mean=-0.002,
    dp_rms=0.03,
    dp_percentiles=((1.0, -0.1), (50.0, 0.0), (99.0, 0.1)),
    nll_reference=2.082,
    nll_file=2.117,
    perplexity_reference=8.02,
    perplexity_file=8.31,
    log_ratio=0.0355,
    log_ratio_error=0.003,
    logit_max=3.2,
    logit_rms=0.4,
    nmse=0.011,
)

GATE = Gate(
    type="q4_0",
    measure="kl_mean",
    warns=0.15,
    fails=None,
    source="twice the figure published for Llama-3-8B",
    published={"kl_mean of Llama-3-8B q4_0": 0.0719, "dp_rms of Llama-3-8B q4_0": 0.084},
)

WORST = WorstToken(
    window=0,
    position=17,
    kl=1.25,
    before="옛날 어느 마을에 마음씨 고운 나무꾼이 살고 있었습니다. 그런데\n",
    right=Guess(300, " 착한", 0.41),
    right_file=0.03,
    reference=(Guess(300, " 착한", 0.41), Guess(301, "\x1b[2J", 0.2)),
    file=(Guess(302, " 한", 0.6), Guess(303, "\ufffd", 0.1)),
)

DIAGNOSIS = Diagnosis(
    layers=tuple(LayerError(layer, 10.0 ** (layer - 30), 1e-9) for layer in range(32)),
    logits_weights=0.3,
    logits_runtime=1e-8,
    first=20,
    worst_tensors=("blk.20.attn_q.weight",),
    conclusion="layer 20 is the first whose output differs: check blk.20.attn_q.weight",
)


def passed(artifact: Path = Path("작은-Q4_0.gguf"), checkpoint: Path = Path("작은 42dot")) -> Proof:
    """A proof without a finding."""
    tensors = tuple(
        TensorError(f"blk.{layer}.attn_q.weight", "q4_0", layer, "identical", 0.08, 0.08, 3, 0.1, 1.0)
        for layer in range(4)
    )
    return Proof(
        artifact=artifact,
        checkpoint=checkpoint,
        type="q4_0",
        arch="llama",
        parameters=3_018_240,
        tokens=TokensPart("passed", Parity("byte-level bpe", 3612, 3612, "exact"), 4096),
        metadata=MetadataPart("passed", 31),
        weights=WeightsPart("passed", tensors),
        logits=LogitsPart("passed", FIGURES, GATE, (), Positions((0,), (17,), (1.25,), (-0.38,)), (WORST,)),
        seconds=12.4,
    )


def failed(proof: Proof | None = None, findings: int = 1) -> Proof:
    """A proof that failed by its weights (``findings`` of them) and its logits, with a diagnosis."""
    proof = proof or passed()
    bad = tuple(
        Finding(f"blk.{at}.attn_q.weight", f"blk.{at}.attn_q.weight is scaled by 1.01", "1", "1.01")
        for at in range(findings)
    )
    logits = Finding("mean KL", "the mean KL divergence is above the limit", "0.45", "2.1")
    figures = replace(FIGURES, kl_mean=2.1, kl_max=math.inf, logit_max=math.nan)
    broken = replace(proof.logits, verdict="failed", figures=figures, findings=(logits,), diagnosis=DIAGNOSIS)
    return replace(proof, weights=replace(proof.weights, verdict="failed", findings=bad), logits=broken)


def warned(proof: Proof | None = None) -> Proof:
    """A proof with a finding that is not grave."""
    proof = proof or passed()
    finding = Finding(
        "general.name", "the name is not the card's\x1b[31m", "42dot", "사십이닷\x1b[2J", grave=False
    )
    return replace(proof, metadata=MetadataPart("warned", 31, (finding,)))


def proof_text(proof: Proof) -> str:
    """All that kconv verify prints of it."""
    head = proof_head(proof.artifact, proof.type, proof.checkpoint, proof.arch, proof.parameters)
    parts = "\n".join(part_text(name, part) for name, part in proof.parts.items())
    return f"{head}\n\n{parts}\n\n{proof_rest(proof)}"
