"""An OPT whose fc1 has weights of 16 and more: times 4096, halves cannot hold them; every other type can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import NonFiniteError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_sample("opt", tmp_path_factory.mktemp("wide") / "opt")
    weights = torch.load(path / "pytorch_model.bin")
    weights["model.decoder.layers.1.fc1.weight"][3, 5] = 17.5
    weights["model.decoder.layers.1.fc1.bias"][3] = -20
    torch.save(weights, path / "pytorch_model.bin")
    return path


def test_f16_is_refused_with_the_factor_and_the_way_out(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"fc1\.weight, times 4096: weights up to 71680 .* f16"
    ) as raised:
        to_gguf(folder, tmp_path / "out.gguf", types=("f16",), verify=False)
    assert raised.value.hint is not None
    assert "bf16 or f32" in raised.value.hint
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.long
def test_other_types_are_right(folder: Path, tmp_path: Path) -> None:
    made = to_gguf(folder, tmp_path, types=("f32", "bf16", "q8_0", "q4_0", "q4_k_m"))
    assert {proof.verdict for proof in made.proofs} == {"passed"}
