"""SHA-256 of a conversion's or a proof's files, computed beside the work; receipts spare what is known.

Large files of a checkpoint are hashed in pieces (core/piece_sums.py): by one thread while weights are
written, by all processors when nothing else is left to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from ..core.checkpoint import Checkpoint
from ..core.input_files import InputFile, changed_meanwhile, file_sha256
from ..core.piece_sums import FEWEST, PIECE, piece_sums
from ..core.progress import Progress, silent
from ..core.receipts import Hashed, Stamp, known, pieces_of, sha256_of, stamp_of
from ..core.side_files import check_side_files
from ..hub.evidence import blob_of, check_contents


@dataclass(frozen=True)
class SourceFile:
    """A file that was hashed. ``sha256`` in hexadecimal digits; ``hashed`` says how it is known.

    A large file may have the sums of its ``pieces`` instead, PIECE bytes each but the last; then ``sha256``
    is empty.
    """

    name: str
    bytes: int
    sha256: str
    hashed: Hashed | Literal["pieces"] = "now"
    pieces: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For manifests and ``--json``."""
        known = (
            {"piece_bytes": PIECE, "pieces": list(self.pieces)} if self.pieces else {"sha256": self.sha256}
        )
        return {"name": self.name, "bytes": self.bytes, **known, "hashed": self.hashed}


class Hashes:
    """Hashes files in the background, one after the other, while other work goes on.

    ``files`` are open files, or paths to open when their turn comes, with their names; ``rehash`` reads them
    whatever receipts say. Used as a context manager: leaving it early (a failure elsewhere) stops the
    hashing.
    """

    def __init__(self, files: Sequence[tuple[str, InputFile | Path]], *, rehash: bool = False) -> None:
        self._thread: threading.Thread | None = None  # made when it starts: a fork before would stop it
        self._files, self._rehash = tuple(files), rehash
        self._total = sum(_size(file) for _, file in files)
        self._before = self._done = 0  # bytes
        self._found: list[SourceFile] = []
        self._stamps: list[Stamp | None] = []
        self._failure: BaseException | None = None
        self._stopped, self._hurry = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name="kconv-sha256", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def run(self) -> None:
        """Hash file after file."""
        try:
            for name, given in self._files:
                file = given if isinstance(given, InputFile) else InputFile(given)
                self._stamps.append(stamp_of(file))
                found = self._in_pieces(name, file) if self.in_pieces(name, file) else self._whole(name, file)
                self._before = self._done
                self._found.append(found)
                if self.is_enough(self._found[-1]):
                    return
        except BaseException as error:  # handed to the thread that waits
            self._failure = error

    def in_pieces(self, name: str, file: InputFile) -> bool:
        """Whether the sums of its pieces are wanted."""
        return False

    def _whole(self, name: str, file: InputFile) -> SourceFile:
        digest, how = sha256_of(file, self._count, stopped=self._stopped.is_set, anew=self._rehash)
        check_contents(file.path, digest)
        return SourceFile(name, file.size, digest, how)

    def _in_pieces(self, name: str, file: InputFile) -> SourceFile:
        stopped, hurry = self._stopped.is_set, self._hurry.is_set
        sums, how = pieces_of(file, self._count, stopped=stopped, hurry=hurry, anew=self._rehash)
        return SourceFile(name, file.size, "", "pieces" if how == "now" else how, sums)

    def is_enough(self, found: SourceFile) -> bool:
        """Whether, after this file, the rest need not be hashed."""
        return False

    def _count(self, stage: str, done: int, total: int) -> None:
        self._done = self._before + done

    def wait(self, progress: Progress = silent) -> list[SourceFile]:
        """All files, in the order given; raises what hashing raised. Nothing else goes on meanwhile."""
        self._hurry.set()
        while self._thread is not None and self._thread.is_alive():
            progress("hash", self._done, self._total)
            self._thread.join(0.1)  # so that Ctrl-C gets through
        if self._failure is not None:
            raise self._failure
        return self._found


def _is_still(file: InputFile, found: SourceFile) -> bool:
    """Whether its contents are, read again, what they were."""
    return piece_sums(file) == found.pieces if found.pieces else file_sha256(file) == found.sha256


FoundSums = dict[tuple[Path, bool], str | list[str]]
"""The SHA-256 of files and, where the second is True, those of their pieces."""


def is_as_recorded(file: InputFile, entry: Mapping[str, Any], hashed: FoundSums) -> bool:
    """Whether a file's contents are those of its entry in a manifest, which may have sums of its pieces.

    ``hashed`` keeps what was found for further entries.
    """
    in_pieces = "sha256" not in entry
    key = file.path, in_pieces
    if key not in hashed:
        hashed[key] = list(pieces_of(file)[0]) if in_pieces else sha256_of(file)[0]
    return bool(hashed[key] == entry["pieces" if in_pieces else "sha256"])


def _size(file: InputFile | Path) -> int:
    return file.size if isinstance(file, InputFile) else file.stat().st_size


def checkpoint_hashes(checkpoint: Checkpoint, *, rehash: bool = False) -> SourceHashes:
    """Of what a conversion is made from: small files that decide or describe, and the weights.

    The weights are hashed as they are open, and the small files are held to what they were when the
    checkpoint was opened. Raises EnvironmentProblem where one was changed or removed since.
    """

    def check() -> None:
        check_side_files(checkpoint.folder, checkpoint.side_files)

    check()
    beside = [InputFile(path) for path in checkpoint.side_files if path not in checkpoint.weight_files]
    files = [*beside, *checkpoint.opened]
    return SourceHashes(files, check, checkpoint.folder, rehash=rehash, in_pieces=not rehash)


class SourceHashes(Hashes):
    """Hashes the source's files while their tensors are converted.

    ``check`` is called in the end and raises if what was read may not have been what was hashed. Files are
    named by their paths from ``folder``, or where there is none by their names. With ``in_pieces`` large
    files are hashed so, but those whose sum as a whole is known, or must be: the Hub's.
    """

    def __init__(
        self,
        sources: Sequence[InputFile],
        check: Callable[[], None] = lambda: None,
        folder: Path | None = None,
        *,
        rehash: bool = False,
        in_pieces: bool = False,
    ) -> None:
        names = [
            file.path.name if folder is None else file.path.relative_to(folder).as_posix() for file in sources
        ]
        super().__init__(list(zip(names, sources, strict=True)), rehash=rehash)
        self.sources, self._check, self._divide = tuple(sources), check, in_pieces

    def in_pieces(self, name: str, file: InputFile) -> bool:
        """Whether it is a large file of this machine of which nobody knows or asks for the whole sum."""
        large = self._divide and file.size >= FEWEST and file.fileno() is not None
        return large and blob_of(file.path) is None and known(file) is None

    def result(self, progress: Progress = silent) -> tuple[SourceFile, ...]:
        """All files, hashed; waits for them, and raises what hashing raised.

        Asked for when all has been read: EnvironmentProblem says that a file was changed meanwhile.
        """
        found = self.wait(progress)
        for file, stamp, before in zip(self.sources, self._stamps, found, strict=True):
            file.check_unchanged()
            # its mtime may have been put back; a new link or mode sets ctime, too
            if stamp_of(file) != stamp and not _is_still(file, before):
                raise changed_meanwhile(f"{file.path} was changed while it was read")
        self._check()
        return tuple(found)
