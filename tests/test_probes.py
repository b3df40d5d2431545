"""Probes side by side are what whole passes with the same weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kconv.converters.families import family_for
from kconv.converters.family import AnyFamily
from kconv.converters.mapping import build, unmapped
from kconv.converters.samples import write_sample
from kconv.core.checkpoint import Checkpoint
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Tensor
from kconv.core.windows import Window
from kconv.quant.choice_losses import as_floats, as_stored
from kconv.quant.formats import FORMATS
from kconv.reference.model import Reference
from kconv.reference.probes import Probing

CHANGES = {
    "42dot": (["blk.1.attn_q.weight"], ["token_embd.weight"], ["output.weight"], ["blk.0.ffn_down.weight"]),
    "qwen3-moe": (["blk.1.ffn_down_exps.weight", "blk.1.ffn_up_exps.weight"],),
    "kebyt5": (["enc.blk.0.attn_q.weight"], ["dec.blk.0.ffn_up.weight", "dec.blk.1.ffn_up.weight"]),
}


@pytest.mark.parametrize("sample", CHANGES)
def test_probes_are_whole_passes(sample: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_sample(sample, tmp_path / "sample"))
    family = family_for(checkpoint.config)
    tensors = {tensor.name: tensor for tensor in build(family, checkpoint).tensors}
    source = (5, 9, 30, 7, 1) if family.encoder_decoder else ()
    windows = [Window(0, tuple(range(3, 3 + length)), source=source) for length in (12, 20)]
    changes = [
        {name: as_stored(tensors[name], FORMATS["q4_0"], None) for name in names} for names in CHANGES[sample]
    ]
    steps: list[tuple[int, int]] = []
    probing = Probing(checkpoint, family, tensors, threads=1)
    found = probing.divergences(changes, windows, lambda stage, done, total: steps.append((done, total)))
    for change, divergence in zip(changes, found, strict=True):
        assert divergence.mean == pytest.approx(
            in_whole(checkpoint, family, tensors, change, windows), rel=2e-3
        )
    assert steps[-1][0] == steps[-1][1]
    assert probing.divergences([{}, changes[0]], windows)[1] == found[0]


def in_whole(
    checkpoint: Checkpoint,
    family: AnyFamily,
    tensors: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    windows: Sequence[Window],
) -> float:
    """The same from two readings of whole models."""
    plain = {name: as_floats(tensor) for name, tensor in tensors.items()}
    weights = unmapped(family, checkpoint, {**plain, **change})
    readings = [
        Reference(checkpoint, family, weights=each, threads=1).read(windows) for each in (None, weights)
    ]
    values = []
    for index, window in enumerate(windows):
        plain, other = (
            torch.from_numpy(reading.logits(index, 0, len(window.ids)))
            .double()
            .log_softmax(-1)[window.scored]
            for reading in readings
        )
        values.append((plain.exp() * (plain - other)).sum(-1).numpy())
    return float(np.concatenate(values).mean())
