"""A fault at every call of the operating system that a conversion makes: all of its files appear, or none.

faults.c counts the calls on files of the input, the output and TMPDIR, and lets one fail (no space, an
input/output error), do half of what it was asked, or be the last thing the process does. Whatever happens,
the exit code names the machine as the culprit, nothing but whole files stands under a final name, and the
command given again makes the same bytes as ever. ``make test-faults`` tries every fault at every call; here
each call meets one error and one end of the process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from compiled_material import shared_library
from fork_server import Done, Fault, Kconv
from gptj_material import byte_level_tokenizer
from llama_material import random_llama

FULL = bool(os.environ.get("KCONV_FAULTS_FULL"))
MODULES = ("kconv.cli.to_gguf", "kconv.cli.quantize", "kconv.cli.to_onnx", "kconv.flows.quantize")
MODULES += ("kconv.converters.onnx.writer", "kconv.flows.to_onnx", "tokenizers", "jinja2.sandbox")
STOPPED = 137  # exit code of a process that faults.c ended
WRITTEN, READ = (errno.ENOSPC, errno.EIO, errno.EDQUOT), (errno.EIO,)
ENDED = ("stop before", "stop after")


@dataclass(frozen=True)
class Scenario:
    """A command, where its files are begun, and whether it replaces older ones."""

    words: str
    point: str
    older: bool = False


SCENARIOS = {
    "to-gguf": Scenario(
        "to-gguf {s}/llama -q f16 --no-verify --modelfile --threads 1 -o {o}/new/x.gguf",
        "kconv.flows.resume:atomic_files",
    ),
    "to-gguf --force": Scenario(
        "to-gguf {s}/llama -q f16 --no-verify --threads 1 -o {o}/x.gguf --force",
        "kconv.flows.resume:atomic_files",
        older=True,
    ),
    "quantize": Scenario(
        "quantize {s}/f32.gguf -q f16 --threads 1 -o {o}/x.gguf --split-max-size 20K",
        "kconv.flows.resume:atomic_files",
    ),
    "to-onnx": Scenario(
        "to-onnx {s}/llama --no-verify --threads 1 -o {o}/x", "kconv.flows.resume:atomic_folder"
    ),
    "to-onnx --force": Scenario(
        "to-onnx {s}/llama --no-verify --threads 1 -o {o}/x --force",
        "kconv.flows.resume:atomic_folder",
        older=True,
    ),
}


@pytest.fixture(scope="module")
def kconv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kconv]:
    source = Path(__file__).with_name("faults.c")
    library = shared_library(tmp_path_factory.mktemp("cc") / "faults.so", [source], "-ldl")
    with Kconv(MODULES, {"LD_PRELOAD": str(library)}) as server:
        yield server


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, kconv: Kconv) -> Path:
    """A checkpoint of one layer and its F32 file."""
    folder = tmp_path_factory.mktemp("samples")
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    random_llama(folder / "llama", byte_level_tokenizer(folder / "tokenizer", 400), **sizes)
    done = kconv.run(
        "to-gguf", folder / "llama", "-q", "f32", "--no-verify", "-o", folder / "f32.gguf", cwd=folder
    )
    assert done.code == 0, done.err
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files by name; what is hidden is not under a final name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _ending(call: str) -> str:
    """The ending of the file's final name."""
    return re.sub(r"\.kconv-[0-9a-f]{16}\.\w+$", "", call).rpartition(".")[2]


