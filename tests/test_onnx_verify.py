"""ONNX folders in onnxruntime, held against transformers and against damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_material import write_llama_onnx
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem, InputError, UsageError
from kconv.core.windows import Window
from kconv.runtimes.onnx_folder import check_onnxruntime, holds_onnx, open_onnx
from kconv.runtimes.onnx_reader import OnnxReader, stepped
from kconv.verify import Proof, verify

KCONV = str(Path(sys.executable).parent / "kconv")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded Korean model of 42dot's layout."""
    return write_sample("42dot", tmp_path_factory.mktemp("checkpoint") / "42dot")


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in ONNX, under a name with a space and Hangul."""
    return write_llama_onnx(checkpoint, tmp_path_factory.mktemp("onnx") / "새 폴더")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def proven(folder: Path, checkpoint: Path) -> Proof:
    return verify(folder, checkpoint, tokens=80, threads=1)


@pytest.mark.parametrize("stepwise", [False, True])
def test_logits_are_those_of_transformers(folder: Path, checkpoint: Path, stepwise: bool) -> None:
    ids = tuple(int(token) for token in np.random.default_rng(7).integers(3, 900, 40))
    windows = [Window(0, ids, scored_from=9), Window(1, ids[5:12]), Window(2, ids[:1])]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    collected: dict[int, list[Any]] = {}
    with OnnxReader(open_onnx(folder), threads=1, stepwise=stepwise) as reader:
        for block in reader.logits(windows):
            assert block.start == windows[block.window].scored_from + sum(
                len(each) for each in collected.get(block.window, [])
            )
            collected.setdefault(block.window, []).append(block.logits)
    assert sorted(collected) == [0, 1]
    for index, blocks in collected.items():
        window = windows[index]
        with torch.no_grad():
            right = model(torch.tensor([window.ids])).logits[0, window.scored_from : -1].numpy()
        assert [len(each) for each in blocks] == ([1] * len(right) if stepwise else [len(right)])
        assert np.abs(np.concatenate(blocks) - right).max() < 1e-4 * right.std()


def test_a_good_folder_passes_whole_and_token_by_token(folder: Path, checkpoint: Path) -> None:
    proof = proven(folder, checkpoint)
    assert (proof.verdict, proof.type, proof.weights.verdict) == ("passed", "f32", "passed")
    assert proof.runtime.verdict == "passed"
    assert proof.logits.figures is not None
    assert proof.logits.stepwise is not None
    assert proof.logits.figures.nmse < 1e-10
    assert proof.logits.stepwise.nmse < 1e-10
    assert proof.logits.padded is not None
    assert proof.logits.padded.nmse < 1e-10
    assert proof.logits.stepwise.positions == proof.logits.padded.positions == 59
    assert proof.provenance["versions"]["onnxruntime"] == check_onnxruntime()
    assert proof.to_json()["logits"]["stepwise"]["positions"] == 59


def test_half_precision_is_held_to_its_own_gate(checkpoint: Path, tmp_path: Path) -> None:
    proof = proven(write_llama_onnx(checkpoint, tmp_path / "half", half=True), checkpoint)
    assert (proof.verdict, proof.type) == ("passed", "f16")
    assert proof.logits.figures is not None
    assert 1e-9 < proof.logits.figures.nmse < 1e-5


def test_a_wrong_cache_shows_only_token_by_token(checkpoint: Path, tmp_path: Path) -> None:
    made = write_llama_onnx(checkpoint, tmp_path / "wrong", wrong_positions=True)
    proof = proven(made, checkpoint)
    assert proof.verdict == "failed"
    assert proof.logits.figures is not None
    assert proof.logits.figures.nmse < 1e-10
    assert proof.cause is not None
    assert proof.cause.startswith("runtime: onnxruntime does not compute")  # it reads the last tokens so
    assert any(each.message.startswith("token by token, ") for each in proof.logits.findings)
    assert proof.logits.findings[-1].message.startswith("in a padded batch: onnxruntime cannot compute")


def test_a_mask_that_lets_padding_through_shows_only_in_batches(checkpoint: Path, tmp_path: Path) -> None:
    proof = proven(write_llama_onnx(checkpoint, tmp_path / "seen", sees_padding=True), checkpoint)
    assert proof.verdict == "failed"
    assert proof.logits.figures is not None
    assert proof.logits.stepwise is not None
    assert max(proof.logits.figures.nmse, proof.logits.stepwise.nmse) < 1e-10
    assert proof.cause is not None
    assert proof.cause.startswith("logits: in a padded batch: ")


def test_one_wrong_matrix_fails(copy: Path, checkpoint: Path) -> None:
    data = copy / "model.onnx_data"
    model = onnx.load_model(copy / "model.onnx", load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.name.endswith("1.self_attn.o_proj.weight"))
    entries = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
    values = np.memmap(data, "<f4", "r+", entries["offset"], (entries["length"] // 4,))
    values *= 1.1
    values.flush()
    proof = proven(copy, checkpoint)
    assert proof.verdict == "failed"
    assert proof.logits.verdict == "failed"
    assert len(proof.logits.findings) == 3


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def test_another_tokenizer_fails(copy: Path, checkpoint: Path) -> None:
    lines = (copy / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (copy / "merges.txt").write_text("".join(lines[:40] + lines[41:]), encoding="utf-8")
    part = proven(copy, checkpoint).tokens
    assert part.verdict == "failed"
    assert "tokenizer gives other token ids" in part.findings[0].message


def test_a_tokenizer_json_is_read_as_its_library_reads_it(copy: Path, checkpoint: Path) -> None:
    tokenizer = Tokenizer(BPE.from_file(str(copy / "vocab.json"), str(copy / "merges.txt")))
    tokenizer.save(str(copy / "tokenizer.json"))  # without the bytes' symbols, and without added tokens
    part = proven(copy, checkpoint).tokens
    assert part.verdict == "failed"
    assert "tokenizer.json gives other token ids" in part.findings[0].message
    assert part.parity is not None
    assert part.parity.exact < part.parity.texts


@pytest.mark.parametrize(("value", "verdict"), [(1e-3, "failed"), (None, "warned")])
def test_another_setting_is_told(copy: Path, checkpoint: Path, value: float | None, verdict: str) -> None:
    def edit(config: dict[str, Any]) -> None:
        config.pop("rms_norm_eps")
        config |= {} if value is None else {"rms_norm_eps": value}

    edit_json(copy / "config.json", edit)
    part = proven(copy, checkpoint).metadata
    assert (part.verdict, part.findings[0].where) == (verdict, "rms_norm_eps")


def edited(folder: Path, **changes: str) -> None:
    """Other places for the last tensor that lies in the data file."""
    path = folder / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    tensor = [each for each in model.graph.initializer if each.external_data][-1]
    for entry in tensor.external_data:
        entry.value = changes.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "above": (lambda folder: edited(folder, location="../model.onnx_data"), "expected the name of a file"),
    "absolute": (lambda folder: edited(folder, location="/etc/passwd"), "expected the name of a file"),
    "memory": (lambda folder: edited(folder, location="*/_ORT_MEM_ADDR_/*"), "expected the name of a file"),
    "nowhere": (lambda folder: edited(folder, location="other.bin"), "does not exist"),
    "beyond": (lambda folder: edited(folder, offset="99999999999"), "end at byte"),
    "negative": (lambda folder: edited(folder, offset="-4096"), "expected two whole numbers"),
    "short": (lambda folder: os.truncate(folder / "model.onnx_data", 4096), "end at byte"),
    "garbage": (lambda folder: (folder / "model.onnx").write_bytes(b"\xff" * 100), "is not an ONNX file"),
    "config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "lone encoder": (
        lambda folder: (folder / "model.onnx").rename(folder / "encoder_model.onnx"),
        "contains neither model.onnx nor",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_before_onnxruntime_sees_them(name: str, copy: Path) -> None:
    damage, message = BAD[name]
    damage(copy)
    with pytest.raises(InputError, match=message):
        open_onnx(copy)


def test_places_within_subgraphs_are_looked_at(copy: Path) -> None:
    path = copy / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    hidden = onnx.TensorProto(
        name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key="location", value="../../secret")],
    )  # fmt: skip
    branch = onnx.helper.make_graph([], "branch", [], [], [hidden])
    model.graph.node.append(onnx.helper.make_node("If", ["other.zero"], ["x"], then_branch=branch))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"'hidden' are located in '../../secret'"):
        open_onnx(copy)


def test_what_onnxruntime_refuses_is_a_finding(copy: Path, checkpoint: Path) -> None:
    path = copy / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    part = proven(copy, checkpoint).logits
    assert part.verdict == "failed"
    assert "onnxruntime refuses the folder" in part.findings[0].message
    assert "NoSuchOperator" in part.findings[0].message


def test_stepped_windows_begin_where_their_texts_do() -> None:
    windows = [Window(0, tuple(range(100))), Window(0, (1, 2)), Window(1, (5, 6, 7, 8, 9), source=(1, 2))]
    first, second = stepped(windows)
    assert (len(first.ids), first.scored_from, len(first.scored)) == (64, 31, 32)
    assert second == windows[2]


def test_options_for_ggufs_and_other_folders_are_refused(folder: Path, checkpoint: Path) -> None:
    assert holds_onnx(folder)
    assert not holds_onnx(checkpoint)
    with pytest.raises(UsageError):
        verify(folder, checkpoint, diagnose=True)


def test_an_old_onnxruntime_is_named(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "onnxruntime-1.20.1.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.20.1\n")
    done = subprocess.run(
        [KCONV, "run", str(folder), "-p", "x"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == EnvironmentProblem.exit_code
    assert "onnxruntime 1.20.1 is too old, expected 1.23 or newer" in done.stderr


def test_a_missing_onnx_package_says_how_to_install_it(folder: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from kconv.runtimes.onnx_folder import open_onnx\n"
        f"open_onnx(Path({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "onnx is not installed" in done.stderr
    assert "pip install 'kconv[onnx]'" in done.stderr


def test_a_window_that_is_not_in_use_may_have_any_size(tmp_path: Path) -> None:
    """As transformers 4 writes null in place of Qwen2's, which config.json switches off."""
    checkpoint = write_sample("qwen2", tmp_path / "qwen2")
    folder = to_onnx(checkpoint, tmp_path / "onnx", type="f32", verify=False, threads=1).path
    config = json.loads((folder / "config.json").read_text("utf-8"))
    verdicts = {}
    for used in (False, True):
        changed = {**config, "sliding_window": None, "use_sliding_window": used}
        (folder / "config.json").write_text(json.dumps(changed), "utf-8")
        proof = verify(folder, checkpoint, tokens=4, threads=1, ignore_manifest=True)
        verdicts[used] = proof.metadata.verdict
    assert verdicts == {False: "passed", True: "failed"}
