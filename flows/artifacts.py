"""One model to be published: its files, what belongs to them, and what its manifest says of it.

Manifests come from strangers, too: none may have a file sent that does not lie beside it. Weights are not
read.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ..converters.recorded import read_manifest
from ..converters.targets import FOLDER_MANIFEST, manifest_path
from ..core.errors import InputError
from ..core.foreign_values import number, object_of, objects_of, text_of
from ..core.gguf_file import GgufHeader
from ..core.gguf_file_type import file_type
from ..core.gguf_split import GgufModel
from ..core.input_files import is_plain_name, quoted, read_json, read_text, stays_with
from .onnx_runs import Runs, runs_of

Facts = Mapping[str, Any]
"""Keys of a GGUF; of an ONNX folder those for which its own files have an answer."""
README = "README.md"
"""The card of a repository, or of a folder."""
ENCODER = "kconv.encoder"
"""Among facts: whether the graphs of a folder have an encoder."""

_VERDICTS = ("passed", "warned", "failed", "not decided", "not compared", "not run")
_MANIFEST_HINT = "convert or prove the file again, or leave it out"


@dataclass(frozen=True)
class ReleaseFile:
    """A file as it will be called in the repository; ``sha256`` as the manifest records it, None if not.

    ``path`` is None where it only lies in the repository.
    """

    name: str
    path: Path | None
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Evidence:
    """A proof in figures: divergences in nats, shares of one. The verdict is None where there is no proof.

    Of an encoder ``cosine`` and ``same_nearest`` are known, of other models the figures of predictions.
    """

    verdict: str | None = None
    scope: str | None = None
    kl_mean: float | None = None
    kl_error: float | None = None
    same_top1: float | None = None
    perplexity_ratio: float | None = None
    grade: str | None = None
    cosine: float | None = None
    same_nearest: float | None = None

    @property
    def proven(self) -> bool:
        """Whether the file was found to be right."""
        return self.verdict in ("passed", "warned")


@dataclass(frozen=True)
class Artifact:
    """One model: a GGUF in one or several files, or an ONNX folder, and what belongs to it.

    ``name`` is that of its (first) file or its folder in the repository, empty for one at its top.
    ``weights`` are the files of the model itself, ``beside`` manifest, companions and Modelfile; ``place``
    is what a folder is called here, and ``runs`` where it does.
    """

    name: str
    kind: Literal["GGUF", "ONNX"]
    type: str
    bytes: int
    bits_per_weight: float | None
    evidence: Evidence
    weights: tuple[ReleaseFile, ...]
    beside: tuple[ReleaseFile, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    companions: tuple[str, ...] = ()
    modelfile: bool = False
    place: str = ""
    runs: Runs | None = None

    @property
    def files(self) -> tuple[ReleaseFile, ...]:
        """All files, those of the model first."""
        return (*self.weights, *self.beside)

    @property
    def label(self) -> str:
        """The type as it stands in file names: ``Q4_K_M``."""
        return self.type.upper()


def read_artifact(
    opened: Path | GgufModel, *, alone: bool, elsewhere: Mapping[Path, int] = MappingProxyType({})
) -> tuple[Artifact, Facts]:
    """Of a GGUF model or of an ONNX folder, which lies at the repository's top if it is alone.

    ``elsewhere`` has the bytes of files that are not here, by the paths they would have. Raises InputError
    for what cannot be read or published, and EnvironmentProblem.
    """
    return _file(opened, elsewhere) if isinstance(opened, GgufModel) else _folder(opened, top=alone)


def _file(model: GgufModel, elsewhere: Mapping[Path, int]) -> tuple[Artifact, Facts]:
    first, header = model.paths[0], model.header
    manifest = _manifest(first)
    output = manifest.get("output", {})
    recorded = _recorded(output)
    plain = partial(plain_file, elsewhere=elsewhere)
    weights = tuple(plain(each, each.name, recorded.get(each.name)) for each in model.paths)
    beside, companions = [], []
    for each in objects_of(manifest.get("companions")):
        name = each.get("file")
        if not is_plain_name(name):
            raise InputError(
                f"{manifest_path(first)} names {quoted(name)} as a companion file", hint=_MANIFEST_HINT
            )
        companions.append(str(name))
        digest = each.get("sha256")
        beside.append(plain(first.parent / str(name), str(name), digest if isinstance(digest, str) else None))
    modelfile = first.with_suffix(".Modelfile")
    has_modelfile = modelfile in elsewhere or (modelfile.is_file() and stays_with(modelfile, first))
    for own in (manifest_path(first), modelfile if has_modelfile else None):
        if own is not None and (own in elsewhere or own.is_file()):
            beside.append(plain(own, own.name))
    artifact = Artifact(
        first.name,
        "GGUF",
        text_of(output.get("type")) or file_type(header) or "?",
        sum(file.bytes for file in weights),
        _bits(manifest, header),
        _evidence(manifest),
        weights,
        tuple(beside),
        manifest,
        tuple(companions),
        has_modelfile,
    )
    return artifact, header.metadata


def _folder(folder: Path, *, top: bool) -> tuple[Artifact, Facts]:
    """An ONNX folder; at the ``top`` of the repository if it is all there is."""
    manifest = _manifest(folder)
    if not any(folder.glob("*.onnx")) and not any(folder.glob("onnx/*.onnx")):
        hint = "give GGUF files, or folders made by kconv to-onnx; a checkpoint has to be converted first"
        if any(folder.glob("*.gguf")):
            hint = f"GGUF files are named one by one: {shlex.quote(str(folder))}/*.gguf"
        raise InputError(f"{folder} holds no .onnx files", hint=hint)
    name = "" if top else folder.resolve().name
    output = manifest.get("output", {})
    recorded = _recorded(output)
    sizes = {key: folder / key for key in recorded} or {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FOLDER_MANIFEST and not path.name.startswith(".")
    }
    for key, path in sizes.items():
        if not stays_with(path) or not all(map(is_plain_name, key.split("/"))):
            raise InputError(
                f"{folder}/{quoted(key)} leads out of the folder",
                hint="put the file itself there, not a link",
            )
    if top:
        sizes.pop(README, None)  # the repository's is the card of all that is in it
    prefix = f"{name}/" if name else ""
    weights = tuple(plain_file(path, prefix + key, recorded.get(key)) for key, path in sizes.items())
    own = folder / FOLDER_MANIFEST
    beside = (plain_file(own, prefix + FOLDER_MANIFEST),) if own.is_file() else ()
    artifact = Artifact(
        name,
        "ONNX",
        text_of(output.get("type")) or "?",
        sum(file.bytes for file in weights),
        _bits(manifest, None),
        _evidence(manifest),
        weights,
        beside,
        manifest,
        place=folder.resolve().name,
        runs=runs_of(manifest),
    )
    return artifact, _folder_facts(folder)


def _folder_facts(folder: Path) -> Facts:
    """What a folder's own files say, under the keys a GGUF has for it."""
    config = read_json(folder, "tokenizer_config.json") or {}
    template = config.get("chat_template") or read_text(folder, "chat_template.jinja")
    encoder = any(folder.glob("encoder_model*.onnx")) or any(folder.glob("onnx/encoder_model*.onnx"))
    facts: dict[str, Any] = {ENCODER: encoder}
    return {**facts, "tokenizer.chat_template": template} if isinstance(template, str) else facts


