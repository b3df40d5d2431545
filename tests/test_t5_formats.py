"""Formats of T5's tensors: llama-quantize's bytes, and a feed-forward output that is never half precision."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from t5_checkpoints import BYT5, byte_ids, nmse, t5_logits, t5_weights, write_t5

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.core.errors import UsageError
from kconv.core.gguf_file import GgufHeader, read_header
from kconv.flows.results import Conversion
from kconv.quant.formats import format_of_type
from kconv.quant.policy import POLICIES

SOURCE, TARGET = byte_ids("한국의 수도는 서울이다. " * 5), [0, *byte_ids("서울입니다.", end=False)]
QUANTIZED = ("q8_0", "q6_K", "q5_K_M", "q5_1", "q5_0", "q4_K_M", "q4_K_S", "q4_1", "q4_0", "iq4_nl", "q3_K_L")

# Multiples of 32 but not of 256, as ByT5-small's 1472 and base's d_ff 3968; of 256; and of neither.
WIDTHS: dict[str, dict[str, Any]] = {
    "of 32": {"d_model": 96, "d_ff": 160, "d_kv": 16, "num_heads": 4},
    "of 256": {"d_model": 256, "d_ff": 512, "d_kv": 64, "num_heads": 4},
    "of neither": {"d_model": 40, "d_ff": 72, "d_kv": 10, "num_heads": 3},
    "ungated, tied": {"feed_forward_proj": "relu", "tie_word_embeddings": True, "head": False},
}

_QUANTIZE = """
import ctypes, sys, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
for job in sys.argv[2:]:
    number, path = job.split("=", 1)
    parameters.ftype, parameters.nthread = int(number), 2
    print("file", number, file=sys.stderr, flush=True)
    assert llama_cpp.llama_model_quantize(sys.argv[1].encode(), path.encode(), ctypes.byref(parameters)) == 0
"""


def formats_of(header: GgufHeader) -> dict[str, str]:
    formats = {info.name: format_of_type(info.ggml_type) for info in header.tensors}
    return {name: format.name for name, format in formats.items() if format is not None}


def data_of(path: Path, header: GgufHeader) -> dict[str, bytes]:
    data = path.read_bytes()
    starts = {info.name: header.data_offset + info.offset for info in header.tensors}
    return {info.name: data[starts[info.name] : starts[info.name] + info.nbytes] for info in header.tensors}


def wo(header: GgufHeader) -> set[str]:
    return {name for tensor, name in formats_of(header).items() if tensor.endswith("ffn_down.weight")}


def fallen(log: str, file_type: int) -> int:
    """How many tensors of the file llama_model_quantize says it gave another type than the recipe's."""
    (own,) = (part for part in log.split("file ")[1:] if part.startswith(f"{file_type}\n"))
    match = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", own)
    return int(match[1]) if match else 0


def tensors_told_of(made: Conversion, display: str) -> int:
    """How many tensors the notes on fallbacks count for the file of that type."""
    notes = [note.message for note in made.notes if note.name == "format-fallback"]
    matches = [
        re.match(r"(?:(\d+) tensors|\S+) ", note) for note in notes if f"in the {display} file" in note
    ]
    return sum(int(match[1] or 1) for match in matches if match)


