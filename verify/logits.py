"""The logits part: the file in its runtime against the checkpoint in fp32, position by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..converters.family import Departure
from ..core.errors import ChildDied
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..reference.reading import Reading
from ..runtimes.reader import LogitsSource, RuntimeFailure
from ..vocab.byte_text import shown, shown_next
from ..vocab.tokenizer import Source
from .departure import departure_finding, without_departure
from .figures import Disagreement, Measure
from .gates import judge
from .measurements import Guess, WorstToken
from .proof import Finding, Gate, LogitsPart, undecided, verdict_of

Read = Callable[[tuple[Window, ...]], Reading]
"""Reads windows with the checkpoint in fp32."""

Seen = Callable[[Reading], None]
"""Is given a reading that was compared."""
Measuring = Callable[[Path, Read, Sequence[Window], Seen], Measure]
"""Compares the file at a path as ``compare`` does what its reader gives."""

WORST = 12
TOGETHER = 8192  # tokens; 128 MiB of Llama-3-8B's hidden states
_CONTEXT_TOKENS = 48
_SOURCE_TOKENS = 384


def compare(
    read: Read,
    reader: LogitsSource,
    windows: Sequence[Window],
    progress: Progress = silent,
    *,
    same_gelu: Read | None = None,
    seen: Seen = lambda reading: None,
) -> Measure:
    """Both models' logits of every scored position, block by block; none are kept.

    ``same_gelu`` reads the windows once more, with llama.cpp's GELU in fp32. A long text is read and compared
    a few thousand tokens at a time; ``seen`` is given the first reading, whose first window is that of
    ``windows``. Raises RuntimeFailure where the runtime refuses the file or answers fewer positions than it
    was asked, ChildDied where its process dies, which is no verdict.
    """
    measure = Measure(windows)
    total, done = sum(len(window.scored) for window in windows), 0
    for first, group in groups(windows):
        reading = read(group)
        if not first:
            seen(reading)
        alike = None if same_gelu is None else same_gelu(group)
        progress("logits", done, total)
        for block in reader.logits(group):
            stop = block.start + len(block.logits)
            expected = reading.logits(block.window, block.start, stop)
            if expected.shape != block.logits.shape:
                width, wanted = block.logits.shape[1], expected.shape[1]
                raise RuntimeFailure(f"the file gives {width} logits per token, expected {wanted}")
            right = group[block.window].ids[block.start + 1 : stop + 1]
            measure.add(first + block.window, block.start, expected, block.logits, right)
            if alike is not None:
                measure.add_same_gelu(alike.logits(block.window, block.start, stop), block.logits)
            done += len(block.logits)
            progress("logits", done, total)
    if done != total:
        raise RuntimeFailure(f"the runtime answered {done} of {total} positions")
    return measure


def groups(windows: Sequence[Window]) -> Iterator[tuple[int, tuple[Window, ...]]]:
    """Windows to read together, with the index of the first: what enters the output matrix is kept of all."""
    first = tokens = 0
    for at, window in enumerate(windows):
        if at > first and tokens + len(window.ids) > TOGETHER:
            yield first, tuple(windows[first:at])
            first, tokens = at, 0
        tokens += len(window.ids)
    yield first, tuple(windows[first:])


def judged(
    measure: Measure,
    gate: Gate,
    windows: Sequence[Window],
    source: Source,
    max_kl: float | None = None,
    departure: Departure | None = None,
) -> LogitsPart:
    """The figures against the gate, and the positions that are farthest off, in their context.

    What is known of llama.cpp's ``departure`` from the checkpoint is not held against a file.
    """
    figures = measure.figures()
    findings = judge(without_departure(figures, departure), gate, max_kl)
    if departure is not None:
        findings = (*findings, departure_finding(figures, departure))
    return LogitsPart(
        verdict=verdict_of(findings),
        figures=figures,
        gate=gate,
        findings=findings,
        positions=measure.positions(),
        worst=tuple(_worst_token(each, windows, source) for each in measure.worst(WORST)),
    )


def broken(failure: RuntimeFailure | ChildDied, runtime: str = "llama.cpp") -> LogitsPart:
    """What there is to say of a file its runtime refuses; where its process died, nothing is decided."""
    if isinstance(failure, ChildDied):
        return LogitsPart(verdict="not decided", findings=(undecided(failure, runtime),))
    return LogitsPart(verdict="failed", findings=(Finding(runtime, str(failure)),))


def _worst_token(worst: Disagreement, windows: Sequence[Window], source: Source) -> WorstToken:
    window = windows[worst.window]
    read = window.ids[max(worst.position + 1 - _CONTEXT_TOKENS, 0) : worst.position + 1]

    def guesses(likeliest: Sequence[tuple[int, float]]) -> tuple[Guess, ...]:
        return tuple(Guess(token, shown_next(source, read, token), chance) for token, chance in likeliest)

    return WorstToken(
        window=worst.window,
        position=worst.position,
        kl=worst.kl,
        before=shown(source, read),
        right=Guess(worst.right, shown_next(source, read, worst.right), worst.right_reference),
        right_file=worst.right_file,
        reference=guesses(worst.reference),
        file=guesses(worst.file),
        source=shown(source, window.source[:_SOURCE_TOKENS]),
    )
