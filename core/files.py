"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from .claims import claim, new_mark, reclaim, temporary_beside
from .errors import MORE_MEMORY, EnvironmentProblem, OutputExists
from .kept import kept_for
from .leftovers import sweep
from .system_files import release, rename, synced


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputExists unless ``path`` is free or ``force`` allows to replace a plain file.

    A file that a killed run named, but not yet the others that belong to it, does not count and goes.
    """
    if not force and os.path.lexists(path):
        sweep(path.parent)
    if not os.path.lexists(path):
        above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not above.is_dir():
            raise OutputExists(f"{above} is a file, expected a folder to write {path.name} to")
        return
    if not force:
        hint = "choose another -o, or pass --force to overwrite it"
        if kept_for([path]):
            hint = f"--resume goes on with the run that was ended before its proof was done; or {hint}"
        raise OutputExists(f"{path} already exists", hint=hint)
    if path.is_dir():
        raise OutputExists(f"{path} is a folder, expected a file", hint="choose another -o")


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest of the folders above it that exists: there is where it would take room."""
    return next(each for each in (path, *path.parents) if each.exists())


@contextlib.contextmanager
def explained(path: Path, *, elsewhere: str = "write to another disk with -o") -> Iterator[None]:
    """Turn the operating system's refusals while writing ``path`` into EnvironmentProblem.

    Where it names a file that lies elsewhere, that file is named instead. ``elsewhere`` says how to write to
    another place.
    """
    try:
        yield
    except OSError as error:
        raise _explanation(error, path, elsewhere) from error


def _explanation(error: OSError, path: Path, elsewhere: str) -> EnvironmentProblem:
    if isinstance(error.filename, str | bytes):
        named = Path(os.fsdecode(error.filename)).absolute()
        about = path.absolute()
        if about.parent not in named.parents and named not in about.parents:
            return EnvironmentProblem(
                f"{error.strerror or error}: {named}",
                hint="do not change the input and output folders during the run"
                if isinstance(error, FileNotFoundError)
                else None,
            )
    number = error.errno
    if number in (errno.ENOSPC, errno.EDQUOT):
        message, hint = (
            f"no space left while writing {path}",
            f"free some space or {elsewhere}",
        )
    elif number == errno.EFBIG:
        message = f"{path} would be larger than the file system or limit allows"
        hint = f"{elsewhere}, or raise the limit (ulimit -f)"
    elif number in (errno.EMFILE, errno.ENFILE):
        message = f"too many files are open to write {path}"
        hint = "raise the limit (ulimit -n), or make fewer files at once"
    elif number in (errno.ENOMEM, errno.EAGAIN):
        message, hint = f"out of memory while writing {path}", MORE_MEMORY
    elif number in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        message = f"{path.parent} does not exist (any more); it is needed to write {path.name} to"
        hint = "run it again, and do not change the folder meanwhile"
    elif isinstance(error, PermissionError) or number == errno.EROFS:
        message, hint = f"no permission to write {path}", "choose a folder you may write to with -o"
    else:
        return EnvironmentProblem(f"cannot write {path}: {error.strerror or error}")
    return EnvironmentProblem(message, hint=hint)


@contextlib.contextmanager
def atomic_files(
    paths: Sequence[Path],
    *,
    force: bool = False,
    kept: Mapping[Path, Path] = MappingProxyType({}),
    keep: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[list[Path]]:
    """Yield a temporary path beside each of ``paths``; on success all take their names, on failure none.

    The data is synced before the renames and the folders, where that is possible, after them. What killed
    runs have left in these folders is removed first. ``kept`` are temporary paths of a run that is gone, to
    go on with, by those they are for; ``keep`` is asked whether they stay after a failure. Raises
    OutputExists (also when a target appeared meanwhile) and EnvironmentProblem.
    """
    for path in paths:
        refuse_existing(path, force=force)
    for folder in dict.fromkeys(path.parent for path in paths):
        sweep(folder)
    temporaries: list[Path] = []
    handles: list[int] = []
    made = [folder for path in paths for folder in path.absolute().parents if not folder.exists()]
    mark, stay = new_mark(), False
    try:
        for path in paths:
            old = kept.get(path)
            if old is not None and old.is_file():
                handles.append(_reclaimed(old, path))
                temporaries.append(old)
                continue
            # noted before it is there: Ctrl-C may strike anywhere
            temporaries.append(old or temporary_beside(path, mark=mark))
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handles.append(claim(temporaries[-1]))
        with explained(paths[0]):
            yield temporaries
            for temporary in temporaries:
                synced(temporary)
            _publish_all(temporaries, paths, force=force)
            for folder in {path.parent for path in paths}:
                with contextlib.suppress(OSError):  # all is published; some file systems sync no folders
                    synced(folder)
    except BaseException as error:
        stay = keep(error)
        raise
    finally:
        for temporary in () if stay else temporaries:
            with contextlib.suppress(OSError):  # it may never have been made
                temporary.unlink()
        for handle in handles:  # not before: unlocked, they would look left
            release(handle)
        for folder in dict.fromkeys(made):
            with contextlib.suppress(OSError):  # not empty: all went well
                folder.rmdir()


def _reclaimed(temporary: Path, path: Path) -> int:
    with explained(path):
        try:
            return reclaim(temporary)
        except BlockingIOError as error:
            raise OutputExists(
                f"another run is still writing {path}", hint="wait for it, or end it and try again"
            ) from error


@contextlib.contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """``atomic_files`` for one file."""
    with atomic_files([path], force=force) as (temporary,):
        yield temporary


def _publish_all(temporaries: Sequence[Path], paths: Sequence[Path], *, force: bool) -> None:
    """Give all files their names, or none.

    What is replaced keeps a second name meanwhile, to have its first again if a later file is refused; if the
    process is killed, the next run does that (``core/leftovers.py``).
    """
    kept: dict[Path, Path] = {}
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            if force and len(paths) > 1 and os.path.lexists(path):
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(path, temporary.with_suffix(".old"), follow_symlinks=False)
                    kept[path] = temporary.with_suffix(".old")
        for temporary, path in zip(temporaries, paths, strict=True):
            _publish(temporary, path, force=force)
    except BaseException:
        for temporary, path in zip(temporaries, paths, strict=True):
            with contextlib.suppress(OSError):
                if path in kept:
                    rename(kept[path], path)
                elif os.path.samefile(temporary, path):  # linked by us, so far without its companions
                    path.unlink()
        raise
    finally:
        for old in kept.values():
            with contextlib.suppress(OSError):
                old.unlink()


def _publish(temporary: Path, path: Path, *, force: bool) -> None:
    if force and os.path.lexists(path):
        rename(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike a rename this fails if somebody else took the name meanwhile
    except FileExistsError as error:
        if force:
            rename(temporary, path)
            return
        raise OutputExists(f"{path} already exists", hint="pass --force to overwrite it") from error
    except OSError:  # a file system without hard links
        refuse_existing(path, force=force)
        rename(temporary, path)
