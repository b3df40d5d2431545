"""``kconv to-gguf`` with types asked for by name: what is made, said, recorded and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_material import random_llama

from kconv.cli.main import main
from kconv.core.gguf_file import read_header
from kconv.quant.formats import format_of_type


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    place = tmp_path_factory.mktemp("types") / "model"
    return random_llama(place, small_tokenizer, hidden_size=256, intermediate_size=512)


def formats(path: Path) -> dict[str, str]:
    by_name = {info.name: format_of_type(info.ggml_type) for info in read_header(path).tensors}
    return {name: format.name for name, format in by_name.items() if format is not None}


def test_requests_reach_the_file_and_its_manifest(folder: Path, tmp_path: Path) -> None:
    asked = ["--tensor-type", r"blk\.0\.FFN_down=Q8_0", "--tensor-type", "attn_k=iq4_nl"]
    asked += ["--output-type", "q5_1", "--embedding-type", "bf16"]
    path = tmp_path / "made.gguf"
    assert main(["to-gguf", str(folder), "-q", "Q4_K", *asked, "-o", str(path), "--no-verify"]) == 0
    made = formats(path)
    expected = {
        "blk.0.ffn_down.weight": "q8_0",
        "blk.1.ffn_down.weight": "q4_K",  # llama.cpp counts it as the first: blk.0's is not counted
        "blk.1.attn_v.weight": "q6_K",
        "blk.0.attn_k.weight": "iq4_nl",
        "output.weight": "q5_1",
        "token_embd.weight": "bf16",
        "blk.0.attn_q.weight": "q4_K",
    }
    assert {name: made[name] for name in expected} == expected
    manifest = json.loads(Path(f"{path}.manifest.json").read_text("utf-8"))
    assert manifest["output"]["type"] == "q4_K_M"
    assert manifest["options"]["tensor_types"] == asked[1:4:2]
    assert (manifest["options"]["output_type"], manifest["options"]["embedding_type"]) == ("q5_1", "bf16")
    assert manifest["tensors"] == made


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-q", "q4_k_mm"], 2, "did you mean q4_K_M?"),
        (["-q", "q4_k_m", "--tensor-type", "zzz=q8_0"], 2, "zzz=q8_0 matches no matrix of this model"),
        (["-q", "q4_k_m", "--tensor-type", "ffn_down"], 2, "is not of the form PATTERN=TYPE"),
        (["-q", "q4_k_m", "--output-type", "q8_K"], 2, "unknown format 'q8_K'"),
        (
            ["-q", "q8_0", "-q", "iq2_xs"],
            3,
            "IQ2_XS stores blk.0.attn_q.weight as IQ2_XS, which needs importance",
        ),
        (["-q", "q2_k_s"], 3, "kconv imatrix"),
    ],
)
def test_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["to-gguf", str(folder), *words, "-o", str(tmp_path / "out"), "--no-verify"]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize("bad", [float("nan"), 1e30])
def test_a_checkpoint_libggml_would_abort_on_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: float
) -> None:
    """Even with --allow-nan, which writes such weights in every format that holds them."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "bad")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 7] = bad
    save_file(weights, tmp_path / "bad" / "model.safetensors")
    words = ["to-gguf", str(tmp_path / "bad"), "--allow-nan", "--no-verify", "-o", str(tmp_path / "out")]
    assert main([*words, "-q", "iq3_s"]) == 3
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert main([*words, "-q", "q4_k_s"]) == 0
