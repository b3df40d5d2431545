"""A real Dask scheduler and real workers in processes of their own, which end with the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from command_material import until

TESTS = Path(__file__).parent


class Dask:
    """A scheduler on loopback, at ``address``, and workers of one thread; a context manager."""

    def __init__(self, folder: Path, *, tls: Mapping[str, Path] | None = None) -> None:
        self._folder, self._running = folder, list[subprocess.Popen[bytes]]()
        self._tls = [word for name, path in (tls or {}).items() for word in (f"--tls-{name}", str(path))]
        folder.mkdir(exist_ok=True)
        known = folder / "scheduler.json"
        protocol = ["--protocol", "tls"] if tls else []
        place = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(known)]
        self.scheduler = self._start("scheduler", *place, *protocol, "--no-dashboard")
        until(lambda: known.exists() and known.read_text().endswith("\n}"))  # it is there before it is whole
        self.address: str = json.loads(known.read_text())["address"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker; ``environment`` has more variables. It may take seconds until it is known."""
        place = ["--local-directory", str(self._folder / f"worker-{len(self._running)}")]
        words = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        return self._start("worker", self.address, *words, *place, environment=environment)

    def log(self) -> str:
        """What all processes have said."""
        return "\n".join(path.read_text("utf-8", "replace") for path in sorted(self._folder.glob("*.log")))

    def _start(
        self, name: str, *words: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(filter(None, [(environment or {}).get("PYTHONPATH"), str(TESTS)]))
        given = {**os.environ, **(environment or {}), "PYTHONPATH": paths}
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *words, *self._tls]
        with (self._folder / f"{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=given, cwd=self._folder
            )
        self._running.append(process)
        return process


def journaled(folder: Path) -> list[tuple[int, ...]]:
    """Every piece that journals in a folder have, as often as they have it."""
    return [
        tuple(piece[:3])
        for path in folder.glob("*.pieces")
        for line in path.read_bytes().split(b"\n")
        if line.endswith(b"}")
        for piece in json.loads(line.split(b" ", 1)[1])["pieces"]
    ]


def other_version(folder: Path, package: str) -> dict[str, str]:
    """The environment of a process in which another version of a package is installed."""
    there = folder / "site" / f"{package}-9.9.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n")
    return {"PYTHONPATH": str(there.parent)}


def certificates(folder: Path) -> dict[str, Path]:
    """A certificate that vouches for itself, and its key, as Dask's options name them."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words: Sequence[str] = ("-days", "2", "-subj", "/CN=kconv-test", "-keyout", str(key))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *words, "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return {"ca-file": certificate, "cert": certificate, "key": key}
