"""llama_model_quantize with all its parameters, in a child process: rows that do not fit make it abort."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kconv.quant.importance import Importance


@dataclass(frozen=True)
class Job:
    """One call of llama_model_quantize; ``file_type`` and the rest as in its parameters.

    Without a ``target`` it is a dry run; ``imatrix`` takes what ``save_importance`` left beside the source.
    """

    source: Path
    file_type: int
    target: Path | None = None
    pure: bool = False
    threads: int = 1
    imatrix: bool = False
    overrides: Sequence[tuple[str, int]] = ()
    output_type: int | None = None
    embedding_type: int | None = None


def save_importance(source: Path, importance: Importance) -> None:
    """Put it where the jobs of that source find it."""
    np.savez(source.with_suffix(".npz"), **importance.values)  # type: ignore[arg-type]


def quantize(jobs: Sequence[Job]) -> list[dict[str, str] | None]:
    """For every job the formats by tensor, as llama.cpp says them; None where it refuses.

    All in one process: to make its tables for the smallest formats takes llama.cpp several seconds.
    """
    result = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(job) for job in jobs], default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[dict[str, str] | None] = json.loads(result.stdout)
    return answers


_SAID = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), (.*)")
_BECOMES = re.compile(r"converting to (\w+)|\((\w+)\)$")


def _run() -> None:
    """The child: read jobs from standard input, answer on standard output."""
    import llama_cpp

    lines: list[bytes] = []
    log = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text))
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    answers: list[dict[str, str] | None] = []
    for job in json.load(sys.stdin):
        parameters, kept = _parameters(job)
        lines.clear()
        paths = job["source"].encode(), (job["target"] or "/dev/null").encode()
        code = llama_cpp.llama_model_quantize(*paths, ctypes.byref(parameters))
        del kept
        formats = {}
        for line in b"".join(lines).decode("utf-8", "replace").splitlines():
            if match := _SAID.match(line):
                becomes = _BECOMES.search(match[3])
                formats[match[1]] = (becomes[1] or becomes[2]) if becomes else match[2]
        answers.append(None if code else formats)
    print(json.dumps(answers))


def _parameters(job: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The parameters, and what they point to."""
    import llama_cpp

    made = llama_cpp.llama_model_quantize_default_params()
    made.ftype, made.pure, made.nthread = job["file_type"], job["pure"], job["threads"]
    made.dry_run = job["target"] is None
    if job["output_type"] is not None:
        made.output_tensor_type = job["output_type"]
    if job["embedding_type"] is not None:
        made.token_embedding_type = job["embedding_type"]
    overrides = (llama_cpp.llama_model_tensor_override * (len(job["overrides"]) + 1))()
    for entry, (pattern, number) in zip(overrides, job["overrides"], strict=False):
        entry.pattern, entry.type = pattern.encode(), number
    made.tt_overrides = overrides
    loaded = {}
    if job["imatrix"]:
        loaded = dict(np.load(Path(job["source"]).with_suffix(".npz")).items())
        made.imatrix = imatrix = (llama_cpp.llama_model_imatrix_data * (len(loaded) + 1))()
        for entry, (name, values) in zip(imatrix, loaded.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return made, [overrides, loaded]


if __name__ == "__main__":
    _run()
