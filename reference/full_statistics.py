"""X^T X of what flows into modules, gathered while all windows go through a layer before the next one.

Of each site (modules that are given the same input) one square matrix of sums is in memory, until its first
half of the text is done and again until its second is; then it is packed into a file. Half of the text are
the windows that come first, as many as hold half of its tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.files import explained
from ..quant.full_statistics import HALVES, SiteSums
from .saved_pass import Learned
from .statistics import Floats

if TYPE_CHECKING:
    import torch

FEWEST = 128
"""Positions in each half that correlations can be measured on at all: experts may see fewer."""

_MEMORY = 7 << 29  # bytes of sums at a time; modules beyond it are left to their diagonals

_BLOCK = 256  # rows packed at once
_TILE = 512  # columns multiplied at once with those before them


@dataclass
class _Open:
    """A site at work. ``sums`` is X^T X of the present half; it is None where there was no room."""

    number: int
    sums: torch.Tensor | None
    half: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * HALVES)
    squares: list[npt.NDArray[np.float32]] = field(default_factory=list)


class FullGathering:
    """Gathers the correlations of modules' inputs into files in ``folder``.

    ``sizes`` are the tokens of each window. ``add`` is what ``Watch.observe`` needs, ``finish`` is to be told
    of every module that has seen all windows.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], memory: int = _MEMORY) -> None:
        self._folder, self._sizes, self._room = folder, sizes, memory
        self._seen = 0
        self._half: dict[int, int] = {}
        self._sites: dict[str, _Open] = {}
        self._owner: dict[str, str] = {}
        self._last: dict[int, tuple[int, str]] = {}
        self._unlike: set[str] = set()
        self._begun = 0
        self._done: dict[str, SiteSums | None] = {}

    def add(self, name: str, window: int, values: Floats) -> None:
        """Take in what flowed into a module for one window, ``(positions, columns)``."""
        half = self._half_of(window)
        digest = zlib.crc32(np.ascontiguousarray(values).data)  # which has to be the same in every window
        last, owner = self._last.get(window, (-1, ""))
        same = digest == last
        if name not in self._owner:
            self._owner[name] = owner if same and owner not in self._done else name
        mine = self._owner[name]
        if mine != name:
            if not same or owner != mine:
                self._unlike.add(name)
            return
        self._last[window] = digest, name
        self._add(name, half, values)

    def finish(self, name: str) -> None:
        """All windows have gone through a module."""
        site = self._sites.pop(name, None)
        if site is None:
            return
        few = min(site.counts) < FEWEST
        whole = site.sums is not None and site.half == HALVES - 1 and not few
        if whole:
            self._pack(site)
        if site.sums is not None:
            self._room += site.sums.nbytes
        counts = (site.counts[0], site.counts[1])
        self._done[name] = SiteSums(np.stack(site.squares), counts, self._path(site)) if whole else None
        if not whole:
            self._path(site).unlink(missing_ok=True)

    def results(self) -> tuple[list[SiteSums], dict[str, int]]:
        """All sites, and by the names of modules which one is theirs; others have none."""
        numbers: dict[str, int] = {}
        sites: list[SiteSums] = []
        for name, made in self._done.items():
            if made is not None:
                numbers[name] = len(sites)
                sites.append(made)
        of = {name: numbers[owner] for name, owner in self._owner.items() if owner in numbers}
        return sites, {name: site for name, site in of.items() if name not in self._unlike}

    def learned(self) -> Learned:
        """All that is finished, as it can be saved; ``resume`` takes it up."""
        done: dict[str, Any] = {}
        arrays = {}
        for name, site in self._done.items():
            done[name] = None if site is None else {"counts": list(site.counts), "file": site.path.name}
            if site is not None:
                arrays[name] = site.squares
        content = {"done": done, "owner": self._owner, "unlike": sorted(self._unlike), "begun": self._begun}
        return content, arrays

    def resume(self, before: Learned) -> None:
        """Go on with what was saved; files of sites that were not finished are removed."""
        content, arrays = before
        for name, site in content["done"].items():
            path = None if site is None else self._folder / site["file"]
            counts = (0, 0) if site is None else (site["counts"][0], site["counts"][1])
            self._done[name] = None if path is None else SiteSums(arrays[name], counts, path)
        self._owner, self._unlike = dict(content["owner"]), set(content["unlike"])
        self._begun = int(content["begun"])
        kept = {site.path for site in self._done.values() if site is not None}
        for path in self._folder.glob("site-*"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _half_of(self, window: int) -> int:
        half = self._half.get(window)
        if half is None:
            half = self._half[window] = int(2 * self._seen >= sum(self._sizes))
            self._seen += self._sizes[window]
        return half

    def _add(self, name: str, half: int, values: Floats) -> None:
        import torch

        columns = values.shape[1]
        site = self._sites.get(name)
        if site is None:
            fits = 4 * columns * columns <= self._room
            site = self._sites[name] = _Open(self._begun, torch.zeros(columns, columns) if fits else None)
            self._begun += 1
            self._room -= 4 * columns * columns if fits else 0
        site.counts[half] += len(values)
        if site.sums is None:
            return
        if half > site.half:
            self._pack(site)
            site.sums.zero_()
            site.half = half
        rows = torch.from_numpy(np.ascontiguousarray(values))
        for start in range(
            0, columns, _TILE
        ):  # X^T X is symmetric: what lies above the diagonal is not computed
            stop = min(start + _TILE, columns)
            site.sums[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def _path(self, site: _Open) -> Path:
        return self._folder / f"site-{site.number}"

    def _pack(self, site: _Open) -> None:
        """Append the correlations of the present half to the site's file, and keep its sums of squares."""
        assert site.sums is not None
        sums = site.sums.numpy()
        squares = np.ascontiguousarray(np.diagonal(sums))
        site.squares.append(squares)
        roots = np.sqrt(squares)
        inverse = np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)
        path = self._path(site)
        with explained(path, elsewhere="name a folder with more room"), open(path, "ab") as file:
            for start in range(0, len(sums), _BLOCK):
                rows = sums[start : start + _BLOCK] * inverse[start : start + _BLOCK, None] * inverse
                halves = np.clip(rows, -1, 1).astype("<f2")
                file.write(b"".join(row[: start + at].tobytes() for at, row in enumerate(halves)))