@pytest.mark.parametrize("width", WIDTHS)
def test_quantized_files_are_llama_quantizes(width: str, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", **WIDTHS[width])
    made = to_gguf(folder, tmp_path / "ours", types=("f32", *QUANTIZED), verify=False, threads=2)
    paths = {output.type: output.path for output in made.outputs}
    jobs = [f"{POLICIES[name].file_type}={tmp_path / name}.gguf" for name in QUANTIZED]
    words = [sys.executable, "-c", _QUANTIZE, str(paths["f32"]), *jobs]
    done = subprocess.run(words, check=True, capture_output=True, text=True, errors="replace", timeout=100)
    full = t5_logits(paths["f32"], SOURCE, TARGET)
    for name in QUANTIZED:
        theirs, ours = read_header(tmp_path / f"{name}.gguf"), read_header(paths[name])
        spared = {tensor for tensor in formats_of(ours) if width == "of neither" and "ffn_down" in tensor}
        left, right = data_of(tmp_path / f"{name}.gguf", theirs), data_of(paths[name], ours)
        assert {k: v for k, v in left.items() if k not in spared} == {
            k: v for k, v in right.items() if k not in spared
        }
        assert {formats_of(theirs)[tensor] for tensor in spared} <= {"f16"}
        assert {formats_of(ours)[tensor] for tensor in spared} <= {"f32"}
        assert formats_of(ours)["enc.blk.0.attn_rel_b.weight"] == "f32"
        noted = tensors_told_of(made, POLICIES[name].display)
        assert noted + len(spared) == fallen(done.stderr, POLICIES[name].file_type)
        logits = t5_logits(paths[name], SOURCE, TARGET)  # whatever fell back: it loads and runs
        error = nmse(logits, full)
        print(f"{width}, {name}: NMSE {error:.2e}")
        assert np.isfinite(logits).all()
        assert error < (0.02 if name == "q8_0" else 0.6)
    fallbacks = [note for note in made.notes if note.name == "format-fallback"]
    assert bool(fallbacks) == (width != "of 256")
    assert any(note.name == "feed-forward-wo" for note in made.notes) == (width == "of neither")


@pytest.mark.parametrize(
    ("dtype", "kind", "keep", "expected"),
    [
        ("float32", "f16", False, "f32"),
        ("float16", "auto", False, "f32"),
        ("bfloat16", "auto", False, "bf16"),
        ("bfloat16", "f16", False, "f32"),
        ("bfloat16", "q4_0", False, "q4_0"),
        ("bfloat16", "q4_0", True, "bf16"),
        ("float16", "q8_0", True, "f32"),
        ("float32", "bf16", True, "f32"),
        ("bfloat16", "f16", True, "bf16"),
        ("float32", "f32", True, "f32"),
    ],
)
def test_the_feed_forward_output_is_never_half(
    dtype: str, kind: str, keep: bool, expected: str, tmp_path: Path
) -> None:
    import torch

    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in t5_weights(BYT5).items()}
    folder = write_t5(tmp_path / "model", weights)
    made = to_gguf(folder, tmp_path / "out", types=(kind,), keep_wo=keep, verify=False)
    header = read_header(made.outputs[0].path)
    assert wo(header) == {expected}
    kept = [note.message for note in made.notes if note.name == "feed-forward-wo"]
    assert bool(kept) == (keep or expected == "f32")
    formats = formats_of(header)
    assert formats["dec.blk.0.attn_rel_b.weight"] == formats["enc.output_norm.weight"] == "f32"


def test_activations_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    """What flows into wo exceeds 65,504 here, as in trained T5: with wo in F16 the logits would be lost."""
    weights = t5_weights(BYT5)
    for name in weights:
        if name.endswith("wi_1.weight"):
            weights[name] = weights[name] * 1e5
        if name.endswith("wo.weight"):
            weights[name] = weights[name] * 0.1
    folder = write_t5(tmp_path / "model", weights)
    made = to_gguf(folder, tmp_path / "out", types=("f32", "f16", "q8_0"), verify=False)
    full, *others = (t5_logits(output.path, SOURCE, TARGET) for output in made.outputs)
    for logits in others:
        assert np.isfinite(logits).all()
        assert nmse(logits, full) < 0.02


def test_keep_wo_is_an_option_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_t5(tmp_path / "model")
    words = ["to-gguf", str(folder), "-q", "q4_0", "--keep-wo", "--no-verify", "-o", str(tmp_path / "a.gguf")]
    assert main(words) == 0
    assert wo(read_header(tmp_path / "a.gguf")) == {"f32"}
    assert "in the checkpoint's precision" in capsys.readouterr().out


def test_keep_wo_is_refused_where_there_is_none(tmp_path: Path, small_tokenizer: Path) -> None:
    from llama_material import random_llama

    folder = random_llama(tmp_path / "model", small_tokenizer)
    with pytest.raises(UsageError, match="--keep-wo is for T5"):
        to_gguf(folder, tmp_path / "out", keep_wo=True, verify=False)
