"""``to-gguf --calibrate --optimize --resume``: what was measured before ``kill -9`` is not measured anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kconv.converters.samples import write_sample
from kconv.core import progress as core_progress
from kconv.core.errors import EnvironmentProblem
from kconv.core.leftovers import OLD_AGE, find_leftovers, remove, sweep
from kconv.flows.convert import to_gguf
from kconv.flows.kept_work import held_work, work_folder

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
ENVIRONMENT = {**os.environ, "KCONV_LANG": "en"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "sample")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text((TEXTS / "stories.txt").read_text("utf-8")[:16000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run makes that nothing happens to."""
    path = tmp_path_factory.mktemp("whole") / "made.gguf"
    converted(checkpoint, text, path)
    return path


def converted(checkpoint: Path, text: Path, path: Path, *, resume: bool = False) -> list[str]:
    """Convert in this process; what was told."""
    told: list[str] = []
    to_gguf(
        checkpoint, path, types=("q4_0",), calibrate=(text,), optimize=True, verify="quick",
        threads=1, resume=resume, announce=told.append,
    )  # fmt: skip
    return told


def killed(words: list[str], when: Callable[[], bool]) -> None:
    """Run a command and kill it as soon as something is the case."""
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=-3, stderr=-3, start_new_session=True) as process:
        try:
            end = time.monotonic() + 300
            while not when() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert when()


@contextlib.contextmanager
def ended_at(stage: str, share: float) -> Iterator[Callable[[str, int, int], None]]:
    """A progress that interrupts, as Ctrl-C does."""

    def progress(now: str, done: int, total: int) -> None:
        if now == stage and done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        yield progress


def test_a_killed_conversion_goes_on_by_layers_and_by_matrices(
    checkpoint: Path, text: Path, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "made.gguf"
    words = [sys.executable, "-m", "kconv", "to-gguf", str(checkpoint), "-o", str(path), "-q", "q4_0"]
    words += ["--calibrate", str(text), "--optimize", "--threads", "1"]
    work = work_folder(path)
    killed(words, (work / "statistics" / "pass.json").is_file)
    assert not list(tmp_path.glob("*-statistics.gguf"))
    words.append("--resume")
    kept = work / "strengths.jsonl"
    killed(words, lambda: kept.is_file() and b"\n" in kept.read_bytes() and not path.exists())
    assert list(tmp_path.glob("*-statistics.gguf"))
    assert not (work / "statistics").exists()
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "statistics have been computed already" in done.stderr
    assert "matrices are chosen is known already" in done.stderr
    assert path.read_bytes() == whole.read_bytes()
    (statistics,) = tmp_path.glob("*-statistics.gguf")
    assert statistics.read_bytes() == next(whole.parent.glob("*-statistics.gguf")).read_bytes()
    assert not work.exists()


def test_an_interrupted_pass_is_told_and_gone_on_with(
    checkpoint: Path, text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, remarks = tmp_path / "made.gguf", list[str]()
    monkeypatch.setattr(core_progress, "on_remark", remarks.append)
    given = {"types": ("q4_0",), "calibrate": (text,), "optimize": True, "threads": 1}
    with ended_at("reference", 0.7) as progress:
        to_gguf(checkpoint, path, progress=progress, **given)  # type: ignore[arg-type]
    assert [each for each in remarks if str(work_folder(path)) in each]
    told = converted(checkpoint, text, path, resume=True)
    assert any("layers have been measured already" in each for each in told)
    assert path.read_bytes() == whole.read_bytes()
    proof = json.loads((tmp_path / "made.gguf.manifest.json").read_text("utf-8"))["proof"]
    before = json.loads(whole.with_name("made.gguf.manifest.json").read_text("utf-8"))["proof"]
    assert proof["verdict"] == before["verdict"]
    assert proof["logits"]["figures"] == before["logits"]["figures"]
    assert not work_folder(path).exists()


def test_work_for_something_else_is_not_taken_up(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    with ended_at("optimize", 0.3) as progress:
        to_gguf(
            checkpoint, path, types=("q4_0",), calibrate=(text,), optimize=True, verify="off", threads=1,
            progress=progress,
        )  # fmt: skip
    strengths = work_folder(path) / "strengths.jsonl"
    lines = strengths.read_text("utf-8").splitlines()
    strengths.write_text("\n".join([*lines, lines[0].replace('"of": ["', '"of": ["0'), '{"of": ', "7"]))
    told: list[str] = []
    to_gguf(
        checkpoint, path, types=("q5_0",), calibrate=(text,), optimize=True, verify="off", threads=1,
        resume=True, announce=told.append,
    )  # fmt: skip
    assert not any("chosen is known already" in each for each in told)
    assert not work_folder(path).exists()


def test_two_conversions_to_one_file_are_told(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    with (
        held_work(path, resume=False),
        pytest.raises(EnvironmentProblem, match="is in use"),
    ):
        converted(checkpoint, text, path, resume=True)
    assert not path.exists()


def test_clean_finds_what_a_killed_run_has_measured(tmp_path: Path) -> None:
    """Its lock says that it is in use; without one, age decides, since its name tells no machine."""
    folder = work_folder(tmp_path / "made.gguf")
    with held_work(tmp_path / "made.gguf", resume=False):
        (folder / "asked.json").write_text("{}", encoding="utf-8")
        (found,) = find_leftovers(tmp_path)
        assert (found.path, found.state, found.kept) == (folder, "in use", True)
    (tmp_path / "photos.gathering").mkdir()
    folder.mkdir()
    mark = folder / "asked.json"
    mark.write_text("{}", encoding="utf-8")
    sweep(tmp_path)
    assert [(each.path, each.state) for each in find_leftovers(tmp_path)] == [(folder, "unknown")]
    old = time.time() - 2 * OLD_AGE
    for path in (mark, folder):
        os.utime(path, (old, old))
    assert [(each.state, each.kept) for each in find_leftovers(tmp_path)] == [("left", True)]
    assert remove(folder) is not None
    assert not folder.exists()