def unfinished(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


class Trials:
    """One scenario, tried with many faults."""

    def __init__(self, scenario: Scenario, samples: Path, folder: Path) -> None:
        self.scenario, self.samples, self.out, self.log = scenario, samples, folder / "out", folder / "log"
        self.words = [word.format(s=samples, o=self.out) for word in scenario.words.split()]
        self.below = (str(samples), str(self.out))
        self.input = contents(samples)
        self.made: dict[str, str] = {}
        self.wrong: list[str] = []
        self.tried: Counter[str] = Counter()
        self.begin(older=False)

    def begin(self, *, older: bool = True) -> dict[str, str]:
        """The output folder as it is before the command."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        for name in self.made if older and self.scenario.older else ():
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.out / name).write_bytes(b"older " + name.encode())
        return contents(self.out)

    def learn(self, run: Callable[[Fault], Done]) -> list[str]:
        """The calls of a run without a fault, in their order, with the files it makes."""
        for older in (False, True):
            self.begin(older=older)
            done = run(Fault(self.below, log=str(self.log)))
            assert done.code == 0, done.err
            self.made = contents(self.out)
            assert not unfinished(self.out)
        return list(self.calls().values())

    def calls(self) -> dict[int, str]:
        """What faults.c has logged: name and path by number."""
        lines = (line.split(" ", 1) for line in self.log.read_text().splitlines())
        return dict(sorted((int(number), call) for number, call in lines))

    def faults(self, calls: Sequence[str]) -> Iterator[Fault]:
        """Every call fails and is the last of the process; some do half, or are interrupted by a signal.

        In the short run each has one error, and of calls alike on files of a kind the first and last count.
        """
        kinds = [(call.split(" ")[0], self._written(call), _ending(call)) for call in calls]
        renamed = next((at for at, call in enumerate(calls) if call.startswith(("link", "rename"))), 0)
        for number, kind in enumerate(kinds, 1):
            name, written, _ = kind
            if not FULL and kind in kinds[: number - 1] and kind in kinds[number:]:
                continue
            if not FULL and self.scenario.older and number < renamed:  # as where nothing is replaced
                continue
            errors = WRITTEN if name != "read" and written else READ
            ends = ENDED if FULL else (ENDED[number % 2],)
            for error in errors if FULL else (errors[number % len(errors)],):
                yield Fault(self.below, number, "fail", error, str(self.log))
            yield from (Fault(self.below, number, end, log=str(self.log)) for end in ends)
            if name in ("read", "write") and (FULL or number % 2 == 0):
                yield Fault(self.below, number, "short", log=str(self.log))
            if name in ("read", "write", "fsync", "open", "truncate") and (FULL or number % 4 == 1):
                yield Fault(self.below, number, "fail", errno.EINTR, str(self.log))

    def _written(self, line: str) -> bool:
        return line.split(" ", 1)[1].startswith(str(self.out))

    def forgiven(self, line: str) -> bool:
        """Whether a command may go on after the failure.

        Clearing up can be left to the next run, folders are synced where that is possible, a folder may be
        there already, and without hard links files are renamed.
        """
        call, path = line.split(" ", 1)
        spare = self._written(line) and (not Path(path).suffix or ".old" in path)
        return call in ("unlink", "rmdir", "link", "mkdir") or spare

    def note(self, run: Callable[[Fault], Done], fault: Fault) -> None:
        """Try one fault; what is wrong is told with all the others, since they show a pattern."""
        try:
            self.check(run, fault)
        except AssertionError as error:
            self.wrong.append(str(error).partition("\n")[0][:600])

    def check(self, run: Callable[[Fault], Done], fault: Fault) -> None:
        """What must hold after one fault, and after the command is given again."""
        before = self.begin()
        done = run(fault)
        after, line = contents(self.out), self.calls().get(fault.call)
        if line is None:  # threads came to fewer calls this time
            return
        what = f"{fault.action} {fault.error} at call {fault.call}, {line}: {done}"
        self.tried[f"{line.split(' ')[0]}: {errno.errorcode.get(fault.error, fault.action)}"] += 1
        assert "Traceback" not in done.err, what
        if fault.action in ENDED:
            assert done.code == STOPPED, what
        elif done.code == 0:
            assert after == self.made, what
            assert fault.action == "short" or fault.error == errno.EINTR or self.forgiven(line), what
        else:
            assert done.code == 4, what
            assert "kconv: error: " in done.err, what
            assert after == before, what
        if fault.action not in ENDED and not self.forgiven(line):
            assert not unfinished(self.out), what
        if fault.action in ENDED or FULL:
            self.again(run, replace(fault, call=0), after, what)
        assert contents(self.samples) == self.input, what

    def again(self, run: Callable[[Fault], Done], none: Fault, after: dict[str, str], what: str) -> None:
        """The command given once more makes what it always makes, whatever the first left behind."""
        done = run(none)
        refused = "already exists" in done.err or "is not empty" in done.err
        assert done.code == 0 or (after == self.made and done.code == 3 and refused), f"{what}, then {done}"
        assert contents(self.out) == self.made, what
        if done.code == 0:
            assert not unfinished(self.out), what


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_call_while_files_are_made(name: str, kconv: Kconv, samples: Path, tmp_path: Path) -> None:
    trials = Trials(SCENARIOS[name], samples, tmp_path)
    with kconv.at(trials.scenario.point, *trials.words, cwd=tmp_path) as run:
        calls = trials.learn(run)
        for fault in trials.faults(calls):
            trials.note(run, fault)
    assert sum(trials.tried.values()) >= 20, trials.tried
    report(name, trials)


@pytest.mark.parametrize("name", ["to-gguf", "quantize", "to-onnx"])
def test_every_call_before_files_are_made(name: str, kconv: Kconv, samples: Path, tmp_path: Path) -> None:
    trials = Trials(SCENARIOS[name], samples, tmp_path)

    def run(fault: Fault) -> Done:
        return kconv.run(*trials.words, cwd=tmp_path, fault=fault)

    with kconv.at(trials.scenario.point, *trials.words, cwd=tmp_path) as rest:
        after = len(trials.learn(rest))
    calls = trials.learn(run)[:-after]
    for fault in trials.faults(calls):
        if FULL or fault.error == errno.EIO:
            trials.note(run, fault)
    report(name, trials)


def report(name: str, trials: Trials) -> None:
    assert not trials.wrong, "\n".join(
        [f"{len(trials.wrong)} of {sum(trials.tried.values())}:", *trials.wrong]
    )
    if FULL:
        print(f"\n{name}: {sum(trials.tried.values())} faults: {dict(sorted(trials.tried.items()))}")
