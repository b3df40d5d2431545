"""Remarks on figures that prove little."""

from __future__ import annotations

from dataclasses import replace

import pytest
from proof_material import FIGURES

from kconv.verify.proof import LogitsPart
from kconv.verify.remarks import FEW, remarks


@pytest.mark.parametrize(("positions", "word"), [(1, "only 1 position was"), (2, "only 2 positions were")])
def test_few_positions(positions: int, word: str) -> None:
    (note,) = remarks(LogitsPart("passed", replace(FIGURES, positions=positions)), 10**6)
    assert note.startswith(word)


def test_a_checkpoint_that_knows_nothing() -> None:
    """A perplexity of the size of the vocabulary is that of a die with so many sides."""
    figures = replace(FIGURES, positions=FEW, perplexity_reference=89_338.0)
    (note,) = remarks(LogitsPart("passed", figures), 50_304)
    assert "89,338 with 50,304 tokens" in note
    assert remarks(LogitsPart("passed", replace(figures, perplexity_reference=50_304.0)), 50_304) == ()


def test_nothing_measured() -> None:
    assert remarks(LogitsPart("failed"), 2) == ()
    assert remarks(LogitsPart("failed", replace(FIGURES, positions=0)), 2) == ()
