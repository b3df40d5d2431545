"""Later commands read manifests with sums of pieces: --resume of what is finished, batches, releases."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kconv.converters import hashes, recorded
from kconv.converters.samples import write_sample
from kconv.core import piece_sums
from kconv.core.errors import AlreadyFinished, OutputExists, UsageError
from kconv.core.reading import open_checkpoint
from kconv.flows.batch_fingerprint import changed_file, source_record
from kconv.flows.convert import to_gguf
from kconv.flows.release import read_release

SMALL = 1 << 16


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (piece_sums, hashes, recorded):
        monkeypatch.setattr(module, "PIECE", SMALL)
    monkeypatch.setattr(hashes, "FEWEST", 2 * SMALL)


def made(folder: Path, name: str, **options: Any) -> tuple[Path, list[dict[str, Any]]]:
    """A file, and what its manifest says of the checkpoint's."""
    output = to_gguf(folder, folder.parent / name, types=["q8_0"], verify="off", **options).outputs[0]
    return output.path, json.loads(output.manifest.read_text("utf-8"))["source"]["files"]


def test_manifests_of_pieces_serve_later_commands(small_pieces: None, tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "checkpoint")
    pieces, listed = made(folder, "a.gguf")
    assert any("pieces" in entry for entry in listed)
    with pytest.raises(AlreadyFinished):
        made(folder, "a.gguf", resume=True)
    whole, others = made(folder, "b.gguf", rehash=True)
    assert all("sha256" in entry for entry in others)
    kept: dict[Any, Any] = {}
    for each in (listed, others, listed):  # a batch has both where some were made by an older kconv
        assert changed_file(open_checkpoint(folder), source_record(each, {}), kept)[0] is None
    assert len(read_release([pieces, whole]).artifacts) == 2

    (weights,) = folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights)
    with pytest.raises(OutputExists):
        made(folder, "a.gguf", resume=True)
    changed = changed_file(open_checkpoint(folder), source_record(listed, {}), {})[0]
    assert changed == weights.name
    other, _ = made(folder, "c.gguf")
    with pytest.raises(UsageError, match="different checkpoints"):
        read_release([pieces, other])
    assert hashlib.sha256(content).hexdigest() not in json.dumps(others)
