"""Objects whose parts are sent while their files are written, against a real S3 server."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_material import kconv
from hub_material import sent_to
from hub_server import Hub
from store_material import BUCKET, keys, open_parts

from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem, KconvError
from kconv.core.outlet import OutletFile
from kconv.flows.convert import to_gguf
from kconv.hub import multipart, part_sender
from kconv.hub.multipart import SMALLEST, put_files
from kconv.hub.object_names import ObjectPlace
from kconv.hub.part_sender import PartSender
from kconv.hub.upload_notes import left_open

PLACE = ObjectPlace(BUCKET, "made")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of five mebibytes, which is as small as stores allow."""
    borders = multipart.part_borders
    monkeypatch.setattr(part_sender, "part_borders", lambda size, usual: borders(size, SMALLEST))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "tiny-42dot")


def file_of(folder: Path, data: bytes, name: str = "a.gguf") -> OutletFile:
    """A file of which 16 bytes every mebibyte are never written, since they are zero."""
    ends = range(1 << 20, len(data), 1 << 20)
    ranges = zip((0, *(end + 16 for end in ends)), (*ends, len(data)), strict=True)
    temporary = folder / f"{name}.partial"
    temporary.touch()
    return OutletFile(folder / name, temporary, len(data), tuple(ranges))


def contents(size: int) -> bytes:
    data = bytearray(os.urandom(size))
    for end in range(1 << 20, size, 1 << 20):
        data[end : end + 16] = bytes(16)
    return bytes(data)


def written(sender: PartSender, number: int, file: OutletFile, data: bytes, *, shuffled: bool) -> None:
    """All ranges in pieces, from four threads."""
    pieces = [
        (at, min(at + 300_000, stop)) for start, stop in file.ranges for at in range(start, stop, 300_000)
    ]
    if shuffled:
        random.Random(0).shuffle(pieces)
    view = memoryview(data)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(sender.write, number, view[a:b], a) for a, b in pieces]:
            done.result()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
def test_an_object_is_what_was_written(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool, shuffled: bool
) -> None:
    """In order little is in memory; in any other, what is too much for it goes to TMPDIR."""
    monkeypatch.setattr(part_sender, "IN_MEMORY", 12 << 20)
    sizes = [27 << 20, (10 << 20) + 1]
    datas = [contents(size) for size in sizes]
    files = [file_of(tmp_path, data, f"{i}.gguf") for i, data in enumerate(datas)]
    with PartSender(PLACE, keeps=keeps) as sender:
        sender.begin(files)
        for number, (file, data) in enumerate(zip(files, datas, strict=True)):
            written(sender, number, file, data, shuffled=shuffled)
        sent = sender.finish(lambda *_: None)
        assert not keys(store)
        put_files([], before=sent)
        sender.close()
    for file, data in zip(files, datas, strict=True):
        assert store.cat_file(f"{BUCKET}/made/{file.path.name}") == data
        assert file.temporary.read_bytes() == (data if keeps else b"")
    assert sender.most_held <= (0 if keeps else 12 << 20)
    assert not open_parts(store)
    assert not left_open()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_small_part_on_the_disk_is_sent_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before whoever wrote its last bytes has gone on: nothing holds its memory any more."""
    file = file_of(tmp_path, b"x" * 1000)
    monkeypatch.setattr(part_sender, "IN_MEMORY", 0)
    begun = contextlib.nullcontext(SimpleNamespace(there={}))
    monkeypatch.setattr(part_sender, "begun_upload", lambda place, borders, **_: begun)
    monkeypatch.setattr(part_sender, "send_part", lambda upload, index, data: data.decode())
    submit = ThreadPoolExecutor.submit

    def waited(self: ThreadPoolExecutor, *call: Any) -> Any:
        made = submit(self, *call)
        made.result()
        return made

    monkeypatch.setattr(ThreadPoolExecutor, "submit", waited)
    with PartSender(PLACE, keeps=False) as sender:
        sender.begin([file])
        sender.write(0, memoryview(b"x" * 1000), 0)
        ((_, tags),) = sender.finish(lambda *_: None)
    assert tags == ["x" * 1000]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("keeps", [True, False])
def test_what_fails_leaves_nothing(store: Any, tmp_path: Path, keeps: bool) -> None:
    """The store refuses a part: whoever writes is told, and no object and no part is there."""
    data = contents(27 << 20)
    file = file_of(tmp_path, data)
    stack = contextlib.ExitStack()
    sender = stack.enter_context(PartSender(PLACE, keeps=keeps))
    sender.begin([file])
    upload = store.call_s3("list_multipart_uploads", Bucket=BUCKET)["Uploads"][0]
    store.call_s3("abort_multipart_upload", Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])

    def work() -> None:
        with stack:
            written(sender, 0, file, data, shuffled=False)
            sender.finish(lambda *_: None)

    with pytest.raises(KconvError):
        work()
    assert not keys(store)
    assert not open_parts(store)


@pytest.mark.usefixtures("kconv_server")
def test_without_a_proof_nothing_lies_on_the_disk(
    store: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two types in parts, a Modelfile: the same bytes as here, and in TMPDIR no more than manifests."""
    options: dict[str, Any] = {"types": ["q8_0", "q4_k_m"], "split_max_size": "300K", "modelfile": True}
    to_gguf(folder, tmp_path / "local", verify="off", **options)
    seen: list[int] = []
    begin = PartSender.begin

    def watched(self: PartSender, files: Any) -> None:
        begin(self, files)
        monkeypatch.setattr(self, "finish", lambda progress: finished(self, progress))

    def finished(self: PartSender, progress: Any) -> Any:
        found = [path for path in (tmp_path / "tmp").rglob("*.gguf*") if path.is_file()]
        seen.extend(path.stat().st_size for path in found if path.suffix == ".gguf")
        return PartSender.finish(self, progress)

    monkeypatch.setattr(PartSender, "begin", watched)
    to_gguf(folder, f"s3://{BUCKET}/made", verify="off", **options)
    assert seen
    assert not sum(seen)
    made = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert {name: store.cat_file(f"{BUCKET}/made/{name}") for name in made} == made
    assert len(keys(store)) == len(made)


