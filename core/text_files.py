"""Texts of the user to prove a file on: read with care, refused with one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointError, InputError
from .input_files import InputFile

TEXT_LIMIT = 64 << 20
"""Largest text read, in bytes: some twenty million tokens, far more than anybody waits for."""


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The texts of UTF-8 files, in order. Raises InputError and EnvironmentProblem, as ``read_text``."""
    return [read_text(path) for path in paths]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte order mark taken off, line ends as they are.

    Raises InputError for what is missing, no regular file, too large, not UTF-8 or without a visible
    character, and EnvironmentProblem for what the machine refuses.
    """
    try:
        file = InputFile(path)
        if file.size > TEXT_LIMIT:
            raise InputError(
                f"the text {path} has {file.size:,} bytes, expected at most {TEXT_LIMIT >> 20} MiB",
                hint="pass a part of it; --tokens limits how much of a text is read",
            )
        data = file.read(0, file.size)
    except CheckpointError as error:  # InputFile speaks of files of a checkpoint
        raise InputError(f"text: {error.message}", hint="give a file of UTF-8 text") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text {path} is not UTF-8: {error.reason} at byte {error.start}",
            hint=f"convert it first, for example: {_iconv(data)}",
        ) from error
    if "\0" in text:
        raise InputError(
            f"the text {path} contains NUL characters, like UTF-16 text or a binary file",
            hint="give a file of UTF-8 text",
        )
    if not text.strip():
        blank = "is empty" if not text else "contains only white space"
        raise InputError(f"the text {path} {blank}", hint="give a text of at least a few sentences")
    return text


def _iconv(data: bytes) -> str:
    """The command that would likely help: UTF-16 begins with a byte order mark, Korean text is in CP949."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp949"
    return f"iconv -f {encoding} -t utf-8"
