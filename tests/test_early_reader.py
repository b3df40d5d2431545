"""A file that llama.cpp reads before anybody asks: the same answers, and an end whatever it is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from llama_material import random_llama

from kconv.converters import to_gguf
from kconv.core.windows import Window
from kconv.runtimes.early_reader import Asked, EarlyReader
from kconv.runtimes.llama_reader import LlamaReader
from kconv.runtimes.reader import RuntimeFailure
from kconv.verify.early import _Queue

IDS = tuple(int(i) for i in np.random.default_rng(5).integers(2, 320, 160))
WINDOWS = (Window(0, IDS), Window(1, IDS[40:], 7))
ASKED = Asked(Window(0, IDS[:32]), WINDOWS)


@pytest.fixture(scope="module")
def file(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama as GGUF."""
    folder = random_llama(tmp_path_factory.mktemp("early") / "checkpoint", small_tokenizer)
    return to_gguf(folder, folder.parent, types=["q4_0"], verify=False).outputs[0].path


def blocks(reader: LlamaReader) -> list[tuple[int, int, bytes]]:
    """All logits asked for."""
    return [(block.window, block.start, block.logits.tobytes()) for block in reader.logits(WINDOWS)]


def test_answers_are_those_it_would_give_later_and_any_others_still_come(file: Path) -> None:
    with LlamaReader(file, threads=1) as plain, EarlyReader(file, ASKED, threads=1) as early:
        expected, logits = plain.matrix_inputs(ASKED.inputs_of)
        found, others = early.matrix_inputs(ASKED.inputs_of)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name].values, expected[name].values) for name in expected)
        assert np.array_equal(logits, others)
        assert blocks(early) == blocks(plain)
        assert blocks(early) == blocks(plain)  # once more, no longer early
        for one, other in zip(early.layers(WINDOWS[1]), plain.layers(WINDOWS[1]), strict=True):
            assert np.array_equal(one, other)
        window = Window(0, IDS[5:20])
        assert np.array_equal(early.matrix_inputs(window)[1], plain.matrix_inputs(window)[1])


def test_the_first_window_is_read_once_where_its_beginning_is_all_inputs_are_of(file: Path) -> None:
    others = (
        Asked(Window(0, IDS[1:33]), WINDOWS),  # another beginning
        Asked(Window(0, IDS), WINDOWS),  # all of it, of which the last token is not read for logits
        Asked(ASKED.inputs_of, (Window(0, IDS, len(IDS)), WINDOWS[1])),  # of which no logits are wanted
    )
    with EarlyReader(file, ASKED, threads=1) as early:
        assert early._is_beginning()
    with LlamaReader(file, threads=1) as plain:
        for asked in others:
            with EarlyReader(file, asked, threads=1) as early:
                assert not early._is_beginning()
                found, logits = early.matrix_inputs(asked.inputs_of)
                expected, those = plain.matrix_inputs(asked.inputs_of)
                assert np.array_equal(logits, those)
                assert all(np.array_equal(found[name].values, expected[name].values) for name in expected)
                wanted = [(block.start, block.logits.tobytes()) for block in plain.logits(asked.windows)]
                assert [
                    (block.start, block.logits.tobytes()) for block in early.logits(asked.windows)
                ] == wanted


@pytest.mark.parametrize("batch", [16, 48])
def test_inputs_and_logits_of_one_reading_are_those_of_two(file: Path, batch: int) -> None:
    window = Window(0, IDS, 20)
    with LlamaReader(file, threads=1, batch=batch) as reader:
        expected, logits = reader.matrix_inputs(Window(0, IDS[:32]))
        (found, those), blocks = reader.inputs_and_logits(window, 32)
        assert found.keys() == expected.keys()
        for name, each in expected.items():
            np.testing.assert_allclose(found[name].values, each.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(those, logits, rtol=1e-4, atol=1e-5)
        assert [(block.start, len(block.logits)) for block in blocks] == [
            (block.start, len(block.logits)) for block in reader.logits([window])
        ]


def test_what_was_asked_for_otherwise_is_read_anew(file: Path) -> None:
    with LlamaReader(file, threads=1) as plain, EarlyReader(file, ASKED, threads=1) as early:
        (block,), (other,) = ([*reader.logits([Window(0, IDS[3:50])])] for reader in (early, plain))
        assert np.array_equal(block.logits, other.logits)


def test_a_child_that_dies_is_replaced_once(file: Path) -> None:
    reader = EarlyReader(file, ASKED, threads=1)
    with LlamaReader(file, threads=1) as plain, reader:
        assert reader._loaded is not None
        os.kill(reader._loaded.pid, signal.SIGKILL)
        assert blocks(reader) == blocks(plain)


def test_a_refused_file_is_told_where_it_is_entered(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(file.read_bytes()[:-4096])
    reader = EarlyReader(bad, ASKED, threads=1)
    reader.begin()
    with pytest.raises(RuntimeFailure, match="truncated"), reader:
        raise AssertionError
    reader.close()


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_closing_ends_the_process_whatever_it_is_at(file: Path, seconds: float) -> None:
    reader = EarlyReader(file, ASKED, threads=1)
    reader.begin()
    time.sleep(seconds)
    reader.close()
    reader.close()
    reader.begin()  # nothing: it is closed
    assert not [each for each in psutil.Process().children() if "llama_child" in " ".join(each.cmdline())]


def test_only_so_many_are_begun_and_the_next_follows(file: Path) -> None:
    queue = _Queue(2)
    readers = [EarlyReader(file, ASKED, threads=1, read=queue.next, closed=queue.next) for _ in range(3)]
    queue.readers = readers
    queue.next()
    with readers[0] as first:
        blocks(first)
        first.layers(WINDOWS[0])  # behind what it read early, when the next has begun
        assert [reader.begun for reader in readers] == [True, True, False]
    with readers[1] as second:
        blocks(second)
    with readers[2] as third:
        assert len(blocks(third)) == 2


def test_threads_that_wait_sleep_early_and_nobody_inherits_it() -> None:
    code = (
        "import ctypes, os, subprocess, sys\n"
        "from kconv.core.cores import few_spins\n"
        "ask = [sys.executable, '-c', 'import os; print(os.environ.get(\"GOMP_SPINCOUNT\"))']\n"
        "with few_spins():\n"
        "    libc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_char_p\n"
        "    print(libc.getenv(b'GOMP_SPINCOUNT').decode(), flush=True)\n"
        "    subprocess.run(ask, check=True, env=dict(os.environ))\n"
        "print(libc.getenv(b'GOMP_SPINCOUNT'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["1000", "None", "None"], done.stderr
