"""The command line as a contract: exit codes, one JSON object, quick help, interrupts, pipes, terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from command_material import kconv as forked
from signals_material import hangups_heeded
from terminal import record

from kconv.cli import errors
from kconv.cli.commands import COMMANDS
from kconv.cli.console import emit_json
from kconv.cli.main import main
from kconv.cli.progress import progress_line
from kconv.converters.samples import write_sample
from kconv.core import errors as core_errors
from kconv.quant.policy import POLICIES

KCONV = [str(Path(sys.executable).parent / "kconv")]
pytestmark = pytest.mark.usefixtures("kconv_server")
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "llama_cpp",
    "tokenizers",
    "sentencepiece",
    "gguf",
    "onnx",
    "onnxruntime",
    "rich",
    "jinja2",
}


def kconv(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    words = [*KCONV, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **how)


def the_object(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Standard output as exactly one JSON object."""
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


# --- help and versions ---


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy_and_gives_examples(words: list[str]) -> None:
    code = f"""
import sys
from kconv.cli.main import main
assert main({words!r}) == 0
heavy = {HEAVY!r} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
    of_text = words[0] in ("completion", "help")  # what they print is for a shell or for eyes
    assert len(words) == 1 or of_text or {"--json", "--verbose"} <= set(done.stdout.split())


def test_help_of_one_command_imports_no_other() -> None:
    code = """
