"""What killed runs leave: told from what is in use by a lock, removed by the next run and by kconv clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kconv.cli.main import main
from kconv.core import leftovers, progress
from kconv.core.claims import temporary_beside
from kconv.core.files import atomic_file, atomic_files
from kconv.core.folders import atomic_folder
from kconv.core.leftovers import Leftover, find_leftovers, sweep
from kconv.core.scratch import scratch_folder

# Each makes something and says so; then it goes on when it is told to.
FILES = """
from kconv.core.files import atomic_files
with atomic_files([Path("one"), Path("two")], force=True) as made:
    made[0].write_bytes(bytes(1 << 20))
    wait()
"""
FOLDER = """
from kconv.core.folders import atomic_folder
with atomic_folder(Path("folder"), mark="mark", force=True) as made:
    (made / "mark").write_bytes(bytes(1 << 20))
    wait()
"""
SCRATCH = """
from kconv.core.scratch import scratch_folder
with scratch_folder("vocab") as made:
    (made / "vocabulary").write_bytes(bytes(1 << 20))
    wait()
"""
# The process stops between the two renames that replace a folder.
RENAMED = """
import os
rename, count = os.replace, 0
def counted(*names):
    global count
    count += 1
    if count == 2:
        wait()
    rename(*names)
os.replace = counted
from kconv.core.folders import atomic_folder
with atomic_folder(Path("folder"), mark="mark", force=True) as made:
    (made / "mark").write_bytes(b"new")
"""
BEGIN = """
import sys
from pathlib import Path
def wait():
    print("there", flush=True)
    sys.stdin.readline()
"""

Started = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Started]]:
    """Starts a process in the test's folder, which is TMPDIR, too; it has made its things by then."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    started = []

    def begin(code: str) -> Started:
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + code],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def removals(monkeypatch: pytest.MonkeyPatch) -> list[Leftover]:
    leftovers: list[Leftover] = []
    monkeypatch.setattr(progress, "on_removal", lambda folder, removed: leftovers.extend(removed))
    return leftovers


def killed(process: Started) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith((".partial", ".old")))


@pytest.mark.parametrize(("code", "count"), [(FILES, 2), (FOLDER, 1), (SCRATCH, 1)])
def test_the_next_run_removes_what_a_killed_one_left(
    code: str, count: int, start: Callable[[str], Started], removals: list[Leftover], tmp_path: Path
) -> None:
    killed(start(code))
    assert len(hidden(tmp_path)) == count
    if code is SCRATCH:
        with scratch_folder("vocab") as folder:
            assert hidden(tmp_path) == [folder.name]
    elif code is FILES:
        with atomic_file(tmp_path / "other") as made:
            assert hidden(tmp_path) == [made.name]
    else:
        with atomic_folder(tmp_path / "other", mark="mark") as made:
            assert hidden(tmp_path) == [made.name]
    assert hidden(tmp_path) == []
    assert len(removals) == count
    assert 1 << 20 <= sum(each.bytes for each in removals) < 1.2 * (1 << 20)


@pytest.mark.parametrize("code", [FILES, FOLDER, SCRATCH])
def test_what_a_living_run_is_at_work_on_is_not_touched(
    code: str, start: Callable[[str], Started], removals: list[Leftover], tmp_path: Path
) -> None:
    running = start(code)
    before = hidden(tmp_path)
    with atomic_files([tmp_path / "x"]) as made:
        made[0].write_bytes(b"x")
    with atomic_folder(tmp_path / "y", mark="mark"), scratch_folder("vocab"):
        pass
    assert main(["clean", str(tmp_path), "--yes"]) == 0
    assert hidden(tmp_path) == before
    assert {each.state for each in find_leftovers(tmp_path)} == {"in use"}
    running.communicate("go on\n")
    assert running.returncode == 0
    assert hidden(tmp_path) == []
    assert removals == []


