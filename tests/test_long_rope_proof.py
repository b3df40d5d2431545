"""LongRoPE in proofs: texts on both sides of the first context, each as transformers reads it by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_material import nmse, transformers_logits
from onnx_causal_material import run, session, write
from test_long_context import IDS, LLAMA, LONGROPE

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.samples.decoders import write_mistral
from kconv.core.errors import InputError
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType
from kconv.core.windows import Window
from kconv.flows.to_onnx import to_onnx
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.runtimes.onnx_folder import open_onnx
from kconv.runtimes.onnx_reader import OnnxReader

FIRST = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("longrope") / "checkpoint"
    return write_mistral(path, dtype=DType.F32, num_hidden_layers=2, **LLAMA, rope_scaling=LONGROPE)


def windows(*lengths: int) -> tuple[Window, ...]:
    return tuple(Window(0, tuple(IDS[at : at + length])) for at, length in enumerate(lengths))


@pytest.mark.parametrize("lengths", [(160, 100), (100, 159, 90), (128, 129)])
def test_the_reference_reads_each_window_as_by_itself(
    folder: Path, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kconv.reference.products._onednn", lambda: None)  # the library transformers has
    checkpoint = open_checkpoint(folder)
    asked = windows(*lengths)
    reading = Reference(checkpoint, family_for(checkpoint.config)).read(asked)
    for at, window in enumerate(asked):
        right = transformers_logits(folder, list(window.ids))
        assert nmse(reading.logits(at, 0, len(window.ids)), right) < 1e-12


def test_onnx_reads_each_text_of_a_batch_as_by_itself(folder: Path, tmp_path: Path) -> None:
    long, short = IDS[:160], IDS[:100]
    ids, mask = np.zeros((2, 160), np.int64), np.zeros((2, 160), np.int64)
    ids[0], ids[1, 60:], mask[0], mask[1, 60:] = long, short, 1, 1
    model = session(write(folder, tmp_path / "onnx"))
    logits, _ = run(model, ids, mask=mask, positions=np.maximum(mask.cumsum(1) - 1, 0))
    assert nmse(logits[0], transformers_logits(folder, long)) < 1e-9
    assert nmse(logits[1, 60:], transformers_logits(folder, short)) < 1e-9


def test_an_onnx_folder_is_proven_with_both(folder: Path, tmp_path: Path) -> None:
    """The built-in texts are cut into windows of 160 and 96 tokens."""
    proof = to_onnx(folder, tmp_path / "onnx", type="f32").proof
    assert proof is not None
    assert proof.verdict == "passed"
    with OnnxReader(open_onnx(tmp_path / "onnx"), threads=1) as reader:
        reader.check(windows(160, 100), FIRST)
        with pytest.raises(InputError, match="can only be read at once") as raised:
            reader.check([Window(0, (1,) * 60_000)], FIRST)
        assert raised.value.hint is not None
        assert "--window" in raised.value.hint


def test_llama_cpp_is_given_a_context_for_each_side(tmp_path: Path) -> None:
    """Contexts are multiples of 256 tokens, so the first one of this model is, too."""
    scaling = {**LONGROPE, "original_max_position_embeddings": 256}
    config = {**LLAMA, "max_position_embeddings": 1024}
    folder = write_mistral(
        tmp_path / "checkpoint", dtype=DType.F32, num_hidden_layers=2, **config, rope_scaling=scaling
    )
    (made,) = to_gguf(folder, tmp_path / "out.gguf", types=("f32",), verify=False).outputs
    ids = (*IDS, *IDS)
    asked = [Window(0, ids[:300]), Window(0, ids[:100]), Window(1, ids[:200]), Window(1, ids[5:310])]
    with LlamaReader(made.path, threads=1) as reader:
        for block in reader.logits(asked):
            right = transformers_logits(folder, list(asked[block.window].ids))
            assert nmse(block.logits, right[block.start : block.start + len(block.logits)]) < 1e-9
