"""Broken and hostile checkpoints: each gives one CheckpointError that names the file and what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_material import folder_with_config, index, refusal
from safetensors.torch import save_file

from kconv.core.errors import CheckpointError, EnvironmentProblem, UsageError
from kconv.core.reading import open_checkpoint, read_json, read_text

# --- the folder and its configuration


def test_no_folder(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere", "nowhere does not exist", "expected a checkpoint folder")
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        open_checkpoint("42dot/42dot_LLM-SFT-1.3B")
    assert "hf download 42dot/42dot_LLM-SFT-1.3B" in str(caught.value.hint)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="is a GGUF file, expected a checkpoint folder") as caught:
        open_checkpoint(folder / "model.gguf")
    assert "kconv quantize" in str(caught.value.hint)
    (folder / "model.bin").write_bytes(b"PK")
    with pytest.raises(UsageError, match="is a file, expected a checkpoint folder") as caught:
        open_checkpoint(folder / "model.bin")
    assert str(folder) in str(caught.value.hint)
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "korean.txt").write_text("글")
    with pytest.raises(UsageError, match="is a file, expected a checkpoint folder") as caught:
        open_checkpoint(tmp_path / "apart" / "korean.txt")
    assert "save_pretrained" in str(caught.value.hint)


def test_no_config(tmp_path: Path) -> None:
    error = refusal(tmp_path, str(tmp_path), "has no config.json", "expected a Hugging Face folder")
    assert error.hint
    (tmp_path / "adapter_config.json").write_text("{}")
    refusal(tmp_path, "LoRA adapter")


def test_the_root_of_a_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / ("0" * 40)
    folder_with_config(folder)
    assert str(folder) in str(refusal(tmp_path, "cache of all revisions").hint)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"[1, 2]", "a JSON array, expected an object"),
        (b"null", "a JSON null, expected an object"),
        (b'"text"', "a JSON string, expected an object"),
        (b'{"a": "\xff"}', "not UTF-8 text: invalid start byte at byte 7"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": [' + b"[]," * 4_000_000 + b"[]]}", "more than 4000000 arrays"),
        (b'{"hidden_size": 1, "hidden_size": 2}', "the key 'hidden_size' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_config_that_is_not_a_json_object(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    refusal(tmp_path, str(tmp_path / "config.json"), words)


def test_config_of_impossible_kinds(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.mkdir()
    refusal(tmp_path, "config.json is a folder, expected a file")
    config.rmdir()
    os.mkfifo(config)
    refusal(tmp_path, "config.json is not a regular file")
    config.unlink()
    config.symlink_to("../blobs/missing")
    refusal(tmp_path, "config.json is a link to ../blobs/missing, which does not exist")
    config.unlink()
    config.symlink_to("config.json")
    refusal(tmp_path, "config.json cannot be followed")
    config.unlink()
    config.touch()
    os.truncate(config, 1 << 40)
    refusal(tmp_path, "config.json has 1099511627776 bytes, expected at most")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", "..", "a\0b", "x" * 300, "a\\b"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="not a plain file name"):
        read_text(tmp_path, name)
    with pytest.raises(CheckpointError, match="not a plain file name"):
        read_json(tmp_path, name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path)
    (folder / "config.json").chmod(0)
    with pytest.raises(EnvironmentProblem, match="no permission to read"):
        open_checkpoint(folder)


# --- which files are the weights


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "contains no weights"),
        (("tokenizer.json", "README.md"), "contains no weights"),
        (("tf_model.h5",), "TensorFlow"),
        (("flax_model.msgpack",), "Flax"),
        (("model-q4_0.gguf",), "a GGUF file"),
        (("adapter_model.safetensors",), "LoRA adapter"),
        (("adapter_model.bin",), "LoRA adapter"),
        (("consolidated.00.pth", "consolidated.01.pth"), "Meta's"),
        (("consolidated.safetensors",), "Mistral's"),
        (("rust_model.ot",), "rust-bert"),
        (("model.onnx",), "ONNX"),
        (("model.ckpt-1000.index",), "training checkpoint"),
        (("a.safetensors", "b.safetensors"), "several weight files and no index"),
        (("a.bin", "b.bin"), "several weight files and no index"),
        (("model-00001-of-00002.safetensors",), "1 of 2 weight files are missing: model-00002-of-00002"),
        (("model-00001-of-00001.safetensors", "x.safetensors"), "several weight files"),
        (("model-00001-of-00001.bin", "model-00002-of-00001.bin"), "beyond the last"),
        (("model-99999-of-99999.bin",), "99998 of 99999 weight files are missing"),
        (("training_args.bin", "optimizer.bin"), "contains no weights"),
    ],
)
def test_folders_without_readable_weights(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    folder = folder_with_config(tmp_path)
    for name in files:
        (folder / name).touch()
    refusal(folder, str(folder), words)


def shards(folder: Path) -> dict[str, str]:
    """Two shards with their index, whose weight_map is returned."""
    folder_with_config(folder)
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, folder / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(4)}, folder / "model-00002-of-00002.safetensors")
    where = {name: f"model-0000{1 + (name == 'c')}-of-00002.safetensors" for name in "abc"}
    (folder / "model.safetensors.index.json").write_text(index(where))
    return where


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": None}, "expected the plain name"),
        ({"b": 3}, "expected the plain name"),
        ({"b": "../model-00001-of-00002.safetensors"}, "places tensor 'b' in '../model-00001"),
        ({"b": "/etc/passwd.safetensors"}, "expected the plain name"),
        ({"b": "sub/x.safetensors"}, "expected the plain name"),
        ({"b": "sub\\x.safetensors"}, "expected the plain name"),
        ({"b": ""}, "expected the plain name"),
        ({"b": "pytorch_model.bin"}, "expected the plain name of a .safetensors file"),
        ({"b": "x\n.safetensors"}, "expected the plain name"),
        ({"b": "x" * 300 + ".safetensors"}, "expected the plain name"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    where = {**shards(tmp_path), **change}
    (tmp_path / "model.safetensors.index.json").write_text(index(where))
    refusal(tmp_path, "model.safetensors.index.json", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d": "model-00001-of-00002.safetensors"}, "names tensors that are in no weight file: d"),
        ({"d": "model-00003-of-00003.safetensors"}, "is stale and ignored: it names model-00003-of-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "is stale and ignored: it names only model-00001-of"),
        ({"b": "model-00002-of-00002.safetensors"}, "is stale: it places 1 tensors in the wrong files, b"),
    ],
)
def test_an_index_that_differs_from_whole_files(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    where = {**shards(tmp_path), **change}
    (tmp_path / "model.safetensors.index.json").write_text(index(where))
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.tensors) == ["a", "b", "c"]
    (note,) = checkpoint.notes
    assert words in note.message


def test_an_index_that_misses_a_file_of_a_part_of_them(tmp_path: Path) -> None:
    where = {**shards(tmp_path), "d": "model-00003-of-00003.safetensors"}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index(where))
    refusal(tmp_path, "names 3 weight files, of which 2 are missing", "model-00003-of-00003.safetensors")


def test_an_index_that_forgets(tmp_path: Path) -> None:
    where = shards(tmp_path)
    del where["b"]
    (tmp_path / "model.safetensors.index.json").write_text(index(where))
    checkpoint = open_checkpoint(tmp_path)
    assert (sorted(checkpoint.tensors), sorted(checkpoint.unindexed)) == (["a", "c"], ["b"])


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": null}']
)
def test_an_index_without_a_map(tmp_path: Path, content: str) -> None:
    shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refusal(tmp_path, "model.safetensors.index.json has no weight_map")


def test_an_index_that_names_a_tensor_twice(tmp_path: Path) -> None:
    shards(tmp_path)
    name = "model-0000{}-of-00002.safetensors"
    text = f'{{"weight_map": {{"a": "{name.format(1)}", "a": "{name.format(2)}"}}}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refusal(tmp_path, "model.safetensors.index.json", "the key 'a' twice")


def test_a_missing_shard(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refusal(tmp_path, "names 2 weight files, of which 1 are missing: model-00002-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").symlink_to("../../blobs/0000")
    refusal(tmp_path, "model-00002-of-00002.safetensors is a link to ../../blobs/0000")


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    shards(tmp_path)
    save_file({"c": torch.ones(4), "a": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    refusal(tmp_path, "tensor 'a' is in both model-00001-of-00002.safetensors and model-00002-of-00002")
    (tmp_path / "model.safetensors.index.json").unlink()
    refusal(tmp_path, "tensor 'a' is in both")


# --- every refusal leaves the folder as it was


def test_nothing_is_written(tmp_path: Path) -> None:
    shards(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    open_checkpoint(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
