"""``--resume`` of conversions to an object store: what killed runs sent stays sent (a real S3 server)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from hub_material import sent_to
from hub_server import Hub
from store_material import BUCKET, SECRET, keys, open_parts

from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem, OutputExists
from kconv.flows.convert import to_gguf
from kconv.hub import multipart, part_sender
from kconv.hub.upload_notes import journal_folder, left_open

pytestmark = pytest.mark.usefixtures("kconv_server")
TYPES = ["f32", "f16"]
NAME = "kconv-tests/tiny-42dot"

KILLED = """
import sys, threading
from kconv.hub import multipart, part_sender

borders = multipart.part_borders
part_sender.part_borders = lambda size, usual: borders(size, multipart.SMALLEST)
source, target, verify, limit, at = sys.argv[1:]
begun, finished, changed = [], [], threading.Condition()

def stop():
    print("here", flush=True)
    sys.stdin.read()

def sent(upload, index, data, send=part_sender.send_part):
    with changed:
        if len(begun) == int(limit):
            changed.wait_for(lambda: len(finished) == len(begun))
            stop()
        begun.append(index)
    tag = send(upload, index, data)
    with changed:
        finished.append(index)
        changed.notify_all()
    return tag

def completed(upload, tags, complete=multipart._complete):
    if at == "before":
        stop()
    complete(upload, tags)
    stop()

part_sender.send_part = sent
multipart._complete = completed
from kconv.flows.convert import to_gguf
to_gguf(source, target, types=["f32", "f16"], verify=verify, stream="/" in source[:20] and source[0] != "/")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "tiny-42dot")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files as they become in a folder."""
    out = tmp_path_factory.mktemp("whole")
    to_gguf(folder, out, types=TYPES, verify="off")
    return {path.name: path.read_bytes() for path in out.glob("*.gguf")}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts this process sends, by name and number; they have five mebibytes."""
    borders, send, sent = multipart.part_borders, multipart.send_part, []

    def watched(upload: Any, index: int, data: bytes) -> str:
        sent.append(f"{upload.place.name} {index}")
        return send(upload, index, data)

    monkeypatch.setattr(part_sender, "part_borders", lambda size, usual: borders(size, multipart.SMALLEST))
    monkeypatch.setattr(part_sender, "send_part", watched)
    return sent


def count_of(whole: dict[str, bytes]) -> int:
    return sum(len(multipart.part_borders(len(data), multipart.SMALLEST)) for data in whole.values())


def kill(source: object, limit: int = 99, verify: str = "off", at: str = "before") -> None:
    """A run that dies when ``limit`` parts are in the store, or when the first object is (about to be)."""
    command = [sys.executable, "-c", KILLED, str(source), f"s3://{BUCKET}/made", verify, str(limit), at]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
        finally:
            process.send_signal(signal.SIGKILL)


def there(store: Any) -> dict[str, bytes]:
    return {
        path.name: store.cat_file(f"{BUCKET}/{path}")
        for path in map(Path, keys(store))
        if path.suffix == ".gguf"
    }


def nothing_is_left(store: Any, tmp_path: Path) -> None:
    assert not open_parts(store)
    assert not list(journal_folder().iterdir())
    assert not list((tmp_path / "tmp").glob("kconv*"))


@pytest.mark.parametrize(("limit", "verify"), [(2, "off"), (99, "off"), (2, "quick")])
def test_a_killed_run_goes_on_with_the_parts_that_are_there(
    store: Any,
    folder: Path,
    whole: dict[str, bytes],
    parts: list[str],
    tmp_path: Path,
    limit: int,
    verify: str,
) -> None:
    kill(folder, limit, verify)
    assert not keys(store)
    assert len([name for name in open_parts(store) if name.endswith(".gguf")]) == 2
    assert SECRET not in "".join(path.read_text() for path in journal_folder().iterdir())
    total, read, told = count_of(whole), [], []
    to_gguf(
        folder,
        f"s3://{BUCKET}/made",
        types=TYPES,
        verify=verify,
        resume=True,
        announce=told.append,
        progress=lambda stage, done, of: read.append(of) if stage == "write" else None,
    )
    assert there(store) == whole
    done = min(limit, total)
    assert len(parts) == total - done
    assert any(f"resumed: {done} of {total} parts are in the store already" in each for each in told), told
    if limit == 99:
        assert not sum(read)  # nothing was converted again
    if verify == "quick":
        assert any("converted again, but not sent again" in each for each in told)
        assert b'"verdict": "passed"' in store.cat_file(f"{BUCKET}/made/tiny-42dot-F32.gguf.manifest.json")
    nothing_is_left(store, tmp_path)


