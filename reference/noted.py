"""What a proof reads in several readings, seen as one: how large numbers get over all its windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..core.windows import Window
from .magnitudes import Flow, Magnitudes, joined
from .reading import Reading


class NotedReads:
    """Reads as ``read`` does and keeps the magnitudes of ``windows``, but of no others."""

    def __init__(self, read: Callable[[tuple[Window, ...]], Reading], windows: Sequence[Window]) -> None:
        self._read = read
        self._numbers = {window: number for number, window in enumerate(windows)}
        self._noted: list[tuple[Magnitudes, list[int]]] = []

    def __call__(self, asked: tuple[Window, ...]) -> Reading:
        """The reading of those windows."""
        reading = self._read(asked)
        if all(window in self._numbers for window in asked):
            self._noted.append((reading.magnitudes, [self._numbers[window] for window in asked]))
        return reading

    @property
    def flows(self) -> Mapping[str, Flow]:
        """By module, over everything read so far."""
        found: dict[str, list[Flow]] = {}
        for magnitudes, numbers in self._noted:
            for name, flow in magnitudes.flows.items():
                moved = Flow(flow.into.moved(numbers), flow.out.moved(numbers))
                found.setdefault(name, []).append(moved)
        return {name: joined(flows) for name, flows in found.items()}
