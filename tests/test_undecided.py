"""A proof whose process dies decides nothing: files stay, exit code 4, and nothing says passed or failed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage_material import edited

from kconv.cli.main import main
from kconv.converters import to_gguf, to_onnx
from kconv.converters.samples import write_sample
from kconv.core.errors import ChildDied
from kconv.report.html import report_html
from kconv.runtimes import llama_loaded, onnx_process
from kconv.runtimes.onnx_folder import open_onnx
from kconv.runtimes.onnx_process import OnnxProcess
from kconv.verify import verify

# The real children, with what befalls them.
STAND_IN = """
import os, resource, signal, time
from kconv.core import child
from kconv.runtimes import {real} as real

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def main(arguments):
    {does}
    return real.main(arguments)
"""
AT_ONCE = "die()"
Kill = Callable[..., None]


@pytest.fixture
def stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kill:
    """What a child of llama.cpp or onnxruntime does before its work, each time one is started."""
    place = tmp_path / "stand-in"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))

    def put(process: Any, does: str, *, patience: float = 600.0) -> None:
        real = "llama_child" if process is llama_loaded else "onnx_child"
        (place / f"stand_in_{real}.py").write_text(STAND_IN.format(real=real, does=does))
        monkeypatch.setattr(process, "MODULE", f"stand_in_{real}")
        monkeypatch.setattr(process, "PATIENCE", patience)

    return put


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("undecided") / "42dot")


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    made = to_gguf(checkpoint, checkpoint.with_name("made.gguf"), types=["f32"], verify=False)
    return made.outputs[0].path


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return to_onnx(checkpoint, checkpoint.with_name("onnx"), type="q8_0", verify=False, threads=1).path


def test_verify_decides_nothing(
    file: Path, checkpoint: Path, stands_in: Kill, tmp_path: Path, capfd: Any
) -> None:
    stands_in(llama_loaded, AT_ONCE)
    proof = verify(file, checkpoint, tokens=40, threads=1)
    parts = {name: part.verdict for name, part in proof.parts.items()}
    sound = dict.fromkeys(("tokens", "metadata", "weights"), "passed")
    assert parts == {**sound, "runtime": "not decided", "logits": "not decided"}
    assert proof.verdict == "not decided"
    assert proof.cause is not None
    assert "killed (signal 9, SIGKILL)" in proof.cause
    page = report_html([proof])
    assert "says nothing about the file" in page
    assert "No fault was found in this file" in page
    asked = ["verify", str(file), "--against", str(checkpoint), "--tokens", "40", "--threads", "1"]
    assert main([*asked, "--json"]) == 4
    printed = capfd.readouterr()
    assert json.loads(printed.out)["verdict"] == "not decided"
    assert "the proof could not be finished: " in printed.err
    assert main([*asked, "--report", str(tmp_path / "proof.html")]) == 4
    printed = capfd.readouterr()
    assert "verdict: not decided" in printed.out
    assert "Traceback" not in printed.err
    assert (tmp_path / "proof.html").exists()


def test_what_was_found_before_still_counts(
    file: Path, checkpoint: Path, stands_in: Kill, tmp_path: Path
) -> None:
    bad = edited(file, tmp_path / "bad.gguf", metadata={"llama.rope.freq_base": 7.0})
    stands_in(llama_loaded, AT_ONCE)
    proof = verify(bad, checkpoint, tokens=40, threads=1)
    assert proof.verdict == "failed"
    assert (proof.cause or "").startswith("metadata: ")


def test_a_conversion_keeps_its_files(checkpoint: Path, stands_in: Kill, tmp_path: Path, capfd: Any) -> None:
    stands_in(llama_loaded, AT_ONCE)
    asked = ["to-gguf", str(checkpoint), "-q", "f16,q8_0", "-o", str(tmp_path / "made"), "--threads", "1"]
    assert main(asked) == 4
    printed = capfd.readouterr()
    made = sorted((tmp_path / "made").glob("*.gguf"))
    assert len(made) == 2
    for path in made:
        proof = json.loads(Path(f"{path}.manifest.json").read_text())["proof"]
        assert proof["verdict"] == proof["logits"]["verdict"] == "not decided"
        assert f"the proof could not be finished: {path}: logits: " in printed.err
        assert f"to prove it: kconv verify {path} --against {checkpoint}" in printed.err
    assert printed.err.count("nothing was decided") == 2
    assert "To run it" not in printed.out
    assert main(["inspect", str(made[0])]) == 0
    assert "not decided (quick)" in capfd.readouterr().out


def test_so_does_compare(checkpoint: Path, stands_in: Kill, capfd: Any, tmp_path: Path) -> None:
    stands_in(llama_loaded, AT_ONCE)
    words = ["compare", str(checkpoint), "-q", "q8_0,f16", "--tokens", "30", "-o", str(tmp_path), "--json"]
    assert main(words) == 4
    printed = capfd.readouterr()
    assert [each["verdict"] for each in json.loads(printed.out)["types"]] == ["not decided"] * 2
    assert printed.err.count("could not be finished") == 2


def test_a_death_in_the_diagnosis_leaves_the_verdict(file: Path, checkpoint: Path, stands_in: Kill) -> None:
    stands_in(llama_loaded, "real._send_layers = die")
    proof = verify(file, checkpoint, tokens=40, threads=1, diagnose=True)
    assert (proof.verdict, proof.logits.verdict, proof.logits.diagnosis) == ("passed", "passed", None)
    (finding,) = proof.logits.findings
    assert finding.message.startswith("no diagnosis: the process that runs llama.cpp was killed")


# --- onnxruntime ---


def test_a_folder_is_kept_and_not_decided(
    checkpoint: Path, stands_in: Kill, tmp_path: Path, capfd: Any
) -> None:
    stands_in(onnx_process, AT_ONCE)
    made = tmp_path / "made"
    assert main(["to-onnx", str(checkpoint), "-q", "q8_0", "-o", str(made), "--threads", "1"]) == 4
    printed = capfd.readouterr().err
    assert f"the folder is complete; to prove it: kconv verify {made}" in printed
    assert json.loads((made / "kconv.manifest.json").read_text())["proof"]["verdict"] == "not decided"


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (AT_ONCE, "onnxruntime was killed (signal 9, SIGKILL), most likely because memory ran out"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "onnxruntime crashed (signal 11, SIGSEGV)"),
        ("time.sleep(60)", "onnxruntime did not answer"),
        ("import onnxruntime; resource.setrlimit(resource.RLIMIT_AS, (1 << 26,) * 2)", "ran out of memory"),
        ("import no_such_package", "does not work: No module named"),
    ],
)
def test_run_says_what_befell_its_process(
    does: str, message: str, folder: Path, stands_in: Kill, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from kconv.runtimes import onnx_limits

    sleeps = "sleep" in does
    if sleeps:
        monkeypatch.setattr(onnx_limits, "_LOADING", 0.0)
    stands_in(onnx_process, does, patience=1.0 if sleeps else 600.0)
    assert main(["run", str(folder), "-p", "가", "-n", "3", "--threads", "1"]) == 4
    printed = capfd.readouterr().err
    assert message in printed
    assert "this says nothing about the input" in printed
    assert "pip install 'kconv[onnx]'" in printed or "no_such" not in does
    assert "Traceback" not in printed


def test_a_text_goes_on_in_a_new_process(folder: Path) -> None:
    def generated(killed: set[int]) -> list[Any]:
        with OnnxProcess(open_onnx(folder), threads=1) as process:
            process.begin()
            logits = [process.read([3, 7, 11, 15], 2)]
            for at in range(6):
                if at in killed:
                    assert process._child
                    os.kill(process._child.pid, signal.SIGKILL)
                logits.append(process.read([20 + at]))
        return logits

    right = generated(set())
    for killed in ({0}, {5}):
        for actual, expected in zip(generated(killed), right, strict=True):
            assert np.array_equal(actual, expected)
    with pytest.raises(ChildDied, match="killed"):
        generated({1, 4})


def test_after_a_death_nothing_goes_on_from_nothing(folder: Path) -> None:
    with OnnxProcess(open_onnx(folder), threads=1) as process:
        with pytest.raises(RuntimeError, match="start the process first"):
            process.read([3])
        process.begin()
        right = process.read([3, 7])
        for _ in range(2):
            assert process._child
            os.kill(process._child.pid, signal.SIGKILL)
            if process._replaced:
                with pytest.raises(ChildDied):
                    process.read([9])
            else:
                process.read([9])
        with pytest.raises(RuntimeError, match="start the process first"):
            process.read([9])
        process.begin()
        assert np.array_equal(process.read([3, 7]), right)
