"""What runs in Dask's workers for ``flows/dask_executor.py``: tasks, once their versions are the leader's."""

from __future__ import annotations

import functools
import pickle
import platform
from collections.abc import Mapping
from typing import Any

from ..converters.manifest import versions
from ..core.errors import EnvironmentProblem, KconvError
from .executor_child import run_task

VERSIONS_HINT = "install the same versions everywhere, and start the workers again"


@functools.cache
def versions_here() -> Mapping[str, str]:
    """Versions of Python, kconv and what has a hand in the bytes it writes.

    Who encodes, kconv's kernels or libggml, does not count: the bytes are the same.
    """
    used = versions(("torch", "transformers", "distributed"))
    del used["kernels"]
    return {"python": ".".join(platform.python_version_tuple()[:2]), **used}


def refusal(who: str, there: Mapping[str, str], here: Mapping[str, str]) -> EnvironmentProblem | None:
    """What to raise where ``who`` has other versions than the leader, ``here``; None where it has not."""
    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if not names:
        return None
    found = ", ".join(f"{name} {there.get(name, 'missing')}" for name in names)
    expected = ", ".join(f"{name} {here.get(name, 'missing')}" for name in names)
    return EnvironmentProblem(f"{who} has {found}; this machine has {expected}", hint=VERSIONS_HINT)


def task_in_worker(expected: Mapping[str, str], content: bytes) -> tuple[str, Any]:
    """``("value", …)``, ``("error", exception)``, or ``("refused", exception)`` if the worker came late.

    ``content`` is function and arguments, pickled, so that the scheduler need not know them.
    """
    refused = refusal(f"the worker {worker_address()}", versions_here(), expected)
    if refused is not None:
        return "refused", refused
    try:
        function, arguments = pickle.loads(content)
    except KconvError as error:  # a checkpoint that is not here what it is there
        return "error", error
    except Exception as error:
        return "refused", not_understood(f"the worker {worker_address()}", error)
    return run_task(function, arguments)


def not_understood(who: str, error: BaseException) -> EnvironmentProblem:
    """What to raise where not even the question was understood."""
    return EnvironmentProblem(
        f"{who} cannot run this kconv: {type(error).__name__}: {error}", hint=VERSIONS_HINT
    )


def worker_address() -> str:
    """The address of the worker that runs this; the name of this process where none does."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return "of this machine"
