"""What runs in Dask's workers for ``flows/dask_executor.py``: tasks, once their versions are the leader's."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping
from typing import Any

from ..converters.manifest import versions
from ..core.errors import EnvironmentProblem
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


def refusal(address: str, there: Mapping[str, str], here: Mapping[str, str]) -> EnvironmentProblem | None:
    """What to raise where a worker has other versions than the leader, ``here``; None where it has not."""
    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if not names:
        return None
    found = ", ".join(f"{name} {there.get(name, 'missing')}" for name in names)
    expected = ", ".join(f"{name} {here.get(name, 'missing')}" for name in names)
    return EnvironmentProblem(
        f"the worker {address} has {found}; this machine has {expected}", hint=VERSIONS_HINT
    )


def task_in_worker(
    expected: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[str, Any]:
    """``("value", …)``, ``("error", exception)``, or ``("refused", exception)`` if the worker came late."""
    refused = refusal(worker_address(), versions_here(), expected)
    return ("refused", refused) if refused is not None else run_task(function, arguments)


def worker_address() -> str:
    """The address of the worker that runs this; the name of this process where none does."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return "of this machine"
