"""Importance counted in the reference against what llama.cpp itself computes, and how it is asked for."""

from __future__ import annotations

import functools
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import KOREAN
from gbst_material import random_gbswt5
from imatrix_material import llama_cpp_activations

from kconv.converters import to_gguf
from kconv.converters.families import FAMILIES, FRONT_ENDS, family_for
from kconv.converters.family import Family
from kconv.converters.front_end import front_end_of
from kconv.converters.mapping import build, product
from kconv.converters.reshaping import transposed
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType, Tensor
from kconv.flows.importance import gather, measure_activations, named_texts
from kconv.quant.gguf_weights import open_gguf
from kconv.quant.importance import importance_of
from kconv.verify.inputs import Expected, VerifyOptions, read_reference, text_windows
from kconv.vocab.selection import select_vocab
from kconv.vocab.sources import read_source

_TEXT = KOREAN * 2
_WINDOW = 96  # a few windows of unlike lengths, which are computed together and padded

_CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "42dot": lambda folder: write_sample("42dot", folder),
    "kogpt": lambda folder: write_sample("kogpt", folder),
    "kebyt5": lambda folder: write_sample("kebyt5", folder),
    "gbst-kebyt5": random_gbswt5,
    "qwen2": lambda folder: write_sample("qwen2", folder),
    "qwen3": lambda folder: write_sample("qwen3", folder),
    "qwen3-moe": lambda folder: write_sample("qwen3-moe", folder),
    "gpt-neox": lambda folder: write_sample("gpt-neox", folder),
    "exaone": lambda folder: write_sample("exaone", folder),
    "exaone4": lambda folder: write_sample("exaone4", folder),
    "hyperclovax": lambda folder: write_sample("hyperclovax", folder),
    "kanana": lambda folder: write_sample("kanana", folder),
    "mistral": lambda folder: write_sample("mistral", folder),
    "gemma2": lambda folder: write_sample("gemma2", folder),
    "gemma3": lambda folder: write_sample("gemma3", folder),
    "umt5": lambda folder: write_sample("umt5", folder),
    "roberta": lambda folder: write_sample("roberta", folder),
    "t5-encoder": lambda folder: write_sample("t5-encoder", folder),
    "xglm": lambda folder: write_sample("xglm", folder),
    "opt": lambda folder: write_sample("opt", folder),
    "gpt2": lambda folder: write_sample("gpt2", folder),
    "mpt": lambda folder: write_sample("mpt", folder),
    "bert": lambda folder: write_sample("bert", folder),
    "xlm-roberta": lambda folder: write_sample("xlm-roberta", folder),
}


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Expected]:
    """Makes a family's checkpoint and settles its vocabulary, once for all tests."""

    @functools.cache
    def make(sample: str) -> Expected:
        checkpoint = open_checkpoint(_CHECKPOINTS[sample](tmp_path_factory.mktemp(sample) / "checkpoint"))
        family = family_for(checkpoint.config)
        model, _ = select_vocab(build(family, checkpoint), checkpoint)
        return Expected(checkpoint, family, model, read_source(checkpoint))

    return make


