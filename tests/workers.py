"""Tests side by side (pytest-xdist): how many processes, how many threads in each, which files come first.

Files stay whole (``--dist loadscope``), so what a file's fixtures make is made once. The longest come first,
or one of them would still be running when all others are done.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import pytest

MOST = 8
"""More processes than this wait for the longest file."""
MEMORY = 2 << 30
"""Bytes a process is given: torch, transformers and onnxruntime, and a child or two."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables that libraries ask how many threads to start."""
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processors this process may use: its affinity and the quota of its container."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text("ascii").split()
        found = min(found, round(int(quota) / int(period)))
    return max(found, 1)


def memory() -> int:
    """Bytes that are free here: on the machine and in its container."""
    found: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit, used = (int((_CGROUP / f"memory.{end}").read_text("ascii")) for end in ("max", "current"))
        kept = dict(line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
        found = min(found, limit - used + int(kept["inactive_file"]))  # files the kernel lets go at once
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means."""
    return max(min(cores(), memory() // MEMORY, MOST), 1)


def _share_threads() -> None:
    """In a worker: no library takes more threads than its share of the processors."""
    count = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if count is None:
        return
    share = str(max(cores() // int(count), 1))
    for name in THREADS:
        os.environ[name] = os.environ.get(name) or share


_share_threads()  # before any library looks at the environment
