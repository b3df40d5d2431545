"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import EnvironmentProblem, OutputExists


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputExists unless ``path`` is free or ``force`` allows to replace a plain file."""
    if not os.path.lexists(path):
        above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not above.is_dir():
            raise OutputExists(f"{above} is a file, expected a folder to write {path.name} to")
        return
    if not force:
        raise OutputExists(
            f"{path} exists already", hint="choose another -o, or pass --force to overwrite it"
        )
    if path.is_dir():
        raise OutputExists(f"{path} is a folder, expected a file", hint="choose another -o")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``path`` into EnvironmentProblem."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentProblem(
                f"no space left while writing {path}", hint="free some space or write to another disk with -o"
            ) from error
        if error.errno == errno.EFBIG:
            raise EnvironmentProblem(
                f"{path} would be larger than the file system or limit allows",
                hint="write to another disk with -o",
            ) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise EnvironmentProblem(
                f"no permission to write {path}", hint="choose a folder you may write to with -o"
            ) from error
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_files(paths: Sequence[Path], *, force: bool = False) -> Iterator[list[Path]]:
    """Yield a temporary path beside each of ``paths``; on success all take their names, on failure none.

    The data is synced before the renames and the folders, where that is possible, after them. Raises
    OutputExists (also when a target appeared meanwhile) and EnvironmentProblem.
    """
    for path in paths:
        refuse_existing(path, force=force)
    temporaries: list[Path] = []
    made = [folder for path in paths for folder in path.absolute().parents if not folder.exists()]
    try:
        for path in paths:
            temporaries.append(_temporary_beside(path))  # before it is there: Ctrl-C may strike anywhere
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporaries[-1].touch(exist_ok=False)
        with explained(paths[0]):
            yield temporaries
            for temporary in temporaries:
                synced(temporary)
            _publish_all(temporaries, paths, force=force)
            for folder in {path.parent for path in paths}:
                with contextlib.suppress(OSError):  # all is published; some file systems sync no folders
                    synced(folder)
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):  # it may never have been made
                temporary.unlink()
        for folder in dict.fromkeys(made):
            with contextlib.suppress(OSError):  # not empty: all went well
                folder.rmdir()


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """``atomic_files`` for one file."""
    with atomic_files([path], force=force) as (temporary,):
        yield temporary


def _temporary_beside(path: Path) -> Path:
    start = os.fsdecode(os.fsencode(path.name)[:200])  # names have at most 255 bytes, Hangul takes three each
    return path.with_name(f".{start}.{secrets.token_hex(8)}.partial")


def _publish_all(temporaries: Sequence[Path], paths: Sequence[Path], *, force: bool) -> None:
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            _publish(temporary, path, force=force)
    except BaseException:
        for temporary, path in zip(temporaries, paths, strict=True):
            with contextlib.suppress(OSError):
                if os.path.samefile(temporary, path):  # linked by us, so far without its companions
                    path.unlink()
        raise


def _publish(temporary: Path, path: Path, *, force: bool) -> None:
    if force:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename this fails if somebody else took the name meanwhile
    except FileExistsError as error:
        raise OutputExists(f"{path} exists already", hint="pass --force to overwrite it") from error
    except OSError:  # a file system without hard links
        refuse_existing(path, force=False)
        os.rename(temporary, path)


def synced(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
