"""Large files of a checkpoint are hashed in pieces, by all processors once nothing else is to be done."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from kconv.converters import hashes, recorded
from kconv.converters.checkpoint_hashes import CheckpointHashes
from kconv.converters.hashes import SourceHashes
from kconv.converters.recorded import read_manifest
from kconv.converters.samples import write_sample
from kconv.core import piece_sums, receipts
from kconv.core.errors import EnvironmentProblem, InputError
from kconv.core.input_files import InputFile
from kconv.core.reading import open_checkpoint
from kconv.flows.convert import to_gguf

SMALL = 1 << 16
QUIET = 0.3  # seconds


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pieces of 64 KiB, so that a sample's weights are a large file, and a folder of its own for receipts."""
    for module in (piece_sums, hashes, recorded):
        monkeypatch.setattr(module, "PIECE", SMALL)
    monkeypatch.setattr(hashes, "FEWEST", 2 * SMALL)
    monkeypatch.setenv(receipts.FOLDER, str(tmp_path / "receipts"))
    monkeypatch.setattr(receipts, "QUIET", QUIET * 0.9e9)
    return tmp_path


def real_sums(path: Path) -> tuple[str, ...]:
    data = path.read_bytes()
    return tuple(hashlib.sha256(data[at : at + SMALL]).hexdigest() for at in range(0, len(data), SMALL))


@pytest.mark.parametrize("size", [1, SMALL, 5 * SMALL, 9 * SMALL + 7])
def test_the_sums_are_those_of_hashlib(small_pieces: Path, size: int) -> None:
    path = small_pieces / "weights"
    path.write_bytes(os.urandom(size))
    told: list[int] = []
    found = piece_sums.piece_sums(InputFile(path), lambda stage, done, total: told.append(done))
    assert found == real_sums(path)
    assert told == sorted(told)
    assert told[-1] == size
    asked = iter([False, False, *[True] * 20])
    assert piece_sums.piece_sums(InputFile(path), hurry=lambda: next(asked)) == found


def test_it_stops_and_hands_on_what_fails(small_pieces: Path) -> None:
    path = small_pieces / "weights"
    path.write_bytes(bytes(20 * SMALL))
    with pytest.raises(InterruptedError):
        piece_sums.piece_sums(InputFile(path), stopped=lambda: True)
    file = InputFile(path)
    os.truncate(path, 9 * SMALL)
    with pytest.raises(EnvironmentProblem, match="was longer when it was opened"):
        piece_sums.piece_sums(file)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kconv-sha256")]


def test_manifests_receipts_and_the_tensor_that_changed(small_pieces: Path) -> None:
    folder = write_sample("42dot", small_pieces / "checkpoint")
    (weights,) = folder.glob("*.safetensors")
    time.sleep(QUIET)
    how = []
    for name in ("a", "b"):
        made = to_gguf(folder, small_pieces / f"{name}.gguf", types=["q8_0"], verify="off").outputs[0]
        listed = json.loads(made.manifest.read_text("utf-8"))["source"]["files"]
        entry = next(each for each in listed if each["name"] == weights.name)
        assert entry["pieces"] == list(real_sums(weights))
        assert entry["piece_bytes"] == SMALL
        assert "sha256" not in entry
        how.append(entry["hashed"])
    assert how == ["pieces", "receipt"]
    manifest = read_manifest(made.path)
    with CheckpointHashes(made.path, manifest, open_checkpoint(folder)) as kept:
        assert {each["name"]: each.get("pieces") for each in kept.result()}[weights.name] == entry["pieces"]
    with open(weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    header = json.loads(weights.read_bytes()[8 : 8 + int.from_bytes(weights.read_bytes()[:8], "little")])
    last_tensor = max(
        (name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"]
    )
    changed = CheckpointHashes(made.path, manifest, open_checkpoint(folder))
    with changed, pytest.raises(InputError, match=rf"changed: {weights.name} \(in .*{last_tensor}"):
        changed.result()
    again = to_gguf(folder, small_pieces / "c.gguf", types=["q8_0"], verify="off", rehash=True).outputs[0]
    (entry,) = (
        each
        for each in json.loads(again.manifest.read_text("utf-8"))["source"]["files"]
        if each["name"] == weights.name
    )
    assert entry["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest(), "asked for"
    assert "pieces" not in entry


def test_a_file_that_the_hub_knows_is_hashed_whole(small_pieces: Path) -> None:
    blob = small_pieces / "blobs"
    blob.mkdir()
    data = os.urandom(5 * SMALL)
    digest = hashlib.sha256(data).hexdigest()
    (blob / digest).write_bytes(data)
    link = small_pieces / "snapshots" / "model.safetensors"
    link.parent.mkdir()
    link.symlink_to(f"../blobs/{digest}")
    with SourceHashes([InputFile(link)], in_pieces=True) as found:
        (file,) = found.result()
    assert (file.sha256, file.pieces) == (digest, ())
