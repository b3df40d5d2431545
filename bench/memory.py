"""Run a command and measure it: seconds, peak private memory of it and its children, bytes written.

Private memory is RssAnon of /proc/<pid>/status, summed over the process and all its descendants and sampled
every ten milliseconds: what the command itself holds, without files that are mapped, which the kernel may
drop at any time.

    python bench/memory.py COMMAND [ARGUMENT]...
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.01


@dataclass(frozen=True)
class Run:
    """What a command cost. ``written`` counts pages handed to file systems, temporary files included."""

    seconds: float
    peak_private: int
    written: int
    samples: int
    code: int
    stdout: str
    stderr: str


def measure(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, interval: float = INTERVAL
) -> Run:
    """Run ``command`` to its end. Nothing else of this process may write files meanwhile.

    Its memory is looked at every ``interval`` seconds. Looking takes time from a command that uses all cores,
    so where seconds count, let it be long.
    """
    before = _written()
    begun = time.perf_counter()
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        sampler = _Sampler(process.pid, interval)
        sampler.start()
        try:
            stdout, stderr = process.communicate()
            seconds = time.perf_counter() - begun
        except BaseException:  # interrupted: the command must not go on and write into what is removed now
            process.terminate()
            process.wait()
            raise
        finally:
            sampler.stop()
    # The kernel adds the counters of a child to its parent's when the parent has waited for it.
    return Run(
        seconds, sampler.peak, _written() - before, sampler.samples, process.returncode, stdout, stderr
    )


class _Sampler(threading.Thread):
    def __init__(self, pid: int, interval: float) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.interval = interval
        self.peak = 0
        self.samples = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self.interval):
            self.peak = max(self.peak, sum(map(_private, _family(self.pid))))
            self.samples += 1

    def stop(self) -> None:
        self._ended.set()
        self.join()


def descendants() -> list[int]:
    """The processes that this one has started, and those they have."""
    return [*_family(os.getpid())][1:]


def _family(pid: int) -> Iterator[int]:
    """The process and all its descendants that live now."""
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for thread in threads:
        try:
            children = (thread / "children").read_text("ascii").split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _private(pid: int) -> int:
    """RssAnon in bytes; 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _written() -> int:
    """Bytes this process and the children it has waited for have caused to be written."""
    with open("/proc/self/io", encoding="ascii") as counters:
        values = dict(line.rstrip().split(": ") for line in counters)
    return int(values["write_bytes"])


def main() -> int:
    """Run the command line and say what it cost, on stderr."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    run = measure(sys.argv[1:])
    sys.stdout.write(run.stdout)
    sys.stderr.write(run.stderr)
    print(
        f"{run.seconds:.2f} s, peak private {run.peak_private / 2**20:.0f} MiB, "
        f"written {run.written / 2**20:.0f} MiB",
        file=sys.stderr,
    )
    return run.code


if __name__ == "__main__":
    sys.exit(main())
