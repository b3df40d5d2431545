"""Hundreds of commands of kconv in a few seconds: a process that has imported everything forks for each.

``Kconv`` starts this very file as a process of its own, since the one pytest runs in has threads, which no
fork takes along. A command runs as ``kconv`` would run it, with its own streams, working folder and limits;
the processes it starts are new ones as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

MODULES = (
    *("torch", "transformers.models.llama.modeling_llama", "transformers.models.t5.modeling_t5"),
    *("tokenizers", "sentencepiece", "safetensors.torch", "jinja2.sandbox", "onnx"),
    *("kconv.cli.to_gguf", "kconv.cli.to_onnx", "kconv.cli.verify", "kconv.cli.quantize", "kconv.cli.plan"),
    *("kconv.cli.imatrix", "kconv.cli.compare", "kconv.cli.inspection", "kconv.cli.run"),
    *("kconv.flows.convert", "kconv.flows.to_onnx", "kconv.flows.quantize"),
    *("kconv.converters.onnx.writer", "kconv.flows.plan", "kconv.flows.verify"),
    *("kconv.flows.compare", "kconv.flows.importance", "kconv.flows.prove"),
)


ACTIONS = ("fail", "short", "stop before", "stop after")
"""What may happen at a call (faults.c); the process stops before the call is made, or right after it."""


@dataclass(frozen=True)
class Fault:
    """At call number ``call`` (from 1; 0: at none) on a file below one of the folders, ``action`` happens.

    ``error`` is the number of the error; all these calls are written to ``log``.
    """

    below: tuple[str, ...]
    call: int = 0
    action: str = "fail"
    error: int = 0
    log: str | None = None


@dataclass(frozen=True)
class Done:
    """How a command ended: ``code`` as a shell has it, minus the signal where one ended it, None: too slow.

    ``seconds`` of wall clock, ``memory`` in bytes at its largest, that of child processes included.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    memory: int


