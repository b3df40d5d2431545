"""Policy files that people keep and change: what their files are called, and what they leave out."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header
from kconv.flows.convert import to_gguf
from kconv.quant.formats import FORMATS
from kconv.quant.policy_file import Choice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "sample")


def _policy(path: Path, names: list[str]) -> Path:
    choice = Choice("3M", "llama", dict.fromkeys(names, FORMATS["q8_0"]), 0.01)
    path.write_text(choice.to_toml(), encoding="utf-8")
    assert tomllib.loads(path.read_text("utf-8"))["target"] == "3M"
    return path


@pytest.mark.parametrize(
    ("policy", "file"),
    [
        ("sample-3M.policy.toml", "sample-3M.gguf"),  # as kconv to-gguf --target-size names it
        ("other-3M.policy.toml", "sample-other-3M.gguf"),
        ("sample.policy.toml", "sample-sample.gguf"),
    ],
)
def test_the_name_is_said_once(folder: Path, tmp_path: Path, policy: str, file: str) -> None:
    path = _policy(tmp_path / policy, ["token_embd.weight"])
    done = to_gguf(folder, tmp_path / "out", types=(), policy=path, verify=False)
    assert [output.path.name for output in done.outputs] == [file]


def test_matrices_the_policy_does_not_name_are_told_of(folder: Path, tmp_path: Path) -> None:
    path = _policy(tmp_path / "own.policy.toml", ["token_embd.weight"])
    (output,) = to_gguf(folder, tmp_path, types=(), policy=path, verify=False).outputs
    manifest = json.loads(output.manifest.read_text("utf-8"))
    notes = [each["message"] for each in manifest["notes"] if each["name"] == "not-in-policy"]
    assert len(notes) == 1
    assert "no format for" in notes[0]
    assert "gives q8_0" in notes[0]


def test_a_whole_policy_has_no_such_note(folder: Path, tmp_path: Path) -> None:
    stock = to_gguf(folder, tmp_path / "stock", types=("q8_0",), verify=False).outputs[0]
    matrices = [info.name for info in read_header(stock.path).tensors if len(info.shape) > 1]
    path = _policy(tmp_path / "own.policy.toml", matrices)
    (output,) = to_gguf(folder, tmp_path, types=(), policy=path, verify=False).outputs
    assert "not-in-policy" not in output.manifest.read_text("utf-8")
