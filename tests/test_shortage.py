"""Too little of something is exit code 4, whoever notices it, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kconv.cli.errors import explain
from kconv.converters.samples import write_sample

FEW_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
}  # their stacks count as memory, and machines differ in processors
LARGER = " would be larger than the file system or limit allows\n  what to do: "
KCONV = [str(Path(sys.executable).parent / "kconv")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "checkpoint")


def limited(kind: int, limit: int, *words: object, command: list[str] = KCONV) -> tuple[int, str]:
    """Kconv under a limit of the system's: exit code, and what it said."""

    def set_limit() -> None:
        resource.setrlimit(kind, (limit, limit))

    done = subprocess.run(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        env={**os.environ, **FEW_THREADS},
        preexec_fn=set_limit,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("size", [50, 80, 120], ids="{} MB".format)
def test_too_little_memory_to_begin_with(size: int, checkpoint: Path) -> None:
    code, output = limited(resource.RLIMIT_AS, size << 20, "inspect", checkpoint)
    assert code == 4, output
    assert "kconv: error: out of memory\n  what to do: close other programs, raise the limit" in output


def test_memory_that_ends_in_the_proof_keeps_the_file(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    code, text = limited(
        resource.RLIMIT_AS, 700 << 20, "to-gguf", checkpoint, "-q", "q8_0", "--threads", 1, "-o", output
    )
    assert code == 4, text
    assert "kconv: error: out of memory" in text
    assert f"complete, but not proven: {output}" in text
    assert "--no-verify" in text
    # besides what --resume would go on from
    names = sorted(name for name in os.listdir(tmp_path) if not name.startswith("."))
    assert names == ["x.gguf", "x.gguf.manifest.json"]


def test_a_library_that_exits_is_no_failed_proof() -> None:
    """OpenBLAS calls exit(1) where it gets no memory, and 1 is the code of a failed proof."""
    code = "from kconv.cli.shortage import guard_exit; guard_exit(); import ctypes; ctypes.CDLL(None).exit(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "kconv: error: out of memory" in done.stderr


def test_a_library_that_exits_in_the_proof_keeps_the_file_named() -> None:
    code = (
        "import ctypes\nfrom pathlib import Path\n"
        "from kconv.cli.progress import naming_finished_files\nfrom kconv.cli.shortage import guard_exit\n"
        "guard_exit()\n"
        "with naming_finished_files('the file is', Path('c')) as made:\n"
        "    made([Path('x.gguf')])\n    ctypes.CDLL(None).exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "complete, but not proven: x.gguf" in done.stderr
    assert "--no-verify" in done.stderr
    assert "kconv: error: out of memory" in done.stderr


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["inspect", "/nowhere"], 3), (["what"], 2)])
def test_an_exit_that_is_guarded_is_an_exit(words: list[str], code: int) -> None:
    exit_code, output = limited(resource.RLIMIT_AS, 1 << 36, *words)
    assert exit_code == code
    assert output.endswith("\n")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "no folder for temporary files"),
        (
            4 << 10,
            f"vocab.gguf{LARGER}set TMPDIR to another folder",
        ),
        (
            1 << 20,
            f"x.gguf{LARGER}write to another disk",
        ),
    ],
)
def test_files_that_may_not_be_large(size: int, words: str, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    code, text = limited(resource.RLIMIT_FSIZE, size, "to-gguf", checkpoint, "-q", "q8_0", "-o", output)
    assert code == 4, text
    assert words in text
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("count", [8, 14])
def test_too_few_descriptors(count: int, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    words = ["to-gguf", checkpoint, "-q", "q8_0", "-q", "q4_0", "--no-verify", "-o", output.parent]
    code, text = limited(resource.RLIMIT_NOFILE, count, *words)
    assert code == 4, text
    assert "oo many" in text
    assert os.listdir(tmp_path) == []


def wrapped(inner: BaseException, outer: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (
            lambda: ImportError("libtorch_cpu.so: failed to map segment"),
            4,
            "out of memory",
        ),
        (
            lambda: wrapped(ImportError("x: cannot allocate memory"), RuntimeError("no x")),
            4,
            "memory",
        ),
        (
            lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            4,
            "out of memory",
        ),
        (lambda: RuntimeError("can't start new thread"), 4, "no more threads"),
        (lambda: BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 4, "no more threads"),
        (lambda: OSError(errno.EMFILE, "Too many open files", "/x"), 4, "too many files are open: /x"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), 4, "No space left"),
        (lambda: wrapped(ValueError("no"), ZeroDivisionError("a slip")), 70, "a bug in kconv"),
        (lambda: KeyError("failed to map segment"), 70, "a bug in kconv"),
    ],
)
def test_what_it_is_called(make: Callable[[], BaseException], code: int, words: str) -> None:
    failure = explain(make())
    assert failure.exit_code == code
    assert words in failure.message
