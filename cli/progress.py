"""Showing that work goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import progress as core_progress
from ..core.progress import Progress
from .console import plural, say, seconds_text, size_text, verify_command
from .errors import reraise_interrupt
from .shortage import last_words, shortage

if TYPE_CHECKING:
    from ..core.leftovers import Leftover

_PATIENCE = 2.0  # seconds before anything is shown
_NAMED = 5  # files in one line
_INTERVAL = 5.0  # seconds between lines where there is no terminal

# What people read for the stages the rooms report, and what they count.
_STAGES = {
    "download": ("downloading", "bytes"),
    "write": ("writing weights", "bytes"),
    "upload": ("uploading", "bytes"),
    "hash": ("hashing the source", "bytes"),
    "check": ("checking what is written already", "pieces"),
    "tokens": ("comparing tokens", "texts"),
    "weights": ("comparing weights", "bytes"),
    "reference": ("reading the checkpoint in fp32", "modules"),
    "errors": ("measuring errors of formats", "tensors"),
    "probes": ("measuring what each group of tensors costs", "layers"),
    "runtime": ("recomputing what llama.cpp computed", "modules"),
    "logits": ("comparing logits", "positions"),
    "embeddings": ("comparing embeddings", "texts"),
    "loading": ("loading", ""),
    "reading the prompt": ("reading the prompt", ""),
}


@contextlib.contextmanager
def shown_progress(*, bars: bool | None = None) -> Iterator[Progress]:
    """A Progress that shows itself on standard error while the block runs.

    Bars where that is a terminal (or as ``bars`` says), plain lines elsewhere; nothing for stages that
    take less than two seconds.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty() if bars is None else bars
    update, close = _bars() if terminal else _lines()

    def shown(stage: str, done: int, total: int) -> None:
        reraise_interrupt()
        update(stage, done, total)

    try:
        yield shown
    finally:
        close()


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
    """Print ``text`` on standard error, above a bar that may be shown; if nobody reads it, no matter."""
    with contextlib.suppress(OSError):
        if "tqdm" not in sys.modules:
            say(f"kconv: {text}", err=True)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
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


def _bars() -> tuple[Progress, Callable[[], None]]:
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread of its own: we fork children that must not inherit it
    bar: Any = None
    current = ""

    def update(stage: str, done: int, total: int) -> None:
        nonlocal bar, current
        if stage != current:
            close()
            title, unit = _STAGES.get(stage, (stage, ""))
            in_bytes = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
            scale = in_bytes if unit == "bytes" else {"unit": f" {unit}"}
            bar = tqdm(total=total, desc=title, leave=False, delay=_PATIENCE, **_columns(), **scale)
            current = stage
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:  # what is printed next must not run into the bar
            close()

    def close() -> None:
        nonlocal bar, current
        if bar is not None:
            bar.close()
        bar, current = None, ""

    return update, close


def _columns() -> dict[str, Any]:
    """How wide a bar may be; tqdm shows nothing in the pseudo-terminals that say they have no size."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _lines() -> tuple[Progress, Callable[[], None]]:
    current, begun, reported = "", 0.0, 0.0

    def update(stage: str, done: int, total: int) -> None:
        nonlocal current, begun, reported
        now = time.monotonic()
        if stage != current:
            current, begun, reported = stage, now, now - _INTERVAL + _PATIENCE
        if now - reported < _INTERVAL:
            return
        reported = now
        with contextlib.suppress(OSError):  # nobody reads it any more, which is no reason to stop the work
            print(progress_line(stage, done, total, now - begun), file=sys.stderr, flush=True)

    return update, lambda: None


def progress_line(stage: str, done: int, total: int, seconds: float) -> str:
    """``kconv: writing weights: 42 % of 2.54 GiB, 310 MiB/s, 5.0 s left``."""
    title, unit = _STAGES.get(stage, (stage, ""))
    share = done / total if total > 0 else 0.0
    whole = size_text(total) if unit == "bytes" else f"{total:,} {unit}".rstrip()
    parts = [f"{share:.0%} of {whole}"]
    if done > 0 and seconds > 0:
        if unit == "bytes":
            parts.append(f"{size_text(done / seconds)}/s")
        parts.append(f"{seconds_text(seconds * (total - done) / done)} left")
    return f"kconv: {title}: {', '.join(parts)}"
