"""ONNX folders whose codes were chosen by error feedback: derived again, or held to what choosing can do.

As of a GGUF (verify/chosen_codes.py): the folder's manifest names the statistics, which may lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..converters.family import AnyFamily
from ..converters.onnx.sources import by_source
from ..core.checkpoint import Checkpoint
from ..core.model import Model
from ..quant.ggml import Floats
from ..quant.importance import Importance
from ..quant.onnx_packing import BLOCK
from .chosen_codes import PLAIN_CODES, derivable, recorded_strengths
from .weight_errors import Compared, join_rows, rows_where


@dataclass(frozen=True)
class FolderCodes:
    """What codes can be derived with, by the checkpoint's names; None where the statistics are gone."""

    importance: Importance | None


def codes_of_folder(
    folder: Path, manifest: Mapping[str, Any] | None, family: AnyFamily, checkpoint: Checkpoint, model: Model
) -> FolderCodes | None:
    """None where the manifest does not say that codes were chosen.

    Raises InputError for statistics of another model.
    """
    if recorded_strengths(manifest) is None:
        return None
    importance = derivable(folder.resolve(), manifest)
    return FolderCodes(None if importance is None else by_source(importance, family, checkpoint, model))


def bounded(
    compared: Compared, weights: Floats, ours: Floats, scales: Floats, least: int, first: int
) -> Compared:
    """The same with rows beyond what choosing can do among those that are ``far``.

    ``weights`` and ``ours`` are ``(rows, columns)``, ``scales`` ``(rows, blocks)``; codes lie from ``least``
    to ``-least - 1``.
    """
    if compared.same:
        return compared
    rows, columns = weights.shape
    divisor = np.where(scales != 0, scales, np.float32(1))[:, :, None]
    with np.errstate(all="ignore"):
        stored, wanted = (np.rint(each.reshape(rows, -1, BLOCK) / divisor) for each in (ours, weights))
    away = np.abs(stored - np.clip(wanted, least, -least - 1)) * (scales != 0)[:, :, None]
    beyond = rows_where((away > 1).sum(axis=(1, 2)) > columns // PLAIN_CODES, first)
    return replace(compared, far=join_rows([compared.far, beyond]))