def test_a_folder_that_was_about_to_be_replaced_gets_its_name_back(
    start: Callable[[str], Started], removals: list[Leftover], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mark").write_bytes(b"old")
    running = start(RENAMED)
    assert not (tmp_path / "folder").exists()
    sweep(tmp_path)
    assert len(hidden(tmp_path)) == 2, "it is still at work"
    killed(running)
    with atomic_folder(tmp_path / "folder", mark="mark", force=True) as made:
        assert (tmp_path / "folder" / "mark").read_bytes() == b"old"
        (made / "mark").write_bytes(b"newer")
    assert (tmp_path / "folder" / "mark").read_bytes() == b"newer"
    assert hidden(tmp_path) == []


def test_what_is_not_kconv_s_stays(tmp_path: Path, removals: list[Leftover]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    place = tmp_path / "place"
    place.mkdir()
    names = (
        ".x.partial",
        ".x.gguf.0123456789abcdef.partial",
        "x.kconv-0123456789abcdef.partial",
        ".kconv-.old",
    )
    for name in (
        *names,
        ".x.kconv-0123456789abcde.partial",
        ".x.kconv-0123456789abcdeF.partial",
        "kconv-vocab",
    ):
        (place / name).write_bytes(b"kept")
    (place / ".link.kconv-0123456789abcdef.partial").symlink_to(outside)
    (place / ".file.kconv-0123456789abcdef.partial").symlink_to(outside / "kept")
    os.mkfifo(place / ".pipe.kconv-0123456789abcdef.partial")
    (place / "below").mkdir()
    (place / "below" / ".x.kconv-0123456789abcdef.partial").write_bytes(b"kept")
    before = sorted(place.rglob("*"))
    sweep(place)
    assert main(["clean", str(place), "--yes"]) == 0
    assert sorted(place.rglob("*")) == before
    assert (outside / "kept").read_bytes() == b"kept"
    assert removals == []


def test_making_and_clearing_up_at_once(tmp_path: Path) -> None:
    """Whoever clears up may come between making and locking; no file is lost, none makes a run fail."""
    code = (
        "from pathlib import Path\nfrom kconv.core.leftovers import sweep\n"
        "print('ready', flush=True)\nwhile True: sweep(Path())"
    )
    sweeper = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert sweeper.stdout is not None
        assert sweeper.stdout.readline() == "ready\n"
        for number in range(60):
            with atomic_file(tmp_path / str(number)) as made:
                made.write_bytes(b"whole")
            with atomic_folder(tmp_path / f"folder{number}", mark="mark") as folder:
                (folder / "mark").write_bytes(b"whole")
    finally:
        sweeper.kill()
        sweeper.communicate()
    assert all((tmp_path / str(number)).read_bytes() == b"whole" for number in range(60))
    assert all((tmp_path / f"folder{number}" / "mark").exists() for number in range(60))
    sweep(tmp_path)
    assert hidden(tmp_path) == []


def test_clean_shows_then_removes(
    start: Callable[[str], Started], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    killed(start(FILES))
    left = hidden(tmp_path)
    assert main(["clean", str(tmp_path)]) == 0  # nobody is there to be asked
    printed = capsys.readouterr().out
    assert all(name in printed for name in left)
    assert "2 unfinished files (1.0" in printed
    assert "--yes" in printed
    assert hidden(tmp_path) == left
    assert main(["clean", str(tmp_path), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert [each["state"] for each in output["leftovers"]] == ["left", "left"]
    assert output["bytes_removed"] == 0
    assert hidden(tmp_path) == left
    assert main(["clean", str(tmp_path), "--json", "--yes"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert all(each["removed"] for each in output["leftovers"])
    assert output["bytes_removed"] == output["bytes"] >= 1 << 20
    assert hidden(tmp_path) == []
    assert main(["clean", str(tmp_path)]) == 0
    assert "nothing left by killed runs" in capsys.readouterr().out


def test_files_of_versions_without_locks_go_by_their_age(tmp_path: Path, removals: list[Leftover]) -> None:
    fresh, old = tmp_path / ".a.gguf.0123456789abcdef.partial", tmp_path / ".b.gguf.0123456789abcdef.partial"
    folder = tmp_path / "kconv-vocab-abcd_123"
    folder.mkdir()
    for path in (fresh, old, folder / "x"):
        path.write_bytes(b"x")
    ages = time.time() - 2 * leftovers.OLD_AGE
    for path in (old, folder):  # the folder's file is fresh
        os.utime(path, (ages, ages))
    sweep(tmp_path)
    assert removals == []
    assert main(["clean", str(tmp_path), "--yes"]) == 0
    assert fresh.exists()
    assert folder.exists()
    assert not old.exists()


def test_another_machine_s_files_go_by_their_age(tmp_path: Path, removals: list[Leftover]) -> None:
    """On a disk that machines share, one may not see the locks of another."""
    own = temporary_beside(tmp_path / "x")
    mark = own.name.split("-")[-1].partition(".")[0]
    boot, node = (format(int(part, 16) ^ 1, "04x") for part in (mark[:4], mark[4:8]))
    renamed, rebooted = own.name.replace(mark, f"{mark[:4]}{node}{'0' * 8}"), own.name.replace(mark[:4], boot)
    theirs = tmp_path / own.name.replace(mark, f"{boot}{node}{'0' * 8}")
    for name in (own.name, renamed, rebooted, theirs.name):
        (tmp_path / name).write_bytes(b"x")
    sweep(tmp_path)
    assert hidden(tmp_path) == [theirs.name]
    os.utime(theirs, (0, 0))
    sweep(tmp_path)
    assert hidden(tmp_path) == []
    assert len(removals) == 4


def test_clean_refuses_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["clean", str(tmp_path / "file")]) == 2
    assert main(["clean", str(tmp_path / "nowhere")]) == 2