def test_from_the_hub_to_a_store_without_a_disk(store: Any, folder: Path, tmp_path: Path) -> None:
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add("kconv-tests/tiny-42dot", folder)
        to_gguf("kconv-tests/tiny-42dot", tmp_path / "x.gguf", types=["q4_0"], verify="off", stream=True)
        to_gguf("kconv-tests/tiny-42dot", f"s3://{BUCKET}/x.gguf", types=["q4_0"], verify="off", stream=True)
    assert store.cat_file(f"{BUCKET}/x.gguf") == (tmp_path / "x.gguf").read_bytes()


@pytest.mark.usefixtures("kconv_server")
def test_an_object_that_came_meanwhile_stays(
    store: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = PartSender.begin

    def beaten(self: PartSender, files: Any) -> None:
        begin(self, files)
        store.pipe_file(f"{BUCKET}/a.gguf", b"somebody's")

    monkeypatch.setattr(PartSender, "begin", beaten)
    with pytest.raises(Exception, match="already exists"):
        to_gguf(folder, f"s3://{BUCKET}/a.gguf", types=["q8_0"], verify="off")
    assert store.cat_file(f"{BUCKET}/a.gguf") == b"somebody's"
    assert keys(store) == ["a.gguf"]
    assert not open_parts(store)


def test_a_proof_without_room_is_one_sentence(
    store: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(EnvironmentProblem, match=r"no space left.*proven on a disk") as refused:
        to_gguf(folder, f"s3://{BUCKET}/a.gguf", types=["q8_0"])
    assert "--no-verify" in str(refused.value.hint)
    to_gguf(folder, f"s3://{BUCKET}/a.gguf", types=["q8_0"], verify="off")
    assert "a.gguf" in keys(store)


KILLED = """
import sys
from pathlib import Path
from kconv.hub import part_sender

send = part_sender.send_part

def sent(*what):
    tag = send(*what)
    print("sent", flush=True)
    sys.stdin.read()
    return tag

part_sender.send_part = sent
from kconv.flows.convert import to_gguf
to_gguf(sys.argv[1], "s3://shelf/killed.gguf", types=["f32"], verify=sys.argv[2])
"""


@pytest.mark.usefixtures("kconv_server")
@pytest.mark.parametrize("verify", ["off", "quick"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_what_the_next_one_ends(
    store: Any, folder: Path, tmp_path: Path, verify: str, how: signal.Signals
) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), verify]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent\n"
        process.send_signal(how)
        if how == signal.SIGINT:
            process.communicate()  # what was being sent goes on
    assert not keys(store)
    assert open_parts(store) == (["killed.gguf"] if how == signal.SIGKILL else [])
    done = kconv("clean", "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not open_parts(store)
    assert not left_open()
