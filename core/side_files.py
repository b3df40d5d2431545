"""The files beside a checkpoint's weights that decide what is made of it, or describe it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from .input_files import Identity, changed_meanwhile, identity_of

_NAMES = re.compile(
    r"config\.json|generation_config\.json|.*\.index\.json|tokenizer.*\.(json|model)|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|.*\.model|chat_template\.(jinja|json)|README\.md|LICENSE.*"
)


def side_files(folder: Path) -> dict[Path, Identity]:
    """Those there are, by name, each with what it is at this moment. Raises OSError."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if _NAMES.fullmatch(name):
            try:
                status = os.stat(folder / name)
            except OSError:  # a link that leads nowhere
                continue
            if stat.S_ISREG(status.st_mode):
                found[folder / name] = identity_of(status)
    return found


def check_side_files(folder: Path, before: Mapping[Path, Identity]) -> None:
    """Raise EnvironmentProblem unless they are the files they were; they are read by name, now and then."""
    try:
        now = side_files(folder)
    except OSError as error:
        raise changed_meanwhile(f"{folder} was removed while it was read") from error
    for path in (*before, *now):
        if now.get(path) != before.get(path):
            what = "removed" if path not in now else "changed" if path in before else "put there"
            raise changed_meanwhile(f"{path} was {what} while the checkpoint was read")
