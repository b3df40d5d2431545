"""What stands around the figures of a report: provenance, circumstances, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from ..converters.circumstances import Circumstances
from ..core.language import _, ngettext, phrase, translated
from ..verify.measurements import NotFinite

_NAMES = {
    "artifact": phrase("file"),
    "front_end": phrase("front end"),
    "checkpoint": phrase("checkpoint"),
    "texts": phrase("texts"),
    "runtime": phrase("runtime"),
    "versions": phrase("versions"),
    "file": phrase("name"),
    "name": phrase("name"),
    "bytes": phrase("bytes"),
    "repository": phrase("repository"),
    "revision": phrase("revision"),
    "files": phrase("files"),
}


def provenance_name(key: str) -> str:
    """What people call an entry of the provenance; its key where it has no other name."""
    return translated(_NAMES.get(key, key))


def windows(lengths: Sequence[int]) -> str:
    """``4 windows, 2,000 tokens``."""
    return _(
        "{windows}, {tokens}",
        windows=ngettext("{count} window", "{count} windows", len(lengths)),
        tokens=ngettext("{count} token", "{count} tokens", sum(lengths)),
    )


def date(moment: str) -> str:
    """``2026-11-30 06:15 UTC`` of ``2026-11-30T06:15:09Z``."""
    return f"{moment[:10]} {moment[11:16]} UTC"


def machine(circumstances: Circumstances) -> str:
    """Processor, cores, memory, and what llama.cpp makes use of."""
    parts = [circumstances.processor]
    parts.append(ngettext("{count} core", "{count} cores", circumstances.cores))
    if circumstances.memory is not None:
        parts.append(_("{size} GiB of memory", size=f"{circumstances.memory / 2**30:.1f}"))
    if circumstances.instructions:
        names = ", ".join(name.upper().replace("_", "-") for name in circumstances.instructions)
        parts.append(_("llama.cpp compiled for {instructions}", instructions=names))
    return "; ".join(parts)


def excluded(counted: NotFinite) -> str:
    """How many positions were left out since a logit there is no number, and where the first is."""
    first = {"window": counted.window + 1, "position": counted.position + 1}
    text = ngettext(
        "{count} position excluded: a logit there is NaN or infinite, first in window {window} at position "
        "{position}",
        "{count} positions excluded: a logit there is NaN or infinite, first in window {window} at position "
        "{position}",
        counted.positions,
        **first,
    )
    if counted.file and counted.checkpoint:
        return _("{what}, in the file and in the checkpoint.", what=text)
    if counted.checkpoint:
        return _("{what}, in the checkpoint.", what=text)
    return _("{what}, in the file.", what=text)
