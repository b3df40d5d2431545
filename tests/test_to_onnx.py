"""The way from a checkpoint to a folder of ONNX files, as Python and as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from llama_material import random_llama
from onnx_causal_material import run, session

from kconv.cli.to_onnx import command
from kconv.converters import OnnxConversion, to_onnx
from kconv.converters.samples import write_sample
from kconv.core.errors import KconvError, NonFiniteError, OutputExists, UsageError
from kconv.core.folders import atomic_folder
from kconv.core.reading import file_sha256
from kconv.verify import verify

MARK = "kconv.manifest.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "한국어 모델")


def converted(checkpoint: Path, folder: Path, **options: object) -> OnnxConversion:
    return to_onnx(checkpoint, folder, verify=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["42dot", "gbst-kebyt5"])
def test_a_conversion_ends_with_its_proof(family: str, tmp_path: Path) -> None:
    """Of one kind of folder each; test_onnx_families.py proves every family."""
    done = to_onnx(write_sample(family, tmp_path / "checkpoint"), tmp_path / "out", type="f32")
    assert done.proof is not None
    assert done.proof.verdict == "passed", done.proof.cause
    recorded = json.loads((tmp_path / "out" / MARK).read_text("utf-8"))["proof"]
    assert (recorded["verdict"], recorded["scope"]) == ("passed", "quick")


@pytest.mark.parametrize(("name", "bits"), [("f16", 16), ("q8_0", 9), ("q4_0", 5)])
def test_types_are_proven_and_as_small_as_they_should_be(
    checkpoint: Path, name: str, bits: int, tmp_path: Path
) -> None:
    done = converted(checkpoint, tmp_path / "out", type=name.upper())
    assert verify(done.path, checkpoint, tokens=80, threads=1).verdict == "passed"
    assert bits <= done.bits_per_weight < bits + 1  # blocks have 32 bits of scale
    assert done.bytes == sum(
        path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name != MARK
    )


def test_auto_keeps_the_checkpoints_type(tmp_path: Path, small_tokenizer: Path) -> None:
    for dtype, expected in (("float32", "f32"), ("float16", "f16"), ("bfloat16", "f16")):
        source = random_llama(tmp_path / dtype, small_tokenizer, dtype)
        assert converted(source, tmp_path / f"{dtype}-onnx").type == expected


def test_manifest_names_source_options_versions_and_formats(checkpoint: Path, tmp_path: Path) -> None:
    done = converted(checkpoint, tmp_path / "out", type="q4_0", accuracy_level=4)
    manifest = json.loads((tmp_path / "out" / MARK).read_text("utf-8"))
    weights = next(each for each in manifest["source"]["files"] if each["name"].endswith(".safetensors"))
    assert weights["sha256"] == file_sha256(checkpoint / weights["name"])
    assert manifest["options"] == {
        "type": "q4_0",
        "layout": "optimum",
        "accuracy_level": 4,
        "allow_nan": False,
        "chat_template": None,
        "drop_extra_tokens": False,
    }
    assert {"onnx", "kconv"} <= set(manifest["versions"])
    assert manifest["tensors"]["model.layers.0.mlp.up_proj.weight"] == "q4_0"
    assert manifest["tensors"]["model.norm.weight"] == "f32"
    written = {each["name"]: each for each in manifest["output"]["files"]}
    assert {name: each["bytes"] for name, each in written.items()} == dict(done.files)
    assert "sha256" not in written.pop("model.onnx_data")
    for name, each in written.items():
        assert each["sha256"] == file_sha256(done.path / name)


def test_equal_runs_give_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for threads in (1, 2):
        converted(checkpoint, tmp_path / str(threads), type="q4_0", threads=threads)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def test_the_layout_of_transformers_js(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "빈 칸"
    converted(checkpoint, folder, type="q4_0", layout="transformers.js")
    assert {path.name for path in (folder / "onnx").iterdir()} == {"model_q4.onnx", "model_q4.onnx_data"}
    logits, _ = run(session(folder / "onnx" / "model_q4.onnx"), np.array([[3, 4, 5]]))
    assert np.isfinite(logits).all()


def test_without_a_proof_nothing_runs_a_model(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from kconv.converters import to_gguf, to_onnx\n"
        f"to_onnx({str(checkpoint)!r}, {str(tmp_path / 'out')!r}, verify=False)\n"
        "print(sorted({'torch', 'transformers', 'llama_cpp', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("asked", "level"), [({}, 4), ({"accuracy_level": 0}, 0)])
def test_accuracy_level_reaches_the_graph(
    checkpoint: Path, tmp_path: Path, asked: dict[str, int], level: int
) -> None:
    import onnx

    converted(checkpoint, tmp_path / "out", type="q8_0", **asked)
    model = onnx.load_model(tmp_path / "out" / "model.onnx", load_external_data=False)
    levels = [a.i for n in model.graph.node for a in n.attribute if a.name == "accuracy_level"]
    assert set(levels) == {level}


def test_a_folder_that_is_not_empty_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    converted(checkpoint, folder)  # empty: taken
    with pytest.raises(OutputExists, match="not empty"):
        converted(checkpoint, folder)
    (folder / "stale").write_text("")
    converted(checkpoint, folder, force=True)
    assert not (folder / "stale").exists()


def test_force_never_replaces_what_kconv_has_not_made(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter").write_text("dear")
    with pytest.raises(OutputExists, match="did not make it"):
        converted(checkpoint, tmp_path / "letters", force=True)
    assert (tmp_path / "letters" / "letter").read_text() == "dear"


def test_a_failure_leaves_nothing(tmp_path: Path, small_tokenizer: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = random_llama(tmp_path / "source", small_tokenizer)
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5, 5] = torch.nan
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"up_proj"):
        converted(source, tmp_path / "new" / "out")
    assert os.listdir(tmp_path) == ["source"]
    done = converted(source, tmp_path / "new" / "out", allow_nan=True)
    assert any(note.name == "not-finite" for note in done.notes)


@pytest.mark.parametrize(
    "options",
    [{"type": "q6_K"}, {"layout": "torch"}, {"accuracy_level": 5}, {"verify": "sometimes"}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_make_no_sense(checkpoint: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        to_onnx(checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputExists, match="is a file"):
            converted(checkpoint, path)


def test_a_folder_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_folder(tmp_path / "out", mark=MARK) as folder:
            (folder / "mine").write_text("")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("")

    with pytest.raises(KconvError):
        fill()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["theirs"]


def test_command_prints_one_json_object(checkpoint: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        command, [str(checkpoint), "-o", str(tmp_path / "out"), "--json", "--no-verify"]
    )
    assert done.exit_code == 0, done.output
    output = json.loads(done.stdout)
    assert (output["type"], output["verdict"], output["path"]) == ("f16", "not run", str(tmp_path / "out"))
    assert set(output["files"]) | {MARK} == set(os.listdir(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-q", "q4_0", "-q", "f32"], "-q was given 2 times (q4_0, f32), but a folder has one type"),
        (["-o", "model.onnx"], "-o model.onnx is the name of a file, expected a folder"),
    ],
)
def test_command_refuses_several_types_and_names_of_files(
    options: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, [str(checkpoint), "--no-verify", *options], standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert not os.listdir(tmp_path)


def test_command_writes_a_chat_template(checkpoint: Path, tmp_path: Path) -> None:
    options = ["-o", str(tmp_path / "out"), "--json", "--no-verify", "--chat-template", "42dot"]
    done = CliRunner().invoke(command, [str(checkpoint), *options])
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert "<human>:" in settings["chat_template"]
    manifest = json.loads((tmp_path / "out" / MARK).read_text("utf-8"))
    assert manifest["options"]["chat_template"] == "42dot"


def test_command_names_the_folder_after_the_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, [str(checkpoint), "-q", "q8_0", "--no-verify"])
    assert done.exit_code == 0, done.output
    assert os.listdir(tmp_path) == ["한국어 모델-Q8_0-ONNX"]
    assert "kconv run 한국어 모델-Q8_0-ONNX" in done.stdout.replace("'", "")


def test_the_folder_one_is_in_is_not_replaced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stood in it would stand in a deleted folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExists, match="the folder you are in"):
        converted(checkpoint, Path())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("surroundings", "message"),
    [
        ("sys.modules['onnx'] = None", "the onnx package is not installed"),
        (
            "import onnx.defs; onnx.defs.onnx_opset_version = lambda: 21",
            "too old: it supports opset 21, expected 23",
        ),
    ],
)
def test_without_an_onnx_that_will_do_it_says_how_to_install_it(
    surroundings: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        f"import sys; {surroundings}\n"
        "from kconv.cli.main import main\n"
        f"sys.argv = ['kconv', 'to-onnx', {str(checkpoint)!r}, '-o', {str(tmp_path / 'out')!r}]\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert message in done.stderr
    assert "pip install 'kconv[onnx]'" in done.stderr
    assert os.listdir(tmp_path) == []
