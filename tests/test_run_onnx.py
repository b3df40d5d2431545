"""`kconv run` on ONNX folders: the tokens transformers generates, and those a GGUF gives for a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_material import write_llama_onnx
from run_material import answered, run
from transformers import AutoModelForCausalLM

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample

pytestmark = pytest.mark.usefixtures("kconv_server")
PROMPT = "옛날 옛적에 호랑이가"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("run") / "42dot")


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return write_llama_onnx(checkpoint, checkpoint.with_name("42dot-onnx"))


def test_greedy_tokens_are_those_of_transformers(checkpoint: Path, folder: Path) -> None:
    answer = answered(folder, "-p", PROMPT, "-n", 128, "--greedy")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([answer["prompt_ids"]])
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=128, do_sample=False)
    right = made[0, ids.shape[1] :].tolist()
    assert answer["ids"] == right
    assert len(right) > 40


@pytest.mark.parametrize("options", [("--temp", 1.1, "--top-k", 60), ("--repeat-penalty", 1.3, "--top-k", 0)])
def test_a_seed_gives_what_it_gives_with_a_gguf(checkpoint: Path, folder: Path, options: Any) -> None:
    gguf = checkpoint.with_name("model-f32.gguf")
    if not gguf.exists():
        to_gguf(checkpoint, gguf, types=["f32"], verify=False)
    asked = ("-p", PROMPT, "-n", 60, "--seed", 11, "--no-chat", *options)
    ours, theirs = answered(folder, *asked), answered(gguf, *asked, "--kv-type", "f32")
    assert ours["prompt_ids"] == theirs["prompt_ids"]
    assert ours["sampling"] == theirs["sampling"]
    assert ours["ids"] == theirs["ids"]
    assert ours["text"] == theirs["text"]


def test_text_is_streamed_and_stops(folder: Path) -> None:
    whole = answered(folder, "-p", PROMPT, "-n", 40, "--greedy")["text"]
    word = whole.split()[3]
    done = run(folder, "-p", PROMPT, "-n", 40, "--greedy", "--stop", word)
    assert done.returncode == 0, done.stderr
    assert done.stdout == whole[: whole.index(word)] + "\n"


def test_options_of_ggufs_and_checkpoints_are_refused(checkpoint: Path, folder: Path) -> None:
    assert "--kv-type is for GGUF files" in run(folder, "-p", "x", "--kv-type", "f32").stderr
    done = run(checkpoint, "-p", "x")
    assert (done.returncode, "kconv to-gguf" in done.stderr) == (3, True)


def test_a_folder_onnxruntime_cannot_run_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(model.replace(b"RMSNormalization", b"RMSNormalizatiox"))
    done = run(tmp_path, "-p", "x")
    assert done.returncode == 3
    assert "onnxruntime refuses the folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [("--greedy",), ("--temp", 1), ("--repeat-penalty", 1.2)])
def test_logits_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path, options: Any) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = np.memmap(tmp_path / "model.onnx_data", "<f4", "r+")
    data[:] = np.nan
    data.flush()
    done = run(tmp_path, "-p", "x", *options)
    assert (done.returncode, "gives logits that are not finite numbers" in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr
