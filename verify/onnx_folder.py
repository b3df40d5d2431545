"""An ONNX folder as onnxruntime's users load it: which file does what, and that none reaches outside.

Names are optimum's (``model.onnx``; ``encoder_model.onnx`` with ``decoder_model.onnx`` and
``decoder_with_past_model.onnx``) and Transformers.js's (the same under ``onnx/``, with a suffix for the type;
``decoder_model_merged.onnx`` does what the two decoders do). The files come from strangers: a model names the
files its weights lie in, so these names are looked at before onnxruntime opens anything.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, EnvironmentProblem, InputError
from ..core.input_files import InputFile, is_plain_name, quoted, read_json

LEAST = (1, 23)
"""The first onnxruntime whose CPU provider has the operators of opset 23 that kconv writes."""

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
_INSTALL = "pip install 'kconv[onnx]'"
_SUFFIXES = ("", "_fp16", "_q4", "_q8", "_quantized", "_q4f16", "_int8", "_uint8", "_bnb4")
_LARGEST = (1 << 31) - 1  # protobuf's own limit
_COARSE_FIRST = ("q4_0", "q8_0", "f16", "f32")
_SHARE = 1 / 3


@dataclass(frozen=True)
class Stored:
    """An initializer whose bytes lie in the file ``path``; ``element`` is ONNX's number of its type."""

    path: Path
    offset: int
    element: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OnnxFolder:
    """``decoder`` reads from an empty cache; ``cached`` goes on from there (the same file in decoder-only
    models). ``encoder`` is None in those. ``type`` is the coarsest that a third of the weights are in,
    ``stored`` are the initializers of each graph by name.
    """

    path: Path
    config: Mapping[str, Any]
    decoder: Path
    cached: Path
    encoder: Path | None
    type: str
    bytes: int
    stored: tuple[Mapping[str, Stored], ...]


def check_onnxruntime() -> str:
    """The version of onnxruntime. Raises EnvironmentProblem where it is missing or too old."""
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        found = re.match(r"(\d+)\.(\d+)", version)
        if found is None or (int(found[1]), int(found[2])) < LEAST:
            raise EnvironmentProblem(
                f"onnxruntime {version} is too old, expected {LEAST[0]}.{LEAST[1]} or newer for opset 23",
                hint=f"pip install --upgrade {package}",
            )
        return version
    raise EnvironmentProblem("onnxruntime is not installed, which ONNX folders need", hint=_INSTALL)


def holds_onnx(folder: Path) -> bool:
    """Whether a folder looks like one of ONNX files."""
    return folder.is_dir() and any(any(place.glob("*.onnx")) for place in (folder, folder / "onnx"))


def open_onnx(folder: Path) -> OnnxFolder:
    """Find the files of a folder and look through them; no weight is read.

    Raises InputError for files that are missing, damaged or name weights anywhere but beside themselves, and
    EnvironmentProblem where onnx or onnxruntime is missing or too old.
    """
    check_onnxruntime()
    try:
        config = read_json(folder, "config.json")
    except CheckpointError as error:
        raise InputError(error.message, hint=error.hint) from error
    if config is None:
        raise InputError(
            f"{folder} has no config.json, expected one beside the ONNX files", hint="copy the checkpoint's"
        )
    place = folder / "onnx" if (folder / "onnx").is_dir() else folder
    encoder, decoder, cached = _files(folder, place)
    weights: Counter[str] = Counter()
    sizes: dict[Path, int] = {}
    graphs: list[dict[str, Stored]] = []
    for path in dict.fromkeys(each for each in (encoder, decoder, cached) if each is not None):
        graphs.append({})
        weights += _looked_through(path, sizes, graphs[-1])
    size, stored = sum(sizes.values()), tuple(graphs)
    return OnnxFolder(folder, config, decoder, cached, encoder, _type(weights), size, stored)


def _files(folder: Path, place: Path) -> tuple[Path | None, Path, Path]:
    """Encoder, decoder, and the decoder that goes on from a cache."""
    model = _named(place, "model")
    if model is not None:
        return None, model, model
    encoder = _named(place, "encoder_model")
    merged = _named(place, "decoder_model_merged")
    decoder, cached = (
        merged or _named(place, "decoder_model"),
        merged or _named(place, "decoder_with_past_model"),
    )
    if encoder is None or decoder is None or cached is None:
        raise InputError(
            f"{folder} holds neither model.onnx nor encoder_model.onnx with decoder_model.onnx and "
            "decoder_with_past_model.onnx",
            hint="make a folder with kconv to-onnx, or complete this one",
        )
    return encoder, decoder, cached


def _named(place: Path, stem: str) -> Path | None:
    paths = (place / f"{stem}{suffix}.onnx" for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _looked_through(path: Path, sizes: dict[Path, int], stored: dict[str, Stored]) -> Counter[str]:
    """How many weights a model has by type; adds the sizes of its files and its initializers' places."""
    try:
        import onnx
    except ImportError as error:
        raise EnvironmentProblem("onnx is not installed, which ONNX folders need", hint=_INSTALL) from error
    sizes[path] = _size(path)
    if sizes[path] > _LARGEST:
        raise InputError(f"{path} has {sizes[path]:,} bytes, more than an ONNX file can have (2 GiB)")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf's classes differ from version to version
        raise InputError(
            f"{path} is no ONNX file: {quoted(str(error))}", hint="make the folder again with kconv to-onnx"
        ) from error
    weights: Counter[str] = Counter()
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            stored[tensor.name] = _place(path, tensor, sizes)
        name = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.FLOAT16: "f16"}.get(tensor.data_type)
        if name is not None and len(tensor.dims) > 1:
            weights[name] += math.prod(tensor.dims)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            told = {attribute.name: attribute.i for attribute in node.attribute}
            weights["q8_0" if told.get("bits", 4) == 8 else "q4_0"] += told.get("N", 0) * told.get("K", 0)
    return weights


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor anywhere in a message: initializers, attributes, subgraphs, functions."""
    waiting = [message]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.message_type is None:
                continue
            for each in value if field.is_repeated else [value]:
                if field.message_type.name == "TensorProto":
                    yield each
                else:
                    waiting.append(each)


def _place(path: Path, tensor: Any, sizes: dict[Path, int]) -> Stored:
    """Raises InputError unless the tensor's bytes lie in a file beside the model, within its size."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{path}: the weights of {quoted(tensor.name)}"
    location = told.get("location", "")
    if not is_plain_name(location):
        raise InputError(
            f"{where} are said to lie in {quoted(location)}, expected the name of a file beside the model",
            hint="do not use this folder, unless you know who made it and why",
        )
    data = path.with_name(location)
    if data not in sizes:
        sizes[data] = _size(data)
    numbers = [told.get(key, "0") for key in ("offset", "length")]
    if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in numbers):
        raise InputError(f"{where} have the place {quoted(numbers)}, expected two whole numbers")
    if sum(map(int, numbers)) > sizes[data]:
        raise InputError(
            f"{where} end at byte {sum(map(int, numbers)):,} of {data}, which has {sizes[data]:,}",
            hint="complete the download, or make the folder again",
        )
    return Stored(data, int(numbers[0]), tensor.data_type, tuple(tensor.dims))


def _size(path: Path) -> int:
    try:
        return InputFile(path).size
    except CheckpointError as error:  # it speaks of files of a checkpoint
        raise InputError(error.message, hint="complete the folder, or make it again") from error


def _type(weights: Counter[str]) -> str:
    reached, total = 0, weights.total()
    for name in _COARSE_FIRST:
        reached += weights[name]
        if reached and reached >= total * _SHARE:
            return name
    return "f32"
