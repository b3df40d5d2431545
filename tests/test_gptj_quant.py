"""Quantized GPT-J files against llama_model_quantize, byte for byte, and what does not fit whole blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptj_material import byte_level_tokenizer, random_gptj
from llama_cpp_material import read_with_gguf_py, run_quantizer
from llama_material import llama_cpp_logits

from kconv.converters import to_gguf
from kconv.flows.results import Conversion

QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
WIDTHS: Mapping[str, Mapping[str, Any]] = {
    "blocks of 256": {"n_embd": 256, "n_head": 4, "rotary_dim": 32, "n_layer": 2},
    "blocks of 32": {"n_embd": 96, "n_head": 4, "rotary_dim": 8, "n_inner": 224, "n_layer": 2},
    "no whole blocks": {"n_embd": 80, "n_head": 4, "rotary_dim": 12, "n_inner": 176, "n_layer": 2},
    "tied": {"tie_word_embeddings": True, "n_layer": 1, "n_embd": 256, "n_head": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Conversion]:
    """Our files by width and pure, f32 among them."""
    root = tmp_path_factory.mktemp("gptj")
    tokenizer = byte_level_tokenizer(root / "tokenizer")
    collected = {}
    for name, settings in WIDTHS.items():
        folder = random_gptj(root / name.replace(" ", "-"), **settings)
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        for pure in (False, True):
            types = QUANTIZED if pure else ("f32", *QUANTIZED)
            collected[name, pure] = to_gguf(
                folder, folder / f"out-{pure}", types=types, pure=pure, verify=False
            )
    return collected


@pytest.fixture(scope="module")
def theirs(
    made: dict[tuple[str, bool], Conversion], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool, str], Path]:
    """What llama_model_quantize makes of our f32 files."""
    folder = tmp_path_factory.mktemp("quantized")
    targets = {
        (name, pure, type_): folder / f"{name.replace(' ', '-')}-{pure}-{type_}.gguf"
        for name, pure in made
        for type_ in QUANTIZED
    }
    run_quantizer(
        [
            (made[name, False].outputs[0].path, path, type_.upper(), pure)
            for (name, pure, type_), path in targets.items()
        ]
    )
    return targets


@pytest.mark.parametrize("pure", [False, True], ids=["recipe", "pure"])
@pytest.mark.parametrize("type_", QUANTIZED)
@pytest.mark.parametrize("name", WIDTHS)
def test_bytes_are_those_of_llama_quantize(
    name: str,
    type_: str,
    pure: bool,
    made: dict[tuple[str, bool], Conversion],
    theirs: dict[tuple[str, bool, str], Path],
) -> None:
    (output,) = [output for output in made[name, pure].outputs if output.type == type_]
    ours_read, expected = read_with_gguf_py(output.path), read_with_gguf_py(theirs[name, pure, type_])
    assert sorted(ours_read.tensors) == sorted(expected.tensors)
    assert [key for key in expected.tensors if ours_read.tensors[key] != expected.tensors[key]] == []
    assert sorted(ours_read.keys) == sorted(expected.keys)
    assert ours_read.keys["general.file_type"] == expected.keys["general.file_type"]


def formats(conversion: Conversion, type_: str) -> dict[str, str]:
    (output,) = [output for output in conversion.outputs if output.type == type_]
    return {name: tensor[0] for name, tensor in read_with_gguf_py(output.path).tensors.items()}


def test_the_head_is_better_and_biases_are_floats(made: dict[tuple[str, bool], Conversion]) -> None:
    formats_of = formats(made["blocks of 256", False], "q4_0")
    assert formats_of["output.weight"] == "Q6_K"
    assert (formats_of["token_embd.weight"], formats_of["blk.1.ffn_down.weight"]) == ("Q4_0", "Q4_0")
    assert {kind for name, kind in formats_of.items() if not name.endswith(".weight")} == {"F32"}
    assert not [note for note in made["blocks of 256", False].notes if note.name == "format-fallback"]


def test_fallbacks_are_planned_told_and_load(made: dict[tuple[str, bool], Conversion]) -> None:
    thin, odd = made["blocks of 32", False], made["no whole blocks", False]
    assert formats(thin, "q4_0")["output.weight"] == "Q8_0"
    assert (
        "not a multiple of 256 weights long: stored as Q8_0 instead of Q6_K in the Q4_0 file"
        in fallback_notes(thin)
    )
    assert formats(odd, "q4_0")["blk.0.attn_q.weight"] == "F16"
    assert "F16 instead of Q4_0" in fallback_notes(odd)
    assert "F16 instead of Q8_0" in fallback_notes(odd)


def fallback_notes(conversion: Conversion) -> str:
    return " ".join(note.message for note in conversion.notes if note.name == "format-fallback")


@pytest.mark.parametrize("name", WIDTHS)
def test_every_type_runs_in_llama_cpp(name: str, made: dict[tuple[str, bool], Conversion]) -> None:
    ids = list(range(5, 60))
    outputs = {output.type: output.path for output in made[name, False].outputs}
    exact = llama_cpp_logits(outputs["f32"], ids)
    for type_ in QUANTIZED:
        logits = llama_cpp_logits(outputs[type_], ids)
        assert np.isfinite(logits).all()
        assert np.corrcoef(logits.ravel(), exact.ravel())[0, 1] > (0.98 if type_ == "q8_0" else 0.6), type_


def test_a_checkpoint_of_halves_stays_in_halves_by_itself(tmp_path: Path) -> None:
    folder = byte_level_tokenizer(random_gptj(tmp_path / "kogpt", dtype="float16", n_layer=1))
    conversion = to_gguf(folder, tmp_path / "out", verify=False)
    (output,) = conversion.outputs
    tensors = read_with_gguf_py(output.path).tensors
    assert output.type == "f16"
    assert {tensors[f"blk.0.{name}.weight"][0] for name in ("attn_q", "ffn_up", "attn_output")} == {"F16"}
    assert tensors["blk.0.attn_output.bias"] == ("F32", (128,), bytes(512))
    manifest = json.loads(output.manifest.read_text("utf-8"))
    assert "phi2" in json.dumps(manifest)
