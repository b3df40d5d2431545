"""What people see while kconv works: everything as it becomes known, in a terminal never silence."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import Recording, record, screen

from kconv.cli.layout import cropped, squeezed, width, wrapped
from kconv.cli.progress import Shown, _on
from kconv.converters.samples import write_sample

KCONV = str(Path(sys.executable).parent / "kconv")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# A thread that draws ten times a second needs a processor for it: where others want the machine, too, it
# waits for its turn like everybody, and importing torch holds Python's lock for 0.4 s on a quiet machine.
SILENCE = 0.5
COMMANDS = ("  kconv ", "  llama-server ", "to prove")


def longest_allowed() -> float:
    """Twice the promise on a quiet machine, more by the processes that wait for each of its processors."""
    return 2 * SILENCE * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("live") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proven")


@pytest.fixture(scope="module")
def proven(checkpoint: Path, folder: Path) -> Recording:
    """A conversion to two types, with its proof, in a terminal of 80 columns."""
    words = [KCONV, "to-gguf", str(checkpoint), "-q", "q8_0,q4_k_m"]
    made = record(words, cwd=folder, columns=80)
    assert made.code == 0, made.text
    return made


def test_a_terminal_is_never_silent(proven: Recording) -> None:
    allowed = longest_allowed()
    assert proven.gaps[0][0] <= allowed, [f"{gap:.2f} s at {at:.2f}" for gap, at in proven.gaps[:5]]


def test_all_is_said_as_it_becomes_known(proven: Recording) -> None:
    told = ["llama, 3.02 million", "tokens: ", "tiny-Q4_K_M.gguf ", "Q8_0: ", "Q4_K_M: ", "To run it"]
    times = [proven.at(words) for words in told]
    assert times == sorted(times)
    assert len(set(times[:5])) == 5, "one after the other"
    assert times[0] < times[3] / 2, "the header does not wait for the proof"


def test_the_line_names_stage_file_and_how_much_is_left(proven: Recording) -> None:
    """In the recording that stage which takes long on any machine; what passes in a moment has no picture."""
    assert "starting transformers: q8_0, 1 of 2" in COLOUR.sub("", proven.text)


def test_every_stage_of_a_file_is_named_with_it() -> None:
    class Line:
        def __init__(self) -> None:
            self.shown: list[Any] = []

        def show(self, doing: Any) -> None:
            self.shown.append(doing)

    line = Line()
    told = Shown(_on(line))  # type: ignore[arg-type]
    for label, stage, done in (("2 files", "write", 5), ("q8_0, 1 of 2", "logits", 3), ("", "tokens", 0)):
        told.label = label
        told(stage, done, 10)
    titles = ["writing weights: 2 files", "comparing logits: q8_0, 1 of 2", "comparing tokens"]
    assert [doing.title for doing in line.shown] == titles
    assert [(doing.done, doing.total) for doing in line.shown] == [(5, 10), (3, 10), (0, 10)]


def test_nothing_of_the_line_stays(proven: Recording) -> None:
    lines = screen(proven.text, 80)
    assert not any(line.startswith(tuple("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")) for line in lines)
    assert [line for line in lines if "comparing" in line or "starting" in line] == []


def no_line_is_broken(made: Recording, columns: int) -> None:
    """Every line as it was written fits, but for commands, which are copied."""
    written = screen(made.text, 10_000)
    too_long = [line for line in written if width(line) > columns and not line.startswith(COMMANDS)]
    assert too_long == []
    shown = [line for line in written if not line.startswith(COMMANDS)]
    assert [line for line in screen(made.text, columns) if line in shown] == shown
    pictures = (picture for piece in made.text.split("\n") for picture in COLOUR.sub("", piece).split("\r"))
    assert (
        max(width(re.sub(r"\x1b\[K", "", each)) for each in pictures if not each.startswith(COMMANDS))
        <= columns
    )


def test_lines_fit_80_columns(proven: Recording) -> None:
    no_line_is_broken(proven, 80)


def test_every_part_of_a_proof_is_said_as_it_becomes_known(
    proven: Recording, checkpoint: Path, folder: Path
) -> None:
    words = [KCONV, "verify", "tiny-Q8_0.gguf", "--against", str(checkpoint), "--tokens", "64"]
    made = record(words, cwd=folder, columns=60)
    assert made.code == 0, made.text
    told = ["llama, q8_0, 3.02 million", "tokens ", "weights ", "runtime ", "logits ", "verdict: "]
    lines = [line for line in screen(made.text, 60) if line.startswith(tuple(told[1:])) or told[0] in line]
    assert [words for words, line in zip(told, lines, strict=True) if words not in line] == []
    times = [made.at(words) for words in (told[0], "texts read alike", "matrix", "mean KL", "verdict: ")]
    assert times == sorted(times)
    assert len(set(times[:4])) == 4, "one after the other"
    no_line_is_broken(made, 60)


def test_a_batch_is_not_silent_either(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(f'[[jobs]]\nsource = "{checkpoint}"\ntypes = ["q8_0"]\n', "utf-8")
    made = record([KCONV, "batch", "jobs.toml", "--dry-run"], cwd=tmp_path)
    assert made.code == 0, made.text
    assert "starting" in made.text
    assert screen(made.text, 80)[0] == "1 output: 1 to make, 0 done"


@pytest.mark.parametrize("columns", [40, 60])
def test_narrow_terminals_without_colour(columns: int, checkpoint: Path, tmp_path: Path) -> None:
    words = [KCONV, "to-gguf", checkpoint.name, "-q", "q8_0,q4_k_m", "--no-verify", "-o", str(tmp_path)]
    made = record(words, cwd=checkpoint.parent, columns=columns, environment={"NO_COLOR": "1"})
    assert made.code == 0, made.text
    no_line_is_broken(made, columns)
    assert COLOUR.search(made.text) is None
    assert "tiny-Q4_K_M.gguf" in "".join(screen(made.text, columns)), "whole, or folded"


def test_a_pipe_gets_plain_lines_at_once(checkpoint: Path, tmp_path: Path) -> None:
    words = [KCONV, "to-gguf", str(checkpoint), "-q", "q8_0", "--no-verify", "-o", str(tmp_path)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    first = child.stdout.readline()
    assert child.poll() is None, "the header is not kept until the end"
    rest, beside = child.communicate()
    out = (first + rest).decode()
    assert child.returncode == 0, beside
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out + beside.decode()) is None
    assert out.startswith(f"{checkpoint}: llama, ")
    assert max(map(len, out.splitlines())) > 80, "lines are whole"


def test_a_reader_that_goes_away_does_not_cost_the_files(checkpoint: Path, tmp_path: Path) -> None:
    words = [KCONV, "to-gguf", str(checkpoint), "-q", "q8_0", "--no-verify", "-o", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141
    assert (tmp_path / "tiny-Q8_0.gguf").is_file()
    assert (tmp_path / "tiny-Q8_0.gguf.manifest.json").is_file()


def test_ctrl_c_during_the_proof_keeps_what_was_said(checkpoint: Path, tmp_path: Path) -> None:
    struck = False

    def strike(text: str, child: subprocess.Popen[bytes]) -> None:
        nonlocal struck
        if "starting transformers" in text and not struck:
            struck = True
            child.send_signal(signal.SIGINT)

    words = [KCONV, "to-gguf", str(checkpoint), "-q", "q8_0"]
    made = record(words, cwd=tmp_path, on_output=strike)
    assert made.code == 130, made.text
    shown = "\n".join(screen(made.text, 80))
    said = ["3.02 million", "tokens: ", "tiny-Q8_0.gguf", "complete, but not proven", "kconv: interrupted"]
    assert [words for words in said if words not in shown] == []
    assert "starting transformers" not in shown
    assert (tmp_path / "tiny-Q8_0.gguf").is_file()


ANSWERS = """
import sys, time
from kconv.cli.progress import announce, shown_progress
with shown_progress() as progress:
    time.sleep(0.5)
    announce("a sentence")
    print("one, ", end="", flush=True)
    time.sleep(0.5)
    print("two", flush=True)
    progress("write", 5, 0)
    sys.stderr.write("a library's warning\\n")
    time.sleep(0.5)
