"""PyTorch files made to cost much: each is refused in seconds, with little memory and a short message."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_material import folder_with_config, refusal

from kconv.core.reading import open_checkpoint

COLLIDING = (1 << 61) - 1  # multiples of it have the same hash


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def one_tensor(
    count: bytes = b"K\x06",
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x02K\x03\x86",
    strides: bytes = b"K\x03K\x01\x86",
) -> bytes:
    """A pickle of {"a": a view of a storage}, its numbers as instructions."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + count
        + b"tQ"
    )
    rest = b"\x89ccollections\nOrderedDict\n)Rt"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + rest + b"R"
    return b"\x80\x02}X\x01\x00\x00\x00a" + view + b"s."


def archive(folder: Path, program: bytes, **storages: bytes) -> Path:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            target.writestr(f"archive/data/{key.strip('_')}", data)
    path = folder_with_config(folder) / "pytorch_model.bin"
    path.write_bytes(stream.getvalue())
    return path


HUGE = integer(10**5000)
FLOODS = {
    "count": (one_tensor(count=HUGE), "an integer of 16610 bits"),
    "offset": (one_tensor(offset=HUGE), "an integer of 16610 bits"),
    "axis": (one_tensor(shape=HUGE + b"K\x03\x86"), "an integer of 16610 bits"),
    "stride": (one_tensor(strides=integer(-(10**5000)) + b"K\x01\x86"), "an integer of 16610 bits"),
    "16 MB integer": (one_tensor(count=integer(1 << 127_000_000)), "an integer of 127000001 bits"),
    "64 bits everywhere": (
        one_tensor(count=integer(1 << 63), offset=integer(1 << 63)),
        "has 24 bytes, expected 36893488147419103232",
    ),
    "strides beyond": (one_tensor(strides=integer(1 << 63) + b"K\x01\x86"), "reaches beyond its storage"),
    "text as an integer": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "cannot be read"),
    "text as a long": (b"\x80\x02L" + b"9" * 5000 + b"L\n.", "cannot be read"),
    "lists": (b"\x80\x02]" + b"]" * 3_900_000 + b".", "more than 400"),
    "lists in a list": (b"\x80\x02](" + b"]" * 3_900_000 + b"e.", "more than 400"),
    "marks": (b"\x80\x02" + b"(" * 3_900_000 + b".", "more than 400"),
    "nested": (b"\x80\x02)" + b"\x85" * 390_000 + b".", "contains a tuple"),
    "nested as a shape": (one_tensor(shape=b")" + b"\x85" * 390_000), "has the shape"),
    "doubled": (one_tensor(shape=b")" + b"q\x00h\x00\x86" * 90_000), "has the shape"),
    "memo": (b"\x80\x04N" + b"\x94" * 3_900_000 + b".", "more than 400"),
    "memo far off": (b"\x80\x02Nr\xff\xff\xff\xff0.", "the instruction POP"),
    "memo beyond": (b"\x80\x02Np4294967296\n.", "a memo index of 4294967296"),
    "memo before": (b"\x80\x02Np-1\n.", "a memo index of -1"),
    "a long name": (
        one_tensor().replace(b"X\x01\x00\x00\x00a", b"X\x00\x00\x40\x00" + b"a" * (4 << 20)),
        "tensor named",
    ),
    "colliding keys": (
        b"\x80\x02}(" + b"".join(integer(COLLIDING * i) + b"N" for i in range(2, 60_000)) + b"u.",
        "a dict key of 62 bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FLOODS)
def test_floods_are_refused_soon(case: str, tmp_path: Path) -> None:
    program, words = FLOODS[case]
    path = archive(tmp_path, program, _0=bytes(24))
    begun = time.process_time()
    refusal(tmp_path, str(path), words)
    assert time.process_time() - begun < 20  # seconds; what this guards against takes minutes


def test_a_flood_takes_little_memory(tmp_path: Path) -> None:
    archive(tmp_path, b"\x80\x02]" + b"]" * 3_900_000 + b".", _0=bytes(24))
    tracemalloc.start()
    refusal(tmp_path, "more than 400")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20


def test_many_small_tensors_are_no_flood(tmp_path: Path) -> None:
    storage = torch.arange(12_000.0)
    path = folder_with_config(tmp_path) / "pytorch_model.bin"
    torch.save({f"layers.{i}.bias": storage[i : i + 1].clone() for i in range(12_000)}, path)
    assert open_checkpoint(tmp_path).tensors["layers.11999.bias"].read(0, 1).tolist() == [11999]


def test_records_that_share_bytes(tmp_path: Path) -> None:
    """Fifield's bomb: the directory gives one record's bytes to many names."""
    path = archive(tmp_path, one_tensor(), _0=bytes(24), _1=bytes(24))
    data = bytearray(path.read_bytes())
    first, second = data.index(b"archive/data/0") - 30, data.index(b"archive/data/1") - 30
    entry = data.rindex(b"archive/data/1") - 46
    assert struct.unpack_from("<I", data, entry + 42)[0] == second
    struct.pack_into("<I", data, entry + 42, first + 10)
    path.write_bytes(data)
    refusal(tmp_path, "the records 'archive/data/0' and 'archive/data/1' share bytes")


@pytest.mark.parametrize("claimed", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_sizes_that_only_the_directory_knows(claimed: int, tmp_path: Path) -> None:
    """A directory in zip64 that gives a record more bytes than the file has."""
    path = archive(tmp_path, one_tensor(count=integer(claimed // 4)), _0=bytes(24))
    data = path.read_bytes()
    at = data.rindex(b"archive/data/0")
    extra = struct.pack("<HHQQ", 1, 16, claimed, claimed)
    entry = bytearray(data[at - 46 : at + 14])
    struct.pack_into("<II", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, len(extra))
    end = data.index(b"PK\x05\x06")
    changed = bytearray(data[: at - 46] + bytes(entry) + extra + data[at + 14 : end] + data[end:])
    size = struct.unpack_from("<I", data, end + 12)[0]
    struct.pack_into("<I", changed, end + len(extra) + 12, size + len(extra))
    path.write_bytes(changed)
    refusal(tmp_path, "is not where the zip directory says")
