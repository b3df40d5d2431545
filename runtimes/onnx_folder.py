"""An ONNX folder as onnxruntime's users load it: which file does what, and that none reaches outside.

Names are optimum's (``model.onnx``; ``encoder_model.onnx`` with ``decoder_model.onnx`` and
``decoder_with_past_model.onnx``) and Transformers.js's (the same under ``onnx/``, with a suffix for the type;
``decoder_model_merged.onnx`` does what the two decoders do). Each file is looked through before onnxruntime
opens anything (onnx_model_file.py).
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import CheckpointError, EnvironmentProblem, InputError
from ..core.input_files import read_json
from ..core.onnx_names import graph_names
from .onnx_model_file import INSTALL, ModelFile, read_model_file, size_of

LEAST = (1, 23)
"""The first onnxruntime whose CPU provider has the operators of opset 23 that kconv writes."""

GROUPED, MULTI_HEAD = "com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
_COARSE_FIRST = ("q4_0", "q8_0", "f16", "f32")
_SHARE = 1 / 3


@dataclass(frozen=True)
class OnnxFolder:
    """``decoder`` reads from an empty cache; ``cached`` goes on from there (the same file in decoder-only
    models). ``encoder`` is None in those. ``type`` is the coarsest that a third of the weights are in,
    ``files`` are those of graphs and weights, of ``bytes`` in all.
    """

    path: Path
    config: Mapping[str, Any]
    decoder: Path
    cached: Path
    encoder: Path | None
    type: str
    bytes: int
    files: tuple[Path, ...]
    models: tuple[ModelFile, ...]

    @property
    def operators(self) -> frozenset[str]:
        """The kinds of nodes in all graphs, those of other domains than ONNX's with theirs before a dot."""
        return frozenset(kind for model in self.models for kind in model.operators)

    @property
    def flavour(self) -> str:
        """By whose operators it attends: contrib (onnxruntime's own), standard (ONNX's), or composed."""
        if not self.operators.isdisjoint((GROUPED, MULTI_HEAD)):
            return "contrib"
        return "standard" if "Attention" in self.operators else "composed"

    @property
    def mostly_f32(self) -> bool:
        """Whether less than a third of the weights are in anything coarser."""
        weights = sum((model.weights for model in self.models), Counter[str]())
        return weights.total() - weights["f32"] <= weights.total() * _SHARE

    @property
    def least(self) -> str:
        """The first onnxruntime that computes all graphs, such as 1.23."""
        return _least(self.models)

    @property
    def embeds(self) -> bool:
        """Whether it holds an encoder alone, which gives hidden states and no logits."""
        names = {value.name for model in self.models for value in model.outputs}
        return self.encoder is None and "last_hidden_state" in names and "logits" not in names

    @property
    def without_weights(self) -> Checkpoint:
        """Its configuration and tokenizer, read as a checkpoint's are."""
        return Checkpoint(self.path, self.config, {}, ())


def check_onnxruntime() -> str:
    """The version of onnxruntime. Raises EnvironmentProblem where it is missing or too old."""
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        match = re.match(r"(\d+)\.(\d+)", version)
        if match is None or (int(match[1]), int(match[2])) < LEAST:
            raise EnvironmentProblem(
                f"onnxruntime {version} is too old, expected {LEAST[0]}.{LEAST[1]} or newer for opset 23",
                hint=f"pip install --upgrade {package}",
            )
        return version
    raise EnvironmentProblem("onnxruntime is not installed; ONNX folders need it", hint=INSTALL)


def holds_onnx(folder: Path) -> bool:
    """Whether a folder looks like one of ONNX files."""
    return folder.is_dir() and any(any(place.glob("*.onnx")) for place in (folder, folder / "onnx"))


def open_onnx(folder: Path, *, runs: bool = True) -> OnnxFolder:
    """Find the files of a folder and look through them; no weight is read.

    Raises InputError for files that are missing, damaged or name weights anywhere but beside themselves, and
    EnvironmentProblem where onnx or, if it ``runs``, onnxruntime is missing or too old.
    """
    if runs:
        check_onnxruntime()
    try:
        config = read_json(folder, "config.json")
    except CheckpointError as error:
        raise InputError(error.message, hint=error.hint) from error
    if config is None:
        raise InputError(
            f"{folder} has no config.json, expected one next to the ONNX files",
            hint=("copy the one of the checkpoint"),
        )
    place = folder / "onnx" if (folder / "onnx").is_dir() else folder
    encoder, decoder, cached = _files(folder, place)
    paths = dict.fromkeys(each for each in (encoder, decoder, cached) if each is not None)
    models = tuple(read_model_file(path) for path in paths)
    files = tuple(dict.fromkeys([*paths, *(data for model in models for data in model.data)]))
    weights = sum((model.weights for model in models), Counter[str]())
    size = sum(map(size_of, files))
    return OnnxFolder(folder, config, decoder, cached, encoder, _type(weights), size, files, models)


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
            f"{folder} contains neither model.onnx nor encoder_model.onnx with decoder_model.onnx and "
            "decoder_with_past_model.onnx",
            hint="make a folder with kconv to-onnx, or complete this one",
        )
    return encoder, decoder, cached


def _named(place: Path, stem: str) -> Path | None:
    paths = (place / name for name in graph_names(stem))
    return next((path for path in paths if path.is_file()), None)


def _type(weights: Counter[str]) -> str:
    """f32, which may lose nothing, only where no matrix is coarser; else what a third of those are in."""
    reached, lossy = 0, weights.total() - weights["f32"]
    total = weights.total() if weights.total() * _SHARE <= lossy else lossy
    for name in _COARSE_FIRST:
        reached += weights[name]
        if reached and reached >= total * _SHARE:
            return name
    return "f32"


def least_of(graphs: Iterable[Path]) -> str:
    """The first onnxruntime that computes all of them. Raises what ``read_model_file`` raises."""
    return _least(read_model_file(path) for path in graphs)


def _least(models: Iterable[ModelFile]) -> str:
    return "{}.{}".format(*max(model.least for model in models))
