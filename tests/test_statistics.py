"""What a watcher gathers can be another thing: the diagonal today, here X^T X besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from kconv.converters.families import family_for
from kconv.converters.samples import write_sample
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.reference.model import Reference
from kconv.reference.statistics import Floats, Gathered, Squares, SumOfSquares
from kconv.reference.watching import Watch

WINDOWS = tuple(Window(0, tuple(ids)) for ids in (range(5, 47), range(100, 129), (9, 8, 7)))
MODULES = frozenset({"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"})


class Products:
    """X^T X, float64 ``(columns, columns)``."""

    def __init__(self) -> None:
        self.sum: npt.NDArray[np.float64] | None = None

    def add(self, values: Floats) -> None:
        wide = values.astype(np.float64)
        self.sum = wide.T @ wide + (0 if self.sum is None else self.sum)

    def finish(self) -> npt.NDArray[np.float64]:
        assert self.sum is not None
        return self.sum


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("statistics") / "checkpoint")


def inputs_in_transformers(folder: Path) -> dict[str, list[npt.NDArray[np.float64]]]:
    """What flows into the modules, window by window, in transformers' own model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in MODULES}
    for name in MODULES:
        kept = inputs[name]
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, kept=kept: kept.append(args[0][0].double().numpy())
        )
    with torch.no_grad():
        for window in WINDOWS:
            model(torch.tensor([window.ids]))
    return inputs


@pytest.mark.parametrize("by_layer", [False, True])
def test_statistics_are_of_what_flows_into_the_modules(
    folder: Path, by_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X^T X through the same seam; by layer, none of the next layer's begins before one layer's are done."""
    monkeypatch.setattr("kconv.reference.batches._TOKENS", 60)  # each window goes alone
    checkpoint = open_checkpoint(folder)
    squares, products = Gathered(SumOfSquares), Gathered(Products)
    statistic: dict[str, Squares] = {}
    whole: dict[str, npt.NDArray[np.float64]] = {}
    most = 0

    def observe(name: str, window: int, values: Floats) -> None:
        nonlocal most
        squares.add(name, window, values)
        products.add(name, window, values)
        most = max(most, len(products.names()))

    def finished(name: str) -> None:
        statistic[name] = squares.finish(name)
        whole[name] = products.finish(name)

    reference = Reference(checkpoint, family_for(checkpoint.config), threads=2)
    watch = Watch(WINDOWS, MODULES, observe, finished)
    reference.read((), watch=watch, by_layer=by_layer)
    assert most == (1 if by_layer else 2)
    assert list(statistic) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]  # as they run
    for name, inputs in inputs_in_transformers(folder).items():
        rows = np.concatenate(inputs)
        atol = 1e-5 * np.abs(whole[name]).max()
        np.testing.assert_allclose(whole[name], rows.T @ rows, rtol=0, atol=atol)
        assert statistic[name].count == sum(len(window.ids) for window in WINDOWS)
        np.testing.assert_allclose(statistic[name].sums, np.diag(whole[name]), rtol=1e-6)
    assert squares.names() == products.names() == ()  # what is finished is let go of
