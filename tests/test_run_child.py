"""`kconv run` and the process llama.cpp has in it: what ends which of the two, and what is said then."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from compiled_material import shared_library
from run_material import KCONV, PROMPT, running, with_metadata
from standin_material import dying_llama

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import ChildDied
from kconv.core.gguf_file import read_header
from kconv.runtimes import llama
from kconv.runtimes.llama import LlamaRuntime
from kconv.runtimes.sampler import Sampler
from kconv.runtimes.sampling import Sampling

__all__ = ["dying_llama"]

LONG = PROMPT * 6_000
"""A prompt that takes minutes."""
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded Korean model as q4_0, which never ends a text."""
    folder = tmp_path_factory.mktemp("run-child")
    to_gguf(write_sample("42dot", folder / "42dot"), folder / "q4.gguf", types=["q4_0"], verify=False)
    header = read_header(folder / "q4.gguf")
    tokens = list(header.metadata["tokenizer.ggml.tokens"])
    tokens[header.metadata["tokenizer.ggml.eos_token_id"]] = "[no end]"
    pad = header.metadata["tokenizer.ggml.padding_token_id"]
    changes = {"tokenizer__ggml__tokens": tuple(tokens), "tokenizer__ggml__eos_token_id": pad}
    return with_metadata(folder / "q4.gguf", folder / "endless.gguf", **changes)


def child_of(kconv: subprocess.Popen[bytes], *, known: psutil.Process | None = None) -> psutil.Process:
    """The process llama.cpp has, as soon as it is there; another one than ``known``."""
    end = time.monotonic() + 60
    while time.monotonic() < end and kconv.poll() is None:
        for child in psutil.Process(kconv.pid).children():
            with contextlib.suppress(psutil.Error):
                if child != known and "kconv.runtimes.llama_generate" in child.cmdline():
                    return child
        time.sleep(0.005)
    raise AssertionError("no child process")


def wait_for(what: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def computing(process: psutil.Process) -> bool:
    """Whether it has left its start behind: it maps llama.cpp and has computed for a while."""
    return process.cpu_times().user > 0.5


def test_tokens_come_while_others_are_computed(model: Path) -> None:
    """So many would take an hour."""
    with LlamaRuntime(model, threads=1, context=20_000) as runtime:
        tokens = runtime.generate(runtime.tokenize(PROMPT), GREEDY, 1_000_000)
        first = [next(tokens) for _ in range(20)]
        assert runtime._child is not None
        child = psutil.Process(runtime._child.pid)
        tokens.close()  # type: ignore[attr-defined]
        assert gone(child)
        again = runtime.generate(runtime.tokenize(PROMPT), GREEDY, 20)  # by another one
        assert list(again) == first
        assert runtime.piece(first[0])


def test_what_is_asked_meanwhile_is_no_answer_to_something_else(model: Path) -> None:
    with LlamaRuntime(model, threads=1, context=2000) as runtime:
        prompt = runtime.tokenize(PROMPT)
        tokens = runtime.generate(prompt, GREEDY, 1000)
        next(tokens)
        assert runtime.tokenize(PROMPT) == prompt
        with pytest.raises(ChildDied, match="was cut off"):
            list(tokens)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: str(s.name))
def test_an_interrupt_ends_a_child_that_does_not_move(number: signal.Signals, model: Path) -> None:
    with running(model) as kconv:
        child = child_of(kconv)
        assert wait_for(lambda: child.num_threads() > 1)  # our own code runs there
        child.suspend()
        kconv.send_signal(number)
        out, err = kconv.communicate(timeout=30)
        assert (kconv.returncode, out) == (130, b""), err
        assert b"interrupted" in err
        assert b"Traceback" not in err
        assert gone(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: str(s.name))
def test_an_interrupt_ends_the_reading_of_a_prompt(number: signal.Signals, model: Path) -> None:
    """Sent to both processes, as terminals do."""
    with running(model, "--ctx", "400000", prompt=LONG, start_new_session=True) as kconv:
        child = child_of(kconv)
        assert wait_for(lambda: computing(child))
        begun = time.monotonic()
        os.killpg(kconv.pid, number)
        out, err = kconv.communicate(timeout=30)
        assert time.monotonic() - begun < 5
        assert (kconv.returncode, out) == (130, b""), err
        assert b"Exception ignored" not in err
        assert gone(child)


def test_ctrl_c_keeps_what_was_printed(model: Path) -> None:
    with running(model, "-n", "-1", "--ctx", "20000") as kconv:
        assert kconv.stdout is not None
        shown = os.read(kconv.stdout.fileno(), 1)
        kconv.send_signal(signal.SIGINT)
        out, err = kconv.communicate(timeout=30)
        assert kconv.returncode == 130, err
        assert shown + out
        assert b"interrupted" in err
        assert b"Traceback" not in err


def test_a_reader_that_goes_away_ends_the_generation(model: Path) -> None:
    with running(model, "-n", "-1", "--ctx", "20000") as kconv:
        assert kconv.stdout is not None
        assert kconv.stderr is not None
        child = child_of(kconv)
        assert os.read(kconv.stdout.fileno(), 1)
        kconv.stdout.close()
        err = kconv.stderr.read()
        assert kconv.wait(30) == 141
        assert b"Traceback" not in err
        assert gone(child)


