"""``--optimize`` where some experts of a stack saw too little of the text to be chosen codes for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kconv.core.tensor import DType, Tensor
from kconv.quant import ggml, native
from kconv.quant.formats import FORMATS, Format
from kconv.quant.full_statistics import SiteSums, triangle, write_statistics
from kconv.quant.imatrix_file import ActivationSums
from kconv.quant.importance import read_importance
from kconv.quant.optimize import METHOD
from kconv.quant.strengths import optimization
from kconv.verify.chosen_codes import Chosen, chosen_of, derivable, recorded_strengths

pytestmark = pytest.mark.skipif(not native.available_sets(), reason="kconv's kernels were not built")

COLUMNS = 64
STACK = "blk.0.ffn_down_exps.weight"


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    """Of three experts; the second was left out."""
    packed = tmp_path / "site"
    packed.write_bytes(np.full(2 * triangle(COLUMNS), 0.5, "<f2").tobytes())
    path = tmp_path / "statistics.gguf"
    activations = ActivationSums(
        {STACK: np.ones(3 * COLUMNS, np.float32)}, {STACK: np.ones(3, np.int64)}, ("text",), 1, 1
    )
    site = SiteSums(np.full((2, COLUMNS), 256, np.float32), (256, 256), packed)
    members = {(STACK, 0): 0, (STACK, 2): 0}
    write_statistics(path, activations, [site], members, arch="llama", texts_sha256="0" * 64)
    return path


def plainly(tensor: Tensor, format: Format, rows: Any, matrix: int) -> Any:
    out = np.empty(format.tensor_bytes(rows.shape), np.uint8)
    ggml.encode(format, rows, out)
    return out


def manifest_of(statistics: Path, matrices: dict[str, Any]) -> dict[str, Any]:
    importance = read_importance(statistics)
    optimized = {"method": METHOD, "matrices": matrices}
    return {"importance": {"file": statistics.name, "sha256": importance.sha256, "optimized": optimized}}


def test_manifest_says_which_experts_codes_were_chosen(statistics: Path) -> None:
    full = read_importance(statistics).full
    assert full is not None
    weights = np.random.default_rng(3).standard_normal((3, 8, COLUMNS), np.float32)
    stack = Tensor(STACK, weights.shape, DType.F32, lambda start, stop: weights[start:stop])
    found = optimization(full, [(stack, [FORMATS["q4_0"]])], plainly, threads=1)
    strengths = {key[1]: trial.strength for key, trial in found.trials.items()}
    assert strengths[0] < 1
    assert strengths[1] == 1
    assert strengths[2] < 1
    manifest = manifest_of(statistics, found.to_manifest())
    recorded = recorded_strengths(manifest) or {}
    assert {key[1]: trial.strength for key, trial in recorded.items()} == strengths
    again = derivable(statistics.parent / "m.gguf", manifest)
    assert again is not None
    assert again.optimization is not None
    assert set(again.optimization.trials) == set(found.trials)
    header: Any = SimpleNamespace(metadata={"kconv.optimized.method": METHOD})
    assert chosen_of(header, manifest) == Chosen()  # the second is encoded with importance data alone


def test_nothing_is_derived_with_statistics_that_are_missing(statistics: Path) -> None:
    manifest = manifest_of(statistics, {STACK: {"q4_0": {"strength": [0.1, 0.3, 0.1]}}})
    assert derivable(statistics.parent / "m.gguf", manifest) is None
