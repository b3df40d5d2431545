"""The manifest beside a file, honest and hostile, and checkpoints that are no longer what was converted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vocabulary_material import Made, sample

from kconv.converters.checkpoint_hashes import CheckpointHashes
from kconv.converters.recorded import read_manifest
from kconv.core.errors import InputError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.verify.provenance import (
    changed_after_conversion,
    same_tools,
    same_vocabulary_tools,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return sample("llama-3-ko", tmp_path_factory.mktemp("provenance"))  # its weights are in two files


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """A checkpoint and a file of its own for the test to spoil."""
    folder = shutil.copytree(made.checkpoint, tmp_path / made.checkpoint.name)
    for path in made.file.parent.glob(made.file.name + "*"):
        shutil.copy(path, tmp_path)
    return Made(folder, tmp_path / made.file.name)


def manifest_of(made: Made) -> dict[str, Any]:
    manifest = read_manifest(made.file)
    assert manifest is not None
    return dict(manifest)


def beside(file: Path) -> Path:
    return file.with_name(file.name + ".manifest.json")


def check(made: Made) -> None:
    with CheckpointHashes(made.file, manifest_of(made), open_checkpoint(made.checkpoint)) as hashes:
        hashes.result()


def test_an_unchanged_checkpoint_passes(made: Made) -> None:
    check(made)


def test_hashes_are_those_of_the_manifest(made: Made) -> None:
    progress_calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        progress_calls.append((stage, done, total))

    for manifest in (manifest_of(made), None):
        with CheckpointHashes(made.file, manifest, open_checkpoint(made.checkpoint)) as hashes:
            digests = hashes.result(progress)
        recorded = {file["name"]: file for file in manifest_of(made)["source"]["files"]}
        assert len(digests) >= 5
        digest = hashlib.sha256(made.file.read_bytes()).hexdigest()
        assert {name: file.sha256 for name, file in hashes.artifact.items()} == {made.file.name: digest}
        assert all(recorded[file["name"]] == file for file in digests)
        assert [file["name"] for file in digests] == sorted(file["name"] for file in digests)
    assert all(stage == "hash" and done <= total for stage, done, total in progress_calls)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _shorten(path: Path) -> None:
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model-00002-of-00002.safetensors", _flip, "changed: model-00002-of-00002.safetensors"),
        ("tokenizer.json", _shorten, "changed: tokenizer.json"),
        ("config.json", _shorten, "changed: config.json"),
        ("generation_config.json", lambda path: path.unlink(), "missing: generation_config.json"),
        ("added_tokens.json", lambda path: path.write_text("{}"), "new: added_tokens.json"),
    ],
)
def test_a_changed_checkpoint_is_refused(
    name: str, change: Callable[[Path], Any], words: str, copy: Made
) -> None:
    change(copy.checkpoint / name)
    with pytest.raises(InputError) as caught:
        check(copy)
    assert caught.value.exit_code == 3
    assert words in caught.value.message
    assert "--ignore-manifest" in str(caught.value.hint)


def test_cards_and_licences_may_change(copy: Made) -> None:
    (copy.checkpoint / "README.md").write_text("# another card")
    (copy.checkpoint / "LICENSE").write_text("do as you please")
    index = copy.checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=3))
    check(copy)


def test_several_changes_are_all_named(copy: Made) -> None:
    for name in ("tokenizer.json", "config.json"):
        _shorten(copy.checkpoint / name)
    (copy.checkpoint / "generation_config.json").unlink()
    with pytest.raises(InputError, match=r"changed: .*config\.json.*; missing: generation_config\.json"):
        check(copy)


def test_hashing_stops_when_it_is_left(made: Made) -> None:
    hashes = CheckpointHashes(made.file, manifest_of(made), open_checkpoint(made.checkpoint))
    with pytest.raises(ZeroDivisionError), hashes:
        raise ZeroDivisionError
    assert hashes._thread is not None
    assert not hashes._thread.is_alive()


def test_another_size_than_the_manifests(made: Made, tmp_path: Path) -> None:
    manifest, header = manifest_of(made), read_header(made.file)
    assert changed_after_conversion(header, manifest) == ()
    manifest["output"] = {**manifest["output"], "bytes": header.size + 1}
    (finding,) = changed_after_conversion(header, manifest)
    assert not finding.grave
    assert "changed or replaced after conversion" in finding.message


def test_tools(made: Made) -> None:
    manifest = manifest_of(made)
    assert same_tools(manifest)
    assert same_vocabulary_tools(manifest)
    assert not same_tools(None)
    for package, weights, tokens in (("llama-cpp-python", False, True), ("tokenizers", True, False)):
        other = {**manifest, "versions": {**manifest["versions"], package: "0.0.1"}}
        assert (same_tools(other), same_vocabulary_tools(other)) == (weights, tokens)
    versions = {name: version for name, version in manifest["versions"].items() if name != "kconv"}
    assert not same_tools({**manifest, "versions": versions})


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "nothing.gguf") is None


def _changed(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(manifest: dict[str, Any]) -> Any:
        *path, last = key.split(".")
        place: Any = manifest
        for name in path:
            place = place[int(name)] if name.isdigit() else place[name]
        place[last] = value
        return manifest

    return change


GARBAGE: tuple[Callable[[dict[str, Any]], Any], ...] = (
    lambda manifest: [],
    lambda manifest: None,
    lambda manifest: "manifest",
    lambda manifest: {},
    *(_changed(key, value) for key in ("output", "source", "options", "versions") for value in (None, 7, [])),
    _changed("output.bytes", "many"),
    _changed("output.bytes", -1),
    _changed("output.bytes", True),
    _changed("versions.numpy", 2),
    _changed("source.files", {}),
    _changed("source.files", []),
    _changed("source.files.0.name", "../../etc/passwd"),
    _changed("source.files.0.name", 5),
    _changed("source.files.0.bytes", 1.5),
    _changed("source.files.0.sha256", "abc"),
    _changed("source.files.0.sha256", None),
)


@pytest.mark.parametrize("change", GARBAGE)
def test_garbage_of_json_is_refused(change: Callable[[dict[str, Any]], Any], copy: Made) -> None:
    beside(copy.file).write_text(json.dumps(change(manifest_of(copy))))
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        read_manifest(copy.file)
    assert caught.value.exit_code == 3
    assert "--ignore-manifest" in str(caught.value.hint)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"{" * 100_000,
        b"[" * 200_000,
        b'{"a": ' * 5000 + b"1" + b"}" * 5000,
        b"1" * 10_000,
        b"\0" * 100,
        b" " * ((16 << 20) + 1),
    ],
    ids=["empty", "utf-16", "open", "deep", "brackets", "nested", "digits", "zeros", "large"],
)
def test_garbage_is_refused(data: bytes, tmp_path: Path) -> None:
    beside(tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(InputError):
        read_manifest(tmp_path / "model.gguf")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    beside(tmp_path / "folder.gguf").mkdir()
    os.mkfifo(beside(tmp_path / "pipe.gguf"))
    beside(tmp_path / "link.gguf").symlink_to(tmp_path / "nowhere")
    for name in ("folder.gguf", "pipe.gguf", "link.gguf"):
        with pytest.raises(InputError):
            read_manifest(tmp_path / name)


def test_manifests_of_folders_that_are_not_utf_8(copy: Made) -> None:
    """Half surrogates are how Python spells such names, and JSON escapes are how the manifest does."""
    manifest = manifest_of(copy)
    manifest["source"]["name"] = "kaf\udce9"
    beside(copy.file).write_text(json.dumps(manifest))
    assert manifest_of(copy)["source"]["name"] == "kaf\udce9"


@pytest.mark.parametrize(
    "options",
    [
        {"disabled_adapters": ["nobody's"]},
        {"disabled_adapters": 7},
        {"disabled_adapters": [1]},
        {"chat_template": 7},
    ],
)
def test_options_nobody_knows_are_refused(options: dict[str, Any], copy: Made) -> None:
    manifest = manifest_of(copy)
    manifest["options"] = {**manifest["options"], **options}
    beside(copy.file).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which this version of kconv does not support"):
        copy.expected()


def test_no_file_is_opened_because_a_manifest_names_it(copy: Made, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("{{ secret }}")
    manifest = manifest_of(copy)
    manifest["options"] = {**manifest["options"], "chat_template": str(secret)}
    beside(copy.file).write_text(json.dumps(manifest))
    vocab = copy.expected().vocab
    assert vocab is not None
    assert "secret" not in (vocab.chat_template or "")


def test_strange_proofs_in_a_manifest_change_nothing(copy: Made) -> None:
    wanted = copy.expected().vocab
    for proof in (None, 7, [], {}, {"tokens": 5}, {"tokens": {"candidate": [], "verdict": {}}}):
        beside(copy.file).write_text(json.dumps({**manifest_of(copy), "proof": proof}))
        assert copy.expected().vocab == wanted