def remote_artifact(name: str, manifest: Mapping[str, Any], there: Collection[str]) -> Artifact | None:
    """What a manifest that lies in a repository as ``name`` says of a model there; None if nothing.

    ``there`` are the names of all files of the repository.
    """
    folder, _, last = name.rpartition("/")
    output = manifest.get("output")
    if not isinstance(output, dict) or type(output.get("bytes")) is not int:
        return None
    if last == FOLDER_MANIFEST:
        kind: Literal["GGUF", "ONNX"] = "ONNX"
        own = folder
    else:
        kind, own = "GGUF", name.removesuffix(".manifest.json")
        if own not in there:
            return None
    size = output["bytes"]
    return Artifact(
        own,
        kind,
        text_of(output.get("type")) or "?",
        size,
        _bits(manifest, None),
        _evidence(manifest),
        (ReleaseFile(own, None, size),),
        manifest=manifest,
        companions=tuple(
            each["file"] for each in objects_of(manifest.get("companions")) if is_plain_name(each.get("file"))
        ),
        modelfile=f"{own.removesuffix('.gguf')}.Modelfile" in there,
        runs=runs_of(manifest) if kind == "ONNX" else None,
    )


def _manifest(artifact: Path) -> Mapping[str, Any]:
    try:
        return read_manifest(artifact) or {}
    except InputError as error:
        raise InputError(error.message, hint=_MANIFEST_HINT) from error


def plain_file(
    path: Path,
    name: str,
    sha256: str | None = None,
    *,
    elsewhere: Mapping[Path, int] = MappingProxyType({}),
) -> ReleaseFile:
    """A file to be called ``name``, here or ``elsewhere``.

    Raises InputError where it is missing or the name cannot be published.
    """
    if not name.isprintable() or not all(map(is_plain_name, name.split("/"))):
        raise InputError(
            f"the file name {quoted(name)} has characters that cannot be published",
            hint='rename the file: no control characters and none of \\ : * ? " < > |',
        )
    try:
        size = elsewhere[path] if path in elsewhere else path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", hint="it belongs to the files to publish"
        ) from error
    return ReleaseFile(name, path, size, sha256)


def _recorded(output: Any) -> dict[str, str | None]:
    """The files a manifest names, with their hashes."""
    files = output.get("files") if isinstance(output, dict) else None
    return {
        each["name"]: each["sha256"] if isinstance(each.get("sha256"), str) else None
        for each in objects_of(files)
        if isinstance(each.get("name"), str)
    }


def _bits(manifest: Mapping[str, Any], header: GgufHeader | None) -> float | None:
    """Bits per weight: as measured when the file was written, else from the header or the size."""
    output = manifest.get("output", {})
    measured = number(output.get("bits_per_weight"))
    if measured is not None:
        return measured
    if header is not None:
        count = sum(math.prod(info.shape) for info in header.tensors)
        return 8 * sum(info.nbytes for info in header.tensors) / max(1, count)
    size, weights = number(output.get("bytes")), number(manifest.get("parameters"))
    return 8 * size / weights if size and weights else None


def _evidence(manifest: Mapping[str, Any]) -> Evidence:
    proof = manifest.get("proof")
    if not isinstance(proof, dict) or proof.get("verdict") not in _VERDICTS:
        return Evidence()
    logits, embeddings = object_of(proof.get("logits")), object_of(proof.get("embeddings"))
    figures, similar = object_of(logits.get("figures")), object_of(embeddings.get("figures"))
    ours, theirs = number(figures.get("perplexity_file")), number(figures.get("perplexity_reference"))
    return Evidence(
        proof["verdict"],
        text_of(proof.get("scope")),
        number(figures.get("kl_mean")),
        number(figures.get("kl_mean_error")),
        number(figures.get("same_top1")),
        ours / theirs if ours and theirs else None,
        text_of(object_of(logits.get("loss")).get("grade")) or text_of(embeddings.get("loss")),
        number(similar.get("cosine_mean")),
        number(similar.get("same_nearest")),
    )
