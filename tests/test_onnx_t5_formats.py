"""T5 and GBST-KEByT5 in ONNX's smaller formats: transformers' logits with weights gguf-py has rounded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gbst_material import CONFIG, random_gbswt5, random_model
from gguf import GGMLQuantizationType, quants
from onnx_t5_material import prefill, right_logits, sessions, step_by_step, write
from t5_checkpoints import write_t5

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.onnx.formats import choose_onnx_formats
from kconv.core.reading import open_checkpoint
from kconv.quant.formats import F32, Format

TIED: Mapping[str, Any] = {"feed_forward_proj": "relu", "tie_word_embeddings": True}

IDS = np.random.default_rng(0).integers(3, 259, (2, 50))
TARGET = np.concatenate([np.zeros((2, 1), int), np.random.default_rng(1).integers(3, 259, (2, 12))], axis=1)
MASK = np.ones((2, 50), np.int64)
MASK[1, 40:] = 0


def made(kind: str, folder: Path) -> tuple[Path, Any]:
    """A checkpoint and its model in torch."""
    if kind == "gbst":
        return random_gbswt5(folder), random_model(CONFIG, alone=True)
    import transformers

    write_t5(folder, head=False, **TIED) if kind == "tied" else write_t5(folder)
    return folder, transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def chosen_formats(folder: Path, type: str) -> Mapping[str, Format]:
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    return choose_onnx_formats(family, checkpoint, build(family, checkpoint), type).formats


def round_weights(model: Any, formats: Mapping[str, Format]) -> None:
    for name, parameter in model.named_parameters():
        values, type = parameter.detach().numpy(), GGMLQuantizationType(formats.get(name, F32).ggml_type)
        rounded = quants.dequantize(quants.quantize(values, type), type)
        parameter.data = torch.from_numpy(rounded.reshape(values.shape).astype(np.float32))


@pytest.mark.parametrize("kind", ["byt5", "tied", "gbst"])
@pytest.mark.parametrize(("type", "bound"), [("f16", 3e-3), ("q8_0", 2e-5), ("q4_0", 2e-5)])
def test_logits_are_those_of_the_rounded_weights(kind: str, type: str, bound: float, tmp_path: Path) -> None:
    """Matrices of f16 compute in halves, hence its bound; all else is float32."""
    checkpoint, model = made(kind, tmp_path / "checkpoint")
    exact = right_logits(model, IDS, MASK, TARGET)
    formats = chosen_formats(checkpoint, type)
    round_weights(model, formats)
    right = right_logits(model, IDS, MASK, TARGET)
    if type != "f16":
        assert np.abs(right - exact).max() > 5 * bound * right.std()
    run = sessions(write(checkpoint, tmp_path / "onnx", formats))
    for actual in (prefill(run, IDS, MASK, TARGET), step_by_step(run, IDS, MASK, TARGET, *[1] * 13)):
        assert np.abs(actual - right).max() < bound * right.std()
