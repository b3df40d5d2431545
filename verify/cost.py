"""How long a proof will take, estimated before it begins."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np

from ..core.language import _
from ..core.model import Model
from ..core.windows import Window

_SIZE = 768
_MEASURED = 0.1  # seconds: some turns of the scheduler's, where others want the processors as well
_WIDENED = 3e9  # weights a second that are read from the checkpoint and widened to fp32, on two cores
_ENCODED = 60e6  # weights a second that are encoded and decoded: for probes, errors and the last check
_STARTING = 4.0  # seconds to import torch and transformers, and to load the files


def estimated_seconds(model: Model, windows: Sequence[Window], files: int, *, passes: int = 1) -> float:
    """About how long reading ``windows`` takes, ``passes`` times in fp32 and through ``files`` files."""
    weights = {tensor.name: tensor.elements for tensor in model.tensors if tensor.name != "token_embd.weight"}
    encoder = sum(count for name, count in weights.items() if name.startswith("enc."))
    total = sum(weights.values())
    products = sum(encoder * len(window.source) + (total - encoder) * len(window.ids) for window in windows)
    pass_ = 2 * products / multiplying_speed()
    return _STARTING + passes * (total / _WIDENED + pass_) + files * (1.0 + pass_)


def estimated_time(model: Model, windows: Sequence[Window], files: int, *, passes: int = 1) -> str:
    """The same in words."""
    return in_words(estimated_seconds(model, windows, files, passes=passes))


def in_words(seconds: float) -> str:
    """An estimate of a time, in the language that kconv speaks."""
    if seconds < 90:
        return _("{seconds} s", seconds=round(seconds))
    return _("{minutes} minutes", minutes=round(seconds / 60))


def arithmetic_of_probes(model: Model, tokens: int, passes: float, probes: int) -> float:
    """Floating-point operations of ``probes`` of so many tokens.

    Together they go through the layers ``passes`` times, and each through the output matrix once.
    """
    layers, head = _layers_and_head(model)
    return 2.0 * tokens * (passes * layers + probes * head)


def estimated_mixes(model: Model, tokens: int, mixes: int) -> float:
    """About how many seconds it takes to read so many tokens in ``mixes`` of formats and as the model is."""
    layers, head = _layers_and_head(model)
    products = 2 * tokens * ((1 + mixes) * layers + (2 + mixes) * head)
    return _STARTING + products / multiplying_speed() + (2 + mixes) * (layers + head) / _ENCODED


def _layers_and_head(model: Model) -> tuple[int, int]:
    """Weights in the layers, and in the matrix that makes the logits."""
    head = next((t.elements for t in model.tensors if t.name == "output.weight"), 0) or next(
        (t.elements for t in model.tensors if t.name == "token_embd.weight"), 0
    )
    layers = sum(t.elements for t in model.tensors if t.name not in ("output.weight", "token_embd.weight"))
    return layers, head


@functools.cache
def multiplying_speed() -> float:
    """Floating-point operations a second in matrix products, beside whatever else this machine does now.

    A mean, not the best: where other programs run the proof has to wait for them, too. Measured once in a
    process.
    """
    matrix = np.ones((_SIZE, _SIZE), np.float32)
    np.matmul(matrix, matrix)  # threads are started, memory is touched
    begun, products = time.perf_counter(), 0
    while products == 0 or time.perf_counter() - begun < _MEASURED:
        np.matmul(matrix, matrix)
        products += 1
    return 2 * _SIZE**3 * products / max(time.perf_counter() - begun, 1e-6)
