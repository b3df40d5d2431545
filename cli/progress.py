"""Showing that work goes on: a line that changes on a terminal, one now and then elsewhere."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import progress as core_progress
from ..core.language import _, phrase, translated
from .console import plural, say, seconds_text, size_text, verify_command
from .errors import reraise_interrupt
from .live import Doing, StatusLine, is_drawable
from .shortage import last_words, shortage

if TYPE_CHECKING:
    from ..core.leftovers import Leftover

_PATIENCE = 2.0  # seconds before the first line where there is no terminal
_NAMED = 5  # files in one line
_INTERVAL = 5.0  # seconds between lines where there is no terminal

# What people read for the stages the rooms report, and what they count.
_STAGES = {
    "starting": (phrase("starting"), ""),
    "batch": (phrase("planning the batch"), ""),
    "converting": (phrase("converting"), ""),
    "opening": (phrase("opening the model"), ""),
    "tokenizer": (phrase("starting the tokenizer"), ""),
    "vocabulary": (phrase("comparing the vocabulary"), ""),
    "planning": (phrase("planning the files"), ""),
    "completing": (phrase("completing the files"), ""),
    "starting the runtime": (phrase("starting the runtime"), ""),
    "starting the reference": (phrase("starting transformers"), ""),
    "download": (phrase("downloading"), "bytes"),
    "write": (phrase("writing weights"), "bytes"),
    "upload": (phrase("uploading"), "bytes"),
    "hash": (phrase("hashing the source"), "bytes"),
    "check": (phrase("checking what is written already"), "pieces"),
    "tokens": (phrase("comparing tokens"), "texts"),
    "weights": (phrase("comparing weights"), "bytes"),
    "reference": (phrase("reading the checkpoint in fp32"), "modules"),
    "errors": (phrase("measuring errors of formats"), "tensors"),
    "probes": (phrase("measuring what each group of tensors costs"), "steps"),
    "mixes": (phrase("comparing mixes of formats on held-out text"), "steps"),
    "optimize": (phrase("trying optimized codes on held-out text"), "steps"),
    "runtime": (phrase("recomputing what the runtime computed"), "modules"),
    "logits": (phrase("comparing logits"), "positions"),
    "embeddings": (phrase("comparing embeddings"), "texts"),
    "loading": (phrase("loading"), ""),
    "reading the prompt": (phrase("reading the prompt"), ""),
}
_OF_ONE_FILE = (
    "write", "vocabulary", "weights", "runtime", "logits", "embeddings", "completing",
    "starting the runtime", "starting the reference",
)  # fmt: skip


class Shown:
    """A Progress that shows itself; ``label`` says of which file it is, in the stages that are of one."""

    def __init__(
        self, update: Callable[[str, str, int, int], None], pause: Callable[[], None] = lambda: None
    ) -> None:
        self._update = update
        self.pause = pause
        """Shows nothing until the next stage: what is printed speaks for itself."""
        self.label = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """As ``core.progress.Progress``."""
        reraise_interrupt()
        self._update(stage, self.label if stage in _OF_ONE_FILE else "", done, total)


@contextlib.contextmanager
def shown_progress() -> Iterator[Shown]:
    """A Progress that shows itself on standard error while the block runs.

    Where that is a terminal a line says at any time what is being done (live.py), elsewhere there is a plain
    line now and then for stages that take longer than two seconds.
    """
    if not is_drawable(sys.stderr):
        yield Shown(_lines())
        return
    line = StatusLine(sys.stderr, Doing(_title("starting", ""), time.monotonic()))
    line.start()
    try:
        yield Shown(_on(line), partial(line.show, None))
    finally:
        line.stop()


def _title(stage: str, label: str) -> str:
    """``writing weights: q4_K_M``."""
    title = translated(_STAGES[stage][0]) if stage in _STAGES else stage
    return f"{title}: {label}" if label else title


def _on(line: StatusLine) -> Callable[[str, str, int, int], None]:
    current, since = "", 0.0

    def update(stage: str, label: str, done: int, total: int) -> None:
        nonlocal current, since
        title = _title(stage, label)
        if title != current:
            current, since = title, time.monotonic()
        in_bytes = stage in _STAGES and _STAGES[stage][1] == "bytes"
        line.show(Doing(title, since, done, total, in_bytes))

    return update


@contextlib.contextmanager
def naming_finished_files(what: str, checkpoint: str | Path) -> Iterator[Callable[[Sequence[Path]], None]]:
    """Yield a callback for files that are finished; an exception after that is reported with their names.

    They are there, if not proven. ``what`` they are: ``the files are``.
    """
    made: list[Path] = []

    def tell(*, short: bool = True) -> None:
        if made:
            names = ", ".join(str(path) for path in made[:_NAMED]) + (" …" if len(made) > _NAMED else "")
            verify = verify_command(made[0], checkpoint)
            announce(f"{what} complete, but not proven: {names}\nto prove: {verify}")
            if short:
                announce("the proof needs more memory and disk than the conversion; --no-verify skips it")

    last_words.append(tell)
    try:
        yield made.extend
    except BaseException as error:
        tell(short=shortage(error) is not None)
        raise
    finally:
        last_words.remove(tell)


def announce(text: str) -> None:
    """Print ``text`` on standard error; if nobody reads it, no matter."""
    with contextlib.suppress(OSError):
        say(f"kconv: {text}", err=True)


def announce_leftovers(words: Sequence[str]) -> None:
    """From now on, say so when what an ended run has left is removed, or stays for ``--resume``.

    ``words`` are those of this command.
    """
    core_progress.on_removal = _announce_removal
    core_progress.on_remark = announce
    core_progress.on_keeping = partial(_announce_keeping, words)


def _announce_removal(folder: Path, removed: Sequence[Leftover]) -> None:
    instead = "; --resume would have gone on with them" if any(each.kept for each in removed) else ""
    announce(f"removed {leftovers_text(removed)} left by a killed run, from {folder}{instead}")


def _announce_keeping(words: Sequence[str], folder: Path, kept: Sequence[Leftover]) -> None:
    known = [] if "--resume" in words else ["--resume"]
    place = words.index("--") if "--" in words else len(words)
    again = shlex.join(["kconv", *words[:place], *known, *words[place:]])
    announce(
        f"{leftovers_text(kept)} kept in {folder}\n"
        f"to go on from there: {again}\nto remove them: kconv clean {shlex.quote(str(folder))}"
    )


def leftovers_text(leftovers: Sequence[Leftover]) -> str:
    """``3 unfinished files (1.20 GiB)``."""
    return f"{plural(len(leftovers), 'unfinished file')} ({size_text(sum(each.bytes for each in leftovers))})"


def _lines() -> Callable[[str, str, int, int], None]:
    current, begun, reported = "", 0.0, 0.0

    def update(stage: str, label: str, done: int, total: int) -> None:
        nonlocal current, begun, reported
        now = time.monotonic()
        if f"{stage} {label}" != current:
            current, begun, reported = f"{stage} {label}", now, now - _INTERVAL + _PATIENCE
        if now - reported < _INTERVAL or total <= 0:
            return
        reported = now
        with contextlib.suppress(OSError):  # nobody reads it any more, which is no reason to stop the work
            print(progress_line(stage, done, total, now - begun, label), file=sys.stderr, flush=True)

    return update


_COUNTED = {
    "modules": phrase("{count} modules"),
    "pieces": phrase("{count} pieces"),
    "positions": phrase("{count} positions"),
    "texts": phrase("{count} texts"),
    "tensors": phrase("{count} tensors"),
    "layers": phrase("{count} layers"),
    "steps": phrase("{count} steps"),
}


def progress_line(stage: str, done: int, total: int, seconds: float, label: str = "") -> str:
    """``kconv: writing weights: 42 % of 2.54 GiB, 310 MiB/s, 5.0 s left``."""
    title, unit = _title(stage, label), _STAGES.get(stage, ("", ""))[1]
    share = done / total if total > 0 else 0.0
    counted = translated(_COUNTED[unit].of(count=f"{total:,}")) if unit in _COUNTED else f"{total:,}"
    whole = size_text(total) if unit == "bytes" else counted
    parts = [_("{share} of {whole}", share=f"{share:.0%}", whole=whole)]
    if done > 0 and seconds > 0:
        if unit == "bytes":
            parts.append(f"{size_text(done / seconds)}/s")
        parts.append(_("{time} left", time=seconds_text(seconds * (total - done) / done)))
    return f"kconv: {title}: {', '.join(parts)}"
