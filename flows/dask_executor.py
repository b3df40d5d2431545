"""Tasks on other machines: Dask's workers behind the interface of ``flows/executor.py``.

Dask decides where a task runs, and runs it again where its worker was lost. Results are collected as they
come, since those that lie in a lost worker's memory would be computed again. Workers must see the same files
under the same paths and have the same versions, which is checked before work and with every task.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import ChildDied, EnvironmentProblem, UsageError
from .dask_worker import not_understood, refusal, task_in_worker, versions_here
from .executor import Outcome, Task

if TYPE_CHECKING:
    from distributed import Client, Future, as_completed

PATIENCE = 60.0
"""Seconds to wait for the scheduler, and for a worker where there is none (any more)."""
LOSSES = 100
"""Workers that may be lost with a task, at work or merely in line there, until it is given up; fewer for
whole conversions, which may be what a worker lacks memory for."""
_ADDRESS = re.compile(r"(?:tcp|tls|ucx|ws|wss)://\S+:\d+")
_GLANCE = 1.0  # seconds between two looks at the cluster
_PAUSE = 0.02  # seconds between two looks for results


class DaskExecutor:
    """The workers of the scheduler at ``address`` (``tcp://HOST:PORT``, ``tls://…``); a context manager.

    TLS and the rest of Dask's settings are Dask's own (``DASK_DISTRIBUTED__COMM__TLS__CA_FILE`` …). Raises
    UsageError for what is no address or where Dask is not installed, and EnvironmentProblem where no
    scheduler or worker is there within ``patience`` seconds, or a worker has other versions than this
    process.
    """

    repeats = True

    def __init__(self, address: str, *, patience: float = PATIENCE, losses: int = LOSSES) -> None:
        check_scheduler(address)
        self._address, self._patience, self._losses = address, patience, losses
        self._futures: dict[Future, Task] = {}
        self._client = _connected(address, patience)
        self._completed = _collecting(self._client)
        try:
            self._await_workers()
            self._check_versions()
            self._client.run_on_scheduler(_allowing(losses))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DaskExecutor:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """Threads of all workers."""
        return max(1, sum(self._threads().values()))

    @property
    def share(self) -> int:
        """Most threads that workers have on one machine."""
        hosts: Counter[str] = Counter()
        for address, threads in self._threads().items():
            hosts[address.rpartition(":")[0]] += threads
        return max(hosts.values(), default=1)

    def submit(self, task: Task) -> None:
        """Have Dask run a task. Raises EnvironmentProblem where the scheduler is lost."""
        content = pickle.dumps((task.function, task.arguments))
        name = f"{task.function.__name__}-{uuid.uuid4().hex}"
        try:
            future = self._client.submit(task_in_worker, dict(versions_here()), content, key=name, pure=False)
        except Exception as error:
            raise self._lost() from error
        self._futures[future] = task
        self._completed.add(future)

    def results(self) -> Iterator[Outcome]:
        """Outcomes as they come, until no task is left.

        Raises EnvironmentProblem where the scheduler or all workers are lost, or one has other versions.
        """
        while self._futures:
            self._await_one()
            future, result = next(self._completed)
            task = self._futures.pop(future, None)
            if task is not None:
                yield self._outcome(task, result)

    def close(self) -> None:
        """Take back what has not begun and disconnect; a task at work ends on its own, soon or late."""
        futures, self._futures = list(self._futures), {}
        with contextlib.suppress(Exception):  # the scheduler may be gone
            if futures and self._client.status == "running":
                self._client.cancel(futures)
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    def _await_one(self) -> None:
        """Return once a result is here. Raises EnvironmentProblem once nobody is there to give one."""
        seen = looked = time.monotonic()
        while not self._completed.has_ready():
            time.sleep(_PAUSE)
            now = time.monotonic()
            if now - looked < _GLANCE:
                continue
            looked = now
            if self._client.status != "running":
                raise self._lost()
            if self._threads():
                seen = now
            elif now - seen > self._patience:
                raise self._no_workers()

    def _outcome(self, task: Task, result: Any) -> Outcome:
        """Of what ``as_completed`` gives: an answer, ``(type, exception, traceback)``, or CancelledError."""
        from distributed import KilledWorker

        if isinstance(result, BaseException):
            raise self._lost() from result
        if len(result) == 2:
            kind, content = result
            if kind == "refused":
                raise content
            return Outcome(task, error=content) if kind == "error" else Outcome(task, content)
        cause = result[1]
        if isinstance(cause, KilledWorker):
            message = f"{self._losses} workers were lost at this task or with it in line"
            hint = "look into the logs of the workers: they may lack memory"
            return Outcome(task, error=ChildDied(message, hint=hint))
        raise not_understood("a worker", cause) from cause

    def _threads(self) -> Mapping[str, int]:
        """Of each worker, by its address; none where nobody answers."""
        try:
            info = self._client.scheduler_info(n_workers=-1)
            return {address: int(each["nthreads"]) for address, each in info["workers"].items()}
        except Exception:
            return {}

    def _await_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._patience)
        except TimeoutError as error:
            raise self._no_workers() from error

    def _check_versions(self) -> None:
        """Raise EnvironmentProblem for the first worker, or the scheduler, whose versions are others."""
        workers = self._client.run(versions_here, on_error="return")
        answers = {f"the worker {address}": found for address, found in workers.items()}
        who = f"the scheduler {self._address}"
        try:
            answers[who] = self._client.run_on_scheduler(versions_here)
        except Exception as error:
            raise not_understood(who, error) from error
        for who, found in answers.items():
            if isinstance(found, BaseException):
                raise not_understood(who, found) from found
            refused = refusal(who, found, versions_here())
            if refused is not None:
                raise refused

    def _lost(self) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"the connection to the Dask scheduler at {self._address} was lost",
            hint="look into its log, start it again, and run the same command (kconv to-gguf: with --resume)",
        )

    def _no_workers(self) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"the Dask scheduler at {self._address} has had no workers for {self._patience:.0f} seconds",
            hint=f"start some: dask worker {self._address} (docs: cluster.md)",
        )


def workers_of(scheduler: str, *, stream: bool, store: bool) -> DaskExecutor:
    """Those for one conversion, which lies where they all see it. Raises as ``DaskExecutor``."""
    if stream or store:
        what = "--stream" if stream else "an object store as output"
        raise UsageError(
            f"--scheduler and {what} cannot be combined: workers read and write one file system",
            hint="leave one of them out",
        )
    return DaskExecutor(scheduler)


def check_scheduler(address: str) -> None:
    """Raise UsageError for what is no address, or where Dask is not installed; connects to nothing."""
    if not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"--scheduler {address} is not the address of a Dask scheduler",
            hint="as the scheduler prints it: tcp://HOST:8786, or tls://HOST:8786",
        )
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # read once, with the import
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--scheduler needs the package distributed: {error}", hint="pip install 'kconv[cluster]'"
        ) from error


def _connected(address: str, patience: float) -> Client:
    import warnings

    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    for name in ("distributed", "distributed.client", "distributed.comm", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they tell of losses is said in our errors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # compared below
            return Client(address, timeout=patience, set_as_default=False, name="kconv")
    except (OSError, TimeoutError) as error:
        raise EnvironmentProblem(
            f"no Dask scheduler answers at {address}", hint="start one: dask scheduler (docs: cluster.md)"
        ) from error
    except Exception as error:  # of TLS settings, of a protocol that is not there
        raise EnvironmentProblem(
            f"cannot connect to the Dask scheduler at {address}: {str(error) or type(error).__name__}",
            hint="see Dask's settings for distributed.comm (docs: cluster.md)",
        ) from error


def _collecting(client: Client) -> as_completed:
    """Fetches results in the background as soon as they are there: in a worker they may be lost with it."""
    from distributed import as_completed

    return as_completed(loop=client.loop, with_results=True, raise_errors=False)


def _allowing(losses: int) -> Callable[..., None]:
    """Sent as it is; what the scheduler allows already stays."""

    def allow(dask_scheduler: Any) -> None:
        dask_scheduler.allowed_failures = max(dask_scheduler.allowed_failures, losses)

    return allow