def test_a_stream_is_fetched_again_for_its_sums_and_not_sent_again(
    store: Any, folder: Path, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        hub.add(NAME, folder)
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        kill(NAME, 2)
        with sent_to(hub, tmp_path / "home"):
            to_gguf(NAME, f"s3://{BUCKET}/made", types=TYPES, verify="off", stream=True, resume=True)
            to_gguf(NAME, tmp_path / "here", types=TYPES, verify="off", stream=True)
    assert there(store) == {path.name: path.read_bytes() for path in (tmp_path / "here").glob("*.gguf")}
    assert len(parts) == count_of(there(store)) - 2
    nothing_is_left(store, tmp_path)


def test_what_would_become_something_else_is_refused_and_stays(
    store: Any, folder: Path, whole: dict[str, bytes], parts: list[str], tmp_path: Path
) -> None:
    """Until somebody begins anew; an upload the store has ended meanwhile is begun anew, too, and said."""
    kill(folder, 2)
    target = f"s3://{BUCKET}/made"
    done = kconv(
        "to-gguf",
        folder,
        "-q",
        "f32,f16",
        "--pure",
        "--output-type",
        "q8_0",
        "--no-verify",
        "-o",
        target,
        "--resume",
    )
    assert done.returncode == 3
    assert "cannot be resumed: the plan of the files is another" in done.stderr
    assert "leave out --resume" in done.stderr
    assert len(open_parts(store)) == len(left_open()) == 2
    (first, *_) = left_open()
    store.call_s3("abort_multipart_upload", Bucket=BUCKET, Key=first.place.key, UploadId=first.number)
    told: list[str] = []
    to_gguf(folder, target, types=TYPES, verify="off", resume=True, announce=told.append)
    assert f"the store has no upload of {first.place} open any more: it is sent from the beginning" in told
    assert there(store) == whole
    nothing_is_left(store, tmp_path)


def test_objects_that_a_killed_run_had_made_are_completed(
    store: Any, folder: Path, whole: dict[str, bytes], parts: list[str], tmp_path: Path
) -> None:
    """It died when one object of two was there: that one is known by its ETag; somebody's is not replaced."""
    kill(folder, at="after")
    (made,) = keys(store)
    target = f"s3://{BUCKET}/made"
    mine = store.cat_file(f"{BUCKET}/{made}")
    store.pipe_file(f"{BUCKET}/{made}", b"somebody's")
    with pytest.raises(OutputExists, match="already exists"):
        to_gguf(folder, target, types=TYPES, verify="off", resume=True)
    assert store.cat_file(f"{BUCKET}/{made}") == b"somebody's"
    assert mine == whole[Path(made).name]
    store.rm(f"{BUCKET}/{made}")
    to_gguf(folder, target, types=TYPES, verify="off", resume=True)
    assert there(store) == whole
    nothing_is_left(store, tmp_path)


def test_a_resumed_run_that_fails_leaves_nothing(
    store: Any, folder: Path, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(folder, 2)
    monkeypatch.setattr(part_sender, "send_part", lambda *_: os.read(-1, 1))  # the system refuses something
    with pytest.raises(EnvironmentProblem, match="descriptor"):
        to_gguf(folder, f"s3://{BUCKET}/made", types=TYPES, verify="off", resume=True)
    assert not keys(store)
    nothing_is_left(store, tmp_path)


def test_nothing_to_resume_is_said(store: Any, folder: Path, parts: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    to_gguf(folder, f"s3://{BUCKET}/x.gguf", types=["q8_0"], verify="off", resume=True, announce=told.append)
    assert any("starting from the beginning" in each for each in told)
    with pytest.raises(OutputExists, match="already exists"):
        to_gguf(folder, f"s3://{BUCKET}/x.gguf", types=["q8_0"], verify="off", resume=True)
    nothing_is_left(store, tmp_path)