import sys
from kconv.cli.main import main
main(["models", "--help"])
assert "kconv.cli.models" in sys.modules and "kconv.cli.run" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_converting_a_folder_imports_nothing_that_fetches(tmp_path: Path) -> None:
    words = ["to-gguf", str(write_sample("42dot", tmp_path / "m")), "-q", "f16", "--no-verify"]
    code = f"""
import sys
from kconv.cli.main import main
assert main([*{words!r}, "-o", {str(tmp_path / "m.gguf")!r}]) == 0
hub = {{name.removeprefix("kconv.hub.") for name in sys.modules if name.startswith("kconv.hub.")}}
assert hub == {{"evidence", "names", "object_names"}}, hub
assert not {{"huggingface_hub", "httpx2", "s3fs", "distributed"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_type_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["to-gguf", "--help"]) == 0
    assert "kconv models" in capsys.readouterr().out
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in POLICIES)


def test_version_names_what_decides_the_output() -> None:
    done = kconv("--version")
    versions = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert versions["kconv"] == version("kconv")
    assert versions["llama-cpp-python"] == version("llama-cpp-python")
    assert {"libggml", "gguf", "tokenizers"} <= set(versions)


def test_version_of_libggml_is_what_the_library_says() -> None:
    import ctypes

    from kconv.cli.versions import libggml_version
    from kconv.quant.ggml import library_path

    library = ctypes.CDLL(str(library_path()))
    library.ggml_version.restype = ctypes.c_char_p
    assert libggml_version() == library.ggml_version().decode()


def test_version_of_libggml_without_a_number_in_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kconv.cli.versions import libggml_version
    from kconv.quant.ggml import library_path

    expected = libggml_version()
    package = tmp_path / "llama_cpp"  # as wheels of tools/build_llama_wheels.py have it
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    name, real = library_path().name, library_path().resolve()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    assert libggml_version() == "unknown"
    (package / "lib" / name).symlink_to(real)
    assert libggml_version() == expected


def test_shells_can_complete_commands_and_options() -> None:
    def completed(words: str) -> str:
        environment = {
            **os.environ,
            "_KCONV_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = kconv(env=environment)
        assert done.returncode == 0
        return done.stdout

    assert "plain,to-gguf" in completed("kconv to")
    assert "plain,--greedy" in completed("kconv run --gre")


# --- wrong usage ---


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["--frobnicate"],
        ["run"],
        ["run", "x.gguf", "-p", "a", "--top-p", "2"],
        ["run", "x.gguf", "-p", "a", "-n", "many"],
        ["inspect", "a", "b"],
        ["verify"],
        ["verify", "x.gguf"],
        ["verify", "x.gguf", "--against", "x", "--gate", "q4_0"],
        ["verify", "x.gguf", "--against", "x", "--report", "x.gguf"],
        ["to-gguf", "x", "--verify", "x"],
        ["to-gguf", "x", "--threads", "0"],
        ["to-gguf", "x", "-q", ""],
        ["demo-checkpoint", "no-such-family", "somewhere"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_is_2(words: list[str], as_json: bool, tmp_path: Path) -> None:
    done = forked(*words, *(["--json"] if as_json else []), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "kconv: error: " in done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        output = the_object(done)
        assert output["exit_code"] == 2
        assert output["error"]["type"] == "UsageError"
    else:
        assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


# --- every error has its code ---


def all_subclasses(kind: type[core_errors.KconvError]) -> list[type[core_errors.KconvError]]:
    return [kind, *(subclass for child in kind.__subclasses__() for subclass in all_subclasses(child))]


@pytest.mark.parametrize("kind", all_subclasses(core_errors.KconvError), ids=lambda kind: str(kind.__name__))
def test_every_kconv_error_keeps_type_message_hint_and_code(
    kind: type[core_errors.KconvError], capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind.__new__(kind)
    core_errors.KconvError.__init__(error, "한글\x1b[2J\nsecond", hint="do this")
    code = errors.report(error, as_json=True, verbose=False)
    printed = capsys.readouterr()
    output = json.loads(printed.out)
    assert code == output["exit_code"] == kind.exit_code
    assert output["error"] == {"type": kind.__name__, "message": "한글\x1b[2J\nsecond", "hint": "do this"}
    assert printed.err == "kconv: error: 한글\\x1b[2J\nsecond\n  what to do: do this\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 4),
        (OSError(28, "No space left on device"), 4),
        (PermissionError(13, "Permission denied", "/secret"), 4),
        (KeyboardInterrupt(), 130),
        (click.UsageError("no"), 2),
        (click.BadParameter("no"), 2),
        (ZeroDivisionError("division by zero"), 70),
        (RecursionError("deep"), 70),
    ],
    ids=lambda value: str(value.__class__.__name__ if isinstance(value, BaseException) else value),
)
def test_other_errors_have_a_code_too(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.report(error, as_json=True, verbose=False) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["exit_code"] == code
    assert "Traceback" not in printed.err


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "/no/such/place", "--verbose"]) == 3
    assert "Traceback" in capsys.readouterr().err
    assert main(["inspect", "/no/such/place"]) == 3
    assert "Traceback" not in capsys.readouterr().err


# --- input refused ---

DAMAGED = {
    "empty": b"",
    "not-a-gguf": b"PK\x03\x04" + bytes(100),
    "header-ends": b"GGUF\x03\x00\x00\x00" + b"\x05" + bytes(7) + b"\x05" + bytes(7),
    "huge-counts": b"GGUF\x03\x00\x00\x00" + b"\xff" * 16,
}


@pytest.mark.parametrize(
    "command",
    [["inspect"], ["run", "-p", "a"], ["verify", "--against", "."]],
    ids=["inspect", "run", "verify"],
)
@pytest.mark.parametrize("case", [*DAMAGED, "missing", "folder"])
def test_what_is_no_gguf_is_refused_with_3(command: list[str], case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    if case == "folder":
        path.mkdir()
    elif case != "missing":
        path.write_bytes(DAMAGED[case])
    done = forked(*command, path, "--json")
    assert done.returncode == 3, done.stderr
    assert the_object(done)["exit_code"] == 3
    assert str(path) in done.stderr
    assert "bug in kconv" not in done.stderr


# --- pipes, streams, signals ---


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run([*KCONV, "models"], stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.returncode == errors.BROKEN_PIPE
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_output_on_a_full_disk_is_4() -> None:
    with open("/dev/full", "wb") as out:
        done = subprocess.run([*KCONV, "models"], stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4
    assert b"No space left" in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_an_encoding_without_hangul_is_no_error() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = kconv("--help", env=environment)
    assert done.returncode == 0
    assert "\\uc11c" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: str(s.name))
def test_signals_while_waiting_for_input_are_130(number: signal.Signals) -> None:
    with hangups_heeded():
        child = subprocess.Popen(
            [*KCONV, "run", "x.gguf", "-p", "-", "--json"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    time.sleep(0.7)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert json.loads(out)["error"]["type"] == "Interrupted"
    assert "Traceback" not in err


LOST = """
import os, signal, sys
from kconv.cli import commands as cli
from kconv.cli.progress import shown_progress

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def work():
    with shown_progress() as progress:
        Deaf()
        progress("write", 1, 2)
    print("went on")

