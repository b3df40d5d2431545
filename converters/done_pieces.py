"""What journals say of the pieces that are done (journal.py writes them)."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pieces import Piece

SUFFIX = ".pieces"
"""What the names of writers' files end in."""


@dataclass(frozen=True)
class Done:
    """What journals say: the checksum of each piece that is done, and tensors with weights not finite."""

    checks: Mapping[Piece, int] = field(default_factory=dict)
    not_finite: frozenset[str] = frozenset()


def read_done(folder: Path, prefix: str = "") -> Done:
    """What all writers' files in a journal's folder say together; what is torn or damaged says nothing.

    Those of one plan, where there are several, have names that begin with ``prefix``.
    """
    checks: dict[Piece, int] = {}
    not_finite: set[str] = set()
    for entry in _entries(folder, prefix):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            not_finite.update(map(str, entry["not_finite"]))
            checks.update(
                (Piece(int(i), int(start), int(stop)), int(check))
                for i, start, stop, check in entry["pieces"]
            )
    return Done(checks, frozenset(not_finite))


def read_arrivals(folder: Path) -> list[Mapping[str, Any]]:
    """What the lines of pieces that ``read_done`` gives say of the stream their weights came by."""
    return [entry["arrived"] for entry in _entries(folder) if isinstance(entry.get("arrived"), dict)]


def _entries(folder: Path, prefix: str = "") -> Iterator[dict[str, Any]]:
    """The lines that are whole; of a stream's, which rest on those before them, up to one that is missing."""
    try:
        texts = [path.read_bytes() for path in sorted(folder.glob(f"{prefix}*{SUFFIX}"))]
    except OSError:
        return
    for text in texts:
        count = 0
        for line in text.split(b"\n"):
            sum_, _, said = line.partition(b" ")
            if sum_ != f"{zlib.crc32(said):08x}".encode():
                continue
            with contextlib.suppress(ValueError):
                entry = json.loads(said)
                if not isinstance(entry, dict) or entry.get("line", count) != count:
                    break
                count += 1
                yield entry


def resumed_text(sound: int, pieces: int) -> str:
    """How much of the work an earlier run has done."""
    return f"resumed: {sound:,} of {pieces:,} pieces of the weights are written already"
