"""Damaged and doctored safetensors files: each gives one CheckpointError that says what is wrong.

And whole ones: their headers say what the format's own library reads in them.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_material import entry, folder_with_config, raw_safetensors, refusal
from safetensors import safe_open
from safetensors.torch import save_file

from kconv.core.errors import EnvironmentProblem
from kconv.core.reading import open_checkpoint
from kconv.core.safetensors_file import SUB_BYTE, open_safetensors
from kconv.core.small_floats import FLOAT8
from kconv.core.tensor import DType
from kconv.core.weight_file import ITEM_SIZES, NEVER_WEIGHTS, WEIGHTS

GOOD = entry(0, 24, 2, 3)
DATA = bytes(24)


BAD_FILES: tuple[tuple[bytes, str], ...] = (
    (b"", "has 0 bytes, too few for safetensors"),
    (b"\x01\x00\x00", "has 3 bytes, too few"),
    (struct.pack("<Q", 1000) + b"{}", "truncated: its header has 1000 bytes, but the file ends after 10"),
    (struct.pack("<Q", 1 << 63) + b"{}", "more than the format's limit"),
    (b"GGUF\x03\x00\x00\x00" + bytes(80), "more than the format's limit"),
    (b"PK\x03\x04 a zip archive", "more than the format's limit"),
    (b"<!DOCTYPE html><html>", "more than the format's limit"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    (raw_safetensors(b""), "not a JSON object"),
    (raw_safetensors(b" {}"), "not a JSON object"),
    (raw_safetensors([]), "not a JSON object"),
    (raw_safetensors(b'{"a": \xff}'), "not UTF-8"),
    (raw_safetensors(b'{"a": }'), "not valid JSON"),
    (raw_safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "nested too deeply"),
    (raw_safetensors({}), "contain no weights"),
    (raw_safetensors({"__metadata__": {"a": 1}, "x": GOOD}, DATA), "__metadata__"),
    (raw_safetensors({"__metadata__": [], "x": GOOD}, DATA), "__metadata__"),
    (raw_safetensors({"x": GOOD}, DATA[:-1]), "truncated, or the offsets are wrong"),
    (raw_safetensors({"x": GOOD}, DATA + b"\0"), "1 bytes after the last tensor"),
    (raw_safetensors({"x": []}, DATA), "tensor 'x' is described by"),
    (
        raw_safetensors({"x": {"dtype": "F32", "shape": [2, 3]}}, DATA),
        "expected dtype, shape and data_offsets",
    ),
    (raw_safetensors({"x": entry(0, 24, 2, 3, dtype="F33")}, DATA), "unknown type 'F33'"),
    (raw_safetensors({"x": {**GOOD, "dtype": ["F32"]}}, DATA), "unknown type"),
    (raw_safetensors({"x": {**GOOD, "dtype": {}}}, DATA), "unknown type"),
    (raw_safetensors({"x": {**GOOD, "shape": [2, -3]}}, DATA), "has the shape"),
    (raw_safetensors({"x": {**GOOD, "shape": [2, 3.0]}}, DATA), "has the shape"),
    (raw_safetensors({"x": {**GOOD, "shape": [2, True, 3]}}, DATA), "has the shape"),
    (raw_safetensors({"x": {**GOOD, "shape": "23"}}, DATA), "has the shape"),
    (raw_safetensors({"x": {**GOOD, "shape": [1] * 9}}, DATA), "has 9 axes"),
    (raw_safetensors({"x": {**GOOD, "shape": [1 << 40, 1 << 40]}}, DATA), "too large for any file"),
    (raw_safetensors({"x": {**GOOD, "shape": [0, 1 << 62]}}, DATA), "too large for any file"),
    (raw_safetensors({"x": {**GOOD, "shape": [1 << 10000]}}, DATA), "too large for any file"),
    (
        raw_safetensors({"x": {**GOOD, "shape": [2, 4]}}, DATA),
        "24 bytes, but F32 of shape [2, 4] needs 32",
    ),
    (raw_safetensors({"x": {**GOOD, "data_offsets": [0]}}, DATA), "expected two integers"),
    (raw_safetensors({"x": {**GOOD, "data_offsets": [0, 24.0]}}, DATA), "expected two integers"),
    (raw_safetensors({"x": {**GOOD, "data_offsets": [False, 24]}}, DATA), "expected two integers"),
    (raw_safetensors({"x": {**GOOD, "data_offsets": [24, 0]}}, DATA), "expected 0 <= begin <= end"),
    (raw_safetensors({"x": {**GOOD, "data_offsets": [-24, 0]}}, DATA), "expected 0 <= begin <= end"),
    (raw_safetensors({"x": {**GOOD, "data_offsets": [8, 32]}}, DATA), "the data ends after 24 bytes"),
    (
        raw_safetensors({"x": {**GOOD, "data_offsets": [0, 10**4299]}}, DATA),
        "the data ends after 24 bytes",
    ),
    (raw_safetensors({"x": GOOD, "y": entry(0, 24, 6)}, DATA), "tensors 'x' and 'y' overlap"),
    (raw_safetensors({"x": GOOD, "y": entry(20, 28, 2)}, DATA + bytes(4)), "tensors 'x' and 'y' overlap"),
    (
        raw_safetensors({"x": GOOD, "y": entry(28, 36, 2)}, DATA + bytes(12)),
        "the 4 bytes before tensor 'y'",
    ),
    (raw_safetensors({"x": entry(8, 32, 6)}, bytes(32)), "the 8 bytes before tensor 'x'"),
    (raw_safetensors({"": GOOD}, DATA), "expected printable text"),
    (raw_safetensors({"a\x1b[2J": GOOD}, DATA), "expected printable text"),
    (raw_safetensors({"a\nb": GOOD}, DATA), "expected printable text"),
    (raw_safetensors(b'{"\\ud800": {}}', DATA), "half a surrogate pair"),
    (raw_safetensors({"x" * 2000: GOOD}, DATA), "expected printable text"),
    (raw_safetensors({"x": entry(0, 3, 2, 3, dtype="F4")}, bytes(3)), "F4"),
    (raw_safetensors({"x": entry(0, 48, 2, 3, dtype="F64")}, bytes(48)), "tensor 'x' is F64"),
    (raw_safetensors({"x": entry(0, 48, 2, 3, dtype="C64")}, bytes(48)), "tensor 'x' is C64"),
)


@pytest.mark.parametrize(("content", "words"), BAD_FILES, ids=[words for _, words in BAD_FILES])
def test_bad_files(tmp_path: Path, content: bytes, words: str) -> None:
    folder = folder_with_config(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    refusal(folder, str(tmp_path), words)


def test_one_name_twice_in_a_header(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    text = json.dumps(GOOD).encode()
    for second in (text, json.dumps(entry(24, 48, 2, 3)).encode()):
        content = raw_safetensors(b'{"x": ' + text + b', "x": ' + second + b"}", DATA + DATA)
        (folder / "model.safetensors").write_bytes(content)
        refusal(folder, "model.safetensors: the header has the key 'x' twice")


@pytest.mark.parametrize("form", ["safetensors", "zip", "before 1.6"])
def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path, form: str) -> None:
    folder = folder_with_config(tmp_path)
    state = {"a": torch.ones(100, 1000)}
    path = folder / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    tensor = open_checkpoint(folder).tensors["a"]
    os.truncate(path, 250_000)
    assert tensor.read(0, 50).all()
    with pytest.raises(
        EnvironmentProblem, match=r"ends after 250000 bytes.* for .*: a; it was longer"
    ) as caught:
        tensor.read(50, 100)
    assert str(path) in caught.value.message


def test_weights_that_are_quantized_already(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    state = {"model.norm.weight": torch.ones(4), "model.q_proj.qweight": torch.ones(4, 4, dtype=torch.int32)}
    save_file(state, folder / "model.safetensors")
    refusal(folder, "already quantized ('gptq')", "'model.q_proj.qweight' is I32")


def test_messages_stay_short_and_on_one_line(tmp_path: Path) -> None:
    """Whatever a header says, a terminal gets printable text of a few hundred characters."""
    folder = folder_with_config(tmp_path)
    nasty: Callable[[int], str] = lambda n: "\x1b]0;owned\x07\r\n" * n  # noqa: E731
    for header in ({nasty(1): GOOD}, {"x": {nasty(9): nasty(9)}}, {"x": {**GOOD, "dtype": nasty(99)}}):
        (folder / "model.safetensors").write_bytes(raw_safetensors(header, DATA))
        assert not re.search(r"[\x00-\x1f]", refusal(folder).message)


TORCH_TYPES = {type_ for type_ in vars(torch).values() if isinstance(type_, torch.dtype)} - {torch.complex32}


def test_headers_say_what_the_library_reads_in_them(tmp_path: Path) -> None:
    """Of every type that the library writes."""
    folder = folder_with_config(tmp_path)
    path = folder / "model.safetensors"
    seen = set()
    for type_ in sorted(TORCH_TYPES, key=str):
        try:
            save_file({"x": torch.zeros(3, 4, 2, dtype=type_)}, path)
        except (KeyError, NotImplementedError, RuntimeError, ValueError):  # a type torch or the format lacks
            continue
        with safe_open(path, "pt") as reference:
            entry = reference.get_slice("x")
            name, shape = entry.get_dtype(), tuple(entry.get_shape())
        seen.add(name)
        if name in WEIGHTS:
            tensor = open_safetensors(path).tensors["x"]
            assert (tensor.dtype.value, tensor.shape) == (name, shape)
        elif name in FLOAT8:
            tensor = open_safetensors(path).tensors["x"]
            assert (tensor.held_as, tensor.dtype, tensor.shape) == (name, DType.F32, shape)
            assert not tensor.read(0, 3).any() or name == "F8_E8M0"
        elif name in NEVER_WEIGHTS:
            assert open_safetensors(path).dropped == {"x": name}
        else:
            refusal(folder, f"tensor 'x' is {name}; kconv reads F32, F16")
        if name not in SUB_BYTE:
            header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            assert path.stat().st_size - header == math.prod(shape) * ITEM_SIZES[name]
    assert seen >= {*WEIGHTS, *NEVER_WEIGHTS, "F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
