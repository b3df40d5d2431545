"""Numbers in a GGUF's header that its tensors contradict: refused by run and quantize, shown by inspect."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from run_material import with_metadata

from kconv.cli.main import main
from kconv.converters import quantize, to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import GgufError
from kconv.core.gguf_counts import check_counts, contradictions
from kconv.core.gguf_file import GgufHeader, TensorInfo, read_header


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counts")
    to_gguf(write_sample("42dot", folder / "42dot"), folder / "model.gguf", types=["f16"], verify=False)
    return folder / "model.gguf"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 1_000_000, "block_count says 1000000 layers, but its tensors (blk.N) show 3"),
        ("block_count", 4, "block_count says 4 layers"),
        ("block_count", 2, "block_count says 2 layers"),
        ("block_count", 0, "block_count says 0 layers"),
        ("block_count", "three", "block_count says 'three' layers"),
        ("context_length", 0, "context_length is 0"),
        ("context_length", 2**32 - 1, "context_length is 4294967295"),
        ("attention__head_count", 0, "attention.head_count is 0"),
        ("attention__head_count_kv", 0, "attention.head_count_kv is 0"),
        ("attention__layer_norm_rms_epsilon", -1.0, "attention.layer_norm_rms_epsilon is -1.0"),
        ("attention__layer_norm_rms_epsilon", math.nan, "attention.layer_norm_rms_epsilon is nan"),
        ("attention__layer_norm_rms_epsilon", math.inf, "attention.layer_norm_rms_epsilon is inf"),
    ],
)
def test_damaged_numbers_are_refused_before_llama_cpp_is_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, message: str
) -> None:
    bad = with_metadata(model, tmp_path / "bad.gguf", **{f"llama__{key}": value})
    for words in (
        ["run", str(bad), "-p", "a"],
        ["quantize", str(bad), "-q", "q8_0", "-o", str(tmp_path / "made")],
    ):
        assert main(words) == 3
        assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert main(["inspect", str(bad)]) == 0


def test_a_sound_file_is_not_touched_by_that(model: Path, tmp_path: Path) -> None:
    check_counts(model, read_header(model))
    assert quantize(model, tmp_path / "made.gguf", types=["q8_0"]).outputs


def header(arch: str, names: list[str], **numbers: Any) -> GgufHeader:
    metadata = {"general.architecture": arch}
    metadata |= {f"{arch}.{key.replace('__', '.')}": value for key, value in numbers.items()}
    tensors = tuple(TensorInfo(name, (4, 4), 0, 64) for name in names)
    return GgufHeader(metadata, tensors, 0, 0)


@pytest.mark.parametrize(
    "honest",
    [
        # MTP layers that are counted and left out, or there and not counted
        header("glm4moe", ["blk.0.x", "blk.1.x"], block_count=3, nextn_predict_layers=1),
        header("glm4moe", ["blk.0.x", "blk.1.x"], block_count=1, nextn_predict_layers=1),
        # a layer without anything, which a list of heads shows
        header("deci", ["blk.0.attn_q.weight"], block_count=2, attention__head_count=(4, 0)),
        header("mamba", ["blk.0.ssm_in.weight"], block_count=1, attention__head_count=0),
        header("t5", ["enc.blk.0.attn_q.weight", "dec.blk.0.attn_q.weight"], block_count=1),
        header("t5", ["enc.blk.0.x", "dec.blk.0.x", "dec.blk.1.x"], block_count=1, decoder_block_count=2),
        header("wavtokenizer-dec", ["posnet.0.conv1.weight"], block_count=6),
        header("llama", ["blk.0.attn_q.weight"]),
        header("", ["blk.0.attn_q.weight"]),
    ],
    ids=lambda header: header.arch or "none",
)  # fmt: skip
def test_what_other_architectures_may_say(honest: GgufHeader) -> None:
    assert list(contradictions(honest)) == []


@pytest.mark.parametrize(
    "damaged",
    [
        header("t5", ["enc.blk.0.x", "dec.blk.0.x"], block_count=1, decoder_block_count=2),
        header("t5", ["enc.blk.0.x", "dec.blk.0.x", "dec.blk.1.x"], block_count=1),
        header("glm4moe", ["blk.0.x"], block_count=100, nextn_predict_layers=99),
        header("deci", ["blk.0.attn_q.weight"], block_count=1, attention__head_count=(0,)),
        header("llama", ["blk.999999999.x"], block_count=2),
        header("llama", ["blk.0.x"], block_count=-1),
        header("llama", ["blk.0.x"], block_count=True),
        header("llama", [], context_length=True),
    ],
    ids=lambda header: header.arch,
)
def test_what_none_may_say(damaged: GgufHeader, tmp_path: Path) -> None:
    with pytest.raises(GgufError):
        check_counts(tmp_path / "x.gguf", damaged)
