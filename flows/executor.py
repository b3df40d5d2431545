"""Where tasks run: an interface of three functions, and the processes of this machine behind it.

A task is a function of some module and arguments that pickle, so it can run anywhere. ``LocalExecutor`` has
long-lived processes, since importing torch and transformers takes longer than a small conversion. One that
dies takes its task with it and nothing else: the task's outcome is a ChildDied, which says nothing about the
task's input, and another process takes its place.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.children import Child, ChildRefused
from ..core.errors import ChildDied
from ..core.system_processes import Answers, interrupt, with_answers
from .executor_child import HEAD

LIVES = 50
"""Tasks a process runs before another takes its place: what libraries keep for ever stays bounded."""
GRACE = 30.0
"""Seconds in which an interrupted task may take its temporary files away before its process is killed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """``function(*arguments)``, which must pickle; ``key`` is the caller's name for it."""

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its value, or the exception it ended with.

    ChildDied: the process died, and nothing is known of the task.
    """

    task: Task
    value: Any = None
    error: BaseException | None = None


class Executor(Protocol):
    """Runs tasks, some at a time, in no particular order."""

    @property
    def slots(self) -> int:
        """How many tasks run at once. More may be submitted; they wait."""
        ...

    @property
    def share(self) -> int:
        """How many of them run on one machine, and have its processors between them."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether a task that was ended may be run again without its outcome saying so."""
        ...

    def submit(self, task: Task) -> None:
        """Run a task as soon as there is room."""
        ...

    def results(self) -> Iterator[Outcome]:
        """Outcomes as they come, until no task is left; tasks submitted meanwhile count."""
        ...

    def close(self) -> None:
        """Stop all that still runs, so that it takes its temporary files away, and wait for that."""
        ...


class LocalExecutor:
    """Processes of this machine; a context manager.

    ``slots`` of them at most, each with at most ``threads`` threads in libraries that choose for themselves.
    A process starts when a task is there for it. ``progress`` is told of stages as
    ``progress(key, stage, done, total)``.
    """

    repeats = False

    def __init__(
        self,
        slots: int,
        *,
        threads: int | None = None,
        lives: int = LIVES,
        progress: Callable[[str, str, int, int], None] = lambda key, stage, done, total: None,
    ) -> None:
        self.slots = self.share = slots
        self._lives, self._progress = lives, progress
        limits = {} if threads is None else dict.fromkeys(_THREADS, str(threads))
        self._environment = {**os.environ, **limits}
        self._waiting: deque[Task] = deque()
        self._workers: list[_Worker] = []
        self._lost: deque[Outcome] = deque()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def submit(self, task: Task) -> None:
        """Run a task as soon as a process is free."""
        self._waiting.append(task)
        self._assign()

    def results(self) -> Iterator[Outcome]:
        """Outcomes as they come, until no task is left."""
        while True:
            while self._lost:
                yield self._lost.popleft()
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            for worker in _ready(busy):
                outcome = self._take(worker)
                if outcome is not None:
                    self._assign()
                    yield outcome

    def close(self) -> None:
        """Interrupt what runs, wait for it to put its files away, and end all processes."""
        self._waiting.clear()
        workers, self._workers = self._workers, []
        try:
            for worker in workers:
                worker.interrupt()
            end = time.monotonic() + GRACE
            for worker in workers:
                worker.wait(end - time.monotonic())
        finally:
            for worker in workers:
                worker.close()

    def _assign(self) -> None:
        """Give tasks that wait to processes that are free, starting those there may be."""
        while self._waiting:
            worker = next((each for each in self._workers if each.task is None), None)
            if worker is None and len(self._workers) >= self.slots:
                return
            task = self._waiting.popleft()
            try:
                if worker is None:
                    worker = _Worker(self._environment)
                    self._workers.append(worker)
                worker.give(task)
            except (ChildDied, ChildRefused) as error:
                self._lose(worker, task, error)

    def _take(self, worker: _Worker) -> Outcome | None:
        """What a process has to say: an outcome, or None for a report of progress."""
        task = worker.task
        assert task is not None
        try:
            kind, content = worker.answer()
        except (ChildDied, ChildRefused) as error:
            self._lose(worker, task, error)
            return self._lost.pop()
        if kind == "progress":
            self._progress(task.key, *content)
            return None
        worker.task = None
        worker.done += 1
        if worker.done >= self._lives:
            self._workers.remove(worker)
            worker.close()
        return Outcome(task, error=content) if kind == "error" else Outcome(task, content)

    def _lose(self, worker: _Worker | None, task: Task, error: ChildDied | ChildRefused) -> None:
        if worker is not None:
            self._workers.remove(worker)
            worker.close()
        if isinstance(
            error, ChildRefused
        ):  # whatever it said: conversions hold their own children to account
            words = " / ".join(error.words[-2:]) or f"exit code {error.code}"
            error = ChildDied(f"the process of this job ended itself: {words}", hint="run it again")
        self._lost.append(Outcome(task, error=error))


class _Worker:
    """One process, and the task it is at."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._child = Child("kconv.flows.executor_child", library="this job", environment=environment)
        self.task: Task | None = None
        self.done = 0

    def give(self, task: Task) -> None:
        """Have it run a task. Raises ChildDied, ChildRefused."""
        content = pickle.dumps((task.function, task.arguments))
        self._child.send(HEAD.pack(len(content)) + content)
        self.task = task

    def answer(self) -> tuple[str, Any]:
        """The next answer, which must have begun to come. Raises ChildDied, ChildRefused."""
        (size,) = HEAD.unpack(self._child.receive(HEAD.size))
        kind, content = pickle.loads(self._child.receive(size))  # from a process of ours
        return kind, content

    @property
    def answers(self) -> Answers:
        """Readable when there is an answer, or when the process has ended."""
        return self._child.answers

    def interrupt(self) -> None:
        """Ctrl-C, if it is at something; else there is nothing to put away."""
        if self.task is not None:
            with contextlib.suppress(OSError):
                interrupt(self._child.pid)

    def wait(self, seconds: float) -> None:
        """Until the process has ended, at most so long; its answers are of no interest any more."""
        end = time.monotonic() + seconds
        if self.task is None:
            return
        with contextlib.suppress(ChildDied, ChildRefused, struct.error):
            while (left := end - time.monotonic()) > 0 and _ready([self], left):
                self.answer()

    def close(self) -> None:
        """End the process at once."""
        self._child.close()


def _ready(workers: list[_Worker], seconds: float | None = None) -> list[_Worker]:
    """Those that have something to say or have ended; waits for one, for ever or so long."""
    return [workers[place] for place in with_answers([worker.answers for worker in workers], seconds)]
