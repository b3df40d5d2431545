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
from kconv.reference.statistics import Floats, Gathered, SumOfSquares
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


def test_statistics_are_of_what_flows_into_the_modules(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    squares, products = Gathered(SumOfSquares), Gathered(Products)

    def observe(name: str, window: int, values: Floats) -> None:
        squares.add(name, window, values)
        products.add(name, window, values)

    reference = Reference(checkpoint, family_for(checkpoint.config), threads=2)
    reference.read((), watch=Watch(WINDOWS, MODULES, observe))
    assert set(squares.names()) == set(products.names()) == MODULES
    assert squares.names()[0] == "model.layers.0.self_attn.q_proj"  # in the order they run
    for name, inputs in inputs_in_transformers(folder).items():
        rows = np.concatenate(inputs)
        whole = products.finish(name)
        np.testing.assert_allclose(whole, rows.T @ rows, rtol=0, atol=1e-5 * np.abs(whole).max())
        statistic = squares.finish(name)
        assert statistic.count == sum(len(window.ids) for window in WINDOWS)
        np.testing.assert_allclose(statistic.sums, np.diag(whole), rtol=1e-6)
    assert squares.names() == products.names() == ()  # what is finished is let go of
