"""Checkpoints are read as their own libraries read them, lazily and from any thread."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_material import bits, entry, folder_with_config, index, private_bytes, raw_safetensors
from safetensors import safe_open
from safetensors.torch import save_file

from kconv.core.checkpoint import Checkpoint
from kconv.core.reading import file_sha256, hub_origin, open_checkpoint, read_json, read_text
from kconv.core.tensor import DType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "model.embed.weight": draw(11, 6),
        "half.weight": draw(5, 8).half(),
        "bfloat.weight": draw(7, 3).bfloat16(),
        "norm.weight": draw(9),
        "convolution.weight": draw(4, 3, 2),
        "empty.weight": draw(0, 4),
        "이름.weight": draw(2, 2),
    }


def assert_equal(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    """Every tensor, and every range of its rows, is what is expected, bit for bit."""
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        whole = bits(expected[name])
        assert tensor.name == name
        assert tensor.shape == whole.shape
        for start in range(tensor.rows + 1):
            for stop in range(start, tensor.rows + 1):
                rows = tensor.read(start, stop)
                assert rows.dtype == tensor.dtype.storage
                assert rows.flags.c_contiguous
                assert rows.shape == whole[start:stop].shape
                assert rows.tobytes() == whole[start:stop].tobytes(), name


def test_safetensors_equal_their_own_library(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    masks = {
        "mask": torch.ones(3, 3).tril().bool(),
        "position_ids": torch.arange(4),
        "scale": torch.tensor(2.0),
    }
    save_file({**weights(), **masks}, folder / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(str(folder))
    with safe_open(folder / "model.safetensors", "pt") as reference:
        assert_equal(checkpoint, {name: reference.get_tensor(name) for name in weights()})
    assert checkpoint.dropped == {"mask": "BOOL", "position_ids": "I64", "scale": "F32 scalar"}
    assert checkpoint.weight_files == (folder / "model.safetensors",)
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.tensors["half.weight"].origin == "model.safetensors: half.weight"
    assert checkpoint.tensors["bfloat.weight"].dtype is DType.BF16


def test_a_real_checkpoint(real: Path) -> None:
    checkpoint = open_checkpoint(real / "hf_stories260K")
    with safe_open(real / "hf_stories260K" / "model.safetensors", "pt") as reference:
        assert set(checkpoint.tensors) == set(reference.keys())
        for name, tensor in checkpoint.tensors.items():
            assert tensor.read(0, tensor.rows).tobytes() == bits(reference.get_tensor(name)).tobytes()


def views(seed: int = 0) -> OrderedDict[str, Any]:
    """A state dict with all that torch.save keeps of views, ties and types."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    state: OrderedDict[str, Any] = OrderedDict(weights(seed))
    state["lm_head.weight"] = state["model.embed.weight"]
    state["transposed.weight"] = draw(6, 9).t()
    state["slice.weight"] = draw(10, 8)[2:6, 1:7]
    state["chunk.weight"] = draw(12, 5).bfloat16()[4:8]
    state["permuted.weight"] = draw(4, 5, 2, 3).permute(2, 0, 3, 1)
    state["thin.weight"] = draw(1, 5, 1)[:, 1:4]
    state["parameter.weight"] = torch.nn.Parameter(draw(3, 4))
    state["marked.weight"] = draw(3, 2)
    state["marked.weight"].sequence_parallel = True
    state["marked.parameter"] = torch.nn.Parameter(draw(3, 2).half())
    state["marked.parameter"].sequence_parallel = True
    state["attn.bias"] = torch.ones(4, 4).tril().bool()
    state["attn.masked_bias"] = torch.tensor(-1e9)
    state["inv_freq_ids"] = torch.arange(5)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_pytorch_files_equal_torch_load(tmp_path: Path, legacy: bool, wrapper: str | None) -> None:
    path = folder_with_config(tmp_path) / "pytorch_model.bin"
    state = {wrapper: views(), "epoch": 3} if wrapper else views()
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(tmp_path)
    reference = torch.load(path, weights_only=True)
    reference = reference[wrapper] if wrapper else reference
    for name in checkpoint.dropped:
        del reference[name]
    assert_equal(checkpoint, reference)
    assert checkpoint.dropped == {
        "attn.bias": "BOOL",
        "attn.masked_bias": "F32 scalar",
        "inv_freq_ids": "I64",
    }
    assert checkpoint.aliases == {"lm_head.weight": "model.embed.weight"}
    assert checkpoint.tensors["slice.weight"].origin == "pytorch_model.bin: slice.weight"


