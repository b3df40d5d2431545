"""The files beside a checkpoint's weights that decide what is made of it, or describe it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from .byte_source import Identity, identity_of
from .errors import EnvironmentProblem
from .input_files import changed_meanwhile

_NAMES = re.compile(
    r"config\.json|generation_config\.json|.*\.index\.json|tokenizer.*\.(json|model)|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|.*\.model|chat_template\.(jinja|json)|README\.md|LICENSE.*"
)


def is_side_file(name: str) -> bool:
    """Whether a file of that name decides or describes."""
    return _NAMES.fullmatch(name) is not None


def side_files(folder: Path) -> dict[Path, Identity]:
    """Those there are, by name, each with what it is at this moment. Raises OSError."""
    identities = {}
    for name in sorted(os.listdir(folder)):
        if is_side_file(name):
            try:
                status = os.stat(folder / name)
            except OSError:  # a link that leads nowhere
                continue
            if stat.S_ISREG(status.st_mode):
                identities[folder / name] = identity_of(status)
    return identities


def check_side_files(folder: Path, before: Mapping[Path, Identity]) -> None:
    """Raise EnvironmentProblem unless they are the files they were; they are read by name, now and then."""
    try:
        now = side_files(folder)
    except OSError as error:
        raise changed_meanwhile(f"{folder} was removed while it was read") from error
    _refuse_differences(before, now, "while the checkpoint was read")


def side_files_after_unpickling(folder: Path, before: Mapping[str, tuple[int, int]]) -> dict[Path, Identity]:
    """Those there are in a process a checkpoint was sent to.

    ``before`` are sizes in bytes and times of change in ns, by name, where it was sent from. Raises
    EnvironmentProblem unless they are the same files.
    """
    try:
        now = side_files(folder)
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} was open in the process that pickled this, but cannot be listed here: "
            f"{error.strerror}",
            hint="make the checkpoint available under the same path in every process",
        ) from error
    _refuse_differences(
        {folder / name: identity for name, identity in before.items()},
        {path: identity[2:] for path, identity in now.items()},
        "since the checkpoint was opened",
    )
    return now


def _refuse_differences(before: Mapping[Path, object], now: Mapping[Path, object], when: str) -> None:
    for path in sorted({*before, *now}):
        if now.get(path) != before.get(path):
            what = "removed" if path not in now else "changed" if path in before else "put there"
            raise changed_meanwhile(f"{path} was {what} {when}")
