"""GGUF files of repositories: which of them is meant, and having it in the Hub's cache with what belongs to
it.

A model in parts is one model, whichever part is named; its manifest, and the companion files that names, are
fetched along.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core.byte_source import ByteSource, LocalFile
from ..core.errors import HubRefusal
from ..core.foreign_values import objects_of
from ..core.gguf_split import part_names
from ..core.input_files import is_plain_name
from ..core.progress import Progress, silent
from .cache import snapshot
from .download import fetch_files, is_here
from .gguf_types import models_of_type
from .names import HubName
from .ranges import HubRanges
from .refusals import not_in_cache
from .source import HubFile, HubSource
from .stream import StreamedFile

_MANIFEST = ".manifest.json"
_LARGEST = 64 << 20  # bytes of a manifest
_BESIDE = re.compile(r"(mmproj|imatrix)[-._]|.*[-._](mmproj|imatrix)\.gguf", re.IGNORECASE)
"""What lies beside models in many repositories and is none: projectors of pictures, importance data."""
_SHOWN = 12


def model_files(source: HubSource, name: HubName) -> list[HubFile]:
    """The files of the GGUF that ``name`` means, the first part first.

    Without a path in the name the only model of the repository is meant, or the only one of the type.
    Raises HubRefusal where there is none, or more than one, and what fetching manifests and headers raises.
    """
    models = gguf_models(source)
    if name.file is not None:
        if source.unreached is not None and not source.listed and source.file(name.file) is None:
            raise not_in_cache(name, source.commit, models, source.unreached)
        return _parts(source, name.file)
    if len(models) > 1:
        models = [each for each in models if each not in _companions(source, models)]
    if models and name.type is not None:
        return _parts(source, _of_type(source, name, models))
    if len(models) == 1:
        return _parts(source, models[0])
    bare = replace(name, type=None)
    if not models:
        raise HubRefusal(
            f"{bare} has no GGUF files",
            hint=f"make one of its checkpoint: kconv to-gguf {bare}, or name a file: hf://org/name/FILE.gguf",
        )
    raise HubRefusal(
        f"{name} has {len(models)} GGUF models, of which one is to be named: {_listed(models)}",
        hint=_how_to_name(name, models[0]),
    )


def _of_type(source: HubSource, name: HubName, models: Sequence[str]) -> str:
    """The only model of the type that ``name`` asks for."""
    found = models_of_type(source, models, name.type or "")
    if len(found) == 1:
        return found[0]
    if not found and source.unreached is not None and not source.listed:
        raise not_in_cache(name, source.commit, models, source.unreached)
    bare = replace(name, type=None)
    if found:
        message = f"{bare} has {len(found)} GGUF models of type {name.type}: {_listed(found)}"
    else:
        message = f"{bare} has no GGUF of type {name.type}; its GGUF models are {_listed(models)}"
    raise HubRefusal(message, hint=_how_to_name(name, (found or models)[0]))


def _listed(models: Sequence[str]) -> str:
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return f"{', '.join(models[:_SHOWN])}{more}"


def _how_to_name(name: HubName, model: str) -> str:
    return f"give it as {shlex.quote(f'hf://{replace(name, file=model, type=None)}')}"


def gguf_models(source: HubSource) -> list[str]:
    """The GGUF models of a repository by the path of their first file, projectors and the like left out."""
    found = [each.path for each in source.files if each.path.lower().endswith(".gguf")]
    models = [path for path in found if not _BESIDE.match(path.rpartition("/")[2])]
    return list(dict.fromkeys(part_names(path)[0] for path in models))


def _parts(source: HubSource, path: str) -> list[HubFile]:
    names = part_names(path)
    found = [source.file(each) for each in names]
    missing = [each for each, file in zip(names, found, strict=True) if file is None]
    if missing and len(names) > 1 and source.file(path) is not None:
        raise HubRefusal(
            f"{path} is one of {len(names)} parts of a model, of which {source.asked} lacks {missing[0]}",
            hint="name another file, or ask its publisher for the part",
        )
    if missing:
        there = gguf_models(source)
        shown = f"; its GGUF models are {', '.join(there[:_SHOWN])}" if there else ""
        at = f" at {source.asked.revision}" if source.asked.revision else ""
        raise HubRefusal(
            f"{source.repository} has no file {path}{at}{shown}",
            hint=f"see its files at {source.asked.page}/tree/{source.asked.revision or 'main'}",
        )
    return [each for each in found if each is not None]


def _companions(source: HubSource, models: Sequence[str]) -> set[str]:
    """Those of a repository's GGUF files that manifests there name as companions of others."""
    manifests = [file for path in models if (file := source.file(path + _MANIFEST)) is not None]
    small = [file for file in manifests if file.size <= _LARGEST]
    folder = fetch_files(source, small) if small else None
    return set() if folder is None else {name for file in small for name in _named(folder, file.path)}


def _named(folder: Path, manifest: str) -> list[str]:
    """The companions a manifest names, by their paths in the repository; nothing of a damaged one."""
    try:
        said = json.loads((folder / manifest).read_bytes())
        companions = objects_of(said["companions"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    above = manifest.rpartition("/")[0]
    names = [each["file"] for each in companions if is_plain_name(each.get("file"))]
    return [f"{above}/{name}" if above else name for name in names]


def _manifest(source: HubSource, first: HubFile) -> HubFile | None:
    found = source.file(first.path + _MANIFEST)
    return found if found is not None and found.size <= _LARGEST else None


def fetch_gguf(
    source: HubSource, name: HubName, progress: Progress = silent, *, modelfile: bool = False
) -> Path:
    """The GGUF that ``name`` means, in the cache: all its parts, its manifest, its companions.

    With ``modelfile`` also the Modelfile that lies beside it. Returns the path of the file that was named.
    Raises what ``model_files`` and ``fetch_files`` raise.
    """
    files = model_files(source, name)
    manifest = _manifest(source, files[0])
    if manifest is not None:
        folder = fetch_files(source, [manifest])
        beside = [source.file(each) for each in _named(folder, manifest.path)]
        files = [*files, manifest, *(each for each in beside if each is not None)]
    recipe = source.file(f"{files[0].path.removesuffix('.gguf')}.Modelfile") if modelfile else None
    if recipe is not None:
        files = [*files, recipe]
    return fetch_files(source, files, progress) / (name.file or files[0].path)


class RemoteModel:
    """A GGUF on the Hub of which ranges are read: ``path`` is where it would lie in the cache."""

    def __init__(self, source: HubSource, name: HubName) -> None:
        self._source, self._files = source, model_files(source, name)
        self._folder = snapshot(source.repository, source.commit)
        self.path = self._folder / (name.file or self._files[0].path)
        if (manifest := _manifest(source, self._files[0])) is not None:
            fetch_files(source, [manifest])

    def opener(self, path: Path) -> ByteSource:
        """Opens one of its files, where it lies."""
        file = next(each for each in self._files if self._folder / each.path == path)
        if is_here(self._source, file):
            return LocalFile(path)
        return StreamedFile(HubRanges(self._source, file), file.sha256, file.git)

    def exists(self, path: Path) -> bool:
        """Whether the path is that of one of its files."""
        return any(self._folder / each.path == path for each in self._files)

    @property
    def sizes(self) -> dict[Path, int]:
        """The bytes of every file of the repository, by where it would lie in the cache."""
        return {self._folder / each.path: each.size for each in self._source.files}
