"""``kconv batch`` makes files of chosen formats, and knows them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_material import kconv

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.samples.synthetic import write_eagle
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.quant.chosen_policy import choosable
from kconv.quant.formats import FORMATS
from kconv.quant.policy import parse_policy
from kconv.quant.policy_file import Choice

pytestmark = pytest.mark.usefixtures("kconv_server")


def write_policy(checkpoint: Path, path: Path) -> None:
    """Losses of a kind for all matrices, as a measurement would leave them."""
    opened = open_checkpoint(checkpoint)
    model = build(family_for(opened.config), opened)
    tensors = choosable(model, parse_policy("q8_0"))
    losses = {
        tensor.name: {name: tensor.elements * 4.0**-bits * 1e-6 for name, bits in (("q4_0", 4), ("q8_0", 8))}
        for tensor in tensors
    }
    formats = {tensor.name: FORMATS["q4_0"] for tensor in tensors}
    path.write_text(Choice("x", model.arch, formats, 0.1, losses).to_toml(), encoding="utf-8")


def events(folder: Path) -> list[str]:
    lines = (folder / "jobs.journal.jsonl").read_text("utf-8").splitlines()
    return [record["event"] for record in map(json.loads, lines) if record["event"] in ("began", "made")]


def test_targets_of_a_policy_are_made_once(tmp_path: Path) -> None:
    write_eagle(tmp_path / "one", vocab_size=600)
    write_policy(tmp_path / "one", tmp_path / "kept.policy.toml")
    jobs = """
[[jobs]]
source = "one"
output = "out"
types = ["q8_0"]
target-size = "6.2bpw"
menu = ["q4_0", "q8_0"]
policy = "kept.policy.toml"
no-verify = true
[[jobs]]
source = "one"
output = "out"
policy = "kept.policy.toml"
no-verify = true
"""
    (tmp_path / "jobs.toml").write_text(jobs, "utf-8")
    done = kconv("batch", tmp_path / "jobs.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {path.name: path for path in (tmp_path / "out").glob("*.gguf")}
    assert made.keys() == {"one-Q8_0.gguf", "one-6.2bpw.gguf", "one-kept.gguf"}
    assert made["one-kept.gguf"].stat().st_size < made["one-6.2bpw.gguf"].stat().st_size
    assert read_header(made["one-6.2bpw.gguf"]).metadata["kconv.chosen.target"] == "6.2bpw"
    assert (tmp_path / "out" / "one-6.2bpw.policy.toml").is_file()
    before = events(tmp_path)
    again = kconv("batch", tmp_path / "jobs.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert events(tmp_path) == before
    made["one-6.2bpw.gguf"].unlink()
    assert kconv("batch", tmp_path / "jobs.toml", cwd=tmp_path).returncode == 0
    assert made["one-6.2bpw.gguf"].is_file()
    assert events(tmp_path) == [*before, "began", "made"]
