"""Decoder-only models as ONNX: written from a checkpoint, and run as optimum's runners do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.onnx.flavours import STANDARD, Flavour
from kconv.converters.onnx.graph import Graph
from kconv.converters.onnx.graphs import graphs_of
from kconv.converters.onnx.writer import write_onnx
from kconv.core.reading import open_checkpoint
from kconv.quant.formats import Format

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Cache = dict[str, Floats]


def described(
    checkpoint: Path, formats: Mapping[str, Format] | None = None, flavour: Flavour = STANDARD
) -> Graph:
    """The graph of a checkpoint; what ``formats`` do not name is F32."""
    opened = open_checkpoint(checkpoint)
    family = family_for(opened.config)
    build(family, opened, "ONNX")  # it fits
    return graphs_of(family, opened, formats or {}, flavour=flavour)["model.onnx"]


def write(
    checkpoint: Path,
    folder: Path,
    formats: Mapping[str, Format] | None = None,
    flavour: Flavour = STANDARD,
) -> Path:
    """Graph and weights of a checkpoint in a new folder; returns the graph's file."""
    folder.mkdir()
    write_onnx({"model.onnx": described(checkpoint, formats, flavour)}, folder, threads=2)
    return folder / "model.onnx"


def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(
    model: Any, ids: Ids, past: Cache | None = None, *, mask: Ids | None = None, positions: Ids | None = None
) -> tuple[Floats, Cache]:
    """Logits, and the cache under the names it is given back by; without a mask nothing is padding."""
    batch, length = ids.shape
    if past is None:
        wanted = [each for each in model.get_inputs() if each.name.startswith("past")]
        past = {each.name: np.zeros((batch, each.shape[1], 0, each.shape[3]), np.float32) for each in wanted}
    before = next(iter(past.values())).shape[2]
    if mask is None:
        mask = np.ones((batch, before + length), np.int64)
    if positions is None:
        positions = np.arange(before, before + length)[None].repeat(batch, 0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
    names = [each.name for each in model.get_outputs()]
    values = dict(zip(names, model.run(names, given), strict=True))
    logits = values.pop("logits")
    return logits, {name.replace("present", "past_key_values"): each for name, each in values.items()}


def in_steps(model: Any, ids: Ids, *steps: int) -> Floats:
    """Logits of all of ``ids``, read so many tokens at a time through the cache."""
    collected, past, place = [], None, 0
    for step in steps:
        logits, past = run(model, ids[:, place : place + step], past)
        collected.append(logits)
        place += step
    return np.concatenate(collected, axis=1)


def greedy(model: Any, ids: Ids, count: int) -> list[int]:
    """The ``count`` likeliest tokens after ``ids`` (1, length)."""
    logits, past = run(model, ids)
    tokens = [int(logits[0, -1].argmax())]
    while len(tokens) < count:
        logits, past = run(model, np.array([tokens[-1:]]), past)
        tokens.append(int(logits[0, -1].argmax()))
    return tokens