OTHERS = {"size": torch.Size((2, 3)), "dtype": torch.half, "device": torch.device("cpu"), "bytes": b"x"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_torch_can_write(tmp_path: Path, protocol: int) -> None:
    path = folder_with_config(tmp_path) / "pytorch_model.bin"
    torch.save({**weights(), "step": 7, "name": "x", "none": None, **OTHERS}, path, pickle_protocol=protocol)
    checkpoint = open_checkpoint(tmp_path)
    assert_equal(checkpoint, weights())
    assert checkpoint.dropped == dict.fromkeys(["step", "name", "none", *OTHERS], "not a tensor")


def test_types_that_only_new_pytorch_has_are_dropped_or_refused_by_name(tmp_path: Path) -> None:
    path = folder_with_config(tmp_path) / "pytorch_model.bin"
    torch.save({"a": torch.ones(2), "counts": torch.ones(3, dtype=torch.uint16)}, path)
    assert open_checkpoint(tmp_path).dropped == {"counts": "U16"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    folder = folder_with_config(tmp_path)
    halves = [dict(list(weights().items())[:3]), dict(list(weights().items())[3:])]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{part}-of-00002.{kind}" for part in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name) if kind == "safetensors" else torch.save(half, folder / name)
    without_index = open_checkpoint(folder)
    assert_equal(without_index, weights())
    where = {tensor: name for name, half in zip(names, halves, strict=True) for tensor in half}
    (folder / f"{stem}.{kind}.index.json").write_text(index(where))
    checkpoint = open_checkpoint(folder)
    assert_equal(checkpoint, weights())
    assert checkpoint.weight_files == without_index.weight_files == tuple(folder / name for name in names)


def test_a_hub_cache_of_links(tmp_path: Path) -> None:
    blobs = tmp_path / "models--42dot--42dot_LLM--x" / "blobs"
    snapshot = blobs.parent / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    folder_with_config(snapshot)
    (snapshot / "config.json").rename(blobs / "aaaa")
    (snapshot / "config.json").symlink_to("../../blobs/aaaa")
    save_file(weights(), blobs / "bbbb")
    (snapshot / "model.safetensors").symlink_to("../../blobs/bbbb")
    checkpoint = open_checkpoint(snapshot)
    assert_equal(checkpoint, weights())
    assert checkpoint.weight_files == (snapshot / "model.safetensors",)
    assert hub_origin(snapshot) == ("42dot/42dot_LLM--x", COMMIT)
    (tmp_path / "link").symlink_to(snapshot)
    assert hub_origin(tmp_path / "link") == ("42dot/42dot_LLM--x", COMMIT)
    assert hub_origin(tmp_path) == (None, None)


def test_a_downloaded_folder_tells_its_commit(tmp_path: Path) -> None:
    metadata = tmp_path / ".cache" / "huggingface" / "download" / "config.json.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"{COMMIT}\nabcdef\n1700000000.0\n")
    assert hub_origin(tmp_path) == (None, COMMIT)
    metadata.write_bytes(b"\xff\xfe")
    assert hub_origin(tmp_path) == (None, None)


def test_safetensors_are_preferred_and_other_names_found(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    torch.save({"other": torch.ones(2)}, folder / "kogpt.bin")
    torch.save({"not": torch.ones(2)}, folder / "training_args.bin")
    assert set(open_checkpoint(folder).tensors) == {"other"}
    save_file(weights(), folder / "model.fp16.safetensors")
    assert_equal(open_checkpoint(folder), weights())
    torch.save({"bin": torch.ones(2)}, folder / "pytorch_model.bin")
    assert set(open_checkpoint(folder).tensors) == {"bin"}
    save_file({"best": torch.ones(2)}, folder / "model.safetensors")
    assert set(open_checkpoint(folder).tensors) == {"best"}


def test_reading_from_many_threads(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    table = torch.arange(4000 * 50, dtype=torch.float32).reshape(4000, 50)
    save_file({"table": table}, folder / "model.safetensors")
    tensor = open_checkpoint(folder).tensors["table"]
    starts = random.Random(1).choices(range(3900), k=400)
    with ThreadPoolExecutor(8) as pool:
        for start, rows in zip(starts, pool.map(lambda at: tensor.read(at, at + 100), starts), strict=True):
            np.testing.assert_array_equal(rows, table[start : start + 100].numpy())


def test_rows_outside_the_tensor(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    save_file(weights(), folder / "model.safetensors")
    tensor = open_checkpoint(folder).tensors["norm.weight"]
    for start, stop in ((-1, 2), (3, 2), (0, 10), (10, 10)):
        with pytest.raises(ValueError, match=r"model\.safetensors: norm\.weight, which has 9"):
            tensor.read(start, stop)


def test_files_are_closed_with_their_last_tensor(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    save_file(weights(), folder / "model.safetensors")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    checkpoint = open_checkpoint(folder)
    one = checkpoint.tensors["norm.weight"]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del checkpoint
    assert one.read(0, 9).shape == (9,)
    del one
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """A file of 64 GiB with nothing written behind its header is opened, and read in pieces."""
    folder = folder_with_config(tmp_path)
    rows, columns = 1 << 23, 1 << 11
    content = raw_safetensors({"big": entry(0, rows * columns * 4, rows, columns)})
    path = folder / "model.safetensors"
    path.write_bytes(content)
    os.truncate(path, len(content) + rows * columns * 4)
    before = private_bytes()
    tensor = open_checkpoint(folder).tensors["big"]
    assert not tensor.read(rows - 100, rows).any()
    assert private_bytes() - before < 16 << 20


# Run in a process of its own, whose memory is not stirred by other tests.
READ_ALL = """
import sys
from checkpoint_material import private_bytes
from kconv.core.reading import open_checkpoint

before = most = private_bytes()
for tensor in open_checkpoint(sys.argv[1]).tensors.values():
    for start in range(0, tensor.rows, 256):
        assert tensor.read(start, start + 256)[0, 0] == start * 1024
        most = max(most, private_bytes())
print(most - before)
"""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
def test_a_pytorch_file_is_read_in_bounded_private_memory(tmp_path: Path, legacy: bool) -> None:
    folder = folder_with_config(tmp_path)
    table = torch.arange(64 << 18, dtype=torch.float32).reshape(-1, 1024)  # 64 MiB
    torch.save(
        {"a": table, "b": table}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy
    )
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 16 << 20


def test_records_beyond_four_gigabytes_have_zip64_headers(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    torch.save({"a": torch.arange(6.0)}, tmp_path / "small")
    with (
        zipfile.ZipFile(tmp_path / "small") as source,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w") as target,
    ):
        for name in source.namelist():
            with target.open(name, "w", force_zip64=True) as record:
                record.write(source.read(name))
    assert_equal(open_checkpoint(folder), {"a": torch.arange(6.0)})


def test_neither_kind_of_file_imports_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from kconv.core.reading import open_checkpoint\n"
        "for folder in sys.argv[1:]:\n"
        "    for tensor in open_checkpoint(folder).tensors.values(): tensor.read(0, tensor.rows)\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules), sys.modules\n"
    )
    save_file(weights(), folder_with_config(tmp_path / "a") / "model.safetensors")
    torch.save(weights(), folder_with_config(tmp_path / "b") / "pytorch_model.bin")
    subprocess.run([sys.executable, "-c", program, tmp_path / "a", tmp_path / "b"], check=True)


def test_sha256(tmp_path: Path) -> None:
    data = random.Random(2).randbytes((4 << 20) + 12345)
    path = tmp_path / "file"
    path.write_bytes(data)
    progress_calls: list[tuple[str, int, int]] = []
    assert file_sha256(path, lambda *what: progress_calls.append(what)) == hashlib.sha256(data).hexdigest()
    assert progress_calls == [("hash", 4 << 20, len(data)), ("hash", len(data), len(data))]
    path.write_bytes(b"")
    assert file_sha256(path) == hashlib.sha256(b"").hexdigest()
    path.write_bytes(data)
    with pytest.raises(InterruptedError):
        file_sha256(path, stopped=lambda: True)


def test_text_and_json(tmp_path: Path) -> None:
    assert read_text(tmp_path, "merges.txt") is None
    assert read_json(tmp_path, "tokenizer.json") is None
    (tmp_path / "merges.txt").write_bytes("\ufeffĠ 가\r\nx\x85y\n".encode())
    assert read_text(tmp_path, "merges.txt") == "Ġ 가\r\nx\x85y\n"
    (tmp_path / "vocab.json").write_text(
        '{"model": 1, "가": 2, "\\ud83d\\ude00": 3, "\\\\ud83d": 4, "\\uD83D\\uDE01": 5}'
    )
    assert read_json(tmp_path, "vocab.json") == {"model": 1, "가": 2, "😀": 3, "\\ud83d": 4, "😁": 5}
    (tmp_path / "config.json").write_text('{"a": 1, "b": [], "a": 1}')
    assert read_json(tmp_path, "config.json") == {"a": 1, "b": []}
