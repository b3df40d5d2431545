"""YaRN and LongRoPE against transformers, in llama.cpp and onnxruntime, in and beyond the first context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse, transformers_logits
from onnx_causal_material import run, session, write

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.samples.decoders import write_mistral, write_qwen3
from kconv.core.errors import CheckpointError, InputError, UnsupportedModel
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType

IDS = [int(i) for i in np.random.default_rng(7).integers(2, 1000, 160)]
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
KANANA = {"type": "yarn", "factor": 4.4, "beta_fast": 64, "beta_slow": 2}  # Kanana 1.5's card, for 128K
PAIRS = np.arange(64)
LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 128,
    "short_factor": [float(each) for each in 1 + PAIRS / 256],
    "long_factor": [float(each) for each in 1 + PAIRS / 16],
    "factor": 2.0,
}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "yarn": (write_mistral, {**LLAMA, "rope_scaling": YARN}),
    "yarn as Kanana has it": (
        write_mistral,
        {**LLAMA, "rope_scaling": {**KANANA, "original_max_position_embeddings": 64}},
    ),
    "yarn, not truncated": (write_mistral, {**LLAMA, "rope_scaling": {**YARN, "truncate": False}}),
    "yarn, factor by the lengths": (write_mistral, {**LLAMA, "rope_scaling": {**YARN, "factor": None}}),
    "yarn, attention said": (write_mistral, {**LLAMA, "rope_scaling": {**YARN, "attention_factor": 0.75}}),
    "yarn, mscale": (
        write_mistral,
        {**LLAMA, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}},
    ),
    "yarn of transformers 5": (
        write_mistral,
        {**LLAMA, "rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 5000.0}},
    ),
    "yarn, mistral": (write_mistral, {"rope_scaling": YARN}),
    "yarn, qwen3": (write_qwen3, {"rope_scaling": YARN}),
}


@pytest.mark.parametrize("case", CASES)
def test_yarn_equals_transformers(case: str, tmp_path: Path) -> None:
    write_checkpoint, changes = CASES[case]
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, num_hidden_layers=2, **changes)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    expected = transformers_logits(folder, IDS)
    assert nmse(llama_cpp_logits(made.path, IDS), expected) < 1e-9
    found, _ = run(session(write(folder, tmp_path / "onnx")), np.array([IDS], np.int64))
    assert nmse(found[0], expected) < 1e-9


def test_keys_of_yarn_and_frequencies_where_llama_cpps_are_others(tmp_path: Path) -> None:
    def kept(scaling: dict[str, Any], name: str) -> tuple[dict[str, Any], bool]:
        folder = write_mistral(tmp_path / name, num_hidden_layers=1, **LLAMA, rope_scaling=scaling)
        (made,) = to_gguf(folder, tmp_path / f"{name}.gguf", verify=False).outputs
        reader = gguf.GGUFReader(made.path)
        start = "llama.rope.scaling."
        keys = {
            key.removeprefix(start): reader.fields[key].contents() for key in reader.fields if start in key
        }
        return keys, any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors)

    usual = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    assert kept(YARN, "usual") == (usual, False)
    keys, divided = kept({**KANANA, "original_max_position_embeddings": 64}, "kanana")
    assert divided
    assert keys == {"attn_factor": pytest.approx(0.1 * np.log(4.4) + 1)}


def test_longrope_equals_transformers_on_both_sides_of_the_first_context(tmp_path: Path) -> None:
    folder = write_mistral(tmp_path / "checkpoint", dtype=DType.F32, **LLAMA, rope_scaling=LONGROPE)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    checkpoint = open_checkpoint(folder)
    notes = build(family_for(checkpoint.config), checkpoint).notes
    assert any("llama.cpp decides by the context it is started with" in note.message for note in notes)
    long, short = transformers_logits(folder, IDS), transformers_logits(folder, IDS[:100])
    assert nmse(llama_cpp_logits(made.path, IDS), long) < 1e-9  # in a context of 256
    assert nmse(long[:100], short) > 1e-3
    model = session(write(folder, tmp_path / "onnx"))
    for ids, expected in ((IDS, long), (IDS[:100], short)):
        logits, _ = run(model, np.array([ids], np.int64))
        assert nmse(logits[0], expected) < 1e-9


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({**YARN, "factor": 0.5}, "factor is 0.5, expected 1 or more"),
        ({**YARN, "beta_fast": "much"}, "beta_fast is 'much', expected a positive number"),
        ({**YARN, "truncate": 3}, "truncate is 3, expected true or false"),
        ({**LONGROPE, "long_factor": [1.0] * 63}, "expected 64 positive numbers"),
        ({**LONGROPE, "short_factor": None}, "short_factor is missing, expected 64 positive numbers"),
        ({**LONGROPE, "short_factor": [0.0] * 64}, "expected 64 positive numbers"),
    ],
)
def test_numbers_that_make_no_sense(scaling: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_mistral(tmp_path / "checkpoint", num_hidden_layers=1))
    config = {**checkpoint.config, **LLAMA, "rope_scaling": scaling}
    with pytest.raises(CheckpointError, match=message):
        family_for(config).read(config)


def test_a_graph_that_reads_no_frequencies_refuses_in_words(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_qwen3(tmp_path / "checkpoint"))

    def of(scaling: dict[str, Any]) -> None:
        build(
            family_for(checkpoint.config),
            replace(checkpoint, config={**checkpoint.config, "rope_scaling": scaling}),
        )

    with pytest.raises(UnsupportedModel, match="'yarn' with beta_fast, beta_slow or truncate of its own"):
        of({**KANANA, "original_max_position_embeddings": 64})
    with pytest.raises(InputError, match=r"rope scaling .longrope., which llama\.cpp.s qwen3 graph does not"):
        of(LONGROPE)
