"""What can generate text: a GGUF file, with its front end where it needs one, or a folder of ONNX files."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.cores import available_cores
from ..core.errors import EmbedsOnly, GgufError, InputError, UsageError
from ..core.progress import Progress

if TYPE_CHECKING:
    from ..converters.front_end import FrontEndFile
    from .generation import Runtime

CONTEXT = 4096
"""Tokens of context for many answers, where nothing else was asked for and the model was trained so far."""


@dataclass(frozen=True)
class Artifact:
    """A file or folder whose weights are not loaded yet; ``start`` starts the runtime that loads them.

    ``metadata`` is a GGUF's, and for a folder what a GGUF's would be. An encoder, if there is one, has a
    position for every ``factor`` tokens.
    """

    path: Path
    metadata: Mapping[str, Any]
    start: Callable[[Progress], AbstractContextManager[Runtime]]
    factor: int = 1


def open_artifact(
    path: Path,
    *,
    front_end: Path | None = None,
    context: int | None = None,
    kv_type: str | None = None,
    threads: int | None = None,
    log: Callable[[str], None] | None = None,
    stays: bool = False,
) -> Artifact:
    """The GGUF file or ONNX folder at ``path``; ``log`` is given llama.cpp's log.

    ``stays``: for many answers, of which some may be stopped, without loading again; ``context`` then is by
    default ``CONTEXT`` tokens, or what the model was trained with where that is less.

    Raises GgufError and InputError for what cannot be run (EmbedsOnly for an encoder), UsageError where
    ``front_end`` or ``kv_type`` is given for a folder.
    """
    workers = threads or available_cores()
    if path.is_dir():
        return _onnx(path, front_end, kv_type, workers)
    return _gguf(path, front_end, context, kv_type or "f16", workers, log, stays=stays)


def _gguf(
    artifact: Path,
    front_end: Path | None,
    context: int | None,
    kv_type: str,
    threads: int,
    log: Callable[[str], None] | None,
    *,
    stays: bool,
) -> Artifact:
    from ..converters.families import embeds_texts
    from ..core.gguf_counts import check_counts
    from ..core.gguf_split import read_model
    from .llama import LlamaRuntime

    model = read_model(artifact)
    path, header = model.paths[0], model.header
    if not header.tensors:
        raise GgufError(f"{path} contains a vocabulary but no weights", hint="use a converted model")
    check_counts(path, header)
    if embeds_texts(header.arch):
        raise _writes_nothing(path)
    front = _front_end(path, header.metadata, front_end)
    if stays and context is None:
        trained = header.metadata.get(f"{header.arch}.context_length")
        context = min(CONTEXT, trained) if isinstance(trained, int) and trained > 0 else CONTEXT

    def start(progress: Progress) -> LlamaRuntime:
        return LlamaRuntime(
            path,
            threads=threads,
            context=context,
            kv_type=kv_type,
            log=log,
            front=None if front is None else front.embed,
            stays=stays,
            progress=progress,
        )

    return Artifact(path, header.metadata, start, 1 if front is None else front.factor)


def _not_converted(folder: Path) -> InputError:
    """The answer to a folder without ONNX files: a checkpoint, one with GGUF files in it, or any other."""
    inside = sorted(folder.glob("*.gguf"))
    if inside:
        return InputError(
            f"{folder} is a folder with {len(inside)} GGUF files, of which one is to be named",
            hint=f"for example {shlex.quote(str(inside[0]))}",
        )
    if (folder / "config.json").is_file():
        made = shlex.quote(f"{folder.absolute().name}-Q4_K_M.gguf")
        return InputError(
            f"{folder} is a checkpoint, which has to be converted before it can be run",
            hint=f"kconv to-gguf {shlex.quote(str(folder))} -q q4_k_m, and then kconv run {made}",
        )
    return InputError(
        f"{folder} is a folder without ONNX files; expected a GGUF file or an ONNX folder",
        hint="give the path of the file, or of the folder that kconv to-onnx made",
    )


def _writes_nothing(path: Path) -> EmbedsOnly:
    return EmbedsOnly(
        f"{path} is an encoder: it embeds texts and writes none",
        hint="kconv run prints the embedding of its prompt; llama-server --embedding serves them",
    )


def _front_end(artifact: Path, metadata: Mapping[str, Any], chosen: Path | None) -> FrontEndFile | None:
    """The front end the GGUF at ``artifact`` needs, ``chosen`` or the one beside it; None if none.

    Raises GgufError where it is missing, another model's or damaged, or not asked for.
    """
    from ..converters.families import FRONT_ENDS

    if metadata.get("general.architecture") in [each.kind for each in FRONT_ENDS]:
        raise GgufError(
            f"{artifact} is the front end of a GBST model, which only runs together with its body",
            hint=f"pass the body, with --front-end {artifact} if that is in another folder",
        )
    if chosen is None and "kconv.front_end" not in metadata:
        return None
    from ..converters.front_end import front_end_of

    return front_end_of(FRONT_ENDS, artifact, metadata, chosen)


def _onnx(artifact: Path, front_end: Path | None, kv_type: str | None, threads: int) -> Artifact:
    from .onnx_folder import holds_onnx, open_onnx

    if not holds_onnx(artifact):
        raise _not_converted(artifact)
    for option, given in (("--front-end", front_end), ("--kv-type", kv_type)):
        if given is not None:
            raise UsageError(
                f"{option} is for GGUF files; an ONNX folder contains its own", hint=f"leave out {option}"
            )
    from .onnx import OnnxRuntime, read_onnx_model

    folder = open_onnx(artifact)
    if folder.embeds:
        raise _writes_nothing(artifact)
    model = read_onnx_model(folder)

    def start(progress: Progress) -> OnnxRuntime:
        return OnnxRuntime(model, threads=threads, progress=progress)

    return Artifact(artifact, model.metadata, start, model.factor)
