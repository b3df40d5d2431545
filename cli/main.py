"""Where the ``kconv`` command begins: the first thing done is to be ready for Ctrl-C.

Nothing heavy is imported here, not even click: until the commands are there nothing has to be put away, and
a signal may end the process on the spot.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # by its own name it makes enums first, 0.7 ms
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than all of this
    from collections.abc import Sequence
    from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = 130
_TOLD = b'{"error": {"type": "Interrupted", "message": "interrupted", "hint": null}, "exit_code": 130}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run kconv with ``arguments`` and return the exit code.

    Without any, they are those of the process, and the process is ours: a signal ends it with 130 from now
    on, and when all is done signals are ignored, so that none strikes while the interpreter puts itself away.
    """
    if arguments is not None:
        from .commands import run

        return run(arguments)
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end_at_once)
    from .commands import run
    from .shortage import guard_exit, is_limited, leave

    if is_limited():
        guard_exit()
    code = run(sys.argv[1:])
    for number in SIGNALS:
        if signal.getsignal(number) is end_at_once:
            signal.signal(number, signal.SIG_IGN)
    return leave(code)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process, before there is anything to put away or after all has been."""
    try:
        os.write(2, b"\nkconv: interrupted\n")
        if "--json" in sys.argv:
            os.write(1, _TOLD)
    finally:
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    from .main import main as imported  # not this second copy, whose handlers nobody would know

    sys.exit(imported())
