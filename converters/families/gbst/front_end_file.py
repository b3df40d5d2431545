"""The second file of a GBST model, ``gbst-<name>.gguf``, and how it finds its body.

llama.cpp refuses files with tensors its graph does not know, so the front end has a file of its own, as the
projectors of multimodal models do. The body, a T5 for llama.cpp, carries the front end's fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ....core.errors import EnvironmentProblem, GgufError, InputError, KconvError
from ....core.files import atomic_file
from ....core.gguf_file import GgufHeader, TensorInfo, read_header
from ....core.input_files import quoted
from ....core.model import Model
from ....quant.formats import F32
from ...front_end import FINGERPRINT_KEY, FrontEndFile
from ...gguf_plan import plan_companion
from ...gguf_writer import write_files
from .front_end import Floats, FrontEnd, embed, front_end
from .settings import LARGEST_PERIOD, MOST_BLOCKS, GbstSettings
from .tensors import ARCH, TABLE, VERSION, file_shapes, fingerprint, settings_keys

_MOST_BYTES = 1 << 30  # of weights; published front ends have some 12 MB
_MOST_LOOKED_AT = 100  # files beside a body
_AGAIN = "convert the checkpoint again; this writes body and front end together"


@dataclass(frozen=True)
class GbstFile(FrontEndFile):
    """A GBST front end as read from its file."""

    front_end: FrontEnd


def front_end_path(folder: Path, name: str) -> Path:
    """Where a conversion puts the front end of the checkpoint of that name; one for all its bodies."""
    return folder / (f"{name}-front-end.gguf" if name.startswith("gbst-") else f"gbst-{name}.gguf")


def write_front_end(path: Path, model: Model, *, force: bool = False) -> int:
    """Write a front end alone and return the file's size; a conversion writes it along with its bodies.

    Raises OutputExists, NonFiniteError and EnvironmentProblem.
    """
    with atomic_file(path, force=force) as temporary:
        return write_files(model.tensors, [plan_companion(path, model)], [temporary]).sizes[0]


def read_front_end(path: Path) -> GbstFile:
    """Read a front end whole. Nothing in the file is trusted: every key, shape, type and weight is checked.

    Raises GgufError where anything is amiss, EnvironmentProblem where the disk or a permission is.
    """
    header = read_header(path)
    settings = _settings(path, header)
    _check_tensors(path, settings, header)
    weights = _read_weights(path, header)
    computed = fingerprint(settings, weights)
    if header.metadata.get(f"{ARCH}.fingerprint") != computed:
        raise GgufError(f"{path}: the weights do not match the fingerprint in the file", hint=_AGAIN)
    try:
        made = front_end(settings, weights)
        return GbstFile(path, computed, settings.factor, lambda ids: embed(made, ids).values, made)
    except KconvError as error:
        raise GgufError(f"{path}: {error.message}", hint=_AGAIN) from error


def is_front_end(path: Path, wanted: str) -> bool:
    """Whether the file at ``path`` is whole and the front end of that fingerprint."""
    try:
        return read_front_end(path).fingerprint == wanted
    except InputError:  # not EnvironmentProblem: nothing is known then
        return False


def find_front_end(body: Path, metadata: Mapping[str, Any], chosen: Path | None = None) -> GbstFile:
    """The front end of the fingerprint the body at ``body`` names; ``metadata`` are the body's keys.

    ``chosen`` is the file to take; without it the files ``gbst-*.gguf`` beside the body are looked at. Raises
    GgufError where there is none, where it belongs to another model or where it does not fit the body, and
    what ``read_front_end`` raises.
    """
    wanted = str(metadata.get(FINGERPRINT_KEY))
    found = read_front_end(_find_beside(body, wanted) if chosen is None else chosen)
    if found.fingerprint != wanted:
        raise GgufError(
            f"{found.path} is the front end of another model, not of {body}: its fingerprint is "
            f"{found.fingerprint[:16]}…, the body was made with {quoted(wanted[:16])}…",
            hint="give the file written next to the body at conversion; or " + _AGAIN,
        )
    width = metadata.get("t5.embedding_length")
    if found.front_end.settings.width != width:
        raise GgufError(
            f"{found.path} produces embeddings of width {found.front_end.settings.width}, but {body} expects "
            f"{quoted(width)}",
            hint=_AGAIN,
        )
    return found


def _find_beside(body: Path, wanted: str) -> Path:
    others = []
    for path in sorted(body.parent.glob(f"{ARCH}-*.gguf"))[:_MOST_LOOKED_AT]:
        try:
            header = read_header(path)
        except KconvError as error:
            others.append(error.message)
            continue
        if header.metadata.get(f"{ARCH}.fingerprint") == wanted:
            return path
        if header.arch == ARCH:  # bodies, too, are named so: those of gbst-kebyt5-base-preview
            others.append(f"{path.name} belongs to another model")
    seen = "; ".join(others) or f"there is no front end {ARCH}-*.gguf"
    raise GgufError(
        f"{body} is the body of a GBST model and needs its front end, which was not found: {seen}",
        hint=f"put the {ARCH}-….gguf written at conversion next to it, or pass it with --front-end",
    )


def _settings(path: Path, header: GgufHeader) -> GbstSettings:
    if header.arch != ARCH:
        raise GgufError(
            f"{path} has architecture {quoted(header.arch)}, expected the front end of a GBST model",
            hint=f"give the {ARCH}-….gguf written next to the body at conversion",
        )
    values = {key.removeprefix(f"{ARCH}."): value for key, value in header.metadata.items()}
    if values.get("version") != VERSION:
        raise GgufError(
            f"{path} is version {quoted(values.get('version'))} of a GBST front end, but this kconv reads "
            f"{VERSION}",
            hint="install a newer kconv, or convert again with this one",
        )
    blocks = values.get("block_sizes")
    if not isinstance(blocks, tuple) or not blocks or not all(type(size) is int for size in blocks):
        raise _invalid_key(path, "block_sizes", blocks, "a list of whole numbers")
    if len(blocks) > MOST_BLOCKS or min(blocks) < 1 or max(blocks) > LARGEST_PERIOD:
        raise _invalid_key(path, "block_sizes", blocks, f"at most {MOST_BLOCKS} sizes, 1 to {LARGEST_PERIOD}")
    settings = GbstSettings(
        blocks,
        _number(path, values, "downsample_factor", max(blocks)),
        _flag(path, values, "score_consensus"),
        _flag(path, values, "batch_norm"),
        _number(path, values, "embedding_length"),
        _number(path, values, "vocab_size"),
    )
    if settings.period > LARGEST_PERIOD:
        raise _invalid_key(path, "block_sizes", blocks, f"blocks that meet every {LARGEST_PERIOD} positions")
    for key, value in settings_keys(settings).items():
        setting = values.get(key)
        if (
            isinstance(value, float)
            and isinstance(setting, float)
            and np.float32(value) == np.float32(setting)
        ):
            continue
        if setting != value or type(setting) is not type(value):
            raise _invalid_key(path, key, setting, str(value))
    return settings


def _number(path: Path, values: Mapping[str, Any], key: str, most: int = 2**31 - 1) -> int:
    value = values.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise _invalid_key(path, key, value, f"a whole number from 1 to {most}")
    return value


def _flag(path: Path, values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if type(value) is not bool:
        raise _invalid_key(path, key, value, "true or false")
    return value


def _invalid_key(path: Path, key: str, value: object, expected: str) -> GgufError:
    actual = "missing" if value is None else quoted(value)
    return GgufError(f"{path}: {ARCH}.{key} is {actual}, expected {expected}", hint=_AGAIN)


def _check_tensors(path: Path, settings: GbstSettings, header: GgufHeader) -> None:
    expected = file_shapes(settings)
    stored = {info.name: info for info in header.tensors}
    for name, shape in expected.items():
        info = stored.get(name)
        if info is None:
            raise GgufError(f"{path}: tensor {name} {list(shape)} is missing", hint=_AGAIN)
        if info.shape != shape or info.ggml_type != F32.ggml_type:
            raise GgufError(
                f"{path}: tensor {name} is {list(info.shape)} of ggml type {info.ggml_type}, but by "
                f"the file's keys it should be {list(shape)} of type {F32.ggml_type} (f32)",
                hint=_AGAIN,
            )
    if len(stored) > len(expected):
        others = sorted(set(stored) - set(expected))
        raise GgufError(f"{path}: unexpected tensor {quoted(others[0])}", hint=_AGAIN)
    size = sum(info.nbytes for info in header.tensors)
    if size > _MOST_BYTES:
        raise GgufError(f"{path}: {size} bytes of weights, expected at most {_MOST_BYTES}", hint=_AGAIN)


def _read_weights(path: Path, header: GgufHeader) -> dict[str, Floats]:
    try:
        with path.open("rb") as file:
            return {TABLE[info.name]: _read(path, file, header, info) for info in header.tensors}
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path, file: BinaryIO, header: GgufHeader, info: TensorInfo) -> Floats:
    values = np.empty(info.shape, "<f4")
    file.seek(header.data_offset + info.offset)
    if file.readinto(values.reshape(-1).view(np.uint8).data) != info.nbytes:  # type: ignore[attr-defined]
        raise GgufError(
            f"{path}: ends within tensor {info.name}; it was longer when it was opened", hint=_AGAIN
        )
    if not np.isfinite(values).all():
        raise GgufError(f"{path}: tensor {info.name} has weights that are NaN or infinite", hint=_AGAIN)
    return values.astype(np.float32, copy=False)
