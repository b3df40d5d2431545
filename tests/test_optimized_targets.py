"""Formats and codes chosen in one conversion: the prediction is of both, and the file says both."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kconv.cli.descriptions import describe
from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header
from kconv.flows.convert import to_gguf
from kconv.flows.quantize import quantize

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"


def test_what_is_predicted_counts_the_chosen_codes(tmp_path: Path) -> None:
    text, told = tmp_path / "part.txt", []
    text.write_text((TEXTS / "facts.txt").read_text("utf-8")[:2500], encoding="utf-8")
    (output,) = to_gguf(
        write_sample("42dot", tmp_path / "sample"),
        tmp_path / "out",
        types=(),
        calibrate=[text],
        target_size="1.7M",
        optimize=True,
        verify=False,
        threads=1,
        announce=told.append,
    ).outputs
    assert output.choice is not None
    assert output.policy is not None
    assert output.path.stat().st_size <= 1_700_000
    plain = next(each for each in told if each.startswith("types: 1.7M loses"))
    assert output.choice.predicted < float(plain.split()[3])
    assert sum("codes are chosen by" in each for each in told) == 1
    values = tomllib.loads(output.policy.read_text("utf-8"))
    losses = sum(values["losses"][name][format] for name, format in values["formats"].items())
    assert losses == pytest.approx(output.choice.predicted, rel=0.01)
    metadata = read_header(output.path).metadata
    assert metadata["kconv.optimized.rule"] == "held-out-halves-1"
    assert metadata["kconv.optimized.strengths"] == "0.1,0.3,0.6"
    assert metadata["kconv.chosen.version"] == metadata["kconv.optimized.version"]
    shown = describe(output.path)
    assert "statistics sample-statistics.gguf" in shown["codes_chosen"]
    assert "target 1.7M" in shown["formats_chosen"]
    again = quantize(output.path, tmp_path / "again", types=("q8_0",), allow_requantize=True).outputs[0]
    kept = read_header(again.path).metadata
    assert not [key for key in kept if key.startswith(("kconv.chosen", "kconv.optimized"))]
