"""Odd names of output matrices, and of the scales beside 8-bit floats, in checkpoints of several families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_intake import Weights, assert_same, changed, refused, samples, weights_of

__all__ = ["samples"]
EMBEDDINGS = {
    "qwen2": "model.embed_tokens.weight",
    "exaone": "transformer.wte.weight",
    "gemma3": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "mpt": "transformer.wte.weight",
}


def renamed(held: Weights, old: str, new: str) -> Weights:
    assert old in held
    return {new if name == old else name: tensor for name, tensor in held.items()}


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("qwen2", "model.lm_head.weight", "bin"),
        ("qwen2", "language_model.lm_head.weight", "sharded"),
        ("exaone", "transformer.lm_head.weight", "safetensors"),
        ("gemma3", "output.weight", "sharded"),
        ("gpt2", "embed_out.weight", "bin"),
        ("mpt", "output_layer.weight", "safetensors"),
    ],
)
def test_a_tied_model_that_kept_its_head_under_another_name(
    samples: Callable[[str], Path], tmp_path: Path, family: str, name: str, kind: str
) -> None:
    sound = samples(family)
    held = renamed(weights_of(sound), EMBEDDINGS[family], name)
    notes = assert_same(changed(sound, tmp_path / "x", held, kind=kind), sound)
    assert f"{name} is read as lm_head.weight" in notes[0].message
    assert "tied-embedding" in {note.name for note in notes}


@pytest.mark.parametrize(
    ("family", "own"),
    [("llama", "lm_head.weight"), ("gpt-neox", "embed_out.weight"), ("mistral", "lm_head.weight")],
)
@pytest.mark.parametrize("name", ["model.lm_head.weight", "output_layer.weight", "lm_head.linear.weight"])
def test_an_untied_head_under_another_name(
    samples: Callable[[str], Path], tmp_path: Path, family: str, own: str, name: str
) -> None:
    sound = samples(family)
    notes = assert_same(changed(sound, tmp_path / "x", renamed(weights_of(sound), own, name)), sound)
    assert [note.name for note in notes] == ["head-name"]


def test_what_may_be_the_head_twice_is_not_guessed(samples: Callable[[str], Path], tmp_path: Path) -> None:
    held = renamed(weights_of(samples("llama")), "lm_head.weight", "output.weight")
    held["model.lm_head.weight"] = held["output.weight"] * 2
    refused(changed(samples("llama"), tmp_path / "x", held), "lm_head.weight is missing")


def test_a_head_of_another_shape_is_none(samples: Callable[[str], Path], tmp_path: Path) -> None:
    held = renamed(weights_of(samples("llama")), "lm_head.weight", "output.weight")
    held["output.weight"] = held["output.weight"][:-1]
    refused(changed(samples("llama"), tmp_path / "x", held), "lm_head.weight is missing")


@pytest.mark.parametrize(
    ("scale", "beside"),
    [
        ("scale_weight", "scale_input"),
        ("qscale_weight", "qscale_act"),
        ("weights_scaling_factor", "activation_scaling_factor"),
        ("scale_inv", "input_scale_inv"),
        ("weight_scales", "activation_scale_inv"),
    ],
)
@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "bin"), ("qwen3-moe", "sharded"), ("exaone4", "safetensors")]
)
def test_scales_of_8_bit_floats_by_the_names_of_other_programs(
    samples: Callable[[str], Path], tmp_path: Path, family: str, kind: str, scale: str, beside: str
) -> None:
    sound = samples(family)
    held, exact = weights_of(sound), weights_of(sound)
    for name in [name for name in held if name.endswith("_proj.weight")]:
        factor = held[name].float().abs().amax() / 448
        held[name] = (held[name].float() / factor).to(torch.float8_e4m3fn)
        exact[name] = held[name].float() * factor
        stem = name.removesuffix("weight")
        held |= {f"{stem}{scale}": factor.reshape(1), f"{stem}{beside}": torch.ones(1)}
    folder = changed(sound, tmp_path / "x", held, kind=kind, quantization_config={"quant_method": "fp8"})
    notes = assert_same(folder, changed(sound, tmp_path / "exact", exact))
    assert {note.name for note in notes} == {"float8", "activation-scales"}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_what_sees_beside_a_text_models_own_config(
    samples: Callable[[str], Path], tmp_path: Path, family: str, prefix: str
) -> None:
    """Somebody has put the text part's config.json into the folder of a model that sees."""
    sound = samples(family)
    held = {
        name.replace("model.", "language_model.model.", 1): each for name, each in weights_of(sound).items()
    }
    held |= {f"{prefix}vision_tower.encoder.layers.{i}.mlp.fc1.weight": torch.ones(2, 2) for i in range(2)}
    held |= {f"{prefix}multi_modal_projector.linear_1.bias": torch.ones(2)}
    notes = assert_same(changed(sound, tmp_path / "x", held), sound)
    (note,) = [note for note in notes if note.name == "other-parts"]
    assert "3 tensors that are not the text part's are left out" in note.message
