"""Products of the reference by another library in torch, against torch's own and in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_material import transformers_logits

from kconv.converters.families import family_for
from kconv.converters.samples import write_sample
from kconv.core.machine import Processor, processor
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.reference import products
from kconv.reference.model import Reference

AMD = Processor("AMD EPYC", frozenset(), "AuthenticAMD")
WINDOW = Window(0, tuple(range(7, 107)))


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor of AMD's, wherever this runs."""
    monkeypatch.setattr(products, "processor", lambda: AMD)
    products._onednn.cache_clear()
    assert products._onednn() is not None, "torch has no longer what products.py tries"
    yield
    products._onednn.cache_clear()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 40)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_float64(onednn: None, shape: tuple[int, ...], biased: bool) -> None:
    """Of one row, of some, of a batch; as near as torch's own but for a factor."""
    random = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        values, weight = torch.randn(*shape, 576, generator=random), torch.randn(1536, 576, generator=random)
        bias = torch.randn(1536, generator=random) if biased else None
        exact = values.double() @ weight.double().T + (0 if bias is None else bias.double())
        found = products.linear(values, weight, bias)
        assert found.shape == exact.shape
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max()) < 1e-5 * float(exact.abs().max())


def test_a_row_has_the_same_bits_among_any_others(onednn: None) -> None:
    """However many rows, and however many threads: what is read in batches is what is read alone."""
    random = torch.Generator().manual_seed(2)
    before = torch.get_num_threads()
    with torch.inference_mode():
        values, weight = torch.randn(700, 512, generator=random), torch.randn(1000, 512, generator=random)
        whole = products.linear(values, weight)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for rows in (8, 31, 64, 300, 700):
                    assert torch.equal(products.linear(values[:rows], weight), whole[:rows])
        finally:
            torch.set_num_threads(before)


def test_the_reference_is_transformers_model(onednn: None, tmp_path: Path) -> None:
    """All its linear modules and the output matrix by the other library."""
    folder = write_sample("42dot", tmp_path / "checkpoint")
    checkpoint = open_checkpoint(folder)
    reading = Reference(checkpoint, family_for(checkpoint.config)).read([WINDOW])
    logits = np.asarray(reading.logits(0, 0, len(WINDOW.ids)))
    expected = transformers_logits(folder, list(WINDOW.ids))
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("maker", ["GenuineIntel", ""])
def test_others_multiply_as_torch_does(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's library is quick on Intel's processors, and what is not known stays as it was."""
    monkeypatch.setattr(products, "processor", lambda: Processor("some", frozenset(), maker))
    products._onednn.cache_clear()
    module = torch.nn.Linear(8, 8)
    products.multiply_quickly(module)
    assert "forward" not in module.__dict__
    products._onednn.cache_clear()


def test_a_product_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no public name, so another version of torch may mean something else by it."""
    monkeypatch.setattr(products, "processor", lambda: AMD)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda values, weight, *rest: values @ weight.T * 2
    )
    products._onednn.cache_clear()
    assert products._onednn() is None
    products._onednn.cache_clear()


def test_the_maker_of_this_processor_is_read(tmp_path: Path) -> None:
    """As Linux says it."""
    source = tmp_path / "cpuinfo"
    source.write_text("processor : 0\nvendor_id : AuthenticAMD\nmodel name : some server\n", "utf-8")
    assert processor(source).amd
    source.write_text("processor : 0\nvendor_id : GenuineIntel\nmodel name : some server\n", "utf-8")
    assert not processor(source).amd
    assert Processor("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", frozenset()).amd
