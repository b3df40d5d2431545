"""Encoder-decoders as ONNX: written from a checkpoint, and run as optimum's runners do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from t5_material import one_thread

from kconv.converters.families import family_for
from kconv.converters.families.t5.graphs import DECODER, DECODER_WITH_PAST, ENCODER
from kconv.converters.onnx.graph import Graph
from kconv.converters.onnx.graphs import graphs_of
from kconv.converters.onnx.writer import write_onnx
from kconv.core.checkpoint import Checkpoint
from kconv.core.reading import open_checkpoint
from kconv.quant.formats import Format

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Sessions = Mapping[str, Any]


def write(checkpoint: Path, folder: Path, formats: Mapping[str, Format] | None = None) -> Path:
    """The graphs and weights of a checkpoint, in a new folder."""
    folder.mkdir()
    write_onnx(graphs(open_checkpoint(checkpoint), formats), folder, threads=2)
    return folder


def graphs(
    checkpoint: Checkpoint, formats: Mapping[str, Format] | None = None, *, merged: bool = False
) -> dict[str, Graph]:
    """The graphs of an opened checkpoint."""
    return graphs_of(family_for(checkpoint.config), checkpoint, formats or {}, merged=merged)


def sessions(folder: Path) -> Sessions:
    """The three graphs in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return {
        name: onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        for name in (ENCODER, DECODER, DECODER_WITH_PAST)
    }


def right_logits(model: Any, ids: Ids, mask: Ids, target: Ids) -> Floats:
    """``(batch, target's length, rows)`` of a model in torch."""
    import torch

    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}
    with one_thread(), torch.no_grad():
        logits: Floats = model(
            **{name: torch.from_numpy(value) for name, value in given.items()}
        ).logits.numpy()
    return logits


def encode(run: Sessions, ids: Ids, mask: Ids) -> Floats:
    states: Floats = run[ENCODER].run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return states


def prefill(run: Sessions, ids: Ids, mask: Ids, target: Ids) -> Floats:
    """``(batch, target's length, rows)``, all at once."""
    return _first(run, ids, mask, target)[0]


def step_by_step(run: Sessions, ids: Ids, mask: Ids, target: Ids, *steps: int) -> Floats:
    """The same with the cache: the first of ``steps`` tokens without one, then so many at a time."""
    first, *others = steps
    logits, cache = _first(run, ids, mask, target[:, :first])
    actual, place = [logits], first
    for step in others:
        logits, cache = _next(run, mask, target[:, place : place + step], cache)
        actual.append(logits)
        place += step
    return np.concatenate(actual, axis=1)


def greedy(run: Sessions, ids: Ids, count: int) -> list[int]:
    """The ``count`` likeliest tokens after the start token 0, of one text, to the end token 1 if it comes."""
    mask, target = np.ones_like(ids), np.zeros((1, 1), np.int64)
    logits, cache = _first(run, ids, mask, target)
    tokens: list[int] = []
    while True:
        tokens.append(int(logits[0, -1].argmax()))
        if len(tokens) == count or tokens[-1] == 1:
            return tokens
        logits, cache = _next(run, mask, np.array([tokens[-1:]]), cache)


def _first(run: Sessions, ids: Ids, mask: Ids, target: Ids) -> tuple[Floats, dict[str, Floats]]:
    states = encode(run, ids, mask)
    given = {"input_ids": target, "encoder_attention_mask": mask, "encoder_hidden_states": states}
    return _run(run[DECODER], given)


def _next(
    run: Sessions, mask: Ids, target: Ids, cache: Mapping[str, Floats]
) -> tuple[Floats, dict[str, Floats]]:
    given = {"input_ids": target, "encoder_attention_mask": mask, **cache}
    logits, made = _run(run[DECODER_WITH_PAST], given)
    return logits, {**cache, **made}


def _run(session: Any, given: Mapping[str, Any]) -> tuple[Floats, dict[str, Floats]]:
    """Logits, and the cache under the names it is given back by."""
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, dict(given)), strict=True))
    logits = values.pop("logits")
    return logits, {name.replace("present", "past_key_values"): each for name, each in values.items()}
