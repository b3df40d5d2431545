"""Under CI a test that is skipped has failed: what it would have compared with is missing.

With ``CI`` set (``CI=true``) a skip whose reason is not in ``ALLOWED`` becomes a failure that says so. What
is on that list no installation mends; it says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

ALLOWED = {
    "root may read everything": "another user of the same CI runs it",
    "running as root without setpriv": "without it root cannot become somebody who is forbidden things",
    "cannot mount a small file system here": "containers without CAP_SYS_ADMIN may not; CI as root does",
    "needs /dev/full (Linux)": "other systems have no disk that is always full",
    "no chromium here": "reports and the chat page are drawn only where there is a browser",
    "llama.cpp approximates this regular expression": "a finding about llama.cpp, the same on every machine",
    "tiles are of x86-64": "other processors have no AMX",
    "it would be built anew": "it may be, with this compiler on this processor, and takes minutes",
    "the tests of the stand-in say what follows": "a processor on which llama.cpp's own buffers do not work",
    "the interpreter below the virtual environment has llama-cpp-python": "it is that machine's own Python",
}
"""Parts of reasons to skip a test even under CI, and why."""


def strict() -> bool:
    """Whether this is CI."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def _refused(report: Any, reason: str) -> None:
    """Make a failure of a skip that CI does not allow; an expected failure is none."""
    if not report.skipped or hasattr(report, "wasxfail") or any(reported in reason for reported in ALLOWED):
        return
    report.outcome = "failed"
    report.longrepr = (
        f"skipped under CI, where that counts as failed: {reason}\n"
        "Provide what is missing (KCONV_REAL, a compiler, a download, …), or unset CI to skip it."
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Iterator[None]:
    """A test, or its fixtures."""
    report = yield
    if strict() and call.excinfo is not None:
        _refused(report, str(getattr(call.excinfo.value, "msg", call.excinfo.value)))
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Iterator[None]:
    """A whole file."""
    report: Any = yield
    if strict() and report.skipped:
        _refused(report, str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr))
    return report
