"""Runs killed or interrupted anywhere go on with --resume; the bytes are those of one that nobody ended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv

from kconv.converters.done_pieces import read_done
from kconv.converters.gguf_plan import plan_file
from kconv.converters.gguf_source import gguf_model
from kconv.converters.gguf_writer import begin_files, finish_files, write_files, write_pieces
from kconv.converters.journal import Journal, JournalFolder
from kconv.converters.samples import write_sample
from kconv.converters.write_plan import sound_pieces
from kconv.core.kept import all_kept
from kconv.quant.formats import Q8_0
from kconv.quant.gguf_weights import open_gguf

pytestmark = pytest.mark.usefixtures("kconv_server")

# Runs kconv in a process that is struck when AT is called for the COUNTth time. By then the journal has all
# that is finished, if it is as quick as most of these tests make it.
STRUCK = """
import importlib, os, signal, sys, threading, time
interval, number, count, at, *words = sys.argv[1:]
from kconv.converters import gguf_writer, journal
journal.INTERVAL = float(interval)
journals, enter = [], journal.Journal.__enter__
def entered(self):
    journals.append(self)
    return enter(self)
journal.Journal.__enter__ = entered
leave = journal.Journal.__exit__
def left_in_peace(self, *failure):  # however quick the work was, some of it is told
    wait()
    return leave(self, *failure)
journal.Journal.__exit__ = left_in_peace
finish = journal.Journal.finished
def finished(self, *what):
    finish(self, *what)
    if name == "synced":  # syncs are counted: there are several, however quick the work is
        wait()
journal.Journal.finished = finished
def wait():
    while journal.INTERVAL < 1 and any(each._new or each._appending.locked() for each in journals):
        time.sleep(0.002)
module, _, name = at.rpartition(":")
module = importlib.import_module(module)
function, left = getattr(module, name), int(count)
def strike(*what, **how):
    global left
    left -= 1
    if left == 0:
        if name == "write_at":
            wait()
        os.kill(os.getpid(), int(number))
        while int(number) == signal.SIGKILL:
            time.sleep(1)
    return function(*what, **how)
setattr(module, name, strike)
from kconv.cli.main import main
sys.exit(main(words))
"""
WRITE, SYNC = "kconv.converters.gguf_writer:write_at", "kconv.converters.journal:synced"
TYPES = ("-q", "q8_0", "-q", "q4_0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("resume") / "checkpoint")


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Path:
    """A GGUF to quantize, which takes less time than a checkpoint to convert."""
    path = checkpoint.parent / "model-F32.gguf"
    assert kconv("to-gguf", checkpoint, "-q", "f32", "--no-verify", "-o", path).returncode == 0
    return path


@pytest.fixture(scope="module")
def right(source: Path) -> dict[str, str]:
    """What a run makes that nobody ends, by name."""
    folder = source.parent / "right"
    assert kconv("quantize", source, *TYPES, "-o", folder).returncode == 0
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    """Of what is not hidden."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[!.]*")}


