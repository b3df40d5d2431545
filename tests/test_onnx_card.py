"""The README.md that kconv to-onnx writes into its folder: what it says, and that it belongs to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_material import kconv

from kconv.converters.samples import write_sample
from kconv.converters.targets import FOLDER_MANIFEST
from kconv.core.input_files import file_sha256
from kconv.flows.release import read_release
from kconv.flows.to_onnx import to_onnx
from kconv.flows.upload import _changed
from kconv.flows.verify import verify
from kconv.report.model_card import model_card

pytestmark = pytest.mark.usefixtures("kconv_server")


def other_folder(folder: Path, place: Path) -> Path:
    """The same model once more, so that neither lies at the top of a repository."""
    return shutil.copytree(folder, place / "other-onnx")


def test_a_folder_has_a_card_with_its_verdict(tmp_path: Path) -> None:
    checkpoint, folder = write_sample("42dot", tmp_path / "checkpoint"), tmp_path / "42dot-onnx"
    command = ("to-onnx", checkpoint, "-q", "q8_0", "--flavour", "contrib", "-o", folder)
    done = kconv(*command)
    assert done.returncode == 0, done.stderr
    text = (folder / "README.md").read_text("utf-8")
    for said in (
        "Needs onnxruntime 1.22 or newer",
        "onnxruntime 1.22 이상이 필요합니다",
        'genai.Model(".")',
        "ORTModelForCausalLM",
        "| ONNX Q8\\_0 |",
        "passed",
        "통과",
    ):
        assert said in text
    output = json.loads((folder / FOLDER_MANIFEST).read_text("utf-8"))["output"]
    entry = {"name": "README.md", "bytes": len(text.encode()), "sha256": file_sha256(folder / "README.md")}
    assert entry in output["files"]
    assert output["bytes"] == sum(file["bytes"] for file in output["files"])
    assert verify(folder, checkpoint, tokens=20, threads=1).verdict == "passed"
    assert kconv(*command, "--resume").returncode == 0
    for others in ([], [other_folder(folder, tmp_path)]):  # alone, upload writes a card in its place
        artifact = read_release([folder, *others]).artifacts[0]
        names = {file.name for file in artifact.files}
        assert ("README.md" in names, f"{folder.name}/README.md" in names) == (False, bool(others))
        assert not [*_changed(artifact, {each.name: file_sha256(each.path) for each in artifact.files})]
    (folder / "README.md").write_text("changed", "utf-8")
    found = verify(folder, checkpoint, tokens=20, threads=1)
    assert any("README.md" in str(finding.message) for finding in found.metadata.findings)
    anew = kconv("card", folder, "-o", folder / "README.md", "--force", "--lang", "ko")
    assert anew.returncode == 0, anew.stderr
    output = json.loads((folder / FOLDER_MANIFEST).read_text("utf-8"))["output"]
    assert output["bytes"] == sum(file["bytes"] for file in output["files"])
    assert [each["name"] for each in output["files"]].count("README.md") == 1
    found = verify(folder, checkpoint, tokens=20, threads=1)
    assert (found.verdict, found.metadata.findings) == ("passed", ())
    shown = kconv("inspect", folder)
    assert "WebGPU: 없음; OpenVINO: RotaryEmbedding, GroupQueryAttention" in shown.stdout or (
        "nothing by WebGPU; RotaryEmbedding, GroupQueryAttention by OpenVINO" in shown.stdout
    )


def test_one_for_transformers_js_names_the_page(tmp_path: Path) -> None:
    checkpoint = write_sample("kebyt5", tmp_path / "checkpoint")
    announced: list[str] = []
    made = to_onnx(
        checkpoint,
        tmp_path / "web",
        type="q4_0",
        layout="transformers.js",
        verify=False,
        announce=announced.append,
        card=lambda folder: model_card(read_release([folder])),
    )
    text = (made.path / "README.md").read_text("utf-8")
    assert made.files["README.md"] == len(text.encode())
    assert "pipeline('text2text-generation', \".\", { dtype: 'q4' })" in text
    assert "`index.html`" in text
    assert "not been proven" in text
    assert "genai" not in text
    assert "optimum" not in text
    assert announced == []


def test_python_writes_one_as_the_command_does_unless_told_not_to_and_overwrites_none(tmp_path: Path) -> None:
    from kconv.flows.folder_card import with_card

    checkpoint = write_sample("42dot", tmp_path / "checkpoint")
    made = to_onnx(checkpoint, tmp_path / "with", type="q8_0", verify=False)
    text = (made.path / "README.md").read_text("utf-8")
    assert made.files["README.md"] == len(text.encode())
    assert "| ONNX Q8\\_0 |" in text
    made = to_onnx(checkpoint, tmp_path / "onnx", type="q8_0", verify=False, card=False)
    assert "README.md" not in made.files
    (made.path / "README.md").write_text("mine", "utf-8")
    assert with_card(made, lambda folder: "card", print) == made
    assert (made.path / "README.md").read_text("utf-8") == "mine"
