"""Where exceptions become one message and an exit code.

==== ======================================================================================
0    done
1    the proof failed: the result is not what the checkpoint says
2    wrong usage
3    the input was refused
4    environment: disk, memory, permission, network, the input changed while it was read
70   a bug in kconv (sysexits.h, EX_SOFTWARE)
130  interrupted, by Ctrl-C or by SIGTERM or SIGHUP, which are treated alike
141  whoever read our output went away (what a shell shows for SIGPIPE)
==== ======================================================================================
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import click

from ..core.errors import KconvError
from ..core.language import _
from ..core.recognition import said
from ..core.system_processes import is_reader_gone
from .console import emit_json, printable
from .layout import columns, wrapped
from .main import INTERRUPTED, SIGNALS, end_at_once
from .shortage import shortage

ENVIRONMENT, BUG, BROKEN_PIPE = 4, 70, 141
_IMPATIENCE = 5.0  # seconds in which a second signal means no more than the first
_COMMAND = re.compile(r"\b(?:kconv|pip|apt|export|iconv|hf) \S")
"""What one may copy, which line breaks of ours would cut."""
_struck: list[float] = []  # when signals came that were to end the work


@dataclass(frozen=True)
class Failure:
    """What is reported of an exception. ``type`` is stable and part of the JSON."""

    type: str
    message: str
    hint: str | None
    exit_code: int


def explain(error: BaseException) -> Failure:
    """What an exception means for the one who called kconv."""
    if isinstance(error, KconvError):
        return Failure(type(error).__name__, error.message, error.hint, error.exit_code)
    if isinstance(error, click.UsageError):
        return Failure("UsageError", error.format_message(), _usage_hint(error), 2)
    if isinstance(error, click.ClickException):
        return Failure("UsageError", error.format_message(), None, 2)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Failure("Interrupted", "interrupted", None, INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return Failure("BrokenPipe", "the reader of the output closed it", None, BROKEN_PIPE)
    lacking = shortage(error)
    where = ""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        where = f": {os.fsdecode(error.filename)}"
    if lacking is not None:
        return Failure("EnvironmentProblem", f"{lacking.message}{where}", lacking.hint, ENVIRONMENT)
    if isinstance(error, OSError):
        message = f"{error.strerror or error}{where}"
        return Failure("EnvironmentProblem", message, "check the disk and its permissions", ENVIRONMENT)
    return Failure(
        type(error).__name__,
        f"this is a bug in kconv: {type(error).__name__}: {error}",
        "run the command again with --verbose and report what it prints",
        BUG,
    )


def _usage_hint(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "kconv"
    return f"see `{command} --help`"


def report(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Print what went wrong (on standard error; with ``as_json`` also as an object) and return the code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else BUG
    failure = explain(error)
    if failure.exit_code == BROKEN_PIPE:
        silence_output()
        return BROKEN_PIPE
    try:
        if verbose:
            traceback.print_exception(error, file=sys.stderr)
        _print(failure)
        if as_json:
            content = {"type": failure.type, "message": failure.message, "hint": failure.hint}
            emit_json({"error": content, "exit_code": failure.exit_code})
            sys.stdout.flush()
    except OSError:  # nobody is left to read it
        silence_output()
    return failure.exit_code


def _print(failure: Failure) -> None:
    if failure.exit_code == INTERRUPTED:
        click.echo("\n" + _("kconv: interrupted"), err=True)
        return
    room = columns(sys.stderr)
    message = printable(said(failure.message), keep=chr(10) + chr(9))
    click.echo(wrapped(_("kconv: error: {message}", message=message), room), err=True)
    if failure.hint:
        hint = printable(said(failure.hint), keep=chr(10))
        text = _("  what to do: {hint}", hint=hint)
        click.echo(text if _COMMAND.search(hint) else wrapped(text, room), err=True)


def check_output_open() -> None:
    """Raise BrokenPipeError where the reader of standard output is gone, before it is written to.

    Reading a long prompt takes minutes in which nothing is written.
    """
    if sys.stdout is None:
        return
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # something that stands in for it
        return
    if is_reader_gone(number):
        raise BrokenPipeError


def silence_output() -> None:
    """Let what is still buffered vanish, so that the interpreter does not complain while it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C, so that temporary files are removed on the way out.

    Only the first signal counts: a second one, from an impatient hand, would strike while they are removed.
    One that comes much later counts again, since the first may have been lost; see ``reraise_interrupt``.
    A signal that is ignored (``nohup``) or handled already stays as it is.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    usual = (signal.SIG_DFL, signal.default_int_handler, end_at_once)
    changed = {number: handler for number, handler in before.items() if handler in usual}
    _struck.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not _struck or now - _struck[-1] > _IMPATIENCE:
            _struck.append(now)
            raise KeyboardInterrupt

    def lost(
        signal_details: Any,
    ) -> None:  # what Python says of exceptions it drops; reraise_interrupt sees to this one
        if signal_details.exc_type is not KeyboardInterrupt:
            told_before(signal_details)

    told_before, sys.unraisablehook = sys.unraisablehook, lost
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:  # a library made something else of the interrupt, or it ended a child, too
        if _struck and not isinstance(error, click.exceptions.Exit):
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = told_before
        for number, handler in changed.items():  # once struck, the process shall end, and with 130
            signal.signal(number, signal.SIG_IGN if _struck else handler)
        _struck.clear()


def forget_interrupt() -> None:
    """Have the next signal count as the first: what this one was to end has ended, and the work goes on."""
    _struck.clear()


def reraise_interrupt() -> None:
    """Raise KeyboardInterrupt again where work still goes on after a signal.

    Python drops an exception that strikes within a destructor or a callback from C; importing transformers,
    which takes seconds, is full of them.
    """
    if _struck and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
