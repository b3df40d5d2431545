"""What whole choices are measured to lose is what llama.cpp loses, its rounding of inputs included."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.samples import write_sample
from kconv.converters.tokenizer import read_tokenizer
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.flows.convert import to_gguf
from kconv.flows.probing import Prober
from kconv.quant.chosen_policy import choosable
from kconv.quant.formats import FORMATS
from kconv.quant.policy import parse_policy
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.inputs import Expected, VerifyOptions
from kconv.verify.logits import compare


@pytest.mark.parametrize("format", ["q8_0", "q6_K"])
@pytest.mark.parametrize("layers_only", [False, True])
def test_what_a_choice_loses_is_what_llama_cpp_loses(format: str, layers_only: bool, tmp_path: Path) -> None:
    """In formats so fine that much of the loss is that of inputs; also where others were named."""
    folder = write_sample("42dot", tmp_path / "sample")
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    expected = Expected(checkpoint, family, build(family, checkpoint), read_tokenizer(checkpoint))
    windows = [Window(0, tuple(range(at, at + 200))) for at in (3, 300, 700)]
    tensors = choosable(expected.model, parse_policy("q8_0"))
    prober = Prober(expected, tensors, None, windows, windows, VerifyOptions(threads=2))
    chosen = [tensor.name for tensor in tensors if not layers_only or tensor.name.startswith("blk.")]
    mix = dict.fromkeys(chosen, FORMATS[format])
    (found,) = prober.together([mix])
    weights = [prober._change(mix)]
    (without,) = prober._probing.divergences(weights, windows)
    named = {"output_type": "f32", "embedding_type": "f32"} if layers_only else {}
    to_gguf(folder, tmp_path / "m.gguf", types=(f"{format}:pure",), verify="off", threads=2, **named)
    reference = Reference(checkpoint, family, threads=2)
    with LlamaReader(tmp_path / "m.gguf", threads=2) as reader:
        positions = compare(partial(reference.read), reader, windows).positions()
    measured = float(np.mean(positions.kl))
    assert found.mean == pytest.approx(measured, rel=0.1)
    assert without.mean < 0.85 * measured
