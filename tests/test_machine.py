"""What the system says of processor and memory, and where a user's cache lies."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from standin_material import CPUINFO

from kconv.core import machine


def test_the_processor_here() -> None:
    cpu = machine.processor()
    assert cpu.model
    if "flags" in machine.CPUINFO.read_text("utf-8"):
        assert "sse2" in cpu.flags


def test_the_first_processor_of_a_list(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text(CPUINFO)
    cpu = machine.processor(source)
    assert cpu.model == "Intel(R) Xeon(R) Platinum 8481C"
    assert cpu.amx
    assert not machine.Processor("x", cpu.flags - {"amx_tile"}).amx


def test_an_arm_processor_and_none(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text("processor\t: 0\nFeatures\t: fp asimd i8mm\n")
    assert machine.processor(source).flags == {"fp", "asimd", "i8mm"}
    assert machine.processor(tmp_path / "missing").flags == frozenset()


def system(folder: Path, cgroup: str, limits: dict[str, str]) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\nHugePages: 0\n")
    (folder / "proc/self/cgroup").write_text(cgroup)
    for name, limit in limits.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit + "\n")
    return folder


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "1073741824", "a/b/memory.max": "max"}, 1 << 30),
        ("0::/a/b\n", {"a/memory.max": "1073741824", "a/b/memory.max": "536870912"}, 1 << 29),
        ("0::/\n", {"memory.max": "1073741824"}, 1 << 30),
        ("0::/../../x\n", {"memory.max": "max"}, None),
        ("4:memory:/x\n1:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "1073741824"}, 1 << 30),
        ("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("nonsense\n", {"memory.max": "nonsense"}, None),
    ],
    ids=[
        "of a group above",
        "of its own",
        "of a container",
        "outside",
        "version 1",
        "none there",
        "nonsense",
    ],
)
def test_memory_of_control_groups(
    cgroup: str, limits: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    measured = machine.memory(system(tmp_path, cgroup, limits))
    assert (measured.total, measured.available) == (8 << 30, 4 << 30)
    assert measured.container == expected
    bounds = [measured.total, expected, measured.address_space]
    assert measured.most == min(bound for bound in bounds if bound is not None)


def test_memory_of_a_system_that_says_nothing(tmp_path: Path) -> None:
    measured = machine.memory(tmp_path)
    assert (measured.total, measured.available, measured.container) == (None, None, None)


def test_the_cache_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / "kconv"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / ".cache/kconv"
    monkeypatch.setenv("HOME", "")
    assert machine.cache_folder() is None
    monkeypatch.delenv("HOME")
    assert machine.cache_folder() == Path(pwd.getpwuid(os.getuid()).pw_dir, ".cache/kconv")
