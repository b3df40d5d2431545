"""Tasks in processes of their own: real processes, killed, crashing and interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from executor_tasks import die, fail, nap, pid_of, progressing

from kconv.core.errors import ChildDied, InputError
from kconv.flows.executor import LocalExecutor, Outcome, Task


def run(executor: LocalExecutor, *tasks: Task) -> dict[str, Outcome]:
    for task in tasks:
        executor.submit(task)
    return {outcome.task.key: outcome for outcome in executor.results()}


def workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [each for each in children if "kconv.flows.executor_child" in each.cmdline()]


def test_values_and_errors_come_back_and_processes_stay() -> None:
    with LocalExecutor(2) as executor:
        done = run(
            executor, *(Task(str(each), pid_of, (each,)) for each in range(8)), Task("bad", fail, ("x",))
        )
        more = run(executor, Task("more", pid_of, (9,)))
    assert [done[str(each)].value[0] for each in range(8)] == list(range(8))
    pids = {done[str(each)].value[1] for each in range(8)}
    assert len(pids) <= 2
    assert os.getpid() not in pids
    assert more["more"].value[1] in pids
    error = done["bad"].error
    assert isinstance(error, InputError)
    assert (error.message, error.hint) == ("x is refused", "take another")
    assert "executor_tasks.py" in "".join(error.__notes__)


def test_a_process_that_dies_takes_only_its_own_task_along() -> None:
    kinds = {"killed": signal.SIGKILL, "crashed": signal.SIGSEGV}
    with LocalExecutor(1) as executor:
        tasks = [Task(name, die, (int(number),)) for name, number in kinds.items()]
        done = run(executor, *tasks, Task("exit", os._exit, (9,)), Task("after", pid_of, (1,)))
    for name in (*kinds, "exit"):
        assert isinstance(done[name].error, ChildDied), done[name]
    assert "killed (signal 9" in str(done["killed"].error)
    assert done["after"].value[0] == 1


def test_processes_are_replaced_after_some_tasks() -> None:
    with LocalExecutor(1, lives=2) as executor:
        done = run(executor, *(Task(str(each), pid_of, (each,)) for each in range(4)))
    pids = [done[str(each)].value[1] for each in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert not workers()


def test_tasks_submitted_meanwhile_count() -> None:
    seen = []
    with LocalExecutor(1) as executor:
        executor.submit(Task("0", pid_of, (0,)))
        for outcome in executor.results():
            seen.append(outcome.task.key)
            if len(seen) < 3:
                executor.submit(Task(str(len(seen)), pid_of, (0,)))
    assert seen == ["0", "1", "2"]


def test_closing_interrupts_and_lets_tasks_put_their_files_away(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        for name in ("one", "two"):
            executor.submit(Task(name, nap, (str(tmp_path / name),)))
        end = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
        begun = time.monotonic()
    assert time.monotonic() - begun < 25  # it is killed after 30
    assert not list(tmp_path.iterdir())
    assert not workers()


def test_progress_is_told() -> None:
    told: list[tuple[str, str, int, int]] = []
    with LocalExecutor(1, progress=lambda *what: told.append(what)) as executor:
        run(executor, Task("it", progressing))
    assert told == [("it", "first", 1, 3), ("it", "second", 2, 3)]


def test_what_cannot_be_sent_is_said() -> None:
    with LocalExecutor(1) as executor, pytest.raises(AttributeError):
        executor.submit(Task("closure", lambda: threading.Lock()))
