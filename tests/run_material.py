"""`kconv run` as a command, and files for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_material import kconv

from kconv.core.gguf_file import read_header, write_header

PROMPT = "옛날에 고양이가 살았습니다. "
KCONV = [str(Path(sys.executable).parent / "kconv")]


def run(*arguments: object, **how: Any) -> subprocess.CompletedProcess[Any]:
    """`kconv run` on one thread: several on a busy machine wait for each other."""
    return kconv("run", *arguments, "--threads", "1", **how)


def answered(*arguments: object, **how: Any) -> dict[str, Any]:
    """`kconv run --json`, which must succeed and print one object."""
    done = run(*arguments, "--json", **how)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def with_metadata(source: Path, target: Path, *, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """A copy of a GGUF with other metadata; keys in words, `__` for a dot, None removes one.

    Lines of the tensor table that begin as ``without`` says are left out.
    """
    header = read_header(source)
    metadata = dict(header.metadata)
    for words, value in changes.items():
        key = words.replace("__", ".")
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
    kept = [info for info in header.tensors if not info.name.startswith(without)]
    tensors = [replace(info, offset=0) for info in sorted(kept, key=lambda info: info.offset)]
    metadata.pop("general.architecture")
    start = write_header(target, header.arch, metadata, tensors)
    with source.open("rb") as data, target.open("r+b") as copy:
        data.seek(header.data_offset)
        copy.seek(start)
        copy.write(data.read())
    return target


@contextlib.contextmanager
def running(
    model: Path, *options: str, prompt: str = PROMPT, **how: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`kconv run` at work; it and its children are gone afterwards."""
    words = [*KCONV, "run", str(model), "-p", "-", "--no-chat", "--threads", "1", *options]
    pipe = subprocess.PIPE
    child = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, **how)
    assert child.stdin is not None
    try:
        child.stdin.write(prompt.encode())
        child.stdin.close()
        child.stdin = None
        yield child
    finally:
        child.kill()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
        child.wait()
