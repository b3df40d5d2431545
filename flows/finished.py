"""A conversion that --resume finds finished: the manifests say that this very command has made the files.

What counts as the same is what the manifests hold: types and options, the SHA-256 of every file of the
source (or of its pieces), versions of what has a hand in the bytes, and the files as they were when they were
proven. What a manifest cannot tell (the content of calibration texts, of a policy or of a chat template's
file) is never the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..converters.hashes import FoundSums, is_as_recorded
from ..converters.manifest import HELD, versions
from ..converters.recorded import MADE_FROM, read_manifest
from ..converters.results import STRENGTH, Options
from ..converters.targets import Target, manifest_path
from ..core.checkpoint import Checkpoint
from ..core.errors import AlreadyFinished, KconvError
from ..core.input_files import InputFile, file_sha256
from ..core.kept import kept_for
from ..core.reading import hub_origin
from ..core.receipts import sha256_of
from .results import Run

_PROVEN = ("passed", "warned")
_SLACK = 2.0  # seconds by which a file may be younger than its manifest
_NOT_OF_THE_FILE = {"types", "type", "verify"}


@dataclass(frozen=True)
class Command:
    """What decides the files of a command, besides types.

    ``options`` are those of the manifest, ``sources`` the files it reads by the names the manifest gives
    them, ``scope`` the proof's, ``packages`` those with a hand in the bytes besides the usual ones. ``key``
    names the list of source files in the manifest. ``origin`` is repository and commit of a source on the
    Hub, which stand for its files.
    """

    options: Mapping[str, Any]
    sources: Mapping[str, Path]
    scope: str
    key: str = "source"
    packages: tuple[str, ...] = ()
    origin: tuple[str | None, str | None] = (None, None)
    imatrix: str | None = None


@dataclass(frozen=True)
class Made:
    """One output: its ``type``, its ``files`` in ``path``'s folder, all that must stand ``beside`` them."""

    path: Path
    type: str
    files: tuple[Path, ...]
    beside: tuple[Path, ...] = ()


def of_checkpoint(
    checkpoint: Checkpoint,
    options: Mapping[str, Any],
    scope: str,
    *,
    packages: tuple[str, ...] = (),
    imatrix: str | None = None,
) -> Command:
    """The command that converts a checkpoint."""
    files = [*checkpoint.side_files, *checkpoint.weight_files]
    sources = {path.relative_to(checkpoint.folder).as_posix(): path for path in files}
    origin = hub_origin(checkpoint.folder)
    return Command(options, sources, scope, packages=packages, origin=origin, imatrix=imatrix)


def tell_converted(checkpoint: Checkpoint, targets: Sequence[Target], options: Options, run: Run) -> None:
    """Raise AlreadyFinished where ``run`` is to go on and this very conversion has made the targets before.

    Parts of a split model are found once they are planned, which is when their names are known.
    """
    if run.resume and not run.force:
        wanted = of_checkpoint(checkpoint, options.to_manifest(), options.verify, imatrix=options.imatrix)
        tell_finished(targets, wanted)


def tell_finished(targets: Sequence[Target], command: Command) -> None:
    """Raise AlreadyFinished where all files of all targets are there as ``command`` has made them."""
    made = [
        Made(each.path, each.type, each.parts or (each.path,), (each.modelfile,) if each.modelfile else ())
        for each in targets
    ]
    paths = [path for target in targets for path in target.paths]
    if not kept_for(paths) and all(os.path.lexists(each.path) for each in targets):
        tell_made(made, command)


def tell_made(made: Sequence[Made], command: Command) -> None:
    """As ``tell_finished``, of outputs of any kind; says nothing where one of them is not so."""
    hashed: FoundSums = {}
    try:
        finished = all(_is_finished(each, command, hashed) for each in made)
    except (KconvError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # not a manifest of this kconv, or a file that is gone: nothing that could be relied on
    if finished:
        raise AlreadyFinished([each.path for each in made])


def _is_finished(made: Made, command: Command, hashed: FoundSums) -> bool:
    """Whether an output is the command's, and proven as far as it asks."""
    manifest = read_manifest(made.path)
    if manifest is None or manifest["output"]["type"] != made.type:
        return False
    proof = manifest["proof"]
    if command.scope != "off" and (
        proof["verdict"] not in _PROVEN or STRENGTH[proof["scope"]] < STRENGTH[command.scope]
    ):
        return False
    return (
        manifest["versions"] == versions(command.packages)
        and _same_options(manifest, command)
        and all(os.path.lexists(path) for path in made.beside)
        and _as_made(made, manifest)
        and _same_sources(manifest, command, hashed)
    )


def _same_options(manifest: Mapping[str, Any], command: Command) -> bool:
    before, now = manifest["options"], command.options
    template = now.get("chat_template")
    if now.get("calibrate") or now.get("optimize") or now.get("policy"):
        return False
    if template is not None and os.path.exists(template):
        return False
    leave = _NOT_OF_THE_FILE | (set(HELD) if command.key == MADE_FROM else set())
    for name in (before.keys() | now.keys()) - leave:
        value = now.get(name)
        if before.get(name) != (list(value) if isinstance(value, tuple) else value):
            return False
    if command.imatrix is None:
        return True
    return bool(manifest["importance"]["sha256"] == file_sha256(Path(command.imatrix)))


def _same_sources(manifest: Mapping[str, Any], command: Command, hashed: FoundSums) -> bool:
    listed = manifest[MADE_FROM] if command.key == MADE_FROM else manifest["source"]["files"]
    before = {file["name"]: file for file in listed}
    source = manifest["source"]
    if all(command.origin) and command.key != MADE_FROM:
        return command.origin == (source.get("repository"), source.get("revision"))
    if before.keys() != command.sources.keys():
        return False
    for name, path in sorted(command.sources.items(), key=lambda each: int(before[each[0]]["bytes"])):
        file = InputFile(path)
        if file.size != before[name]["bytes"] or not is_as_recorded(file, before[name], hashed):
            return False
    return True


def _as_made(made: Made, manifest: Mapping[str, Any]) -> bool:
    """Whether the files, and companions beside them, are those the manifest speaks of."""
    folder = made.path if made.path.is_dir() else made.path.parent
    for beside in manifest.get("companions", ()):
        if file_sha256(folder / beside["file"]) != beside["sha256"]:
            return False
    recorded = {folder / file["name"]: file for file in manifest["output"].get("files", ())}
    if sum(os.stat(path).st_size for path in recorded or made.files) != manifest["output"]["bytes"]:
        return False
    known = {path: file["sha256"] for path, file in recorded.items() if "sha256" in file}
    if any(sha256_of(InputFile(path))[0] != digest for path, digest in known.items()):
        return False
    written = os.stat(manifest_path(made.path)).st_mtime
    return all(os.stat(path).st_mtime <= written + _SLACK for path in made.files if path not in known)
