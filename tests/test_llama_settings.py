"""What config.json may say of a Llama: rope in every layout, as transformers takes it; senseless values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_material import random_llama

from kconv.converters.families import family_for
from kconv.converters.families.llama import LLAMA
from kconv.converters.mapping import build
from kconv.core.errors import CheckpointError, InputError, MappingError, UnsupportedModel
from kconv.core.model import Model
from kconv.core.reading import open_checkpoint

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"type": "linear", "factor": 2.0}

LAYOUTS: dict[str, dict[str, Any]] = {
    "version 4": {"rope_theta": 5000.0, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
    "version 5": {
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 5000.0}
    },
    "both": {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}, "rope_scaling": LINEAR},
    "an empty rope_scaling beside": {"rope_parameters": {**LINEAR, "rope_theta": 700.0}, "rope_scaling": {}},
    "an empty rope_parameters beside": {"rope_parameters": {}, "rope_scaling": LINEAR},
    "null beside": {"rope_parameters": {**LINEAR, "rope_theta": 700.0}, "rope_scaling": None},
    "base in both places": {"rope_theta": 300.0, "rope_parameters": {**LINEAR, "rope_theta": 700.0}},
    "no trained context": {"rope_scaling": LLAMA3},
    "trained context beside": {
        "original_max_position_embeddings": 32,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64},
    },
    "nothing": {},
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    return random_llama(tmp_path_factory.mktemp("llama") / "model", small_tokenizer)


def built(good: Path, folder: Path, **changes: Any) -> Model:
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "rope_theta", "rope_scaling"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return build(LLAMA, open_checkpoint(folder))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_is_what_transformers_makes_of_it(layout: str, good: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = built(good, tmp_path / "model", **LAYOUTS[layout])
    expected = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path / "model")).inv_freq.numpy()
    base, head_dim = model.hparams["llama.rope.freq_base"], model.hparams["llama.rope.dimension_count"]
    assert isinstance(base, float)
    assert isinstance(head_dim, int)
    ours = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if model.hparams.get("llama.rope.scaling.type") == "linear":
        factor = model.hparams["llama.rope.scaling.factor"]
        assert isinstance(factor, float)
        ours = ours / factor
    for tensor in model.tensors:
        if tensor.name == "rope_freqs.weight":
            ours = ours / tensor.read(0, tensor.rows)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("value", [10**400, 1e39, 1e-60, 0, -1, True, "1", float("nan"), float("inf")])
def test_numbers_float32_cannot_hold_are_refused(key: str, value: object, good: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is .*expected a positive number"):
        built(good, tmp_path / "model", **{key: value})


@pytest.mark.parametrize("factor", [1e-37, 1e-30, 1e38])
def test_senseless_scaling_is_refused_or_finite(factor: float, good: Path, tmp_path: Path) -> None:
    section = {**LLAMA3, "factor": factor, "original_max_position_embeddings": 64}
    try:
        model = built(good, tmp_path / "model", rope_scaling=section)
    except InputError:
        return
    assert np.isfinite(model.tensors[-1].read(0, model.tensors[-1].rows)).all()


def test_millions_of_layers_are_one_line(good: Path, tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"config\.json specifies 2147483647 layers, but there are"):
        built(good, tmp_path / "model", num_hidden_layers=2**31 - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}},
    ],
)
def test_partly_rotated_heads_are_refused(changes: dict[str, Any], good: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"partial_rotary_factor is 0\.5"):
        built(good, tmp_path / "model", **changes)


def test_a_null_key_of_latent_attention_is_no_latent_attention() -> None:
    assert family_for({"architectures": ["LlamaForCausalLM"], "kv_lora_rank": None}) is LLAMA