def test_a_killed_kconv_takes_a_computing_child_along(model: Path) -> None:
    with running(model, "--ctx", "400000", prompt=LONG) as kconv:
        child = child_of(kconv)
        assert wait_for(lambda: computing(child))
        kconv.kill()
        kconv.wait()
        assert wait_for(lambda: gone(child), 10)


def test_a_reader_that_goes_away_ends_the_reading_of_a_prompt(model: Path) -> None:
    with running(model, "--ctx", "400000", prompt=LONG) as kconv:
        child = child_of(kconv)
        assert wait_for(lambda: computing(child))
        assert kconv.stdout is not None
        kconv.stdout.close()
        assert kconv.wait(30) == 141
        assert gone(child)


def test_a_child_that_is_killed_at_once_is_started_once_more(model: Path) -> None:
    with running(model, "-n", "8", "--greedy") as kconv:
        right, err = kconv.communicate(timeout=60)
    with running(model, "-n", "8", "--greedy") as kconv:
        child_of(kconv).kill()
        assert kconv.communicate(timeout=60) == (right, err)
        assert kconv.returncode == 0
    assert right.strip()
    assert err == b""


def test_a_child_that_is_killed_twice_is_told(model: Path) -> None:
    with running(model, "--json") as kconv:
        first = child_of(kconv)
        first.kill()
        child_of(kconv, known=first).kill()
        out, err = kconv.communicate(timeout=60)
        assert kconv.returncode == 4, err
        error = json.loads(out)["error"]
        assert error["type"] == "ChildDied"
        assert "was killed (signal 9, SIGKILL)" in error["message"]
        assert "memory" in error["hint"]
        assert b"Traceback" not in err


def test_a_child_that_is_killed_amid_an_answer_is_told_and_nothing_is_repeated(model: Path) -> None:
    with running(model, "-n", "-1", "--ctx", "20000") as kconv:
        child = child_of(kconv)
        assert kconv.stdout is not None
        shown = os.read(kconv.stdout.fileno(), 1)
        child.kill()
        out, err = kconv.communicate(timeout=60)
        assert kconv.returncode == 4, err
        assert shown + out
        assert b"the answer was cut off after" in err
        assert b"Traceback" not in err


@pytest.fixture(scope="module")
def illegal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, loaded before llama.cpp's, makes every graph an illegal instruction."""
    folder = tmp_path_factory.mktemp("illegal")
    source = folder / "illegal.c"
    source.write_text("int ggml_graph_compute(void *graph, void *plan) { __builtin_trap(); }\n")
    return shared_library(folder / "illegal.so", [source])


def test_a_crash_of_the_library_is_no_verdict_on_the_file(model: Path, illegal: Path) -> None:
    words = [*KCONV, "run", str(model), "-p", PROMPT, "-n", "4", "--threads", "1"]
    environment = {**os.environ, "LD_PRELOAD": str(illegal)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "SIGILL" in done.stderr
    assert "kconv doctor" in done.stderr
    assert len(done.stderr) < 1000


def test_a_library_whose_own_buffers_die_still_runs(model: Path, dying_llama: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(dying_llama), "XDG_CACHE_HOME": str(tmp_path)}
    words = [*KCONV, "run", str(model), "-p", PROMPT, "-n", "4", "--greedy", "--threads", "1", "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert len(output["ids"]) == 4
    assert [note["name"] for note in output["notes"]] == ["extra-buffers"]
    assert done.stderr.count("without them") == 1


def test_without_its_own_buffers_llama_cpp_makes_no_copy_and_a_note_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "extra_buffers", lambda: False)
    log: list[str] = []
    with LlamaRuntime(model, threads=1, log=log.append) as runtime:
        assert [note.warning for note in runtime.notes] == [True]
        assert len(list(runtime.generate([5, 6, 7], GREEDY, 4))) == 4
    assert "model buffer size" in "".join(log)
    assert "REPACK" not in "".join(log)


def test_a_check_of_llama_cpps_own_is_told_in_its_words(model: Path, tmp_path: Path) -> None:
    """More experts than it has room for end its process."""
    bad = with_metadata(model, tmp_path / "bad.gguf", llama__expert_count=100_000, llama__expert_used_count=1)
    words = [*KCONV, "run", str(bad), "-p", "a"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "internal check" in done.stderr
    assert "GGML_ASSERT" in done.stderr
    assert len(done.stderr) < 800  # no debugger's backtrace


def test_a_context_there_is_no_memory_for_is_told(model: Path) -> None:
    """30 GB in an address space of 6."""
    words = [*KCONV, "run", str(model), "-p", "a", "-n", "1", "--ctx", "10000000", "--threads", "1"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "")
    assert "cannot set up a context of 10,000,000 tokens" in done.stderr
    assert "--ctx" in done.stderr


def test_samplers_for_other_runtimes_have_a_process_too() -> None:
    logits = np.zeros(300, np.float32)
    logits[[7, 9]] = 5, 4
    with Sampler(300, Sampling(temperature=0, repeat_penalty=2.0), [7]) as sampler:
        assert [sampler.choose(logits) for _ in range(3)] == [9, 7, 7]  # both seen: halved alike
        assert sampler._child is not None
        os.kill(sampler._child.pid, signal.SIGKILL)
        with pytest.raises(ChildDied):
            sampler.choose(logits)
    seeds = []
    for seed in (1, 1, 2):
        with Sampler(300, Sampling(seed=seed, temperature=9.0), ()) as sampler:
            seeds.append([sampler.choose(logits) for _ in range(20)])
    assert seeds[0] == seeds[1] != seeds[2]
