"""``kconv verify``, and the proof a conversion ends with, as users meet them: codes, JSON, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from damage_material import DAMAGES, edited

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem

KCONV = [str(Path(sys.executable).parent / "kconv")]
TYPE = "q4_0"


@dataclass(frozen=True)
class Done:
    """What a command left, as subprocess.run tells it."""

    returncode: int
    stdout: str
    stderr: str


Kconv = Callable[..., Done]


@pytest.fixture
def kconv(capsys: pytest.CaptureFixture[str]) -> Kconv:
    """The command line in this process: torch and transformers take seconds to import."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in arguments])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("verify") / "작은 42dot")


@pytest.fixture(scope="module")
def good(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that should pass, with its manifest."""
    target = tmp_path_factory.mktemp("good") / "작은.gguf"
    to_gguf(checkpoint, target, types=[TYPE], verify=False)
    return target


@pytest.fixture(scope="module")
def bad(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tensor scaled by 1.01."""
    path = tmp_path_factory.mktemp("bad") / good.name
    DAMAGES["a tensor scaled by 1.01"].make(good, path)
    shutil.copy(f"{good}.manifest.json", f"{path}.manifest.json")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "글.txt"
    path.write_text("옛날 어느 마을에 착한 나무꾼이 살고 있었습니다. " * 4, encoding="utf-8")
    return path


# --- passed and failed ---


def test_a_good_file_passes_with_a_table_and_a_report(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    report = tmp_path / "new" / "proof.html"
    done = kconv("verify", good, "--against", checkpoint, "--text", text, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("verdict: passed")
    assert lines[-1] == f"report: {report}"
    for part in ("tokens", "metadata", "weights", "logits"):
        assert any(line.split()[:2] == [part, "passed"] for line in lines), part
    assert "proof: " in done.stderr, "the cost is said before"
    assert report.read_text("utf-8").lstrip().lower().startswith("<!doctype html>")


def test_json_of_a_good_file_is_one_object(kconv: Kconv, good: Path, checkpoint: Path, text: Path) -> None:
    done = kconv("verify", good, "--against", checkpoint, "--text", text, "--tokens", 24, "--json")
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)
    assert (proof["verdict"], proof["type"], proof["report"]) == ("passed", TYPE, None)
    assert proof["cause"] is None
    figures = proof["logits"]["figures"]
    assert figures["windows"] == 1
    assert figures["positions"] in (22, 23), "24 tokens, the last of which predicts nothing"
    assert 0 < figures["kl_mean"] < 0.15


def test_a_damaged_file_fails_with_1_and_its_cause(
    kconv: Kconv, bad: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    report = tmp_path / "proof.html"
    words = ["verify", bad, "--against", checkpoint, "--text", text, "--report", report]
    done = kconv(*words, "--json")
    assert done.returncode == 1
    proof = json.loads(done.stdout)
    assert proof["verdict"] == proof["weights"]["verdict"] == "failed"
    assert "1.01" in proof["cause"]
    assert proof["cause"] in done.stderr
    assert "Traceback" not in done.stderr
    assert "failed" in report.read_text("utf-8"), "a failed proof is reported, too"
    again = kconv(*words, "--force")
    assert again.returncode == 1
    assert "Findings" in again.stdout
    assert again.stdout.splitlines()[-2].startswith("verdict: failed")


def test_a_tight_gate_fails_and_the_layers_are_looked_at(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path
) -> None:
    words = ["verify", good, "--against", checkpoint, "--text", text, "--json"]
    done = kconv(*words, "--gate", f"{TYPE.upper()}=1e-9")
    assert done.returncode == 1, done.stderr
    logits = json.loads(done.stdout)["logits"]
    assert logits["verdict"] == "failed"
    assert logits["gate"]["warns"] == 1e-9
    assert len(logits["diagnosis"]["layers"]) > 1
    quick = kconv(*words, "--gate", "1e-9", "--no-diagnose")
    assert quick.returncode == 1
    assert json.loads(quick.stdout)["logits"]["diagnosis"] is None


def test_a_warning_is_said_and_ends_with_0(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    labelled = edited(good, tmp_path / "labelled.gguf", metadata={"general.file_type": 7})
    done = kconv("verify", labelled, "--against", checkpoint, "--text", text)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("verdict: warned")
    assert "right, with warnings" in last
    assert "(warning)" in done.stdout


def test_a_loss_fails_only_above_a_limit_that_was_given(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    words = ["verify", good, "--against", checkpoint, "--text", text]
    logits = json.loads(kconv(*words, "--json").stdout)["logits"]
    mean = logits["figures"]["kl_mean"]
    assert logits["loss"]["grade"] in ("some", "little")
    assert kconv(*words, "--max-kl", mean * 1.1).returncode == 0
    failed = kconv(*words, "--max-kl", mean * 0.9)
    assert failed.returncode == 1
    assert "right; logits: mean KL divergence" in failed.stdout.splitlines()[-1]
    policy = tmp_path / "policy.toml"
    policy.write_text(f"max_kl = 5.0\n[gates]\nq4_0 = {mean * 0.9}\n")
    assert kconv(*words, "--policy", policy).returncode == 1
    assert kconv(*words, "--policy", policy, "--gate", f"q4_0={mean * 1.1}").returncode == 0
    policy.write_text("max_kl = 'much'")
    refused = kconv(*words, "--policy", policy)
    assert refused.returncode == 3
    assert "max_kl is 'much', expected a positive number" in refused.stderr


def test_a_file_without_a_manifest_is_verified_too(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.gguf"
    shutil.copy(good, alone)
    done = kconv("verify", alone, "--against", checkpoint, "--text", text)
    assert done.returncode == 0, done.stdout + done.stderr


# --- wrong usage ---


@pytest.mark.parametrize(
    "options",
    [
        ("--gate", "much"),
        ("--gate", "-1"),
        ("--gate", "nan"),
        ("--gate", "q9_9=0.1"),
        ("--max-kl", "0"),
        ("--gate", "=0.1"),
        ("--gate", "q4_0=0.1", "--gate", "Q4_0=0.2"),
        ("--tokens", "1"),
        ("--window", "0"),
        ("--threads", "0"),
        ("--report", "model.gguf", "--force"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(
    kconv: Kconv,
    options: tuple[str, ...],
    good: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = kconv("verify", good, "--against", checkpoint, *options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_against_what_must_be_said(kconv: Kconv, good: Path) -> None:
    done = kconv("verify", good)
    assert done.returncode == 2
    assert "--against" in done.stderr


# --- texts that are refused ---


def not_utf8(path: Path) -> None:
    path.write_bytes("동해 물과 백두산이".encode("cp949"))


def utf16(path: Path) -> None:
    path.write_bytes("ab".encode("utf-16"))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)


TEXTS = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.touch(), "is empty"),
    "white space": (lambda path: path.write_text(" \n\t \u3000\n"), "white space"),
    "not UTF-8": (not_utf8, "iconv -f cp949"),
    "UTF-16": (utf16, "iconv -f utf-16"),
    "binary": (lambda path: path.write_bytes(b"ab\0\0cd"), "NUL"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "pipe": (os.mkfifo, "not a regular file"),
    "too large": (huge, "64 MiB"),
    "too short": (lambda path: path.write_text("a"), "too few"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_cannot_be_read_are_refused_with_3(
    kconv: Kconv, case: str, good: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    make, message = TEXTS[case]
    path = tmp_path / "text"
    make(path)
    done = kconv("verify", good, "--against", checkpoint, "--text", text, "--text", path, "--json")
    assert done.returncode == 3, done.stderr
    assert message in done.stderr
    assert done.stderr.count("kconv: error") == 1
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 3


def test_windows_beyond_the_context_are_refused(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path
) -> None:
    done = kconv("verify", good, "--against", checkpoint, "--text", text, "--window", 10**6)
    assert done.returncode == 3, done.stderr
    assert "context" in done.stderr


# --- files that are refused ---


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[:-1000])


ARTIFACTS = {
    "missing": lambda path, good: None,
    "empty": lambda path, good: path.touch(),
    "not a GGUF": lambda path, good: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "truncated": truncated,
    "folder": lambda path, good: path.mkdir(),
}


@pytest.mark.parametrize("case", ARTIFACTS)
def test_what_is_no_whole_gguf_is_refused_with_3(
    kconv: Kconv, case: str, good: Path, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    ARTIFACTS[case](path, good)
    done = kconv("verify", path, "--against", checkpoint, "--json")
    assert done.returncode == 3, done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 3


def test_the_two_in_the_wrong_order_are_told_apart(kconv: Kconv, good: Path, checkpoint: Path) -> None:
    done = kconv("verify", checkpoint, "--against", good)
    assert done.returncode == 3
    assert f"kconv verify {good} --against" in done.stderr


def test_a_checkpoint_that_is_not_there_is_3(kconv: Kconv, good: Path, tmp_path: Path) -> None:
    done = kconv("verify", good, "--against", tmp_path / "none")
    assert done.returncode == 3
    assert str(tmp_path / "none") in done.stderr


def test_another_model_is_refused_with_3(kconv: Kconv, good: Path, tmp_path: Path) -> None:
    other = write_sample("eagle", tmp_path / "eagle")
    done = kconv("verify", good, "--against", other)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_that_changed_is_refused_unless_asked(
    kconv: Kconv, good: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(checkpoint, tmp_path / "changed"))
    weights = changed / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    weights.write_bytes(data)
    done = kconv("verify", good, "--against", changed, "--text", text)
    assert done.returncode == 3, done.stderr
    assert "model.safetensors" in done.stderr
    assert "--ignore-manifest" in done.stderr
    done = kconv("verify", good, "--against", changed, "--text", text, "--ignore-manifest")
    assert done.returncode in (0, 1)
    assert "verdict: " in done.stdout


# --- the report's place ---


def test_a_report_that_is_there_is_refused_before_the_work(
    kconv: Kconv, good: Path, checkpoint: Path, tmp_path: Path
) -> None:
    report = tmp_path / "proof.html"
    report.write_text("mine")
    done = kconv("verify", good, "--against", checkpoint, "--report", report)
    assert done.returncode == 3
    assert "--force" in done.stderr
    assert "proof: " not in done.stderr, "nothing had begun"
    assert report.read_text() == "mine"
    assert "choose another --report" in done.stderr


def test_a_report_without_room_does_not_cost_the_verdict(
    good: Path, checkpoint: Path, text: Path, tmp_path: Path, kconv: Kconv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise EnvironmentProblem("no space left", hint="write to another disk with -o")

    monkeypatch.setattr("kconv.report.html.write_report", full)
    report = tmp_path / "proof.html"
    done = kconv("verify", good, "--against", checkpoint, "--text", text, "--report", report)
    assert done.returncode == 4
    assert "verdict: passed" in done.stdout
    assert "with --report" in done.stderr


def test_a_report_nobody_may_write_is_refused_before_the_work(
    good: Path, checkpoint: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("running as root without setpriv: nothing is forbidden")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    words = [*prefix, *KCONV, "verify", str(good), "--against", str(checkpoint)]
    words += ["--report", str(locked / "new" / "proof.html")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    assert "permission" in done.stderr
    assert "proof: " not in done.stderr


# --- the proof of a conversion ---


def test_a_conversion_proves_every_file(kconv: Kconv, checkpoint: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", checkpoint, "-q", "f32,q8_0,q4_0", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    for type_ in ("F32", "Q8_0", "Q4_0"):
        assert f"{type_}: passed: " in done.stdout
    assert "proof: " in done.stderr
    for path in tmp_path.glob("*.manifest.json"):
        proof = json.loads(path.read_text("utf-8"))["proof"]
        assert proof["verdict"] == "passed"
        assert proof["scope"] == "quick"
        assert proof["logits"]["figures"]["positions"] > 100
    q4_0 = next(tmp_path.glob("*-Q4_0.gguf"))
    assert "passed (quick), mean KL 0.0" in kconv("inspect", q4_0).stdout
    Path(f"{q4_0}.manifest.json").write_text('{"output": {"bytes": 1}}')
    assert json.loads(kconv("inspect", q4_0, "--json").stdout)["proof"] is None, "not this file's manifest"


def test_json_of_a_conversion_holds_the_proofs(kconv: Kconv, checkpoint: Path, tmp_path: Path) -> None:
    words = ["to-gguf", checkpoint, "-q", "q8_0", "-o", tmp_path / "x.gguf", "--json"]
    output = json.loads(kconv(*words, "--verify", "full").stdout)
    assert output["verdict"] == "passed"
    (proof,) = output["proofs"]
    assert proof["scope"] == "full"
    assert proof["weights"]["verdict"] == "passed"
    output = json.loads(kconv(*words, "--no-verify", "--force").stdout)
    assert (output["verdict"], output["proofs"]) == ("not run", [])
    assert (
        json.loads(Path(output["outputs"][0]["manifest"]).read_text("utf-8"))["proof"]["verdict"] == "not run"
    )


def test_verify_and_no_verify_contradict_each_other(
    kconv: Kconv, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = kconv("to-gguf", checkpoint, "--verify", "full", "--no-verify")
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_whose_proof_fails_leaves_the_file_and_says_so(
    kconv: Kconv, checkpoint: Path, tmp_path: Path
) -> None:
    """NaN let through on purpose: no quantization or runtime is at fault, but nobody may call this proven."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("up_proj.weight"))
    weights[name] = weights[name].copy()
    weights[name][0, 0] = np.nan
    save_file(weights, broken / "model.safetensors")
    target = tmp_path / "out.gguf"
    words = ["to-gguf", broken, "-q", "f16", "--allow-nan", "-o", target]
    done = kconv(*words)
    assert done.returncode == 1, done.stderr
    assert target.is_file()
    assert "F16: failed: " in done.stdout
    assert f"kconv verify {target} --against" in done.stderr
    manifest = json.loads(Path(f"{target}.manifest.json").read_text("utf-8"))
    assert manifest["proof"]["verdict"] == "failed"
    done = kconv(*words, "--force", "--json")
    assert done.returncode == 1
    output = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert output["verdict"] == "failed"


def test_nothing_is_called_converted_while_importance_is_learned(
    kconv: Kconv, checkpoint: Path, tmp_path: Path
) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    weights = {name: np.array(values) for name, values in load_file(broken / "model.safetensors").items()}
    weights["model.layers.0.mlp.up_proj.weight"][:] = np.nan
    save_file(weights, broken / "model.safetensors")
    (tmp_path / "text.txt").write_text("오늘은 바람이 분다. " * 40, "utf-8")
    target = tmp_path / "out.gguf"
    done = kconv("to-gguf", broken, "-q", "q4_0", "--calibrate", tmp_path / "text.txt", "-o", target)
    assert done.returncode == 3, done.stderr
    assert "little text" in done.stderr
    assert "NaN" in done.stderr
    assert "complete, but not proven" not in done.stderr
    assert not target.exists()


def test_interrupting_the_proof_leaves_the_files(checkpoint: Path, tmp_path: Path) -> None:
    words = [*KCONV, "to-gguf", str(checkpoint), "-q", "q8_0", "-o", str(tmp_path / "x.gguf")]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    log = ""
    while "proof: " not in log and child.poll() is None:
        log += child.stderr.readline()
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=60)
    assert child.returncode == 130, log + rest
    assert "complete, but not proven" in rest
    assert "Traceback" not in rest
    manifest = json.loads((tmp_path / "x.gguf.manifest.json").read_text("utf-8"))
    assert manifest["proof"]["verdict"] == "not run"
    # besides what --resume goes on from
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert names == ["x.gguf", "x.gguf.manifest.json"]
