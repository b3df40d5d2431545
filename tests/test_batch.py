"""``make batch``, driven as a user does: real make, real kconv, small real checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kconv.converters.samples.synthetic import write_eagle, write_llama_3_ko
from kconv.core.gguf_file import read_header

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints, ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("models")
    write_eagle(folder / "one", vocab_size=600)
    write_llama_3_ko(folder / "two", base_vocab=500)
    return folder


def batch(
    *models: Path | str, quants: str, out: Path, jobs: int = 1, verify: str = "no", flags: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``make batch`` with the kconv of this environment, installing nothing."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", f"-j{jobs}", "-o", ".venv/.kconv-ready", "batch"]
    command += [f"MODELS={' '.join(map(str, models))}", f"QUANTS={quants}", f"OUT={out}"]
    command += [f"BIN={Path(sys.executable).parent}", f"VERIFY={verify}", f"KCONV_FLAGS={flags}"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Modification time and inode of every GGUF in ``folder``: either changes when a file is made again."""
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.glob("*.gguf"))
    }


def changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    return {name for name in after if before.get(name) != after[name]}


def begun(out: Path) -> list[int]:
    """How many files each conversion was to make, by the journal."""
    lines = (out / ".kconv-batch.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [len(record["keys"]) for record in records if record["event"] == "began"]


def change(path: Path) -> None:
    """Other bytes that mean the same."""
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")


def test_only_what_is_missing_or_changed_is_made(models: Path, tmp_path: Path) -> None:
    out, two = tmp_path / "deep" / "dist", Path(shutil.copytree(models / "two", tmp_path / "two"))
    first = batch(f"{models}/one/", two, quants="q8_0 Q4_0", out=out, jobs=2)
    assert first.returncode == 0, first.stderr
    made = stamps(out)
    assert set(made) == {"one-Q8_0.gguf", "one-Q4_0.gguf", "two-Q8_0.gguf", "two-Q4_0.gguf"}
    assert begun(out) == [2, 2]  # a read for all types of a checkpoint
    for name in made:
        assert read_header(out / name).tensors
        manifest = json.loads((out / f"{name}.manifest.json").read_text("utf-8"))
        assert manifest["output"]["file"] == name

    (two / "tokenizer_config.json").touch()
    again = batch(models / "one", two, quants="q4_0 q8_0", out=out)
    assert again.returncode == 0, again.stderr
    assert "4 outputs: 4 done before" in again.stdout
    assert stamps(out) == made

    (out / "one-Q4_0.gguf").unlink()
    change(two / "tokenizer_config.json")
    third = batch(models / "one", two, quants="q8_0 q4_0", out=out)
    assert third.returncode == 0, third.stderr
    assert changed(made, stamps(out)) == {"one-Q4_0.gguf", "two-Q8_0.gguf", "two-Q4_0.gguf"}


def test_one_failure_neither_stops_nor_damages_the_others(models: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "dist", tmp_path / "broken"
    shutil.copytree(models / "two", broken)
    assert batch(broken, quants="q8_0", out=out).returncode == 0
    before = stamps(out)
    (broken / "model-00001-of-00002.safetensors").unlink()
    result = batch(broken, tmp_path / "absent", models / "one", quants="q8_0", out=out, jobs=2)
    assert result.returncode != 0
    assert "model-00001-of-00002.safetensors" in result.stderr
    assert "absent" in result.stderr
    after = stamps(out)
    assert after["broken-Q8_0.gguf"] == before["broken-Q8_0.gguf"]
    assert set(after) == {"broken-Q8_0.gguf", "one-Q8_0.gguf"}
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]


def test_a_file_whose_proof_fails_stays_and_is_never_taken_for_done(models: Path, tmp_path: Path) -> None:
    """NaN let through on purpose makes a file whole but wrong."""
    from safetensors.torch import load_file, save_file

    out, broken = tmp_path / "dist", Path(shutil.copytree(models / "one", tmp_path / "broken"))
    (weights,) = broken.glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name] * float("nan")
    save_file(tensors, weights)
    for number in range(2):
        result = batch(broken, quants="f16", out=out, verify="quick", flags="--allow-nan")
        assert result.returncode != 0
        assert "the proof failed" in result.stderr
        assert set(stamps(out)) == {"broken-F16.gguf"}
        assert len(begun(out)) == number + 1
    assert batch(broken, quants="f16", out=out, verify="no", flags="--allow-nan").returncode == 0
    again = batch(broken, quants="f16", out=out, flags="--allow-nan")
    assert "1 output: 1 done before" in again.stdout


def test_what_is_made_is_proven(models: Path, tmp_path: Path) -> None:
    assert batch(models / "one", quants="f32", out=tmp_path, verify="").returncode == 2
    assert batch(models / "one", quants="f32", out=tmp_path, verify="quick").returncode == 0
    manifest = json.loads((tmp_path / "one-F32.gguf.manifest.json").read_text("utf-8"))
    assert manifest["proof"]["verdict"] == "passed"


def test_an_unknown_type_is_refused_before_anything_is_made(models: Path, tmp_path: Path) -> None:
    result = batch(models / "one", quants="q9_9 q8_0", out=tmp_path / "dist")
    assert result.returncode != 0
    assert "q9_9" in result.stderr.lower()
    assert not (tmp_path / "dist").exists()


def test_folders_of_one_name_are_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "one", tmp_path / "elsewhere" / "one")
    result = batch(models / "one", tmp_path / "elsewhere" / "one/", quants="q8_0", out=tmp_path / "dist")
    assert result.returncode == 2
    assert "called one" in result.stderr
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("models_", "quants", "expected"),
    [
        ("", "q8_0", "MODELS is empty"),
        (".", "q8_0", "give each folder"),
        ("some*", "q8_0", "has a special meaning in make"),
        ("some", "", "QUANTS is empty"),
    ],
)
def test_wrong_usage_says_what_is_wrong(models_: str, quants: str, expected: str, tmp_path: Path) -> None:
    result = batch(models_, quants=quants, out=tmp_path / "dist")
    assert result.returncode == 2
    assert expected in result.stderr
    assert not (tmp_path / "dist").exists()


def test_a_file_can_be_asked_for_by_name(models: Path, tmp_path: Path) -> None:
    """The outputs are file targets like any other; so a Makefile of one's own can include mk/batch.mk."""
    target = tmp_path / "dist" / "one-Q8_0.gguf"
    lines = [
        f"BIN := {Path(sys.executable).parent}",
        f"MODELS := {models / 'one'}",
        f"OUT := {target.parent}",
        "VERIFY := no",
        f"include {ROOT / 'mk' / 'batch.mk'}",
    ]
    (tmp_path / "Makefile").write_text("\n".join(lines) + "\n", "utf-8")
    command = ["make", "-C", str(tmp_path), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert read_header(target).tensors
