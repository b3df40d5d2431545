"""The logits part: the file in its runtime against the checkpoint in fp32, position by position."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.progress import Progress, silent
from ..vocab.decoding import decoded
from ..vocab.tokenizer import Source
from .candidate import Candidate, CandidateFailure
from .figures import Disagreement, Measure
from .gates import judge
from .proof import Finding, Gate, Guess, LogitsPart, WorstToken, verdict_of
from .reference import Reading
from .windows import Window

WORST = 12
_CONTEXT_TOKENS = 48


def compare(
    reading: Reading, candidate: Candidate, windows: Sequence[Window], progress: Progress = silent
) -> Measure:
    """Both models' logits of every scored position, block by block; none are kept.

    Raises CandidateFailure where the runtime fails, or answers fewer positions than it was asked.
    """
    measure = Measure(windows)
    total, done = sum(len(window.scored) for window in windows), 0
    progress("logits", 0, total)
    for block in candidate.logits(windows):
        stop = block.start + len(block.logits)
        expected = reading.logits(block.window, block.start, stop)
        if expected.shape != block.logits.shape:
            raise CandidateFailure(
                f"the file gives {block.logits.shape[1]} logits a token, the checkpoint {expected.shape[1]}"
            )
        right = windows[block.window].ids[block.start + 1 : stop + 1]
        measure.add(block.window, block.start, expected, block.logits, right)
        done += len(block.logits)
        progress("logits", done, total)
    if done != total:
        raise CandidateFailure(f"the runtime answered {done} of {total} positions")
    return measure


def judged(measure: Measure, gate: Gate, windows: Sequence[Window], source: Source) -> LogitsPart:
    """The figures against the gate, and the positions that are farthest off, in their context."""
    figures = measure.figures()
    findings = judge(figures, gate)
    return LogitsPart(
        verdict=verdict_of(findings),
        figures=figures,
        gate=gate,
        findings=findings,
        positions=measure.positions(),
        worst=tuple(_worst_token(each, windows, source) for each in measure.worst(WORST)),
    )


def broken(failure: CandidateFailure) -> LogitsPart:
    """What there is to say of a file its runtime cannot read or dies of."""
    return LogitsPart(verdict="failed", findings=(Finding("llama.cpp", str(failure)),))


def _worst_token(worst: Disagreement, windows: Sequence[Window], source: Source) -> WorstToken:
    ids = windows[worst.window].ids
    read = ids[max(worst.position + 1 - _CONTEXT_TOKENS, 0) : worst.position + 1]
    return WorstToken(
        window=worst.window,
        position=worst.position,
        kl=worst.kl,
        before=decoded(source, read),
        right=Guess(worst.right, decoded(source, [worst.right]), worst.right_reference),
        right_file=worst.right_file,
        reference=tuple(Guess(token, decoded(source, [token]), p) for token, p in worst.reference),
        file=tuple(Guess(token, decoded(source, [token]), p) for token, p in worst.file),
    )
