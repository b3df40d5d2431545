"""Every command shows in a terminal that it is at work, and soon; to a pipe it sends plain lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import record, screen

from kconv.cli.layout import width
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample

KCONV = str(Path(sys.executable).parent / "kconv")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TO_COPY = ("  kconv ", "  llama-server ")
DOTS = tuple("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
# -n 64 and the like keep them short; what takes long is Python's start and the imports
COMMANDS = [
    "models",
    "doctor",
    "inspect small-F32.gguf",
    "inspect small",
    "plan small",
    "quantize small-F32.gguf -q q4_0 -o made",
    "imatrix small --text text.txt -o made.gguf --chunks 1 --window 32",
    "compare small -q q4_0,q8_0 --tokens 32",  # its table stands in columns
    "verify small-F32.gguf --against small --tokens 32 --report made.html",
    "run small-F32.gguf -p 서울 -n 4",
    "card small-F32.gguf",
    "upload small-F32.gguf me/small-GGUF --dry-run --force",
    "demo-checkpoint 42dot made",
    "to-gguf small -q q8_0 -o made --no-verify",
    "to-onnx small -q q8_0 -o made --no-verify",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silent")
    write_sample("42dot", folder / "small")
    to_gguf(folder / "small", folder, types=["f32"], verify=False)
    (folder / "text.txt").write_text("서울의 봄은 짧고 꽃은 빨리 진다. " * 400, "utf-8")
    return folder


@pytest.fixture(autouse=True)
def _nothing_made(place: Path) -> None:
    for path in place.glob("made*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def allowed() -> float:
    """The promise (0.5 s) twice, more by the processes that wait for each of this machine's processors."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_terminal_is_not_silent(place: Path, line: str) -> None:
    made = record([KCONV, *line.split()], cwd=place, environment={"NO_COLOR": "1", "KCONV_LANG": "en"})
    assert made.code == 0, made.text
    limit = allowed()
    assert made.gaps[0][0] <= limit, [f"{gap:.2f} s at {at:.2f}" for gap, at in made.gaps[:3]]
    assert COLOUR.search(made.text) is None
    assert [shown for shown in screen(made.text, 80) if shown.startswith(DOTS)] == []
    if line.split()[0] not in ("card", "upload"):  # which show a file as it would be written
        written = [shown for shown in screen(made.text, 10_000) if not shown.startswith(TO_COPY)]
        assert [shown for shown in written if width(shown) > 80] == []


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] not in ("to-gguf", "to-onnx")])
def test_a_pipe_gets_plain_lines(place: Path, line: str) -> None:
    done = subprocess.run([KCONV, *line.split()], cwd=place, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", done.stdout + done.stderr) is None
    assert not any(dot in (done.stdout + done.stderr).decode() for dot in DOTS)
