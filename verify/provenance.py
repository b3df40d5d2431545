"""Whether the checkpoint is still the one the manifest beside a file names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..converters.checkpoint_hashes import CheckpointHashes
from ..converters.manifest import versions
from ..converters.recorded import MADE_FROM, RecordedFile
from ..core.gguf_file import GgufHeader
from ..core.language import phrase
from ..core.progress import Progress
from .proof import Finding


def evidence(
    compared: dict[str, Any], hashes: CheckpointHashes, options: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """What was compared, with the hashes, for which this waits, and the options."""
    compared["checkpoint"]["files"] = hashes.result(progress)
    for key in ("sha256", "hashed"):
        values = {name: getattr(file, key) for name, file in hashes.artifact.items()}
        compared["artifact"][key] = values if len(values) > 1 else next(iter(values.values()))
    return {**compared, "options": options}


def changed_after_conversion(header: GgufHeader, manifest: Mapping[str, Any]) -> tuple[Finding, ...]:
    """A finding, not grave by itself, where the file has not the size it was written with."""
    written = manifest["output"]["bytes"]
    if header.size == written:
        return ()
    message = phrase(
        "the file does not have the size in its manifest: it was changed or replaced after conversion"
    )
    return (Finding("file", message, f"{written} bytes", f"{header.size} bytes", grave=False),)


def changed_files(
    folder: Path, written: Sequence[RecordedFile], digests: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Findings, not grave by themselves, on files of a folder that are not as they were written.

    ``digests`` are the SHA-256 of those that are there, by their paths in the folder.
    """
    findings = []
    for file in written:
        digest = digests.get(file.name)
        if digest is None:
            message = phrase("{name} is listed in the manifest, but not in the folder").of(name=file.name)
            findings.append(
                Finding(file.name, message, f"{file.bytes} bytes", phrase("missing"), grave=False)
            )
            continue
        size = (folder / file.name).stat().st_size
        if size != file.bytes:
            message = phrase("{name} has another size than in the manifest: it was changed after conversion")
            expected, actual = f"{file.bytes} bytes", f"{size} bytes"
        elif file.sha256 not in (None, digest):
            message = phrase(
                "{name} has other contents than in the manifest: it was changed after conversion"
            )
            expected, actual = f"{file.sha256}", digest
        else:
            continue
        findings.append(Finding(file.name, message.of(name=file.name), expected, actual, grave=False))
    return tuple(findings)


def same_tools(manifest: Mapping[str, Any] | None) -> bool:
    """Whether the file was made by a kconv with this very libggml, so that equal weights give equal bytes.

    Not if it was made from another GGUF, where they may have been rounded before.
    """
    return _same(manifest, ("llama-cpp-python",)) and MADE_FROM not in (manifest or {})


def same_vocabulary_tools(manifest: Mapping[str, Any] | None) -> bool:
    """Whether the file was made by this very kconv with these tokenizers, so that all entries are equal."""
    return _same(manifest, ("kconv", "tokenizers", "sentencepiece"))


def _same(manifest: Mapping[str, Any] | None, packages: tuple[str, ...]) -> bool:
    if manifest is None or "kconv" not in manifest["versions"]:
        return False
    here = versions()
    return all(manifest["versions"].get(name) == here[name] for name in packages)
