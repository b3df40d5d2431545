"""What changes of some weights cost the model: its divergence from itself, on the same windows, in fp32.

Each probe changes some tensors of the file (one kind of matrix in some layers, say, quantized) and leaves the
rest as they are. All probes go through the layers side by side: up to the first layer it changes a probe is
the plain model, whose states it takes over there, and each layer's weights are read once for all. Changes
outside the layers (embeddings) take a pass of their own, one of the output matrix none.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of, unmapped
from ..core.checkpoint import Checkpoint
from ..core.progress import Progress, silent
from ..core.tensor import Tensor
from ..core.windows import Window
from ..quant.choice_losses import as_floats
from ..quant.parts import EMBEDDING, HEAD
from .branching import Branching
from .divergences import Compared, Divergence
from .heap import kept_when_freed
from .rounded_inputs import rounded_for
from .states import kept_states

if TYPE_CHECKING:
    from .kept_probes import KeptProbes
    from .saved_pass import SavedPass

Floats = npt.NDArray[np.float32]
Change = Mapping[str, Tensor]
"""Tensors of the file by name, with the weights they are to have."""

_KEPT = 256 << 20  # bytes of the plain model's in memory, the rest in a file

__all__ = ["Change", "Divergence", "Probing"]


class Probing:
    """A checkpoint that is probed; ``tensors`` are those of the file as the checkpoint has them.

    Raises what ``Reference`` raises. Encoders, which predict nothing, cannot be probed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: AnyFamily,
        tensors: Mapping[str, Tensor],
        *,
        threads: int | None = None,
    ) -> None:
        self._checkpoint, self._family, self._threads = checkpoint, family, threads
        self._tensors = {name: as_floats(tensor) for name, tensor in tensors.items()}
        self._modules = {
            target: tuple(family.reference.module(source) for source in sources)
            for target, sources in sources_of(family, checkpoint).items()
        }
        self._plain = Branching(checkpoint, family, threads=threads)
        self._last: tuple[Sequence[Window], list[Floats]] | None = None  # read plainly, and what came of it

    def steps(self, changes: Sequence[Change]) -> int:
        """How many times windows go through a layer for these changes: what the time it takes goes by."""
        layers = self._plain.layers
        begins = [self._plain.begins(self._names(change)) for change in changes]
        passes = sum(1 for change in changes if set(change) != {HEAD} and self._is_outside(change))
        return (1 + passes) * layers + sum(layers - place for place in begins if place is not None)

    @property
    def layers(self) -> int:
        """How many layers the model has, of all stacks."""
        return self._plain.layers

    def divergences(
        self,
        changes: Sequence[Change],
        windows: Sequence[Window],
        progress: Progress = silent,
        kept: KeptProbes | None = None,
        keys: Sequence[str] = (),
        inputs: Sequence[Mapping[str, str]] = (),
    ) -> list[Divergence]:
        """What each of ``changes`` alone costs, on ``windows``.

        ``inputs`` say for each by the formats of its tensors how their inputs are rounded, too, as llama.cpp
        rounds them on a CPU, but for those of experts; such changes take passes of their own.

        Tells ``progress("probes", done, total)``, or ``"mixes"`` where inputs are rounded, too, in layers and
        comparisons. What is ``kept``, under one of ``keys`` for each change, is not measured again.
        Raises what reading the checkpoint raises.
        """
        counter, total = itertools.count(1), self.steps(changes) + len(changes)
        stage = "mixes" if inputs else "probes"

        def step() -> None:
            progress(stage, min(next(counter), total), total)

        progress(stage, 0, total)
        known = [] if kept is None else [kept.divergence(key) for key in keys]
        found = {index: each for index, each in enumerate(known) if each is not None}

        def done(index: int, divergence: Divergence) -> None:
            found[index] = divergence
            if kept is not None:
                kept.keep(keys[index], divergence)
            step()

        if len(found) < len(changes):
            with kept_when_freed():
                self._measure(changes, windows, found, done, step, kept, keys, inputs or [{}] * len(changes))
        progress(stage, total, total)
        return [found[index] for index in range(len(changes))]

    def _measure(
        self,
        changes: Sequence[Change],
        windows: Sequence[Window],
        found: Mapping[int, Divergence],
        done: Callable[[int, Divergence], None],
        step: Callable[[], None],
        kept: KeptProbes | None,
        keys: Sequence[str],
        inputs: Sequence[Mapping[str, str]],
    ) -> None:
        """Measure what is not ``found``: those within the layers side by side, then the others."""
        within = [n for n, each in enumerate(changes) if not (inputs[n] or self._is_outside(each))]
        output = self._plain.output
        assert output is not None, "an encoder has no logits"
        passing = self._passing(kept, windows, [keys[index] for index in within] if keys else [])
        with kept_states(_KEPT) as states, passing as saved:
            left = [index for index in within if index not in found]
            if len(left) < len(within) and not (saved and saved.layers):
                within, saved = left, None  # what was found by it was kept, the pass was not
            altered = [self._parameters(changes[index]) for index in within]
            with contextlib.closing(self._ways(windows, altered, step, saved)) as ways:
                hidden = next(ways)
                compared = Compared(output, hidden, windows, states)
                for index in within:
                    entering = next(ways)
                    if index not in found:
                        done(index, compared.with_other(entering, output))
            for index, change in enumerate(changes):
                if index not in found:
                    passing = self._passing(kept, windows, keys[index : index + 1])
                    with passing as saved, self._altered(change) as other:
                        entering = self._entering(other, change, windows, hidden, step, saved, inputs[index])
                        assert other.output is not None
                        done(index, compared.with_other(entering, other.output))
        self._plain.reader.forget()

    def _ways(
        self,
        windows: Sequence[Window],
        altered: Sequence[Mapping[str, Tensor]],
        step: Callable[[], None],
        saved: SavedPass | None,
    ) -> Generator[list[Floats], None, None]:
        """What enters the output matrix, plain and on each way; without ways the plain one of before."""
        if not altered and self._last is not None and self._last[0] == windows:
            for _ in range(self.layers):
                step()
            yield self._last[1]
            return
        ways = self._plain.branched(windows, altered, step, saved)
        with contextlib.closing(ways):
            hidden = next(ways)
            self._last = windows, hidden
            yield hidden
            yield from ways

    def _passing(
        self, kept: KeptProbes | None, windows: Sequence[Window], keys: Sequence[str]
    ) -> contextlib.AbstractContextManager[SavedPass | None]:
        """Where a pass of these windows with changes of these keys is saved."""
        if kept is None:
            return contextlib.nullcontext()
        said = [*keys, *((window.ids, window.source) for window in windows)]
        return kept.passing(hashlib.sha256(repr(said).encode()).hexdigest())

    def _is_outside(self, change: Change) -> bool:
        return self._plain.begins(self._names(change)) is None

    @contextlib.contextmanager
    def _altered(self, change: Change) -> Iterator[Branching]:
        """The model with a change outside the layers, too."""
        weights = unmapped(self._family, self._checkpoint, {**self._tensors, **change})
        other = Branching(self._checkpoint, self._family, weights=weights, threads=self._threads)
        try:
            yield other
        finally:
            other.reader.close()

    def _entering(
        self,
        other: Branching,
        change: Change,
        windows: Sequence[Window],
        hidden: list[Floats],
        step: Callable[[], None],
        saved: SavedPass | None,
        formats: Mapping[str, str],
    ) -> list[Floats]:
        """What enters the output matrix of the model so changed; ``hidden`` enters that of the plain one."""
        head = formats.get(HEAD) or formats.get(EMBEDDING, "")
        if set(change) == {HEAD}:
            return [rounded_for(head, values) for values in hidden]
        of_modules = {module: format for name, format in formats.items() for module in self._modules[name]}
        ways = other.branched(windows, [], step, saved)
        with other.rounding(of_modules), contextlib.closing(ways):
            return [rounded_for(head, values) for values in next(ways)]

    def _names(self, change: Change) -> set[str]:
        """The modules, some of them experts within one, whose weights a change touches."""
        return {module for target in change for module in self._modules.get(target, ())}

    def _parameters(self, change: Change) -> dict[str, Tensor]:
        """The parameters of transformers' model that a change touches, with their new weights."""
        family = self._family
        weights = unmapped(family, self._checkpoint, {**self._tensors, **change})
        tensors = family.reference.tensors(weights, family.read(self._checkpoint.config).sizes)
        names = self._names(change)
        return {name: tensors[name] for name in self._plain.parameters_of(names) if name in tensors}
