"""GGUF headers: what we write gguf-py reads, what we read is checked."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from kconv.core.errors import GgufError
from kconv.core.gguf_file import (
    BLOCKS,
    TensorInfo,
    aligned,
    header_bytes,
    read_header,
    read_pairs,
    write_header,
)

KEYS = {
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": False,
    "general.name": "한국어",
    "tokenizer.ggml.tokens": ("가", "나", ""),
    "tokenizer.ggml.token_type": (1, 2, 3),
    "tokenizer.ggml.scores": (0.0, -1.5, 2.0),
}
TENSORS = [TensorInfo("a.weight", (4, 64), 2, 144), TensorInfo("b", (5,), 0, 20, 160)]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.gguf"
    start = write_header(path, "llama", KEYS, TENSORS)
    assert path.stat().st_size == start
    with path.open("ab") as file:
        file.write(bytes(aligned(144) + 32))
    return path


def test_round_trip(sample: Path) -> None:
    header = read_header(sample)
    assert header.arch == "llama"
    assert header.tensors == tuple(TENSORS)
    assert {key: header.metadata[key] for key in KEYS} == KEYS
    assert header.size == header.data_offset + aligned(144) + 32


def test_gguf_py_reads_the_same(sample: Path) -> None:
    reader = gguf.GGUFReader(sample)
    for key, value in KEYS.items():
        read = reader.fields[key].contents()
        assert tuple(read) == value if isinstance(value, tuple) else read == value
    shapes = [
        (t.name, tuple(int(n) for n in reversed(t.shape)), int(t.tensor_type), t.n_bytes)
        for t in reader.tensors
    ]
    assert shapes == [(t.name, t.shape, t.ggml_type, t.nbytes) for t in TENSORS]
    assert [t.data_offset - reader.data_offset for t in reader.tensors] == [0, 160]


def test_headers_are_the_bytes_gguf_py_writes(sample: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {**KEYS, "odd.bytes": b"\0\xff", "odd.none": (), "odd.yes": True, "odd.empty": ""}
    start = write_header(sample, "llama", keys, TENSORS)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for key, value in keys.items():
        if isinstance(value, (tuple, bytes)):
            writer.add_array(key, list(value) if isinstance(value, tuple) else value)
        else:
            adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
            adders.get(type(value), writer.add_string)(key, value)
    for info in TENSORS:
        kind = gguf.GGMLQuantizationType(info.ggml_type)
        writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    theirs = (tmp_path / "theirs.gguf").read_bytes()
    assert sample.read_bytes() == theirs.ljust(start, b"\0")


def test_pairs_are_the_bytes_of_the_header(sample: Path) -> None:
    pairs = read_pairs(sample)
    assert list(pairs) == ["general.architecture", *KEYS]
    header = read_header(sample)
    assert header_bytes(list(pairs.values()), header.tensors) == sample.read_bytes()[: header.data_offset]


def test_block_sizes_are_those_of_gguf_py() -> None:
    known = {int(kind): tuple(sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    known[int(gguf.GGMLQuantizationType.Q8_1)] = (32, 36)  # gguf-py says 40; ggml-common.h, block_q8_1: 36
    assert {kind: BLOCKS.get(kind) for kind in known} == known


@pytest.mark.parametrize("keep", [0, 3, 10, 24, 100, 300])
def test_truncated_headers_are_refused(sample: Path, keep: int) -> None:
    sample.write_bytes(sample.read_bytes()[:keep])
    with pytest.raises(GgufError, match=str(sample)):
        read_header(sample)


def test_truncated_data_is_refused(sample: Path) -> None:
    data = sample.read_bytes()
    sample.write_bytes(data[:-40])
    with pytest.raises(GgufError, match="truncated"):
        read_header(sample)


def test_huge_counts_do_not_allocate(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(64))
    with pytest.raises(GgufError, match="tensors and"):
        read_header(path)


def test_names_of_megabytes_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    name = b"blk.0.attn_q.weight" + b"\x1b\xff" * (1 << 20)
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<I", 99)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor)
    with pytest.raises(GgufError, match="99 dimensions") as refused:
        read_header(path)
    assert len(str(refused.value)) < 400
    assert "'blk.0.attn_q.weight" in str(refused.value)


def test_any_damage_is_an_error_or_a_header(sample: Path) -> None:
    data = sample.read_bytes()
    start = read_header(sample).data_offset
    chance = random.Random(1)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(start)] = chance.randrange(256)
        sample.write_bytes(damaged)
        try:
            read_header(sample)
        except GgufError:
            continue
