"""A file with another sliding window than its checkpoint's: the runtime part alone tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from damage_material import another_window

from kconv.converters import to_gguf
from kconv.converters.samples.decoders import write_exaone4
from kconv.verify import verify

WINDOW = 16
LAYERS = 64  # llama.cpp takes the 32B, by this number, for the one with a window


@pytest.mark.parametrize("type_", [pytest.param("f32", marks=pytest.mark.long), "q4_0"])
def test_another_window_fails_by_the_runtime_part(tmp_path: Path, type_: str) -> None:
    changes: dict[str, Any] = {
        "sliding_window": WINDOW,
        "sliding_window_pattern": "LLLG",
        "num_hidden_layers": LAYERS,
    }
    checkpoint = write_exaone4(tmp_path / "windowed", **changes)
    good = to_gguf(checkpoint, tmp_path / "out", types=(type_,), verify=False).outputs[0].path
    right = verify(good, checkpoint, tokens=40, threads=1)
    assert right.runtime.verdict == "passed"
    proof = verify(another_window(good, tmp_path / "bad.gguf"), checkpoint, tokens=40, threads=1)
    assert (proof.runtime.verdict, proof.metadata.verdict) == ("failed", "failed")
    assert "llama.cpp does not compute" in proof.runtime.findings[0].message
