"""to-gguf, inspect, models and demo-checkpoint as a user calls them."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_material import kconv, kconv_here

from kconv.converters.families import FAMILIES
from kconv.converters.samples import SAMPLES, write_sample
from kconv.core.gguf_file import TensorInfo, read_header, write_header
from kconv.quant.policy import POLICIES

pytestmark = pytest.mark.usefixtures("kconv_server")


def json_of(*arguments: object, **how: Any) -> dict[str, Any]:
    """The object of a `--json` command that must succeed."""
    done = kconv(*arguments, "--json", **how)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("cli") / "작은 42dot")


@pytest.fixture(scope="module")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    types = ["-q", "Q4_0,q8_0", "-q", "F32"]
    return out, json_of("to-gguf", checkpoint, *types, "-o", out, "--modelfile", "--no-verify")


# --- to-gguf ---


def test_several_types_in_any_case_make_several_files(converted: tuple[Path, dict[str, Any]]) -> None:
    out, conversion = converted
    names = [Path(output["path"]).name for output in conversion["outputs"]]
    assert names == [f"작은 42dot-{kind}.gguf" for kind in ("Q4_0", "Q8_0", "F32")]
    for output in conversion["outputs"]:
        assert Path(output["path"]).stat().st_size == output["bytes"]
        assert json.loads(Path(output["manifest"]).read_text())["output"]["bytes"] == output["bytes"]
    assert conversion["tokens"]["equal"] == conversion["tokens"]["texts"] > 2000
    assert {path.name for path in out.iterdir()} == {
        name
        for gguf in names
        for name in (gguf, f"{gguf}.manifest.json", gguf.replace(".gguf", ".Modelfile"))
    }


def test_modelfile_names_the_file_and_its_sampling(converted: tuple[Path, dict[str, Any]]) -> None:
    _, conversion = converted
    text = Path(conversion["modelfiles"][0]).read_text(encoding="utf-8")
    assert text.startswith("FROM ./작은 42dot-Q4_0.gguf\n")
    assert "PARAMETER temperature 0.5\n" in text
    assert "PARAMETER top_k 20\n" in text


def test_a_modelfile_of_the_user_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "x.Modelfile"
    mine.write_text("mine")
    done = kconv("to-gguf", checkpoint, "-o", tmp_path / "x.gguf", "--modelfile")
    assert done.returncode == 3
    assert "x.Modelfile already exists" in done.stderr
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine], "refused before anything was written"


def test_what_people_read(checkpoint: Path, tmp_path: Path) -> None:
    done = kconv_here("to-gguf", checkpoint, "-q", "q8_0", "-o", tmp_path / "x y.gguf", "--modelfile")
    assert done.returncode == 0, done.stderr
    assert "give the checkpoint's own token ids" in done.stdout
    assert "note (" in done.stdout
    assert "bits per weight" in done.stdout
    last = done.stdout.splitlines()[-3:]
    file = f"'{tmp_path}/x y.gguf'"
    assert last[0].strip() == f'kconv run {file} -p "안녕하세요"'
    assert last[1].strip() == f"llama-server -m {file}"
    assert last[2].strip() == f"ollama create x-y -f '{tmp_path}/x y.Modelfile'"


def test_the_name_of_the_default_output(checkpoint: Path, tmp_path: Path) -> None:
    (output,) = json_of("to-gguf", checkpoint, "--no-verify", cwd=tmp_path)["outputs"]
    assert output["path"] == "작은 42dot-F16.gguf"  # auto keeps the checkpoint's own type
    assert (tmp_path / output["path"]).is_file()


def test_existing_output_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    target.write_bytes(b"mine")
    done = kconv("to-gguf", checkpoint, "-o", target)
    assert done.returncode == 3
    assert "--force" in done.stderr
    assert target.read_bytes() == b"mine"
    assert kconv("to-gguf", checkpoint, "-o", target, "--force", "--no-verify").returncode == 0


@pytest.mark.parametrize(
    "options",
    [
        ("-q", "q9"),
        ("-q", "q8_0,q4_0", "-o", "x.gguf"),
        ("--no-adapter", "nothing"),
        ("--chat-template", "nobody"),
    ],
    ids=" ".join,
)
def test_wrong_usage_of_to_gguf(options: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", checkpoint, *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_adapters_can_be_left_out_and_templates_chosen(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    shown = json_of(
        "to-gguf",
        checkpoint,
        "-o",
        target,
        "--no-verify",
        "--no-adapter",
        "unify-bos-eos,rope-theta",
        "--chat-template",
        "42dot",
    )
    assert "<human>:" in shown["chat_template"]
    assert "unify-bos-eos" not in [note["name"] for note in shown["notes"]]
    options = ["--chat-template", "none", "--force", "--no-verify"]
    none = json_of("to-gguf", checkpoint, "-o", target, *options)
    assert none["chat_template"] is None


# --- inspect ---


def test_inspect_tells_the_same_of_a_file_as_its_conversion(converted: tuple[Path, dict[str, Any]]) -> None:
    _, conversion = converted
    output = conversion["outputs"][0]
    shown = json_of("inspect", output["path"])
    assert shown["kind"] == "gguf"
    assert shown["architecture"] == conversion["architecture"] == "llama"
    assert shown["parameters"] == conversion["parameters"]
    assert shown["bytes"] == output["bytes"]
    assert shown["file_type"] == "q4_0"
    assert {name: line["parameters"] for name, line in shown["types"].items()} == output["formats"]
    assert shown["manifest"] == output["manifest"]
    assert shown["license"] == conversion["license"]


def test_inspect_reads_a_gguf_as_gguf_py_does(converted: tuple[Path, dict[str, Any]]) -> None:
    import gguf

    path = converted[1]["outputs"][0]["path"]
    shown, reader = json_of("inspect", path), gguf.GGUFReader(path)
    assert [(t["name"], t["shape"], t["type"].upper(), t["bytes"]) for t in shown["tensors"]] == [
        (t.name, [int(n) for n in t.shape[::-1]], t.tensor_type.name, t.n_bytes) for t in reader.tensors
    ]
    field = reader.fields["tokenizer.ggml.eos_token_id"]
    assert shown["vocabulary"]["special"]["eos"] == {"id": field.contents(), "token": "<|endoftext|>"}


def test_inspect_of_a_checkpoint_reports_its_tokenizer(checkpoint: Path) -> None:
    shown = json_of("inspect", checkpoint)
    assert shown["kind"] == "checkpoint"
    assert shown["supported"] == "Llama"
    assert shown["vocabulary"]["kind"] == "byte-level bpe"
    assert shown["vocabulary"]["special"]["eos"]["token"] == "<|endoftext|>"
    prose = kconv("inspect", checkpoint).stdout
    for word in ("normalizer", "pre tokenizer", "decoder", "× 3", "licence", "<||bos||>"):
        assert word in prose
    assert "model.layers.2.mlp.up_proj.weight" in kconv("inspect", checkpoint, "--tensors").stdout


def test_inspect_of_a_checkpoint_without_a_tokenizer_still_tells_the_rest(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("vocab.json", "merges.txt"))
    shown = json_of("inspect", folder)
    assert shown["parameters"] > 1_000_000
    assert "error" in shown["vocabulary"]
    assert "contains no tokenizer" in kconv("inspect", folder).stdout


def test_inspect_shows_hostile_names_escaped(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    info = TensorInfo("evil\x1b[2J\n.weight", (32,), 0, 128)
    metadata = {
        "general.name": "\x1b]0;title\x07",
        "tokenizer.chat_template": "{{ x }}\x1b[31m",
        "tokenizer.ggml.tokens": ("\x1b[0m", "b"),
        "tokenizer.ggml.eos_token_id": 7,
        "tokenizer.ggml.bos_token_id": "one",
        "llama.rope.freq_base": float("nan"),
    }
    start = write_header(path, "llama", metadata, [info])
    with path.open("ab") as file:
        file.write(np.zeros(32, np.float32).tobytes())
    assert start % 32 == 0
    done = kconv("inspect", path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "evil\\x1b[2J" in done.stdout
    shown = json_of("inspect", path)
    assert shown["vocabulary"]["special"] == {
        "eos": {"id": 7, "token": None},
        "bos": {"id": "one", "token": None},
    }


def test_inspect_of_one_weight_file_says_to_give_the_folder(checkpoint: Path) -> None:
    done = kconv("inspect", checkpoint / "model.safetensors")
    assert done.returncode == 2
    assert f"kconv inspect {checkpoint}" in done.stderr


# --- models, demo-checkpoint ---


def test_models_lists_what_the_tables_hold() -> None:
    shown = json_of("models")
    assert [model["title"] for model in shown["architectures"]] == [family.title for family in FAMILIES]
    assert shown["types"] == list(POLICIES)
    assert shown["samples"] == sorted(SAMPLES)
    assert "LlamaForCausalLM" in kconv("models").stdout
    markdown = kconv("models", "--markdown").stdout
    assert markdown.splitlines()[1] == "| --- | --- | --- | --- |"
    assert len(markdown.splitlines()) == 2 + len(FAMILIES)


@pytest.mark.parametrize("family", sorted(SAMPLES))
def test_demo_checkpoints_are_written_whole_and_never_over_anything(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shown = json_of("demo-checkpoint", family.upper(), folder)
    assert shown["family"] == family
    assert set(shown["files"]) == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    assert kconv("demo-checkpoint", family, folder).returncode == 3
    (folder / "notes.txt").write_text("mine")
    assert kconv("demo-checkpoint", family, folder, "--force").returncode == 3
    assert (folder / "notes.txt").read_text() == "mine"


def test_manifest_and_version_agree(converted: tuple[Path, dict[str, Any]]) -> None:
    manifest = json.loads(Path(converted[1]["outputs"][0]["manifest"]).read_text())
    assert manifest["versions"]["kconv"] == version("kconv")
    assert f"kconv {version('kconv')}" in kconv("--version").stdout


def test_header_of_output_reads_back(converted: tuple[Path, dict[str, Any]]) -> None:
    for output in converted[1]["outputs"]:
        assert read_header(Path(output["path"])).arch == "llama"
