"""A tied head that a GGUF writes out in a format of its own, as ``--output-tensor-type`` leaves it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from llama_quantize_jobs import Job, quantize
from strangers_material import FTYPES, rewritten

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header
from kconv.quant.formats import FORMATS, format_of_type
from kconv.quant.ggml import encode
from kconv.verify import verify

TABLE, HEAD = "token_embd.weight", "output.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("qwen2", tmp_path_factory.mktemp("tied") / "qwen2")


@pytest.fixture(scope="module")
def written_out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In f32, with the table a second time as the output matrix."""
    folder = tmp_path_factory.mktemp("gguf")
    (made,) = to_gguf(checkpoint, folder / "tied.gguf", types=("f32",), verify=False).outputs
    return with_head(made.path, folder / "written.gguf", "f32")


def with_head(source: Path, target: Path, format: str) -> Path:
    """Through gguf-py, the head in that format."""
    table = next(each for each in gguf.GGUFReader(source).tensors if each.name == TABLE).data
    values, kind = np.ascontiguousarray(table, np.float32), FORMATS[format]
    stored = np.empty((len(values), kind.row_bytes(values.shape[1])), np.uint8)
    encode(kind, values, stored.reshape(-1))
    return rewritten(source, target, more={HEAD: (stored, kind.ggml_type)})


def formats(path: Path) -> dict[str, str]:
    made = {info.name: format_of_type(info.ggml_type) for info in read_header(path).tensors}
    return {name: made[name].name for name in (TABLE, HEAD)}  # type: ignore[union-attr]


@pytest.mark.parametrize("head", ["q4_0", "q4_1", "q8_0"])
def test_f32_with_a_coarser_head_is_right(
    head: str, checkpoint: Path, written_out: Path, tmp_path: Path
) -> None:
    """What the head loses is a loss; f32's limit of the logits is for files of nothing else."""
    path = with_head(written_out, tmp_path / "made.gguf", head)
    proof = verify(path, checkpoint, tokens=40, threads=1, ignore_manifest=True)
    assert formats(path) == {TABLE: "f32", HEAD: head}
    assert (proof.type, proof.right, proof.verdict) == (head, "passed", "passed")
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11


def test_llama_quantize_makes_them_apart(checkpoint: Path, written_out: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    job = Job(written_out, FTYPES["q4_0"], path, threads=1, output_type=FORMATS["q8_0"].ggml_type)
    assert quantize([job])[0] is not None
    proof = verify(path, checkpoint, tokens=40, threads=1, ignore_manifest=True)
    assert formats(path) == {TABLE: "q4_0", HEAD: "q8_0"}
    assert (proof.right, proof.runtime.verdict, proof.weights.verdict) == ("passed", "passed", "passed")
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11
