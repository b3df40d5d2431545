"""``kconv batch`` with ``activations``: a folder of its own, known again; and every folder has a card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_material import kconv

from kconv.converters.samples.synthetic import write_llama_3_ko

pytestmark = pytest.mark.usefixtures("kconv_server")


def test_activations_make_another_folder_that_is_known_again(tmp_path: Path) -> None:
    write_llama_3_ko(tmp_path / "two", base_vocab=500)
    jobs = tmp_path / "jobs.toml"
    plain = "[defaults]\noutput = 'dist'\nformats = ['onnx']\ntypes = ['f16']\nno-verify = true\n"
    job = "\n[[jobs]]\nsource = 'two'\n"
    jobs.write_text(plain + job, "utf-8")
    done = kconv("batch", jobs)
    assert done.returncode == 0, done.stderr
    jobs.write_text(f"{plain}activations = 'f16'\n{job}", "utf-8")
    for expected in ("1 done", "1 done before"):
        done = kconv("batch", jobs)
        assert done.returncode == 0, done.stderr
        assert f"1 output: {expected}" in done.stdout
    folders = sorted((tmp_path / "dist").glob("*-ONNX"))
    assert [each.name for each in folders] == ["two-F16-F16-ONNX", "two-F16-ONNX"]
    for folder in folders:
        files = json.loads((folder / "kconv.manifest.json").read_text("utf-8"))["output"]["files"]
        assert "README.md" in {each["name"] for each in files}
        text = (folder / "README.md").read_text("utf-8")
        assert "| ONNX F16 |" in text
        halves = "F16-F16" in folder.name
        assert ("Activations and cache are float16" in text, "캐시는 GPU용 float16" in text) == (
            halves,
            halves,
        )
