"""``imatrix --full`` goes on behind the last layer it has measured, to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem
from kconv.flows.full_statistics import resumable
from kconv.flows.importance import gather

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"


def measured(
    folder: Path, path: Path, text: str, *, resume: bool, ends_at: float = 2.0
) -> tuple[list[str], set[str]]:
    """Measure to ``path``, ended at a part of the way; what was told, and the modules that were observed."""
    told: list[str] = []
    seen: set[str] = set()

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "reference" and done > ends_at * total:
            raise KeyboardInterrupt

    with resumable(path, resume=resume) as collected:
        begin = collected.begin

        def observed(windows):  # type: ignore[no-untyped-def]
            gathering = begin(windows)
            add = gathering.add
            gathering.add = lambda name, window, values: (seen.add(name), add(name, window, values))[1]
            return gathering

        collected.begin = observed  # type: ignore[method-assign]
        texts = {"text.txt": text}
        activations, arch = gather(
            folder, texts, chunks=20, window=256, threads=1, progress=progress, announce=told.append,
            collected=collected,
        )  # fmt: skip
        collected.write(path, activations, arch=arch, texts=texts, force=True)
    return told, seen


@pytest.mark.parametrize(("sample", "part"), [("42dot", 0.7), ("kebyt5", 0.8)])
def test_what_was_measured_is_not_measured_again(sample: str, part: float, tmp_path: Path) -> None:
    folder = write_sample(sample, tmp_path / "sample")
    text = (TEXTS / "stories.txt").read_text("utf-8")[:9000]
    whole, ended = tmp_path / "whole.gguf", tmp_path / "ended.gguf"
    _, every = measured(folder, whole, text, resume=False)
    with pytest.raises(KeyboardInterrupt):
        measured(folder, ended, text, resume=False, ends_at=part)
    kept = tmp_path / "ended.gguf.gathering"
    assert kept.is_dir()
    assert not ended.exists()
    told, seen = measured(folder, ended, text, resume=True)
    assert any("have been measured already" in each for each in told)
    assert seen < every
    assert ended.read_bytes() == whole.read_bytes()
    assert not kept.exists()


def test_another_text_is_measured_from_the_beginning(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "sample")
    text = (TEXTS / "stories.txt").read_text("utf-8")
    path = tmp_path / "s.gguf"
    with pytest.raises(KeyboardInterrupt):
        measured(folder, path, text[:9000], resume=False, ends_at=0.7)
    told, seen = measured(folder, path, text[9000:18000], resume=True)
    assert not any("measured already" in each for each in told)
    assert any(".layers.0." in name for name in seen)
    with pytest.raises(KeyboardInterrupt):
        measured(folder, path, text[:9000], resume=False, ends_at=0.7)
    kept = tmp_path / "s.gguf.gathering"
    (kept / "pass.json").write_text('{"asked": ', "utf-8")
    assert not any("already" in each for each in measured(folder, path, text[:9000], resume=True)[0])


def test_two_at_work_on_one_file_are_told(tmp_path: Path) -> None:
    with (
        resumable(tmp_path / "s.gguf", resume=False),
        pytest.raises(EnvironmentProblem, match="is in use"),
        resumable(tmp_path / "s.gguf", resume=True),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "sample")
    text = tmp_path / "text.txt"
    text.write_text((TEXTS / "stories.txt").read_text("utf-8"), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "kconv",
        "imatrix",
        str(folder),
        "--text",
        str(text),
        "--full",
        "--threads",
        "1",
    ]
    words += ["-o", str(tmp_path / "s.gguf")]
    environment = {**os.environ, "KCONV_LANG": "en"}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        mark = tmp_path / "s.gguf.gathering" / "pass.json"
        end = time.monotonic() + 300
        while not mark.is_file() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert mark.is_file()
    done = subprocess.run([*words, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "have been measured already" in done.stderr
    assert (tmp_path / "s.gguf").is_file()
    assert not mark.parent.exists()
