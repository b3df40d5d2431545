"""Norms under their first names: TensorFlow's gamma and beta, which old BERT files still have."""

from __future__ import annotations

from ...core.checkpoint import Checkpoint
from .wanted import Wanted, noted, renamed

_NEW = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def with_new_norm_names(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """With weight for gamma and bias for beta, where the family asks for these."""

    def new_name(name: str) -> str:
        for old, new in _NEW.items():
            if name.endswith(f".{old}") and wanted.knows(fitting := name.removesuffix(old) + new):
                return fitting
        return name

    if all(new_name(name) == name for name in checkpoint.tensors):
        return checkpoint
    message = "LayerNorm.gamma and LayerNorm.beta are read as LayerNorm.weight and LayerNorm.bias"
    return noted(renamed(checkpoint, new_name), "norm-names", message)