cli.cli.get_command = lambda context, name: cli.click.Command("models", callback=work)
sys.exit(cli.run(["models"]))
"""


def test_an_interrupt_python_drops_is_heeded_all_the_same() -> None:
    command = [sys.executable, "-W", "ignore", "-c", LOST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert "went on" not in done.stdout
    assert "Traceback" not in done.stderr


# --- progress ---

WORK = """
import time
from kconv.cli.progress import shown_progress
with shown_progress() as progress:
    for done in range(28):
        progress("write", done * 10**8, 28 * 10**8)
        time.sleep(0.025)
    progress("write", 28 * 10**8, 28 * 10**8)
print("done")
"""
# With patience and interval a quarter of what they are: half a second, then every 1.25 s.
SLOW_WORK = (
    """
from kconv.cli import progress as module
module._PATIENCE, module._INTERVAL = module._PATIENCE / 4, module._INTERVAL / 4
"""
    + WORK
)


@pytest.mark.parametrize(("rows", "columns"), [(24, 100), (24, 0), (0, 0)])
def test_a_terminal_shows_a_bar_with_rate_and_time_left(rows: int, columns: int) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}  # whatever terminal the tests themselves have
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_WORK], stdout=subprocess.PIPE, stderr=follower, env=environment
    )
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert child.communicate()[0] == b"done\n"
    assert "writing weights" in shown.decode()
    assert b"B/s" in shown
    assert b" left" in shown
    assert b"\r" in shown


def test_without_a_terminal_there_are_plain_lines() -> None:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SLOW_WORK], capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    # After half a second, then every 1.25: one line, or more where the machine is slow.
    assert 1 <= len(lines) <= 1 + (time.monotonic() - begun - 0.5) // 1.25
    assert lines[0].startswith("kconv: writing weights: ")
    assert lines[0].endswith(" left")
    assert "\r" not in done.stderr


def test_quick_work_shows_nothing() -> None:
    code = WORK.replace("sleep(0.025)", "sleep(0)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr == b""


def test_a_sentence_stands_above_the_bar() -> None:
    code = SLOW_WORK.replace("        time.sleep(0.025)", "        time.sleep(0.025)\n        said(done)")
    code = code.replace("import shown_progress", "import announce, shown_progress")
    code = "said = lambda done: announce('about 40 s') if done == 25 else None\n" + code
    text = record([sys.executable, "-c", code]).text
    at = text.index("kconv: about 40 s")
    assert text[:at].endswith("\r\x1b[K"), "the bar is wiped away first"
    assert "writing weights" in text[:at]
    assert "writing weights" in text[at:], "and drawn again"


def test_a_sentence_nobody_reads_is_no_error() -> None:
    code = "from kconv.cli.progress import announce\nannounce('about 40 s')\nprint('done')"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert done.stdout == b"done\n"


def test_json_has_no_word_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"kl": float("inf"), "more": [(float("nan"), 1.5)], "deep": {"x": -float("inf")}})
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert printed == {"kl": None, "more": [[None, 1.5]], "deep": {"x": None}}


def test_progress_lines() -> None:
    line = progress_line("write", 1 << 30, 1 << 31, 10.0)
    assert line == "kconv: writing weights: 50% of 2.00 GiB, 102 MiB/s, 10 s left"
    assert progress_line("tokens", 0, 3000, 1.0) == "kconv: comparing tokens: 0% of 3,000 texts"
    assert progress_line("other", 0, 0, 0.0) == "kconv: other: 0% of 0"


def test_closed_streams_are_nobody_s(tmp_path: Path) -> None:
    """With ``2>&-`` prose may neither reach standard output nor the next file that is opened."""
    code = (
        "import os, sys; from kconv.cli.main import main; main(['--version'])\n"
        f"file = open({str(tmp_path / 'made')!r}, 'wb'); assert file.fileno() > 2\n"
        "print('prose', file=sys.stderr); os.write(2, b'of a library')"
    )
    command = ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("kconv ")
    assert "prose" not in done.stdout
    assert (tmp_path / "made").read_bytes() == b""
