"""Cutting tensors into pieces of rows, and working them through on a few threads.

What is done with a piece does not depend on which thread does it, nor on what came before; so the result is
the same at any number of threads, and no more than a piece per thread is in memory.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ..core.elsewhere import Stream
from ..core.progress import Progress
from ..core.system_files import bytes_at
from ..core.tensor import Tensor
from ..quant.slabs import Scratch

# Weights per piece: enough for calls to cost nothing, few enough for some megabytes of memory a thread.
SLAB = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Rows ``start..stop`` (of the first axis) of the tensor at place ``index`` of a list."""

    index: int
    start: int
    stop: int


def source_bytes(tensor: Tensor, rows: Piece) -> int:
    """How many bytes of the checkpoint a piece of a tensor is."""
    return (rows.stop - rows.start) * tensor.row_elements * tensor.dtype.itemsize


def cut(tensors: Sequence[Tensor], slow: Collection[int] = ()) -> list[Piece]:
    """All pieces in the tensors' order, those of ``slow`` tensors spread evenly, so that progress is steady.

    Each piece but a tensor's last is a multiple of its granule, of about a million weights.
    """
    pieces = [piece for index, tensor in enumerate(tensors) for piece in _pieces(index, tensor)]
    parts = [[p for p in pieces if p.index not in slow], [p for p in pieces if p.index in slow]]
    placed = [((k + 0.5) / len(part), piece) for part in parts for k, piece in enumerate(part)]
    return [piece for _, piece in sorted(placed, key=lambda item: item[0])]


def _pieces(index: int, tensor: Tensor) -> Iterator[Piece]:
    granules = max(1, SLAB // (tensor.granule * max(1, tensor.row_elements)))
    step = granules * tensor.granule
    for start in range(0, tensor.rows, step):
        yield Piece(index, start, min(start + step, tensor.rows))


def work_through(
    pieces: Sequence[Piece],
    work: Callable[[Piece, Scratch], int],
    *,
    threads: int,
    stage: str,
    total: int,
    progress: Progress,
    stream: Stream | None = None,
    read: Callable[[Piece], object] = lambda piece: None,
) -> None:
    """Hand pieces to threads until there are none; the first failure or Ctrl-C stops them all.

    From a ``stream`` weights come in an order of their own, in which the pieces are done: ``read`` reads what
    one needs of them.

    ``work`` gets a piece and its thread's own memory and returns how much of ``total`` (bytes, for the
    progress of ``stage``) it has done. Raises what ``work`` raises.
    """
    lock, stop = threading.Lock(), threading.Event()
    left = iter(pieces if stream is None else stream.arranged(pieces, read))
    done = 0

    def worker() -> None:
        nonlocal done
        scratch = Scratch()
        while not stop.is_set():
            with lock:
                rows = next(left, None)
            if rows is None:
                return
            with contextlib.nullcontext() if stream is None else stream.working_on(rows):
                size = work(rows, scratch)
            with lock:
                done += size

    with ThreadPoolExecutor(threads) as pool:
        try:
            pending: set[Future[None]] = {pool.submit(worker) for _ in range(threads)}
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                progress(stage, done, total)
                for future in finished:
                    future.result()
        except BaseException:
            if stream is not None:
                stream.abort()
            raise
        finally:
            stop.set()


def with_checksums(
    pieces: Sequence[Piece],
    checks: Mapping[Piece, int],
    places: Callable[[Piece], Sequence[tuple[int, int, int]]],
    *,
    threads: int,
    progress: Progress,
) -> set[Piece]:
    """Of the pieces those whose bytes have the checksum that ``checks`` has of them.

    ``places`` says where they are: descriptor, offset, bytes of each part.
    """
    sound: set[Piece] = set()

    def check(rows: Piece, scratch: Scratch) -> int:
        found = 0
        for handle, offset, size in places(rows):
            found = zlib.crc32(bytes_at(handle, size, offset), found)
        if found == checks[rows]:
            sound.add(rows)
        return 1

    known = [piece for piece in pieces if piece in checks]
    work_through(known, check, threads=threads, stage="check", total=len(known), progress=progress)
    return sound
