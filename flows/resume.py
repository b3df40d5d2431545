"""Going on with a run that was killed or interrupted: what it has left is found, checked, and continued."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.done_pieces import read_arrivals
from ..converters.journal import JournalFolder, differences
from ..converters.targets import Target
from ..core.elsewhere import Stream
from ..core.errors import DamagedOnTheWay, EnvironmentProblem, OutputExists
from ..core.files import atomic_files, refuse_existing
from ..core.folders import atomic_folder, refuse_filled
from ..core.kept import Kept, journal_beside, kept_for, read_kept
from ..core.leftovers import discard, take_back, tell_kept
from .results import Run

_ANEW = "leave out --resume to start from the beginning"


class CannotResume(OutputExists):
    """What an earlier run has left is not what this one would write."""


def refuse_unkept(targets: Sequence[Target], *, force: bool) -> None:
    """Raise OutputExists for files that are there already, but for those of a run to be resumed."""
    paths = [path for target in targets for path in target.paths]
    names = {name for kept in kept_for(paths) for name in kept.files}
    for path in paths:
        if path.name not in names:
            refuse_existing(path, force=force)


def find_kept(
    paths: Sequence[Path],
    fingerprint: Callable[[], Mapping[str, Any]],
    sources: Sequence[Mapping[str, Any]],
    run: Run,
) -> Kept | None:
    """What a run with the same ``paths`` has left, where this one is to go on with it.

    Raises CannotResume where that was to become other bytes.
    """
    if not run.resume:
        return None
    take_back(paths[0].parent)
    found = kept_for(paths)
    if not found:
        run.announce("nothing to resume beside the output: starting from the beginning")
        return None
    kept = found[-1]
    if not {path.name for path in paths} <= kept.files.keys():
        names = ", ".join(name for name in kept.files if not name.endswith((".json", ".Modelfile")))
        raise CannotResume(
            f"the unfinished files in {paths[0].parent} are of a run that was to write {names}",
            hint=f"ask for the same types and names, or {_ANEW}",
        )
    told = differences(kept, fingerprint(), sources)
    if told:
        raise CannotResume(
            f"the unfinished files of {paths[0]} cannot be resumed: {'; '.join(told)}", hint=_ANEW
        )
    return kept


def hold_to(kept: Kept | None, stream: Stream | None) -> None:
    """Have a stream hold what comes to what came in the run that is gone on with.

    Raises CannotResume where the journal does not say that, DamagedOnTheWay.
    """
    if kept is None or stream is None:
        return
    try:
        stream.restore(read_arrivals(kept.folder))
    except (ValueError, LookupError, TypeError) as error:
        raise CannotResume(
            f"the journal {kept.folder} does not say what had been fetched: it is damaged", hint=_ANEW
        ) from error


def not_as_written(path: Path) -> OutputExists:
    """What to raise where something else has the name of what an ended run had finished."""
    return OutputExists(
        f"{path} is not what the run to be resumed has written: it was changed or replaced since",
        hint="pass --force without --resume to convert again",
    )


def journal_of(paths: Sequence[Path]) -> Path | None:
    """The folder of the journal of files that have their names, while it is wanted for their proof."""
    found = kept_for(paths)
    return found[-1].folder if found else None


def is_published(kept: Kept, paths: Sequence[Path]) -> bool:
    """Whether all files have their names, and only their proof may be missing."""
    return not kept.partials and all(path.exists() for path in paths)


Content = Callable[[], Mapping[str, Any]]
"""Makes what a journal says besides the names of files: fingerprint and sources."""


@contextlib.contextmanager
def journaled_files(
    paths: Sequence[Path], kept: Kept | None, content: Content, run: Run, *, proven: bool
) -> Iterator[tuple[list[Path], JournalFolder]]:
    """``atomic_files``, with a journal; interrupted, they stay for ``--resume`` if it says something of them.

    ``kept`` is what to go on with; else what was kept of earlier runs for these files goes. ``proven`` says
    that the journal is wanted until a proof is done, which removes it then.
    """
    if kept is None:
        for path in paths:
            refuse_existing(path, force=run.force)
    names: dict[str, str] = {}
    before = {} if kept is None else {path: kept.temporary(path) for path in paths}
    known = {path: temporary for path, temporary in before.items() if temporary is not None}
    with (
        _journal(paths, kept, names, content, proven=proven) as journal,
        atomic_files(paths, force=run.force, kept=known, keep=partial(_keep, journal)) as made,
    ):
        names.update({path.name: temporary.name for path, temporary in zip(paths, made, strict=True)})
        yield made, journal


@contextlib.contextmanager
def journaled_folder(
    path: Path, kept: Kept | None, content: Content, run: Run, *, mark: str, proven: bool
) -> Iterator[tuple[Path, JournalFolder]]:
    """``atomic_folder`` with a journal, as ``journaled_files``; ``path`` is resolved."""
    if kept is None:
        refuse_filled(path, mark=mark, force=run.force)
    names: dict[str, str] = {}
    known = None if kept is None else kept.temporary(path)
    with (
        _journal([path], kept, names, content, proven=proven) as journal,
        atomic_folder(path, mark=mark, force=run.force, kept=known, keep=partial(_keep, journal)) as made,
    ):
        names[path.name] = made.name
        yield made, journal


@contextlib.contextmanager
def _journal(
    paths: Sequence[Path], kept: Kept | None, names: Mapping[str, str], content: Content, *, proven: bool
) -> Iterator[JournalFolder]:
    """The journal, which goes once all is well unless a proof is to come."""
    if kept is None:
        discard(paths)
    place = journal_beside(paths[0]) if kept is None else kept.folder
    said = partial(_said, names, content)
    journal = JournalFolder(place, said, kept=kept is not None, outlives=proven)
    try:
        yield journal
        if not proven:
            journal.remove()
    finally:
        journal.release()


def _said(names: Mapping[str, str], content: Content) -> dict[str, Any]:
    return {"files": dict(names), **content()}


def _keep(journal: JournalFolder, error: BaseException) -> bool:
    """Whether unfinished files stay: if there is something to go on with, and the input was not at fault."""
    if not journal.is_established:
        return False
    passing = isinstance(error, KeyboardInterrupt | EnvironmentProblem | OSError | MemoryError)
    if not passing or isinstance(error, DamagedOnTheWay):
        journal.remove()
        return False
    left = read_kept(journal.path)
    if left is not None:
        tell_kept(left)
    return left is not None
