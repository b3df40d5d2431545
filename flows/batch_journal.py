"""The journal of a batch: JSON lines, each on the disk before the work goes on.

One process appends to a journal; every shard has its own, since appends of several are not safe on network
file systems. Whoever plans reads them all. A line cut short by a kill or a power cut is ignored.
"""

from __future__ import annotations

import glob
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.errors import EnvironmentProblem
from ..core.files import explained
from ..core.system_files import append, bytes_at, lock, open_to_write, synced

Record = Mapping[str, Any]
"""One line: ``event``, ``time``, and what that event has to say.

``made``: an output (``key``, ``path``, ``files``, ``source``, ``options``, ``versions``, ``verdict`` …);
``found``: the same of one that planning found to be as it should; ``began``: ``keys`` that a conversion is
about to make; ``failed`` and ``not done``: ``key``, ``error`` and, if it came that far, when it ``began``;
``fetching``, and in the end ``deleted`` or ``kept``: ``repository``, ``revision``; ``started``: the run
itself.
"""
DONE = ("made", "found")
_ALWAYS = {"event", "time"}
_MADE = {"key", "path", "files", "bytes", "source", "options", "versions", "verdict", "scope"}
_NEEDED = dict.fromkeys(DONE, _ALWAYS | _MADE) | {
    "began": _ALWAYS | {"keys"},
    "failed": _ALWAYS | {"key", "error"},
    "not done": _ALWAYS | {"key", "error"},
    "fetching": _ALWAYS | {"repository", "revision", "files", "is_new"},
}
"""Without these a line says nothing, whoever wrote it."""
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("event", "time", "key", "path", "verdict", "scope", "repository", "revision"), str),
    **dict.fromkeys(("keys", "files"), list),
    **dict.fromkeys(("source", "options", "versions", "error"), dict),
    **{"bytes": int, "is_new": bool, "kl_mean": (float, int, type(None)), "commit": (str, type(None))},
}
_SCOPES = ("off", "quick", "full")


def journal_paths(journal: Path) -> list[Path]:
    """The journal and those of shards that lie beside it."""
    pattern = f"{glob.escape(str(journal.with_suffix('')))}.*-of-*{glob.escape(journal.suffix)}"
    return [path for path in (journal, *map(Path, sorted(glob.glob(pattern)))) if path.exists()]


def shard_path(journal: Path, shard: int, shards: int) -> Path:
    """``jobs.journal.jsonl`` -> ``jobs.journal.2-of-8.jsonl``."""
    return journal.with_suffix(f".{shard}-of-{shards}{journal.suffix}")


def read_journals(paths: Iterable[Path]) -> list[Record]:
    """Everything they say, oldest first. Raises EnvironmentProblem where one cannot be read."""
    records = [record for path in paths for record in _lines(path)]
    return sorted(records, key=lambda record: str(record.get("time", "")))


def _lines(path: Path) -> Iterator[Record]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read the journal {path}: {error.strerror or error}") from error
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the last of a run that was killed
            continue
        if isinstance(record, dict) and _is_sound(record):
            yield record


def _is_sound(record: Record) -> bool:
    """Whether a line has what its event needs, each of its kind: journals are files like any others."""
    event = record.get("event")
    if not isinstance(event, str) or not _NEEDED.get(event, _ALWAYS) <= record.keys():
        return False
    if not all(isinstance(record[name], kind) for name, kind in _KINDS.items() if name in record):
        return False
    for name in ("time", "began"):
        try:
            moment = datetime.fromisoformat(record.get(name, record["time"]))
        except (ValueError, TypeError):
            return False
        if moment.tzinfo is None:
            return False
    if not all(isinstance(key, str) for key in record.get("keys", ())):
        return False
    if "error" in record and not all(
        isinstance(record["error"].get(key), str) for key in ("type", "message")
    ):
        return False
    return event not in DONE or _is_sound_output(record)


def _is_sound_output(record: Record) -> bool:
    known = all(
        isinstance(file, dict)
        and isinstance(file.get("path"), str)
        and ("bytes" not in file or {"bytes", "mtime_ns"} <= file.keys())
        for file in record["files"]
    )
    sources = all(
        isinstance(file, dict)
        and isinstance(file.get("bytes"), int)
        and isinstance(file.get("pieces", file.get("sha256")), str | list)
        for file in record["source"].values()
    )
    return known and sources and "key" in record and record["scope"] in _SCOPES


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The last word on every output, by key.

    If that is not that it was made, ``made`` in it is the record of the last time it was, None if never, and
    ``began`` when what came to no good end was begun.
    """
    last: dict[str, Record] = {}
    for record in records:
        for key in record.get("keys", [record["key"]] if "key" in record else []):
            before = last.get(key, {})
            last[key] = record if record["event"] in DONE else {**record, "made": made_of(before)}
            if record["event"] == "began":
                last[key] = {**last[key], "began": record["time"]}
    return last


def made_of(record: Record) -> Record | None:
    """The record of an output that was made, from the last word on it."""
    made: Record | None = record if record.get("event") in DONE else record.get("made")
    return made


class Journal:
    """A journal open for appending, by one process at a time; a context manager.

    Raises EnvironmentProblem where another process has it, or where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path, elsewhere="keep it elsewhere with --journal"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open_to_write(path, make=True, append=True)
            try:
                self._lock()
                size = os.fstat(self._handle).st_size
                if size and bytes_at(self._handle, 1, size - 1) != b"\n":
                    append(self._handle, b"\n")
                synced(path.parent)
            except BaseException:
                os.close(self._handle)
                raise

    def _lock(self) -> None:
        try:
            lock(self._handle)
        except BlockingIOError:
            raise EnvironmentProblem(
                f"another run is at work on these jobs (it holds {self.path})",
                hint="wait for it, or share the jobs out with --shard",
            ) from None
        except OSError:  # a file system without locks
            return

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *failure: object) -> None:
        os.close(self._handle)

    def append(self, event: str, **content: Any) -> Record:
        """Write a line and have it on the disk."""
        record = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **content}
        data = json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
        with explained(self.path, elsewhere="keep it elsewhere with --journal"):
            append(self._handle, data)
        return record

    def append_start(self, **content: Any) -> None:
        """That a run has begun, and where."""
        self.append("started", host=socket.gethostname(), process=os.getpid(), **content)
