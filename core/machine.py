"""What this machine is and has: processor, memory, limits. Standard library only."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .system_processes import address_space

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """``model`` as the system calls it, and the features it names (``avx2``, ``amx_tile``); none where it
    does not say. ``vendor`` as the processor spells its maker (``AuthenticAMD``); empty where nobody says.
    """

    model: str
    flags: frozenset[str]
    vendor: str = ""

    @property
    def amx(self) -> bool:
        """Whether it multiplies matrices in tiles (Intel's AMX)."""
        return "amx_tile" in self.flags

    @property
    def amd(self) -> bool:
        """Whether AMD made it."""
        return "AuthenticAMD" in (self.vendor or self.model)  # Windows has the maker in the model's name


@dataclass(frozen=True)
class Memory:
    """Bytes, None where there is no such figure. ``container`` is the lowest limit of the control groups this
    process is in, ``address_space`` the limit of one process (``ulimit -v``).
    """

    total: int | None
    available: int | None
    container: int | None
    address_space: int | None

    @property
    def most(self) -> int | None:
        """What a process here can have at most."""
        bounds = (self.total, self.container, self.address_space)
        return min((bound for bound in bounds if bound is not None), default=None)


def processor(source: Path = CPUINFO) -> Processor:
    """The first processor of ``source``; a machine with many is not asked for all."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), source.open("rb") as file:
        for line in file.read(1 << 14).decode("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    model = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Processor(model, frozenset(flags.split()), fields.get("vendor_id", ""))


def memory(system: Path = Path("/")) -> Memory:
    """What the system says under ``/proc`` and ``/sys/fs/cgroup`` of ``system``."""
    numbers: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (system / "proc/meminfo").read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                numbers[name] = int(value.split()[0]) * 1024
    total = numbers.get("MemTotal")
    return Memory(total, numbers.get("MemAvailable"), _container_limit(system, total), address_space())


def _container_limit(system: Path, total: int | None) -> int | None:
    """The lowest ``memory.max`` (version 1: limit_in_bytes) from this process's control group upwards."""
    seen: list[int] = []
    with contextlib.suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text("utf-8", "replace").splitlines():
            _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "-", "")
            if controllers not in ("", "memory"):
                continue
            root = system / "sys/fs/cgroup" / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if root == folder or root in folder.parents:
                    with contextlib.suppress(OSError, ValueError):
                        seen.append(int((folder / name).read_text("ascii")))
    limits = [limit for limit in seen if total is None or limit < total]  # version 1 says "none" as 2 ** 63
    return min(limits, default=None)


def cache_folder() -> Path | None:
    """The user's folder for what can be made again (``XDG_CACHE_HOME/kconv``, ``~/.cache/kconv``).

    None where there is no such place. It need not exist.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # a relative one is to be ignored, says the XDG specification
        return Path(named, "kconv")
    home = os.path.expanduser("~") if os.environ.get("HOME", "~") else ""  # for an empty one it says "/"
    return Path(home, ".cache", "kconv") if os.path.isabs(home) else None
