"""Bytes at full width: rows as long as the real models', a few of them here, all of them in make test-full.

With KCONV_FULL set the matrices are whole (three vocabularies of 8192 tokens, one or two layers), which takes
several minutes and 4 GB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from llama_quantize_jobs import Job, quantize, save_importance
from recipe_material import (
    Family,
    as_model,
    contents,
    random_arrays,
    random_importance,
    write_f32,
    write_with_kconv,
)

from kconv.converters.gguf_plan import plan_file
from kconv.quant.policy import POLICIES, choose_formats

FAMILIES = [POLICIES[name] for name in ("q2_K", "q4_K_M", "q6_K", "q8_0", "iq4_xs")]
WIDE: Mapping[str, Family] = {
    "42dot 1.3B": Family("llama", 24, 2048, 5632, 8192, 16, 16, rows=3),
    "KoGPT 6B": Family("phi2", 28, 4096, 16384, 8192, 16, 16, gated=False, rows=2),
    "KEByT5 base": Family("t5", 18, 1536, 3968, 384, 12, 12, decoder=6, rows=3),
}
WHOLE: Mapping[str, Family] = {
    "42dot 1.3B": replace(WIDE["42dot 1.3B"], layers=2, rows=None),
    "KoGPT 6B": replace(WIDE["KoGPT 6B"], layers=1, rows=None),
    "KEByT5 base": replace(WIDE["KEByT5 base"], layers=2, decoder=1, rows=None),
}


@pytest.mark.parametrize("label", WIDE)
def test_rows_as_long_as_the_real_ones(label: str, tmp_path: Path) -> None:
    family = (WHOLE if os.environ.get("KCONV_FULL") else WIDE)[label]
    arrays, importance = random_arrays(family), random_importance(family)
    source = write_f32(tmp_path / "f32.gguf", family, arrays)
    save_importance(source, importance)
    model = as_model(family, arrays)
    for imatrix in (False, True):
        given, threads = importance if imatrix else None, 1 + imatrix
        jobs = [
            Job(source, policy.file_type, tmp_path / policy.name, imatrix=imatrix, threads=3 - threads)
            for policy in FAMILIES
        ]
        assert None not in quantize(jobs)
        choices = [choose_formats(model, policy, given) for policy in FAMILIES]
        plans = [
            plan_file(
                tmp_path / f"{policy.name}.gguf", model, [choice[each.name] for each in model.tensors], {}
            )
            for policy, choice in zip(FAMILIES, choices, strict=True)
        ]
        write_with_kconv(model, plans, given, threads=threads)
        for plan, policy in zip(plans, FAMILIES, strict=True):
            assert contents(plan.path) == contents(tmp_path / policy.name), (policy.name, imatrix)
