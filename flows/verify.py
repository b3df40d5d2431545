"""``verify``: a file or folder, made here or elsewhere, against the checkpoint it was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.checkpoint_hashes import CheckpointHashes
from ..converters.families import family_for, has_family
from ..converters.intake import prepared
from ..converters.mapping import build, parameters
from ..converters.recorded import read_manifest, written_files
from ..converters.targets import manifest_path
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import InputError, UsageError
from ..core.model import Model
from ..core.progress import Progress, silent
from ..core.reading import open_checkpoint
from ..hub.artifact import local_artifact
from ..hub.checkpoint import local_checkpoint
from ..quant.gguf_weights import GgufFile, open_gguf
from ..runtimes.onnx_folder import OnnxFolder, open_onnx
from ..verify.gguf_artifact import GgufArtifact
from ..verify.inputs import Expected, VerifyOptions, built_in_windows, cost, text_windows
from ..verify.onnx_artifact import OnnxArtifact, expected_of_folder
from ..verify.predicted import recorded_prediction, with_prediction
from ..verify.proof import Proof
from ..verify.prove import Artifact, prove
from ..verify.same_model import refuse_other_model
from ..vocab.expected import expected_model
from ..vocab.sample_text import LONG
from ..vocab.selection import embedding_rows
from ..vocab.tokenizer import Source
from .any_artifact import AnyGgufArtifact
from .any_model import expected_of_any
from .observer import UNOBSERVED, Observer


@dataclass(frozen=True)
class _Request:
    """What to read; ``options`` are all of verify's arguments, as the provenance records them."""

    texts: Sequence[str] | None
    tokens: int | None
    window: int | None
    ignore_manifest: bool
    options: Mapping[str, Any]
    front_end: Path | None = None
    rehash: bool = False


def verify(
    artifact: str | Path,
    against: str | Path,
    *,
    texts: Sequence[str] | None = None,
    tokens: int | None = None,
    window: int | None = None,
    gates: Mapping[str, float] | None = None,
    max_kl: float | None = None,
    min_cosine: float | None = None,
    diagnose: bool | None = None,
    ignore_manifest: bool = False,
    front_end: str | Path | None = None,
    rehash: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    observer: Observer = UNOBSERVED,
) -> Proof:
    """Hold a GGUF file or an ONNX folder against the checkpoint folder it was made from.

    Tokens, metadata, weights and logits are compared. An ONNX folder knows neither ``diagnose`` nor
    ``front_end`` (UsageError).

    ``texts`` (default: some thousand tokens of built-in Korean and English) are read in windows of ``window``
    tokens, at most ``tokens`` of each. ``gates`` maps a type (or ``""``, the file's own) to the loss above
    which a file fails, ``max_kl`` is that of any type, in nats, ``min_cosine`` an encoder's least mean
    cosine.
    ``diagnose`` looks for the first layer that departs; None: only where the file is wrong. ``announce`` is
    told what it will take, ``observer`` what each part finds.
    ``front_end`` is a GBST model's second file, where it is not beside the artifact.
    ``rehash`` reads all files for their SHA-256 even where receipts of earlier runs have them.
    However wrong the file is, the answer is a Proof; KconvError is raised for what cannot be compared at all:
    a damaged header, another model, a body without its front end, a checkpoint that has changed since the
    conversion (unless ``ignore_manifest``), a text that is too short.
    """
    begun = time.monotonic()
    options = _options(texts, tokens, window, gates, diagnose, ignore_manifest)
    if max_kl is not None:
        options["max_kl"] = max_kl
    if min_cosine is not None:
        options["min_cosine"] = min_cosine
    if front_end is not None:
        options["front_end"] = str(front_end)
    second = None if front_end is None else Path(front_end)
    asked = _Request(texts, tokens, window, ignore_manifest, options, second, rehash)
    verify_options = VerifyOptions(
        gates or {},
        max_kl,
        min_cosine,
        diagnose,
        threads or available_cores(),
        progress,
        announce,
        observer.part,
    )
    progress("opening", 0, 0)
    artifact, against = local_artifact(artifact, progress), local_checkpoint(against, progress)
    if artifact.is_dir():
        if diagnose or front_end is not None:
            raise UsageError("--diagnose and --front-end are for GGUF files, not for ONNX folders")
        proof = _prove_folder(open_onnx(artifact), open_checkpoint(against), asked, verify_options, observer)
    else:
        with open_gguf(artifact) as file:
            proof = _prove_file(file, Path(against), asked, verify_options, observer)
    return replace(proof, seconds=time.monotonic() - begun)


def _options(
    texts: Sequence[str] | None,
    tokens: int | None,
    window: int | None,
    gates: Mapping[str, float] | None,
    diagnose: bool | None,
    ignore_manifest: bool,
) -> dict[str, Any]:
    """What was asked for, gates as they are written on a command line; ``texts`` is how many were given."""
    return {
        "texts": len(texts or ()),
        "tokens": tokens,
        "window": window,
        "gates": [f"{name}={limit!r}" if name else repr(limit) for name, limit in (gates or {}).items()],
        "diagnose": diagnose,
        "ignore_manifest": ignore_manifest,
    }


