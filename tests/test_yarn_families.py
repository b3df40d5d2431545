"""YaRN in families of other graphs than Llama's, against transformers, in and beyond the first context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse
from onnx_causal_material import run, session, write
from test_long_context import IDS, LONGROPE, YARN

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.intake import open_model
from kconv.converters.mapping import build
from kconv.converters.samples.decoders import write_exaone4, write_gpt_neox
from kconv.converters.samples.llamas import write_exaone
from kconv.converters.samples.qwen_gemma import write_qwen2
from kconv.core.errors import UnsupportedModel
from kconv.core.tensor import DType
from kconv.core.windows import Window
from kconv.reference.model import Reference

Writer = Callable[..., Path]
NEW = {"rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 5000.0}}
OWN = {"rope_scaling": {**YARN, "beta_fast": 64, "beta_slow": 2, "attention_factor": 0.9}}


@pytest.mark.parametrize(
    ("writer", "changes"),
    [
        (write_qwen2, {"rope_scaling": YARN}),
        (write_qwen2, NEW),
        (write_exaone, {"rope_scaling": YARN}),
        (write_exaone, OWN),
        (write_exaone4, {"rope_scaling": YARN}),
        (write_exaone4, OWN),
        (write_gpt_neox, {"rope_scaling": {**YARN, "attention_factor": 0.75}}),
    ],
    ids=lambda value: value.__name__ if callable(value) else next(iter(value)),
)
def test_yarn_equals_transformers(writer: Writer, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = writer(tmp_path / "checkpoint", dtype=DType.F32, max_position_embeddings=256, **changes)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    checkpoint, family = open_model(folder)
    expected = Reference(checkpoint, family).read([Window(0, tuple(IDS))]).logits(0, 0, len(IDS))
    limit = 1e-6 if family.gelu else 1e-9
    assert nmse(llama_cpp_logits(made.path, IDS), expected) < limit
    found, _ = run(session(write(folder, tmp_path / "onnx")), np.array([IDS], np.int64))
    assert nmse(found[0], expected) < 1e-9


@pytest.mark.parametrize("writer", [write_qwen2, write_exaone, write_exaone4, write_gpt_neox])
def test_longrope_and_numbers_a_graph_does_not_read_are_refused(writer: Writer, tmp_path: Path) -> None:
    folder = writer(tmp_path / "checkpoint")
    checkpoint, family = open_model(folder)
    pairs = family.read(checkpoint.config).rope.dimensions // 2
    factors = {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    config = {**checkpoint.config, "rope_scaling": {**LONGROPE, **factors}}
    with pytest.raises(
        UnsupportedModel, match=r"rope scaling 'longrope', which llama.cpp's \w+ graph does not"
    ):
        family_for(config).limits["llama.cpp"](family.read(config))
    assert family.read(config).rope.scaling == "longrope"
    build(family, checkpoint, "ONNX")
