"""Encoder-decoders with one decoder for the first tokens and further ones, fed as its runners feed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gbst_material import random_gbswt5
from onnx_t5_material import Floats, graphs, prefill, sessions, write
from t5_checkpoints import write_t5

from kconv.converters.families.t5.graphs import ENCODER, MERGED
from kconv.converters.onnx.writer import write_onnx
from kconv.core.reading import open_checkpoint
from kconv.quant.formats import F16, F32, Q8_0, Format

IDS = np.random.default_rng(0).integers(3, 259, (2, 50))
TARGET = np.concatenate([np.zeros((2, 1), int), np.random.default_rng(1).integers(3, 259, (2, 12))], axis=1)
MASK = np.ones((2, 50), np.int64)
MASK[1, 40:] = 0

HEADS, SIZE = {"byt5": 4, "gbst": 6}, 16


def merged_steps(folder: Path, heads: int, placeholder: int) -> Floats:
    """A first call with a cache of ``placeholder`` positions that mean nothing, then one token at a time."""
    import onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(folder / name) for name in (ENCODER, MERGED))
    (states,) = encoder.run(None, {"input_ids": IDS, "attention_mask": MASK})
    names = [each.name for each in decoder.get_inputs() if each.name.startswith("past")]
    cache = {name: np.full((2, heads, placeholder, SIZE), 7, np.float32) for name in names}
    steps = []
    for place in range(TARGET.shape[1]):
        given: dict[str, Any] = {"input_ids": TARGET[:, place : place + 1], "encoder_attention_mask": MASK}
        given |= {"use_cache_branch": np.array([place > 0]), "encoder_hidden_states": states}
        results = decoder.run(None, given | cache)
        made = dict(zip([each.name for each in decoder.get_outputs()], results, strict=True))
        steps.append(made.pop("logits"))
        cache = {name.replace("present", "past_key_values"): each for name, each in made.items()}
    return np.concatenate(steps, axis=1)


def stored(checkpoint: Path, format: Format) -> dict[str, Format]:
    """Matrices of the decoder's cross-attention in ``format``."""
    return {name: format for name in open_checkpoint(checkpoint).tensors if "EncDecAttention." in name}


@pytest.mark.parametrize("kind", ["byt5", "gbst"])
@pytest.mark.parametrize("format", [F32, F16, Q8_0], ids=lambda format: format.name)
def test_one_decoder_says_what_two_say(kind: str, format: Format, tmp_path: Path) -> None:
    make = random_gbswt5 if kind == "gbst" else write_t5
    checkpoint = make(tmp_path / "checkpoint")
    formats = stored(checkpoint, format)
    right = prefill(sessions(write(checkpoint, tmp_path / "two", formats)), IDS, MASK, TARGET)
    folder = tmp_path / "one"
    folder.mkdir()
    write_onnx(graphs(open_checkpoint(checkpoint), formats, merged=True), folder)
    if format == F32:
        onnx.checker.check_model(folder / MERGED, full_check=True)
    bound = (1e-2 if format == F16 else 2e-5) * right.std()
    for placeholder in (0, 1):  # Transformers.js's and optimum's
        assert np.abs(merged_steps(folder, HEADS[kind], placeholder) - right).max() < bound