def struck(
    at: str, count: int, *words: object, number: int = signal.SIGKILL, interval: float = 0.02
) -> subprocess.CompletedProcess[str]:
    arguments = [interval, int(number), count, at, *words, "--threads", "1"]
    return subprocess.run(
        [sys.executable, "-c", STRUCK, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def done(folder: Path) -> int:
    """How many pieces the journals have."""
    return sum(
        len(json.loads(line.split(b" ", 1)[1])["pieces"])
        for path in folder.glob(".*.journal/*.pieces")
        for line in path.read_bytes().split(b"\n")
        if line
    )


def resumed(folder: Path, right: dict[str, str], *words: object) -> str:
    """What the run says that goes on and makes the ``right`` files."""
    finished = kconv(*words, "--resume", "-o", folder)
    assert finished.returncode == 0, finished.stderr
    assert digests(folder) == right
    assert hidden(folder) == []
    return finished.stderr


@pytest.mark.parametrize("share", [10, 50, 90])
def test_killed_while_it_writes(share: int, source: Path, right: dict[str, str], tmp_path: Path) -> None:
    words = ("quantize", source, *TYPES)
    whole = 2 * len(
        json.loads((source.parent / "right/model-Q8_0.gguf.manifest.json").read_text())["tensors"]
    )
    ended = struck(WRITE, whole * share // 100 + 2, *words, "-o", tmp_path)  # two are the headers
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(tmp_path.glob("[!.]*")) == []
    kept = done(tmp_path)
    assert 0 < kept <= whole * share / 200
    said = resumed(tmp_path, right, *words)
    assert f"resumed: {kept} of {whole // 2} pieces" in said


@pytest.mark.parametrize("count", [2, 5, 6])
def test_killed_while_the_journal_is_written(
    count: int, source: Path, right: dict[str, str], tmp_path: Path
) -> None:
    """Before the data are synced, between two files, and while the folder is made."""
    words = ("quantize", source, *TYPES)
    assert struck(SYNC, count, *words, "-o", tmp_path).returncode == -signal.SIGKILL
    assert list(tmp_path.glob("[!.]*")) == []
    said = resumed(tmp_path, right, *words)
    assert ("resumed" in said) == (count > 5)
    assert ("nothing to resume" in said) == (count < 4)


@pytest.mark.parametrize("at", [("kconv.core.files:_publish", 3), ("kconv.core.files:synced", 2)])
def test_killed_while_files_get_their_names(
    at: tuple[str, int], source: Path, right: dict[str, str], tmp_path: Path
) -> None:
    words = ("quantize", source, *TYPES)
    assert struck(*at, *words, "-o", tmp_path).returncode == -signal.SIGKILL
    for path in tmp_path.glob("[!.]*.gguf"):
        assert digests(tmp_path)[path.name] == right[path.name], "whole, or not there"
    assert "resumed" in resumed(tmp_path, right, *words)


def test_killed_when_all_have_their_names(source: Path, right: dict[str, str], tmp_path: Path) -> None:
    words = ("quantize", source, *TYPES)
    ended = struck("shutil:rmtree", 1, *words, "-o", tmp_path)
    assert ended.returncode == -signal.SIGKILL
    assert digests(tmp_path) == right
    assert "the files are complete" in resumed(tmp_path, right, *words)


def test_killed_twice(source: Path, right: dict[str, str], tmp_path: Path) -> None:
    words = ("quantize", source, *TYPES)
    struck(WRITE, 20, *words, "-o", tmp_path)
    first = done(tmp_path)
    struck(WRITE, 20, *words, "--resume", "-o", tmp_path)
    assert done(tmp_path) > first > 0
    assert len([*tmp_path.glob(".*.journal/*.pieces")]) == 2, "each run has a file of its own"
    resumed(tmp_path, right, *words)


def test_interrupted(source: Path, right: dict[str, str], tmp_path: Path) -> None:
    words = ("quantize", source, *TYPES)
    ended = struck(WRITE, 30, *words, "-o", tmp_path, number=signal.SIGINT)
    assert ended.returncode == 130, ended.stderr
    command = f"kconv quantize {source} {' '.join(TYPES)} -o {tmp_path} --threads 1 --resume"
    assert f"to go on from there: {command}\n" in ended.stderr
    assert f"to remove them: kconv clean {tmp_path}\n" in ended.stderr
    assert list(tmp_path.glob("[!.]*")) == []
    assert "resumed: " in resumed(tmp_path, right, *words)


def test_interrupted_at_once_nothing_is_kept(source: Path, tmp_path: Path) -> None:
    ended = struck(WRITE, 30, "quantize", source, *TYPES, "-o", tmp_path, number=signal.SIGINT, interval=5)
    assert ended.returncode == 130
    assert ended.stderr.endswith("\nkconv: interrupted\n")
    assert "--resume" not in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def ended_before(source: Path) -> Path:
    folder = source.parent / "ended"
    struck(WRITE, 60, "quantize", source, *TYPES, "-o", folder)
    assert done(folder) > 10
    return folder


@pytest.fixture
def ended(ended_before: Path, tmp_path: Path) -> Path:
    """A folder in which a run was killed."""
    return shutil.copytree(ended_before, tmp_path / "out")


def test_a_plain_run_starts_anew_and_says_so(ended: Path, source: Path, right: dict[str, str]) -> None:
    other = kconv("quantize", source, "-q", "q5_0", "-o", ended)
    assert (other.returncode, done(ended) > 0) == (0, True), "of no account to others"
    (ended / "model-Q5_0.gguf").unlink()
    (ended / "model-Q5_0.gguf.manifest.json").unlink()
    again = kconv("quantize", source, *TYPES, "-o", ended)
    assert again.returncode == 0
    assert "removed 4 unfinished files" in again.stderr
    assert "--resume would have gone on with them" in again.stderr
    assert digests(ended) == right
    assert hidden(ended) == []


def test_clean_names_and_removes_it(ended: Path) -> None:
    shown = kconv("clean", ended)
    assert shown.stdout.count("--resume can go on with it") == 5  # four files and the journal
    assert hidden(ended) != []
    told = json.loads(kconv("clean", ended, "--json").stdout)["leftovers"]
    assert [each["resumable"] for each in told if str(ended) in each["path"]] == [True] * 5
    assert kconv("clean", ended, "--yes").returncode == 0
    assert os.listdir(ended) == []


def journal(folder: Path) -> Path:
    (kept,) = all_kept(folder)
    return kept.folder


def test_a_torn_journal_and_harmed_data_cost_only_work(
    ended: Path, source: Path, right: dict[str, str]
) -> None:
    (pieces,) = journal(ended).glob("*.pieces")
    content = pieces.read_bytes()
    before = done(ended)
    lines = content.split(b"\n")
    torn = b"\n".join([*lines[:2], lines[2][:-3], *lines[3:-1], lines[-1][: len(lines[-1]) // 2]])
    pieces.write_bytes(torn + b"\n00000000 {}\ngarbage \xff")
    (partial,) = ended.glob(".model-Q8_0.gguf.kconv-*.partial")
    with open(partial, "r+b") as file:
        file.seek(partial.stat().st_size // 20)
        file.write(bytes(5000))
    said = resumed(ended, right, "quantize", source, *TYPES)
    assert int(said.partition("resumed: ")[2].split()[0]) < before


@pytest.mark.parametrize("damage", ["no JSON", "a list", "names elsewhere", "another format", "gone"])
def test_a_damaged_journal_is_refused_or_ignored(
    damage: str, ended: Path, source: Path, right: dict[str, str]
) -> None:
    path = journal(ended) / "journal.json"
    content = json.loads(path.read_text())
    if damage == "gone":
        path.unlink()
    else:
        content["files"] = (
            {"../model-Q8_0.gguf": "../../x"} if damage == "names elsewhere" else content["files"]
        )
        content["fingerprint"] = {"format": 99} if damage == "another format" else content["fingerprint"]
        path.write_text({"no JSON": "{", "a list": "[]"}.get(damage, json.dumps(content)))
    words = ("quantize", source, *TYPES)
    if damage != "another format":
        assert "nothing to resume" in resumed(ended, right, *words)
        return
    refused = kconv(*words, "--resume", "-o", ended)
    assert refused.returncode == 3
    assert "damaged or of another version of kconv" in refused.stderr
    assert done(ended) > 0


@pytest.mark.parametrize("what", ["types", "options", "versions", "source"])
def test_what_was_begun_of_something_else_is_refused(what: str, ended: Path, source: Path) -> None:
    words: Sequence[Any] = TYPES
    if what == "source":
        source = Path(shutil.copy(source, ended.parent))
    if what == "types":
        words = ("-q", "q8_0", "-q", "q5_0")
    if what == "options":
        words = (*TYPES, "--output-type", "f16")
    if what == "versions":
        path = journal(ended) / "journal.json"
        path.write_text(path.read_text().replace('"kconv": "', '"kconv": "0.'))
    refused = kconv("quantize", source, *words, "--resume", "-o", ended)
    assert refused.returncode == 3, refused.stderr
    expected = {
        "source": f"{source.name} changed",
        "types": "a run that was to write model-Q8_0.gguf, model-Q4_0.gguf",
        "options": "the plan of the files is another",
        "versions": "versions of kconv or of its packages changed",
    }
    assert expected[what] in refused.stderr
    assert "leave out --resume to start from the beginning" in refused.stderr
    assert done(ended) > 10
    assert list(ended.glob("[!.]*")) == []


def test_nothing_to_resume(source: Path, right: dict[str, str], tmp_path: Path) -> None:
    assert "nothing to resume" in resumed(tmp_path, right, "quantize", source, *TYPES)
    again = kconv("quantize", source, *TYPES, "--resume", "-o", tmp_path)
    assert again.returncode == 0  # test_resume_finished.py
    assert digests(tmp_path) == right


def test_a_run_that_goes_on_is_not_resumed(source: Path, tmp_path: Path) -> None:
    code = STRUCK.replace("    left -= 1", "    time.sleep(0.2)")
    words = ["0.02", "9", "10000", WRITE, "quantize", str(source), *TYPES, "-o", str(tmp_path)]
    running = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
    try:
        while not all_kept(tmp_path):
            assert running.poll() is None
        refused = kconv("quantize", source, *TYPES, "--resume", "-o", tmp_path)
        assert refused.returncode == 3
        assert "another run" in refused.stderr
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()


def test_a_checkpoint_and_its_proof(checkpoint: Path, tmp_path: Path) -> None:
    """Killed while it writes, then within the proof of the second file: nothing is done twice."""
    words = ("to-gguf", checkpoint, *TYPES, "--modelfile")
    whole = kconv(*words, "-o", tmp_path / "right")
    assert whole.returncode == 0, whole.stderr
    right, out = digests(tmp_path / "right"), tmp_path / "out"
    assert struck(WRITE, 30, *words, "-o", out).returncode == -signal.SIGKILL
    assert list(out.glob("[!.]*")) == []
    second = struck("kconv.flows.prove:prove", 2, *words, "--resume", "-o", out)
    assert second.returncode == -signal.SIGKILL, second.stderr
    assert "resumed: " in second.stderr
    assert len([*out.glob("[!.]*")]) == 6
    assert len([*out.glob(".*.journal/reading-*.npz")]) == 1
    refused = kconv(*words, "-o", out)
    assert (refused.returncode, "already exists" in refused.stderr) == (3, True)
    assert "--resume goes on with the run that was ended" in refused.stderr
    # neither writes nor reads the checkpoint in fp32: it would be killed
    third = struck("kconv.flows.prove:read_reference", 1, *words, "--resume", "-o", out)
    assert third.returncode == 0, third.stderr
    assert "resumed: the files are complete" in third.stderr
    assert digests(out) == right, "the manifests with their proofs, too"
    assert hidden(out) == []


def test_the_proof_of_files_that_were_changed_meanwhile(checkpoint: Path, tmp_path: Path) -> None:
    words = ("to-gguf", checkpoint, "-q", "q8_0", "-o", tmp_path / "model.gguf")
    assert struck("kconv.flows.prove:prove_new_files", 1, *words).returncode == -signal.SIGKILL
    with open(tmp_path / "model.gguf", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    refused = kconv(*words, "--resume")
    assert refused.returncode == 3
    assert "it was changed or replaced since" in refused.stderr
    assert kconv(*words, "--no-verify", "--force").returncode == 0
    assert hidden(tmp_path) == []


def test_parts_and_weights_that_are_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (weights,) = copy.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, weights, {"format": "pt"})
    words = ("to-gguf", copy, "-q", "bf16", "--allow-nan", "--no-verify", "--split-max-size", "300K")
    assert kconv(*words, "-o", tmp_path / "right").returncode == 0
    out, right = tmp_path / "out", digests(tmp_path / "right")
    assert len(right) > 3
    assert struck(WRITE, 24, *words, "-o", out).returncode == -signal.SIGKILL
    assert "resumed: " in resumed(out, right, *words)
    assert "not-finite" in next(out.glob("*.json")).read_text()


ONNX_WRITE = "kconv.converters.onnx.writer:write_at"


@pytest.mark.parametrize(
    ("at", "count", "expected"),
    [
        (ONNX_WRITE, 25, "resumed: {kept} of 30 pieces of the weights are written already"),
        ("kconv.flows.write_onnx:_manifest", 1, "resumed: "),
        ("shutil:rmtree", 1, "the files are complete"),
    ],
)
def test_a_folder_of_onnx_files(
    at: str, count: int, expected: str, checkpoint: Path, onnx_right: dict[str, str], tmp_path: Path
) -> None:
    words = ("to-onnx", checkpoint, "-q", "q8_0", "--no-verify")
    ended = struck(at, count, *words, "-o", tmp_path / "out")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (tmp_path / "out").exists() == ("complete" in expected)
    kept = done(tmp_path)
    if count == 25:
        assert 10 <= kept < 20  # some of them are two writes
        interrupted = struck(ONNX_WRITE, 4, *words, "--resume", "-o", tmp_path / "out", number=signal.SIGINT)
        assert interrupted.returncode == 130
        assert f"resumed: {kept} of 30 pieces" in interrupted.stderr
        assert "to go on from there: kconv to-onnx" in interrupted.stderr
        assert done(tmp_path) > kept
        kept = done(tmp_path)  # at least one more; how many depends on how fast the interrupt is heeded
    again = kconv(*words, "--resume", "-o", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert expected.format(kept=kept) in again.stderr
    assert digests(tmp_path / "out") == onnx_right
    assert hidden(tmp_path) == []


@pytest.fixture(scope="module")
def onnx_right(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("onnx") / "right"
    done = kconv("to-onnx", checkpoint, "-q", "q8_0", "--no-verify", "-o", folder)
    assert done.returncode == 0, done.stderr
    return digests(folder)


def test_the_proof_of_onnx_files(checkpoint: Path, tmp_path: Path) -> None:
    """It goes straight to the proof, where it is killed again; what that keeps is as of GGUF files."""
    words = ("to-onnx", checkpoint, "-q", "q8_0", "-o", tmp_path / "out")
    first = struck("kconv.flows.to_onnx:_prove", 1, *words)
    assert first.returncode == -signal.SIGKILL, first.stderr
    refused = kconv(*words)
    assert (refused.returncode, "is not empty" in refused.stderr) == (3, True)
    second = struck("kconv.flows.to_onnx:_prove", 1, *words, "--resume")
    assert second.returncode == -signal.SIGKILL
    assert "resumed: the files are complete" in second.stderr
    assert kconv(*words, "--no-verify", "--resume").returncode == 0
    assert hidden(tmp_path) == []


def test_importance_data_are_not_measured_twice(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "korean.txt"
    text.write_text("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. " * 40, "utf-8")
    words = (
        "to-gguf",
        checkpoint,
        "-q",
        "q4_k_m",
        "--calibrate",
        text,
        "--no-verify",
        "-o",
        tmp_path / "out",
    )
    first = struck(WRITE, 3, *words, interval=5)  # before there is a line in the journal
    assert first.returncode == -signal.SIGKILL, first.stderr
    text.write_text("another text. " * 200)
    other = struck("kconv.flows.calibrate:calibrate", 1, *words, "--resume")
    assert other.returncode == -signal.SIGKILL, "learned from another text, they are of no use"
    text.write_text("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. " * 40, "utf-8")
    again = struck("kconv.flows.calibrate:calibrate", 1, *words, "--resume")
    assert again.returncode == 0, again.stderr
    assert "the statistics have been computed already" in again.stderr
    assert hidden(tmp_path / "out") == []


def test_several_writers_with_a_journal_each(source: Path, tmp_path: Path) -> None:
    """What machines do that share a disk: a piece counts as done by any of their journals."""
    with open_gguf(source) as file:
        model = gguf_model(file)
        plans = [plan_file(tmp_path / "model.gguf", model, [Q8_0] * len(model.tensors), {})]
        (tmp_path / "partial").touch()
        begun = begin_files(model.tensors, plans, [tmp_path / "partial"])
        journal = JournalFolder(tmp_path / "journal", lambda: {"files": {}})
        journal.establish()
        pieces = begun.pieces()
        parts = (pieces[::3], pieces[1::3])
        for number, part in enumerate(parts):
            with Journal(journal.path, f"worker{number}", [tmp_path / "partial"]) as own:
                write_pieces(begun, part, journal=own)
        done = read_done(journal.path)
        assert done.checks.keys() == {*parts[0], *parts[1]}
        assert sound_pieces(begun, done.checks) == set(done.checks)
        left = [piece for piece in pieces if piece not in done.checks]
        with Journal(journal.path, "worker0", [tmp_path / "partial"]) as own:  # it comes back
            write_pieces(begun, left, journal=own)
        assert read_done(journal.path).checks.keys() == set(pieces)
        finish_files(begun)
        write_files(model.tensors, plans, [tmp_path / "partial"])
        assert sound_pieces(begun, read_done(journal.path).checks) == set(pieces)
        journal.remove()
    assert os.listdir(tmp_path) == ["partial"]