class Kconv:
    """The server; a context manager. It imports ``modules``; ``environment`` is added to ours."""

    def __init__(
        self, modules: Sequence[str] = MODULES, environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def __enter__(self) -> Kconv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:  # which closes its streams, upon which it ends
            pass

    def ask(self, request: Mapping[str, Any]) -> Any:
        """One request, one answer, both JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the fork server is gone"
        return json.loads(line)

    def run(self, *words: object, cwd: Path, seconds: float = 60, fault: Fault | None = None) -> Done:
        """``kconv WORDS`` in ``cwd``; after ``seconds`` it is ended."""
        request = {"words": [str(word) for word in words], "cwd": str(cwd), "seconds": seconds}
        done = Done(**self.ask({**request, **({"fault": asdict(fault)} if fault else {})}))
        return replace(done, out=_readable(done.out), err=_readable(done.err))

    def run_with(
        self, words: Sequence[str], *, given: bytes, environment: Mapping[str, str], cwd: str, seconds: float
    ) -> tuple[int | None, bytes, bytes]:
        """The same with standard input and an environment of its own: code, output and errors in bytes."""
        request = {"words": list(words), "cwd": cwd, "seconds": seconds, "environment": dict(environment)}
        done = Done(**self.ask({**request, "given": given.decode("utf-8", "surrogateescape")}))
        out, err = (text.encode("utf-8", "surrogateescape") for text in (done.out, done.err))
        return done.code, out, err

    @contextlib.contextmanager
    def at(self, point: str, *words: object, cwd: Path) -> Iterator[Callable[[Fault], Done]]:
        """Run the command as far as the function ``package.module:name`` and give what goes on from there.

        Each call of it is one end of the command, with that fault.
        """
        request = {"words": [str(word) for word in words], "cwd": str(cwd), "seconds": 600, "point": point}
        reached = self.ask(request)
        assert reached == {"at": point}, reached
        yield lambda fault: Done(**self.ask({"cwd": str(cwd), "seconds": 60, "fault": asdict(fault)}))
        self.ask({})


def _readable(text: str) -> str:
    """Bytes that are no UTF-8 as the mark for what cannot be shown."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _prepare(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    """In the fork: streams, working folder, environment and faults of its own."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(_input(request.get("given")), 0)
    os.dup2(streams[0], 1)
    os.dup2(streams[1], 2)
    os.chdir(request["cwd"])
    if (environment := request.get("environment")) is not None:
        os.environ.clear()
        os.environ.update(environment)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if (fault := request.get("fault")) is not None:
        places = (ctypes.c_char_p * len(fault["below"]))(*(os.fsencode(each) for each in fault["below"]))
        log = (
            -1
            if fault["log"] is None
            else os.open(fault["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        )
        action, error = ACTIONS.index(fault["action"]), fault["error"]
        ctypes.CDLL(None).fault_arm(places, len(places), ctypes.c_long(fault["call"]), action, error, log)


def _input(given: str | None) -> int:
    """A file to read from: with that content, or without any."""
    if given is None:
        return os.open(os.devnull, os.O_RDONLY)
    file = os.memfd_create("in")
    with open(file, "wb", closefd=False) as stream:
        stream.write(given.encode("utf-8", "surrogateescape"))
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _command(words: Sequence[str]) -> int:
    """In the fork: what the script ``kconv`` does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from kconv.cli.main import main

    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _to_the_end(words: Sequence[str]) -> NoReturn:
    code = 99
    try:
        code = _command(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _forked(request: Mapping[str, Any], point: str | None = None) -> dict[str, Any]:
    """Run one command in a fork and tell its end.

    With a ``point`` the fork answers further requests once it has come to that function.
    """
    streams = [os.memfd_create(name) for name in ("out", "err")]
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _prepare(request, streams)
        if "words" not in request:
            return {}
        if point is not None:
            _stop_at(point)
        _to_the_end(request["words"])
    return ended(pid, streams, begun, request["seconds"])


def _stop_at(point: str) -> None:
    """Have the function of a module (``package.module:name``) serve requests before its first call.

    Each is answered by a fork that goes on with that call, so what came before is done once for all of them.
    """
    module, name = point.split(":")
    there = importlib.import_module(module)
    function = getattr(there, name)

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        setattr(there, name, function)
        gc.collect()
        gc.freeze()  # or each fork would copy what collecting touches
        _answer({"at": point})
        for line in _requests:
            request = json.loads(line)
            if "fault" not in request:  # the point is done with
                os._exit(0)
            if not (done := _forked(request)):  # this is the fork
                return function(*arguments, **keywords)
            _answer(done)
        os._exit(0)

    setattr(there, name, stopped)


def ended(pid: int, streams: Sequence[int], begun: float, seconds: float) -> dict[str, Any]:
    """Wait for a fork, at most so long, and tell its end."""
    code: int | None = None
    while True:
        ended_pid, status, usage = os.wait4(pid, os.WNOHANG)
        if ended_pid:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - begun > seconds:
            os.killpg(pid, signal.SIGKILL)
            _, _, usage = os.wait4(pid, 0)
            break
        time.sleep(0.002)
    lines = []
    for stream in streams:
        size = os.lseek(stream, 0, os.SEEK_END)
        last = os.pread(stream, min(size, 1 << 24), max(0, size - (1 << 24)))
        lines.append(last.decode("utf-8", "surrogateescape"))
        os.close(stream)
    taken = time.monotonic() - begun
    return {"code": code, "out": lines[0], "err": lines[1], "seconds": taken, "memory": usage.ru_maxrss << 10}


def _answer(content: Mapping[str, Any]) -> None:
    os.write(_answers, json.dumps(content).encode() + b"\n")


def _serve() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()
    for line in _requests:
        request = json.loads(line)
        _answer(_forked(request, request.get("point")))


if __name__ == "__main__":
    _requests, _answers = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(2, 1)
    _serve()