@pytest.mark.parametrize("family", _CHECKPOINTS)
def test_activations_are_llama_cpps(
    tmp_path: Path, subject_of: Callable[[str], Expected], family: str
) -> None:
    """Every matrix of the file but the output matrix: to a thousandth, and each channel as well.

    Where there is a GELU, llama.cpp rounds it to half floats, which single channels show more of.
    """
    subject = subject_of(family)
    folder = subject.checkpoint.folder
    (made,) = to_gguf(folder, tmp_path / "out", types=("f32",), verify=False, threads=2).outputs
    counted, _ = measure_activations(subject, {"text": _TEXT}, (), VerifyOptions(threads=2), window=_WINDOW)
    windows = text_windows(subject, [_TEXT], tokens=None, window=_WINDOW)
    assert len({len(window.ids) for window in windows}) > 1
    embedded = []
    with open_gguf(made.path) as file:
        front = front_end_of(FRONT_ENDS, made.path, file.header.metadata)
        if front is not None:
            embedded = [front.embed(window.source) for window in windows]
    expected = llama_cpp_activations(
        made.path, [(window.ids, window.source) for window in windows], tmp_path, embedded
    )
    ours = importance_of(counted).values
    routers = {name for name in expected if "ffn_gate_inp" in name}  # never quantized
    assert set(ours) == set(expected) - {"output.weight", "token_embd.weight"} - routers
    relative, absolute = (3e-3, 1e-6) if subject.family.gelu else (1e-4, 0.0)  # measured: 7e-6
    if subject.family.encoder_only:  # whose GELU is the exact one, of which llama.cpp computes the tanh form
        relative, absolute = 1e-2, 1e-5
    for name, values in ours.items():
        assert np.linalg.norm(values - expected[name]) < 1e-3 * np.linalg.norm(expected[name]), name
        floor = absolute * expected[name].max()
        np.testing.assert_allclose(values, expected[name], rtol=relative, atol=floor, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_family_moves_columns(family: Family) -> None:
    """What flows into a module belongs to the columns of the file's matrix as they stand."""
    words = {word for row in family.rows for words in row.shape for word in words.split(" * ")}
    sizes = dict.fromkeys(words, 4) | {"rotary": 2, "layers": 1, "decoder_layers": 1, "experts": 4}
    sizes = defaultdict(lambda: 4, sizes)  # factors among the sizes are 4 / 4
    for row in family.rows:
        shape = tuple(product(words, sizes) for words in row.shape)
        if len(shape) != 2 or row.transform is None or not row.sources:
            continue
        probe = Tensor(row.named(row.sources, 0, sizes)[0], shape, DType.F32, lambda start, stop: np.empty(0))
        turned = family.upright({probe.name: probe})[probe.name] is not probe
        shape = shape[::-1] if turned else shape
        columns = np.arange(1, shape[1] + 1, dtype=np.float32)

        def read(start: int, stop: int, columns: np.ndarray = columns) -> np.ndarray:
            return np.broadcast_to(columns, (stop - start, len(columns))).copy()

        sources = [Tensor(name, shape, DType.F32, read) for name in row.named(row.sources, 0, sizes)]
        sources = [transposed(each) if turned else each for each in sources]
        made = row.transform.apply(sources, sizes)
        values = made.read(0, made.rows).reshape(-1, shape[1])
        assert (values / values[:, :1] == columns).all(), row.target


def test_chunks_are_spread_over_the_text(subject_of: Callable[[str], Expected]) -> None:
    """Half of the windows of a text in two unlike halves: from both of them."""
    subject = subject_of("kogpt")
    texts = {"a": KOREAN * 6, "b": "The quick brown fox jumps over the lazy dog. " * 12}
    windows = text_windows(subject, list(texts.values()), tokens=None, window=32)
    chosen = len(windows) // 2
    counted, _ = measure_activations(subject, texts, (), VerifyOptions(threads=2), chunks=chosen, window=32)
    assert (counted.chunks, counted.chunk_size, counted.datasets) == (chosen, 32, ("a", "b"))
    expected = sum(len(windows[at * len(windows) // chosen].ids) for at in range(chosen))
    assert {int(count[0]) for count in counted.counts.values()} == {expected}


def test_the_proofs_windows_are_read_on_the_way(subject_of: Callable[[str], Expected]) -> None:
    """They come out as they do alone, and what flows into matrices for them is not counted."""
    subject = subject_of("kebyt5")
    others = tuple(text_windows(subject, ["우리는 그 이야기를 기억한다. " * 4], tokens=None, window=48))
    alone, nothing = measure_activations(
        subject, {"text": _TEXT}, (), VerifyOptions(threads=2), window=_WINDOW
    )
    counted, reading = measure_activations(
        subject, {"text": _TEXT}, others, VerifyOptions(threads=2), window=_WINDOW
    )
    assert nothing.hidden == []
    assert [len(values) for values in reading.hidden] == [len(window.ids) for window in others]
    expected = read_reference(subject, VerifyOptions(threads=2), others)
    for one, other in zip(reading.hidden, expected.hidden, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # padded to other lengths
    for name, sums in alone.sums.items():
        np.testing.assert_allclose(counted.sums[name], sums, rtol=1e-4, atol=1e-6)
        assert counted.counts[name] == alone.counts[name]


def test_texts_are_refused_with_a_sentence(tmp_path: Path) -> None:
    folder = write_sample("kogpt", tmp_path / "checkpoint")
    with pytest.raises(InputError, match="too few to predict"):
        gather(folder, {"short": "가"})
    with pytest.raises(InputError, match="does not exist"):
        named_texts([tmp_path / "missing.txt"])
    (tmp_path / "a.txt").write_text("하나", encoding="utf-8")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a.txt", tmp_path / "b" / "a.txt")
    assert list(named_texts([tmp_path / "a.txt", tmp_path / "b" / "a.txt"])) == ["a.txt", "a.txt (2)"]
