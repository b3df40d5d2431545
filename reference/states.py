"""Tensors that wait while other windows are computed: in memory up to a bound, beyond it in a file each."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import EnvironmentProblem
from ..core.files import explained
from ..core.scratch import scratch_folder

if TYPE_CHECKING:
    import torch


class Kept:
    """A tensor of so many ``bytes`` that waits; its room is given back when nobody holds this any more."""

    def __init__(self, get: Callable[[], torch.Tensor], bytes: int) -> None:
        self._get, self.bytes = get, bytes

    def get(self) -> torch.Tensor:
        """The tensor: the very one, or a copy of the same bits if it was in a file."""
        return self._get()


class States:
    """Keeps tensors; see ``kept_states``."""

    def __init__(self, bound: int, folder: Callable[[], Path]) -> None:
        self._left = bound
        self._folder = folder
        self._numbers = itertools.count()

    def keep(self, tensor: torch.Tensor) -> Kept:
        """Keep a tensor nobody will change. Raises EnvironmentProblem where there is no room for a file."""
        size = tensor.untyped_storage().nbytes()
        if size <= self._left:
            kept = Kept(lambda: tensor, tensor.nbytes)
            self._left -= size
            weakref.finalize(kept, self._give_back, size)
        else:
            path = self._folder() / str(next(self._numbers))
            kept = Kept(_written(tensor, path).read, tensor.nbytes)
            weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept

    def _give_back(self, size: int) -> None:
        self._left += size


@contextlib.contextmanager
def kept_states(bound: int) -> Iterator[States]:
    """Keep up to ``bound`` bytes in memory, the rest in a folder under TMPDIR that is gone in the end."""
    with contextlib.ExitStack() as stack:
        made: list[Path] = []

        def folder() -> Path:
            if not made:
                made.append(stack.enter_context(scratch_folder("states")))
            return made[0]

        yield States(bound, folder)


@dataclass(frozen=True)
class _Written:
    """A tensor in a file."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        import torch

        found = torch.empty(self.shape, dtype=self.dtype)  # where memory begins decides how sums are grouped
        room = _bytes(found)
        with explained(self.path, elsewhere=_ELSEWHERE), open(self.path, "rb", buffering=0) as file:
            there = 0
            while there < len(room):
                count = file.readinto(room[there:])
                if not count:
                    raise EnvironmentProblem(f"{self.path} was cut while it was in use")
                there += count
        return found


_ELSEWHERE = "name a folder with more room in TMPDIR"


def _written(tensor: torch.Tensor, path: Path) -> _Written:
    with explained(path, elsewhere=_ELSEWHERE), open(path, "wb") as file:
        file.write(_bytes(tensor.contiguous()))
    return _Written(path, tensor.shape, tensor.dtype)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory."""
    found: memoryview = tensor.numpy().reshape(-1).view(np.uint8).data
    return found
