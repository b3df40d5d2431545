"""What ``kconv batch`` prints: the plan, a line for each beginning and end, the summary."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.language import Phrase, phrase, translated
from ..core.progress import Progress
from .console import plural, printable, say, seconds_text, size_text, table
from .errors import explain, reraise_interrupt
from .progress import announce, progress_line

if TYPE_CHECKING:
    from ..flows.batch_board import Batch, BatchOutput
    from ..flows.batch_jobs import Step

_INTERVAL = 10.0  # seconds between two lines about progress
_NAMED = 40  # outputs in the plan's table
_STATES: dict[str, tuple[Phrase, Phrase]] = {  # alone in the table, and counted below it
    "made": (phrase("done"), phrase("{count} done")),
    "done before": (phrase("done before"), phrase("{count} done before")),
    "failed": (phrase("failed"), phrase("{count} failed")),
    "not done": (phrase("not done"), phrase("{count} not done")),
    "running": (phrase("running"), phrase("{count} running")),
    "planned": (phrase("to do"), phrase("{count} to do")),
}


class Shown:
    """A Watch that prints on standard error.

    ``several``: conversions run side by side. ``quiet``: nothing but what takes long. ``line`` shows on a
    terminal what is being done; without it there is a sentence now and then.
    """

    def __init__(self, *, verbose: bool, several: bool, quiet: bool, line: Progress | None = None) -> None:
        self._verbose, self._several, self._quiet = verbose, several, quiet
        self._line = line
        self._begun: dict[str, tuple[str, float]] = {}
        self._said = time.monotonic()
        self._number = self._total = 0

    def planning(self, done: int, total: int) -> None:
        """Now and then."""
        reraise_interrupt()
        if self._line is not None:
            self._line("batch", done, total)
        elif time.monotonic() - self._said > _INTERVAL and done < total:
            self._said = time.monotonic()
            announce(f"planning: {done:,} of {plural(total, 'conversion')}")

    def planned(self, batch: Batch) -> None:
        """The whole plan."""
        self._total = len(batch.order)
        if not self._quiet:
            say(plan_text(batch), err=True)

    def begun(self, step: Step) -> None:
        """One line."""
        types = ", ".join(name.upper() for name in step.types)
        self._number = min(self._number + 1, self._total)
        announce(f"{self._number} of {self._total}: {_short(step.source)}: {_format(step.format)} {types} …")

    def retrying(self, step: Step, error: BaseException) -> None:
        """One line."""
        announce(f"{_short(step.source)}: {explain(error).message}; it is tried once more")

    def ended(self, outputs: Sequence[BatchOutput], error: BaseException | None) -> None:
        """One line for each output, or one for all of them."""
        for line in dict.fromkeys(_line(output) for output in outputs if not self._quiet):
            announce(line)
        if error is not None and self._verbose:
            sys.stderr.write("".join(traceback.format_exception(error)))

    def progress(self, key: str, stage: str, done: int, total: int) -> None:
        """A line now and then; of several at once it would be a crowd."""
        reraise_interrupt()
        if self._line is not None:
            self._line(*(("converting", 0, 0) if self._several else (stage, done, total)))
            return
        now = time.monotonic()
        before, since = self._begun.get(key, ("", now))
        if before != stage:
            self._begun[key], since = (stage, now), now
        if not self._several and now - since > _INTERVAL / 2 and now - self._said > _INTERVAL:
            self._said = now
            announce(progress_line(stage, done, total, now - since).removeprefix("kconv: "))


def plan_text(batch: Batch) -> str:
    """What is going to be made, in order, and whether there is room."""
    outputs = [batch.outputs[each.key] for number in batch.order for each in batch.plans[number].to_make]
    done = sum(output.finished for output in batch.outputs.values())
    lines = [f"{plural(len(batch.outputs), 'output')}: {len(outputs):,} to make, {done:,} done"]
    if outputs:
        rows = [
            (_short(output.path), f"about {size_text(output.bytes)}", output.why)
            for output in outputs[:_NAMED]
        ]
        lines.append(table(rows, right=(1,)))
        if len(outputs) > _NAMED:
            lines.append(f"and {len(outputs) - _NAMED:,} more")
        lines.append(f"small models first; {size_text(batch.bytes_to_make)} in all, {_free(outputs)}")
    return "\n".join(lines)


def _free(outputs: Sequence[BatchOutput]) -> str:
    """``12.0 GiB free in dist``, for each disk."""
    places: dict[int, str] = {}
    for output in outputs:
        path = Path(output.path).absolute()
        place = next(each for each in (path, *path.parents) if each.is_dir())
        places.setdefault(
            os.stat(place).st_dev, f"{size_text(shutil.disk_usage(place).free)} free in {_short(str(place))}"
        )
    return ", ".join(places.values())


def summary(batch: Batch) -> str:
    """The table of all outputs, what went wrong, and the sums."""
    from ..report.names import recorded_verdict

    rows = [
        (
            _short(output.source),
            _format(output.format),
            output.type.upper(),
            size_text(output.bytes) if output.bytes else "",
            "" if output.seconds is None else seconds_text(output.seconds),
            recorded_verdict(output.verdict or ""),
            "" if output.kl_mean is None else f"{output.kl_mean:.4f}",
            translated(_STATES[output.state][0]),
        )
        for output in batch.outputs.values()
    ]
    header = ("source", "format", "type", "size", "time", "proof", "mean KL", "")
    lines = [table(rows, header=header, right=(3, 4, 6)), ""]
    lines += failures(batch)
    counts: Counter[str] = Counter(output.state for output in batch.outputs.values())
    told = ", ".join(
        translated(counted.of(count=f"{counts[state]:,}"))
        for state, (_alone, counted) in _STATES.items()
        if counts[state]
    )
    lines.append(f"{plural(len(batch.outputs), 'output')}: {told}")
    return "\n".join(lines)


def failures(batch: Batch) -> list[str]:
    """A line for each thing that went wrong."""
    bad = [output for output in batch.outputs.values() if output.error is not None]
    return [printable(line) for line in dict.fromkeys(map(_line, bad))]


def as_plain(batch: Batch) -> dict[str, Any]:
    """The same as plain JSON values."""
    counts: Counter[str] = Counter(output.state for output in batch.outputs.values())
    outputs = [asdict(output) for output in batch.outputs.values()]
    for output in outputs:
        del output["key"]
    return {
        "outputs": outputs,
        "totals": {state.replace(" ", "_"): counts[state] for state in _STATES},
        "bytes": batch.bytes_there,
        "bytes_to_make": batch.bytes_to_make,
    }


def _line(output: BatchOutput) -> str:
    """What became of an output, in one line."""
    name = f"{_short(output.source)}: {_format(output.format)} {output.type.upper()}"
    if output.error is None:
        proof = "" if output.verdict in (None, "not run") else f", the proof {output.verdict}"
        return (
            f"{_short(output.path)}: {size_text(output.bytes)} in {seconds_text(output.seconds or 0)}{proof}"
        )
    message = " ".join(str(output.error["message"]).split())
    hint = f" ({' '.join(str(output.error['hint']).split())})" if output.error["hint"] else ""
    if output.error["type"] != "ProofError":
        name = f"{_short(output.source)}: {_format(output.format)}"
    return f"{name}: {output.state}: {message}{hint}"


def _format(name: str) -> str:
    return name.upper()


def _short(source: str) -> str:
    """A folder as it is seen from here, if that is shorter."""
    if not os.path.isabs(source):
        return source
    return min(source, os.path.relpath(source), key=len)
