"""SHA-256 of a large file in pieces, which threads can hash side by side, as they cannot a whole file.

Its bytes are then covered by the sums of its pieces, 64 MiB each but the last. The sum of the whole file,
which the Hub lists, is not known by that.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .cores import available_cores
from .input_files import InputFile
from .progress import Progress, silent

PIECE = 64 << 20
"""Bytes of a piece."""
FEWEST = 2 * PIECE
"""Bytes from which on a file is hashed in pieces."""
_READ = 1 << 20  # stays in the processor's cache


def piece_count(size: int) -> int:
    """How many pieces a file of ``size`` bytes has."""
    return -(-size // PIECE)


def changed_ranges(size: int, before: Sequence[str], now: Sequence[str]) -> list[tuple[int, int]]:
    """The bytes of a file of ``size`` whose pieces had other sums before: the first of them, and the next."""
    pairs = enumerate(zip(before, now, strict=False))
    return [(at * PIECE, min((at + 1) * PIECE, size)) for at, (old, new) in pairs if old != new]


def piece_sums(
    file: InputFile,
    progress: Progress = silent,
    *,
    stopped: Callable[[], bool] = lambda: False,
    hurry: Callable[[], bool] = lambda: True,
) -> tuple[str, ...]:
    """The SHA-256 of each piece in hexadecimal, by as many threads as there are processors.

    Until ``hurry`` says yes it is done by this thread alone, as somebody else needs the processors. Calls
    ``progress("hash", bytes done, bytes in all)``. Once ``stopped`` says yes, InterruptedError is raised;
    EnvironmentProblem if the file is changed meanwhile.
    """
    count, places = piece_count(file.size), itertools.count()
    sums, done, lock, failed = [""] * count, 0, threading.Lock(), threading.Event()

    def next_piece() -> bool:
        nonlocal done
        place = next(places)
        if place >= count or failed.is_set():
            return False
        if stopped():
            raise InterruptedError(f"hashing {file.path} was stopped")
        sums[place] = _sum(file, place)
        with lock:
            done = min(done + PIECE, file.size)
            progress("hash", done, file.size)
        return True

    def all_pieces() -> None:
        try:
            while next_piece():
                pass
        except BaseException:
            failed.set()
            raise

    while not hurry():
        if not next_piece():
            break
    helpers = min(available_cores(), count) - 1
    with ThreadPoolExecutor(max(helpers, 1), thread_name_prefix="kconv-sha256") as pool:
        others = [pool.submit(all_pieces) for _ in range(helpers)]
        all_pieces()
        for other in others:
            other.result()
    file.check_unchanged()
    return tuple(sums)


def _sum(file: InputFile, place: int) -> str:
    digest = hashlib.sha256()
    buffer = np.empty(_READ, np.uint8)
    end = min((place + 1) * PIECE, file.size)
    for offset in range(place * PIECE, end, _READ):
        part = buffer[: min(_READ, end - offset)]
        file.read_into(part, offset)
        digest.update(part.data)
    return digest.hexdigest()
