"""The text of ``jobs.toml``, and which line of it a message is about."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError, UsageError
from ..core.language import phrase

_LIMIT = 16 << 20  # bytes of a jobs file

Table = Mapping[str, Any]


class JobsFile:
    """The text of a jobs file and where it stands; ``where`` names a place in it for messages."""

    def __init__(self, text: str, name: str, folder: Path) -> None:
        import tomllib  # which --help does not need

        self.text, self.name, self.folder = text, name, folder
        try:
            self.content: Table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(
                f"{name} is not valid TOML: {error}", hint="see the example of kconv batch --help"
            ) from error

    def where(self, job: int | None, key: str | None = None) -> str:
        """``jobs.toml, line 7 (job 2)``; job None is [defaults], where a key may stand, too."""
        line = line_of(self.text, job, key)
        if line is None and key is not None and (line := line_of(self.text, None, key)) is not None:
            job = None
        if line is None and (line := line_of(self.text, job, None)) is None:
            return f"{self.name}, [defaults]" if job is None else f"{self.name}, job {job}"
        if job is None:
            return phrase("{name}, line {line} ([defaults])").of(name=self.name, line=line)
        return phrase("{name}, line {line} (job {job})").of(name=self.name, line=line, job=job)


def read_jobs_file(path: Path) -> JobsFile:
    """The file at ``path``, or of standard input for ``-``. Raises InputError, UsageError."""
    if str(path) == "-":
        return JobsFile(sys.stdin.read(), "the jobs on standard input", Path.cwd())
    from ..core.input_files import InputFile

    if not path.exists():
        raise InputError(f"{path} does not exist, expected a list of jobs", hint="see `kconv batch --help`")
    file = InputFile(path)
    if file.size > _LIMIT:
        raise InputError(f"{path} has {file.size:,} bytes, expected at most {_LIMIT:,} for a list of jobs")
    try:
        text = file.read(0, file.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}",
            hint="give a list of jobs in TOML; see `kconv batch --help`",
        ) from error
    return JobsFile(text, str(path), path.absolute().parent)


_HEADER = re.compile(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?\s*(#.*)?$")


def line_of(text: str, job: int | None, key: str | None) -> int | None:
    """The line of a key, or without one of the header, of a job or of [defaults].

    tomllib does not say where it found what; inline tables and other rare spellings are not found.
    """
    table, jobs = "", 0
    spelled = None if key is None else "[-_]".join(map(re.escape, re.split("[-_]", key)))
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[1]
            jobs += table == "jobs"
        inside = table == "defaults" if job is None else table == "jobs" and jobs == job
        if inside and (
            (header and spelled is None) or (spelled and re.match(rf"\s*[\"']?{spelled}[\"']?\s*[.=]", line))
        ):
            return number
    return None
