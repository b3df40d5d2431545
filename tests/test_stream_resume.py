"""Streamed conversions that are killed go on with --resume: no piece is made twice, no byte goes unproven."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from hub_material import in_three_shards, sent_to
from hub_server import TOKEN, Hub
from test_resume import STRUCK, WRITE

from kconv.converters.done_pieces import read_arrivals
from kconv.converters.samples import write_sample
from kconv.core.errors import DamagedOnTheWay
from kconv.hub.ranges import HubRanges
from kconv.hub.source import resolve
from kconv.hub.stream import GRANULE, StreamedFile

pytestmark = pytest.mark.usefixtures("kconv_server")
NAME = "kconv-tests/tiny"
TYPES = ("-q", "q8_0", "-q", "q4_0", "--no-verify")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 6 MB in three shards, in the order of its layers."""
    return in_three_shards(write_sample("42dot", tmp_path_factory.mktemp("sharded") / "tiny"), order=list)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files as nobody interrupts their making."""
    out = tmp_path_factory.mktemp("whole")
    with Hub() as server:
        server.add(NAME, folder)
        done = streamed(server, out.parent / "h", out)
    assert done.returncode == 0, done.stderr
    return files(out)


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub() as server:
        server.add(NAME, folder)
        yield server


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def streamed(hub: Hub, home: Path, out: Path, *more: object) -> subprocess.CompletedProcess[Any]:
    environment = {**os.environ, **hub.environment(home, TOKEN)}
    words = ("to-gguf", NAME, "--stream", *TYPES, "--threads", "2", "-o", out, *more)
    return kconv(*words, env=environment, cwd=out)


def struck(hub: Hub, home: Path, out: Path, count: int, at: str = WRITE, *more: object) -> int:
    """A run that is killed at the ``count``-th call of ``at``, with all in its journal by then."""
    words = ("to-gguf", NAME, "--stream", *TYPES, "--threads", "1", "-o", out, *more)
    command = [
        sys.executable,
        "-c",
        STRUCK,
        "0.001",
        str(int(signal.SIGKILL)),
        str(count),
        at,
        *map(str, words),
    ]
    environment = {**os.environ, **hub.environment(home, TOKEN)}
    return subprocess.run(command, env=environment, cwd=out, capture_output=True, check=False).returncode


def fetched(hub: Hub) -> int:
    """Bytes of weights that were asked for."""
    spans = [each.range.removeprefix("bytes=").split("-") for each in hub.asked("GET /cdn/") if each.range]
    return sum(int(stop) - int(start) + 1 for start, stop in spans)


@pytest.mark.parametrize("counts", [(5,), (20,), (34,), (12, 9)])
def test_a_killed_run_goes_on(
    hub: Hub, whole: dict[str, bytes], tmp_path: Path, counts: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for number, count in enumerate(counts):
        assert struck(hub, tmp_path / "h", out, count, WRITE, *(["--resume"] if number else [])) == -9
        assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    hub.heal()
    done = streamed(hub, tmp_path / "h", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert "pieces of the weights are written already" in done.stderr
    assert "files had come whole" in done.stderr
    assert files(out) == whole


def test_files_that_had_come_whole_are_not_fetched_again(
    hub: Hub, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert struck(hub, tmp_path / "h", out, 1, "kconv.converters.gguf_writer:finish_files") == -9
    (journal,) = out.glob(".*.journal")
    told = {name: note for each in read_arrivals(journal) for name, note in each.items()}
    came = [name for name, note in told.items() if note["sha256"]]
    hub.heal()
    done = streamed(hub, tmp_path / "h", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"{len(came)} of 3 files had come whole" in done.stderr
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    again = sum(size for name, size in sizes.items() if name not in came)
    assert fetched(hub) <= again + 3 * 2 * GRANULE  # headers
    assert files(out) == whole


def test_a_bit_flipped_before_the_kill_is_found(
    hub: Hub, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """What was converted of it may be wrong: the run that goes on refuses, the next begins anew."""
    out = tmp_path / "out"
    out.mkdir()
    assert struck(hub, tmp_path / "h", out, 20) == -9
    (path,) = out.glob(".*.journal/*.pieces")
    pretend_other_bytes_came(path)
    done = streamed(hub, tmp_path / "h", out, "--resume")
    assert done.returncode == 4, done.stderr
    assert "damaged on the way" in done.stderr
    assert not list(out.iterdir())
    done = streamed(hub, tmp_path / "h", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert files(out) == whole


def pretend_other_bytes_came(path: Path) -> None:
    """Make a journal that of a run to which the first granule it names came with a flipped bit."""
    lines = path.read_bytes().split(b"\n")
    number = next(i for i, line in enumerate(lines) if b'"granules":[[' in line)
    entry = json.loads(lines[number].partition(b" ")[2])
    note = next(each for each in entry["arrived"].values() if each["granules"])
    note["granules"][0][1] = "0" * 32 + note["granules"][0][1][32:]
    note["sha256"] = None
    text = json.dumps(entry).encode()
    lines[number] = b"%08x %s" % (zlib.crc32(text), text)
    path.write_bytes(b"\n".join(lines))


def test_bytes_that_came_otherwise_before_are_refused(hub: Hub, tmp_path: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    with sent_to(hub, tmp_path / "h"):
        source = resolve(NAME)
        ranges = HubRanges(source, next(each for each in source.files if each.path == name))
        hub.fail("GET /cdn/", "corrupt", at=1_200_000)
        first, second = StreamedFile(ranges), StreamedFile(ranges)
        first.fetch(memoryview(bytearray(10)), 1_300_000)
        hub.heal()
        told = first.arrivals()
        assert told is not None
        assert first.arrivals() is None
        second.restore(json.loads(json.dumps(told)))
        second.fetch(memoryview(bytearray(10)), 100)  # of another granule
        with pytest.raises(DamagedOnTheWay):
            second.fetch(memoryview(bytearray(10)), 1_600_000)


def test_a_flipped_bit_leaves_no_journal(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hub.fail("GET /cdn/", "corrupt", at=1_500_000)
    done = streamed(hub, tmp_path / "h", out)
    assert done.returncode == 4
    assert not list(out.iterdir())


def test_another_commit_is_refused(hub: Hub, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert struck(hub, tmp_path / "h", out, 20) == -9
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    data = bytearray((other / "model-00002-of-00003.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model-00002-of-00003.safetensors").write_bytes(data)
    before = hub.repositories[NAME].refs["main"]
    hub.add(NAME, other)
    done = streamed(hub, tmp_path / "h", out, "--resume")
    assert done.returncode == 3
    assert "cannot be resumed" in done.stderr
    assert list(out.glob(".*.journal"))
    done = streamed(hub, tmp_path / "h", out, "--resume", "--revision", before)
    assert done.returncode == 0, done.stderr


def test_a_torn_journal_costs_work_only(hub: Hub, whole: dict[str, bytes], tmp_path: Path) -> None:
    """A line in the middle is damaged: what rests on it is made again."""
    out = tmp_path / "out"
    out.mkdir()
    assert struck(hub, tmp_path / "h", out, 30) == -9
    (path,) = out.glob(".*.journal/*.pieces")
    lines = path.read_bytes().split(b"\n")
    number = len(lines) // 2 + (not lines[len(lines) // 2])
    lines[number] = lines[number].replace(b"a", b"b", 1)
    path.write_bytes(b"\n".join(lines))
    done = streamed(hub, tmp_path / "h", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert files(out) == whole


def test_a_streamed_folder_of_onnx_files_goes_on(hub: Hub, tmp_path: Path) -> None:
    words = ("to-onnx", NAME, "--stream", "-q", "q8_0", "--no-verify", "--threads", "1")
    environment = {**os.environ, **hub.environment(tmp_path / "h", TOKEN)}
    done = kconv(*words, "-o", tmp_path / "right", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    at = "kconv.converters.onnx.writer:write_at"
    said = ("0.001", int(signal.SIGKILL), 12, at, *words, "-o", tmp_path / "x")
    command = [sys.executable, "-c", STRUCK, *map(str, said)]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -9
    assert not (tmp_path / "x").exists()
    done = kconv(*words, "-o", tmp_path / "x", "--resume", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pieces of the weights are written already" in done.stderr
    assert "files had come whole" in done.stderr
    right = tmp_path / "right"
    for path in right.rglob("*"):
        if path.is_file():
            assert (tmp_path / "x" / path.relative_to(right)).read_bytes() == path.read_bytes(), path