print("the end")
"""


def test_what_is_printed_meanwhile_stays_whole() -> None:
    made = record([sys.executable, "-c", ANSWERS], columns=60)
    assert screen(made.text, 60) == ["kconv: a sentence", "one, two", "a library's warning", "the end", ""]
    assert "starting" in made.text
    assert "writing weights" in made.text
    between = made.text[made.text.index("one, ") : made.text.index("two")]
    assert between == "one, ", "a line that has not ended is left alone"


def test_a_dumb_terminal_gets_plain_lines() -> None:
    made = record([sys.executable, "-c", ANSWERS], environment={"TERM": "dumb"})
    assert made.text == "kconv: a sentence\r\none, two\r\na library's warning\r\nthe end\r\n"


def test_a_terminal_without_unicode_gets_ascii() -> None:
    code = ANSWERS.replace('progress("write", 5, 0)', 'progress("write", 5, 10)')
    made = record([sys.executable, "-c", code], environment={"PYTHONIOENCODING": "ascii:backslashreplace"})
    assert made.text.isascii()
    assert "\\u" not in made.text
    assert "50 %" in made.text


def test_wrapping() -> None:
    text = "note (한글): 이 체크포인트에는 채팅 템플릿이 없습니다"
    lines = wrapped(text, 20).split("\n")
    assert all(width(line) <= 20 for line in lines)
    assert [line[:2] for line in lines[1:]] == ["  "] * (len(lines) - 1)
    assert " ".join(line.strip() for line in lines) == text
    assert wrapped("x" * 30, 20).replace("\n", "").replace(" ", "") == "x" * 30
    assert wrapped(text, None) == text


def test_tables_where_there_is_little_room() -> None:
    header, rows = ["type", "size", "remark"], [["q4_K_M", "1.83 MiB", "needs importance data"]]
    table = squeezed(rows, header, (1,), 30)
    assert table.split("\n") == [
        "type        size  remark",
        "q4_K_M  1.83 MiB  needs",
        "                  importance",
        "                  data",
    ]
    assert (
        squeezed(rows, header, (1,), 22) == "q4_K_M\n  size 1.83 MiB,\n    remark needs\n    importance data"
    )


def test_cropping() -> None:
    assert cropped("가중치를 쓰는 중", 10) == "가중치..."
    assert cropped("short", 10) == "short"


LOADING = """
import sys, threading, time
from kconv.reference.torch_library import load_torch_library
times = []
def tick():
    while True:
        times.append(time.monotonic())
        time.sleep(0.005)
threading.Thread(target=tick, daemon=True).start()
begun = time.monotonic()
load_torch_library()
ended = time.monotonic()
assert "torch" not in sys.modules
with open("/proc/self/maps") as maps:
    assert "libtorch_cpu.so" in maps.read()
meanwhile = [each for each in times if begun < each < ended]
assert len(meanwhile) > 2, (len(meanwhile), ended - begun)
import torch
assert torch.ones(2).sum() == 2
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems load it as Python does")
def test_libtorch_is_loaded_while_other_threads_go_on() -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
