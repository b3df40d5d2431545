"""Damage at random: a checkpoint file with any bytes changed is refused or read, never anything else.

What is read must be what the format's own library reads from the same damaged file.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_material import bits, private_bytes
from safetensors import SafetensorError
from safetensors.torch import load, save

from kconv.core.errors import CheckpointError
from kconv.core.safetensors_file import open_safetensors
from kconv.core.torch_file import open_torch
from kconv.core.weight_file import WeightFile

ROUNDS = 1500
TELLING = b'{}[]",:0123456789-.eE\\ \x00\xff\x80}XKMJtR(Qs.hq0btrueF32BF16'


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(4, 2, generator=generator).bfloat16(),
        "c": torch.randn(6, generator=generator).half(),
        "t": torch.randn(4, 3, generator=generator).t().contiguous(),
        "mask": torch.ones(3, 3).bool(),
    }


def damaged(content: bytes, spots: range, seed: int) -> Iterator[bytes]:
    """Copies of ``content`` with a few bytes at ``spots`` changed, put in, taken out or repeated."""
    choose = random.Random(seed)
    for _ in range(ROUNDS):
        data = bytearray(content)
        for _ in range(choose.choice((1, 1, 1, 2, 4))):
            at = min(choose.choice(spots), len(data) - 1)
            match choose.randrange(5):
                case 0:
                    data[at] = choose.choice(TELLING)
                case 1:
                    data[at] ^= 1 << choose.randrange(8)
                case 2:
                    data.insert(at, choose.choice(TELLING))
                case 3:
                    del data[at : at + choose.choice((1, 1, 2, 8))]
                case 4:
                    data[at:at] = data[at : at + choose.randrange(1, 40)]
        yield bytes(data)


def read_all(weights: WeightFile) -> dict[str, bytes]:
    """Every tensor's bytes. Real sizes are a few dozen; more than the file means a check is missing."""
    assert sum(tensor.nbytes for tensor in weights.tensors.values()) < 10_000
    return {name: tensor.read(0, tensor.rows).tobytes() for name, tensor in weights.tensors.items()}


@pytest.mark.parametrize("seed", [1, 2])
def test_safetensors(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "model.safetensors"
    content = save(state(), {"format": "pt"})
    header = range(8 + int.from_bytes(content[:8], "little"))
    messages: list[str] = []
    read = 0
    before, began = private_bytes(), time.process_time()
    for data in damaged(content, header, seed):
        path.write_bytes(data)
        try:
            ours = read_all(open_safetensors(path))
        except CheckpointError as error:
            messages.append(error.message)
            continue
        read += 1
        try:
            theirs = load(data)
        except SafetensorError as error:
            pytest.fail(f"their library refuses what we read: {error}: {data!r}")
        assert ours == {name: bits(theirs[name]).tobytes() for name in ours}
    assert all(message.isprintable() for message in messages)
    assert len(messages) > ROUNDS // 2
    assert read > 10  # such as a letter of a name
    assert private_bytes() - before < 64 << 20
    assert time.process_time() - began < 30


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
def test_pytorch_files(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    stream = io.BytesIO()
    torch.save(state(), stream, _use_new_zipfile_serialization=not legacy)
    content = stream.getvalue()
    messages: list[str] = []
    read = 0
    began = time.process_time()
    for data in damaged(content, range(len(content)), seed=4):
        path.write_bytes(data)
        try:
            read_all(open_torch(path))
            read += 1
        except CheckpointError as error:
            messages.append(error.message)
    assert all(message.isprintable() for message in messages)
    assert min(len(messages), read) > 10
    assert time.process_time() - began < 30


def test_the_reader_itself_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(state()))
    ours = read_all(open_safetensors(path))
    assert ours == {
        name: np.asarray(bits(tensor)).tobytes() for name, tensor in state().items() if name != "mask"
    }