def _prove_file(
    file: GgufFile, against: Path, asked: _Request, options: VerifyOptions, observer: Observer
) -> Proof:
    manifest = None if asked.ignore_manifest else read_manifest(file.path)
    checkpoint = open_checkpoint(against)
    # first of all: what has changed
    hashes = CheckpointHashes(file.path, manifest, checkpoint, file.paths, rehash=asked.rehash)
    checkpoint = prepared(checkpoint)
    if not has_family(checkpoint.config):
        expected, left = expected_of_any(file, checkpoint, manifest)
        found = AnyGgufArtifact(file, manifest, asked.front_end, left=left)
        return _prove(expected, found, hashes, asked, options, observer)
    expected = _expected_of_file(file, checkpoint, manifest)
    artifact = GgufArtifact(file, manifest, asked.front_end)
    proof = _prove(expected, artifact, hashes, asked, options, observer)
    return with_prediction(proof, recorded_prediction(manifest))


def _prove_folder(
    folder: OnnxFolder,
    checkpoint: Checkpoint,
    asked: _Request,
    options: VerifyOptions,
    observer: Observer,
) -> Proof:
    manifest = None if asked.ignore_manifest else read_manifest(folder.path)
    written = () if manifest is None else written_files(manifest, manifest_path(folder.path))
    there = [path for file in written if (path := folder.path / file.name).is_file()]
    parts = list(dict.fromkeys([*folder.files, *there]))
    hashes = CheckpointHashes(folder.path, manifest, checkpoint, parts, rehash=asked.rehash)
    checkpoint = prepared(checkpoint)
    expected = _expected_of_folder(folder, checkpoint, manifest)
    return _prove(expected, OnnxArtifact(folder, written), hashes, asked, options, observer)


def _prove(
    expected: Expected,
    artifact: Artifact,
    hashes: CheckpointHashes,
    asked: _Request,
    options: VerifyOptions,
    observer: Observer,
) -> Proof:
    """The proof, once it is clear that the two can be compared; announces what it will take."""
    passes = artifact.passes(expected, options)  # nonsense is refused before any work
    observer.opened(expected.checkpoint.folder, expected.model.arch, parameters(expected.model))
    observer.proving(artifact.path, artifact.type, 1, 1)
    if asked.texts is None:
        windows = built_in_windows(expected, LONG, tokens=asked.tokens, window=asked.window)
    else:
        windows = text_windows(expected, asked.texts, tokens=asked.tokens, window=asked.window)
    options.announce(cost(expected, windows, 1, passes=passes))
    proof = prove(
        expected, artifact, windows, options, texts=asked.texts, hashes=hashes, recorded=asked.options
    )
    intake = tuple(note.message for note in expected.checkpoint.notes)
    return replace(proof, notes=(*intake, *proof.notes))


def _expected_of_file(file: GgufFile, checkpoint: Checkpoint, manifest: Mapping[str, Any] | None) -> Expected:
    """The checkpoint as it should be in the file; refuses a file of another model before any work."""
    family = family_for(checkpoint.config)
    model = build(family, checkpoint)
    refuse_other_model(file, model)
    source = _tokenizer(checkpoint, model, manifest)
    model = expected_model(model, checkpoint, source, file.header, manifest)
    return Expected(checkpoint, family, model, source)


def _tokenizer(checkpoint: Checkpoint, model: Model, manifest: Mapping[str, Any] | None) -> Source:
    """That of the checkpoint, without the tokens the conversion was told to leave out."""
    options = (manifest or {}).get("options")
    dropped = isinstance(options, Mapping) and options.get("drop_extra_tokens") is True
    return read_tokenizer(checkpoint, embedding_rows(model) if dropped else None)


def _expected_of_folder(
    folder: OnnxFolder, checkpoint: Checkpoint, manifest: Mapping[str, Any] | None
) -> Expected:
    """What the folder is measured against. Raises InputError where the two are of different kinds."""
    family = family_for(checkpoint.config)
    if family.encoder_only != folder.embeds:
        kinds = ("writes text", "gives hidden states")
        raise InputError(
            f"{folder.path} {kinds[folder.embeds]}, but {checkpoint.folder} ({family.title}) "
            f"{kinds[family.encoder_only]}",
            hint="pass the checkpoint the folder was made from with --against",
        )
    if family.encoder_decoder != (folder.encoder is not None):
        kinds = ("has no encoder", "has an encoder")
        own, given = kinds[folder.encoder is not None], kinds[family.encoder_decoder]
        raise InputError(
            f"{folder.path} {own}, but {checkpoint.folder} ({family.title}) {given}",
            hint="pass the checkpoint the folder was made from with --against",
        )
    model = build(family, checkpoint, "ONNX")
    return expected_of_folder(checkpoint, family, model, _tokenizer(checkpoint, model, manifest))
