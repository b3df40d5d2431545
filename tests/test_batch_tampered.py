"""Journals of batches that somebody has changed: what makes no sense says nothing, and deletes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kconv.flows.batch_downloads import of_journal
from kconv.flows.batch_journal import latest, read_journals

TIME = "2026-11-30T10:44:08.853+00:00"
COMMIT, ETAG = "0" * 40, "a" * 64
MADE: dict[str, Any] = {
    "event": "made",
    "time": TIME,
    "key": "gguf:q8_0:/out:/model",
    "path": "/out/model-Q8_0.gguf",
    "bytes": 9,
    "files": [{"path": "/out/model-Q8_0.gguf", "bytes": 9, "mtime_ns": 1}],
    "source": {"config.json": {"bytes": 2, "sha256": ETAG, "state": None}},
    "options": {},
    "versions": {},
    "verdict": "passed",
    "scope": "quick",
}
FETCHING: dict[str, Any] = {
    "event": "fetching",
    "time": TIME,
    "repository": "org/name",
    "revision": COMMIT,
    "files": [["model.safetensors", ETAG, 9]],
    "is_new": True,
}


def read(tmp_path: Path, *lines: object) -> list[Any]:
    path = tmp_path / "jobs.journal.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return list(read_journals([path]))


@pytest.mark.parametrize(
    "change",
    [
        {"files": 5},
        {"files": [{"bytes": 1}]},
        {"path": None},
        {"source": {"config.json": 1}},
        {"versions": []},
        {"verdict": None},
        {"scope": "odd"},
        {"key": ["a"]},
        {"bytes": "x"},
        {"time": "yesterday"},
        {"event": ["made"]},
        {"kl_mean": "x"},
    ],
)
def test_a_line_that_makes_no_sense_says_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    assert list(latest(read(tmp_path, MADE, MADE | change, "[" * 100_000))) == [MADE["key"]]
    assert read(tmp_path, MADE | change) == []


@pytest.mark.parametrize(
    "change",
    [
        {"files": [["../../../../home/user/thesis.txt", ETAG, 9]]},
        {"files": [["/etc/passwd", ETAG, 9]]},
        {"files": [["model.safetensors", "../../x", 9]]},
        {"files": [["model.safetensors", ETAG]]},
        {"repository": "../name"},
        {"revision": "../.."},
    ],
)
def test_only_files_of_the_cache_are_deleted(tmp_path: Path, change: dict[str, Any]) -> None:
    assert list(of_journal(read(tmp_path, FETCHING))) == [("org/name", COMMIT)]
    assert of_journal(read(tmp_path, FETCHING | change)) == {}
