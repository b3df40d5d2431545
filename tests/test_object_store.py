"""Object stores as source and target, against a real S3 server in a process of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from command_material import kconv
from s3fs.errors import translate_boto_error
from store_material import BUCKET, SECRET, keys, open_parts

from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem, HubRefusal, UsageError
from kconv.flows.convert import to_gguf
from kconv.hub import multipart, object_store
from kconv.hub.multipart import LARGEST, MOST, SMALLEST, part_borders, put_files
from kconv.hub.object_names import ObjectPlace, parse_object
from kconv.hub.object_store import objects_below
from kconv.hub.stream import WeightStream
from kconv.hub.upload_notes import journal_folder, left_open

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "tiny-42dot")


def put(system: Any, folder: Path, prefix: str) -> None:
    for path in folder.iterdir():
        system.pipe_file(f"{BUCKET}/{prefix}/{path.name}", path.read_bytes())


@pytest.mark.parametrize("size", [0, 1, SMALLEST, 40 << 20, 350 << 30, 4 << 40])
def test_parts_cover_the_file_within_the_stores_limits(size: int) -> None:
    borders = part_borders(size)
    assert borders[0][0] == 0
    assert borders[-1][1] == size
    assert [stop for _, stop in borders[:-1]] == [start for start, _ in borders[1:]]
    assert len(borders) <= MOST
    assert all(SMALLEST <= stop - start <= LARGEST for start, stop in borders[:-1])
    assert borders == part_borders(size)


def test_what_no_store_takes_is_refused() -> None:
    with pytest.raises(UsageError, match="parts"):
        part_borders(MOST * LARGEST + 1)


@pytest.mark.parametrize("text", ["s3://", "s3://ab/x", "s3://UPPER/x", "s3://buck/a//b", "s3://buck/../b"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="names no object"):
        parse_object(text)


def test_source_and_target_equal_files_of_this_machine(store: Any, folder: Path, tmp_path: Path) -> None:
    put(store, folder, "models/tiny-42dot")
    options = ["-q", "q8_0,q4_k_m", "--no-verify"]
    done = kconv("to-gguf", folder, *options, "-o", tmp_path / "local")
    assert done.returncode == 0, done.stderr
    done = kconv("to-gguf", f"s3://{BUCKET}/models/tiny-42dot", *options, "-o", f"s3://{BUCKET}/made/here")
    assert done.returncode == 0, done.stderr
    assert f"s3://{BUCKET}/made/here/tiny-42dot-Q8_0.gguf" in done.stdout
    made = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    there = {name: store.cat_file(f"{BUCKET}/made/here/{name}") for name in made}
    assert there == made
    assert len(store.find(f"{BUCKET}/made")) == len(made) == 4
    assert not open_parts(store)
    assert not list((tmp_path / "tmp").iterdir())
    for text in (done.stdout, done.stderr, *(data.decode("utf-8", "replace") for data in there.values())):
        assert SECRET not in text


def test_the_proof_is_in_the_manifest_there(store: Any, folder: Path) -> None:
    made: list[Any] = []
    conversion = to_gguf(folder, f"s3://{BUCKET}/a.gguf", types=["f16"], made=made.extend)
    assert conversion.verdict == "passed"
    assert str(conversion.outputs[0].path) == str(made[0]) == f"s3://{BUCKET}/a.gguf"
    assert b'"verdict": "passed"' in store.cat_file(f"{BUCKET}/a.gguf.manifest.json")


def test_what_is_there_is_not_overwritten_unasked(store: Any, folder: Path) -> None:
    store.pipe_file(f"{BUCKET}/a.gguf", b"mine")
    words = ["to-gguf", folder, "-q", "f16", "--no-verify", "-o", f"s3://{BUCKET}/a.gguf"]
    done = kconv(*words)
    assert done.returncode == 3
    assert f"s3://{BUCKET}/a.gguf already exists" in done.stderr
    assert store.cat_file(f"{BUCKET}/a.gguf") == b"mine"
    assert kconv(*words, "--force").returncode == 0
    assert store.cat_file(f"{BUCKET}/a.gguf")[:4] == b"GGUF"


def test_an_object_that_is_replaced_meanwhile_is_refused(store: Any) -> None:
    store.pipe_file(f"{BUCKET}/m/model.safetensors", b"a" * 1000)
    ranges = objects_below(ObjectPlace(BUCKET, "m"))["model.safetensors"]
    view = memoryview(bytearray(10))
    ranges.fetch(view, 5)
    assert bytes(view) == b"a" * 10
    store.pipe_file(f"{BUCKET}/m/model.safetensors", b"b" * 1000)
    with pytest.raises(HubRefusal, match="replaced meanwhile"):
        ranges.fetch(view, 5)


@pytest.mark.parametrize("said", [{}, {"Message": "ETag mismatch"}])
def test_a_store_with_words_of_its_own_is_understood_by_its_code(said: dict[str, str]) -> None:
    answer: Any = {"Error": {"Code": "PreconditionFailed", **said}}
    refused = pytest.raises(HubRefusal, match="replaced meanwhile")
    with refused, object_store.explained(ObjectPlace(BUCKET, "m")):
        raise translate_boto_error(ClientError(answer, "GetObject"))


def test_a_failed_upload_leaves_nothing(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file ends while it is sent: no object, no open part, no note."""
    path = tmp_path / "a.gguf"
    path.write_bytes(os.urandom(11 << 20))
    monkeypatch.setattr(multipart, "USUAL", SMALLEST)
    borders = part_borders(11 << 20, SMALLEST)
    monkeypatch.setattr(multipart, "part_borders", lambda size: [*borders[:-1], (borders[-1][0], 12 << 20)])
    with pytest.raises(EnvironmentProblem, match="ends after"):
        put_files([(path, ObjectPlace(BUCKET, "a.gguf"))])
    assert not keys(store)
    assert not open_parts(store)
    assert not list(journal_folder().iterdir())


def test_an_object_of_many_parts_is_the_file(store: Any, tmp_path: Path) -> None:
    data = os.urandom(75 << 20)
    (tmp_path / "a.gguf").write_bytes(data)
    seen: list[int] = []
    place = ObjectPlace(BUCKET, "b/a.gguf")
    put_files([(tmp_path / "a.gguf", place)], lambda _, done, total: seen.append(done))
    assert store.cat_file(f"{BUCKET}/b/a.gguf") == data
    assert seen == [32 << 20, 64 << 20, 75 << 20]


KILLED = """
import sys
from pathlib import Path
from kconv.hub import multipart
from kconv.hub.object_names import ObjectPlace

def stop(*_):
    print("sent", flush=True)
    sys.stdin.read()

multipart.put_files([(Path(sys.argv[1]), ObjectPlace("shelf", "killed.gguf"))], stop)
"""


@pytest.mark.parametrize("who", ["clean", "next run"])
def test_what_a_killed_upload_left_open_is_ended(store: Any, folder: Path, tmp_path: Path, who: str) -> None:
    (tmp_path / "a.gguf").write_bytes(os.urandom(40 << 20))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.gguf")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent\n"
        assert not left_open()  # it is at work
        process.send_signal(signal.SIGKILL)
    assert not keys(store)
    assert open_parts(store) == ["killed.gguf"]
    if who == "clean":
        done = kconv("clean", "--yes", cwd=tmp_path)
    else:
        words = ["-q", "f16", "--no-verify", "-o", f"s3://{BUCKET}/b.gguf"]
        done = kconv("to-gguf", folder, *words)
    assert done.returncode == 0, done.stderr
    assert f"s3://{BUCKET}/killed.gguf" in done.stdout + done.stderr
    assert not open_parts(store)
    assert "killed.gguf" not in keys(store)
    assert not left_open()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": None, "AWS_ACCESS_KEY_ID": None}, "no credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "object store failed"),
        ({}, "no-such-bucket"),
    ],
)
def test_a_store_that_says_no_is_one_sentence(
    store: Any, tmp_path: Path, change: dict[str, str | None], words: str
) -> None:
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), **change}
    environment = {key: value for key, value in environment.items() if value is not None}
    done = kconv("to-gguf", "s3://no-such-bucket/m", "-o", tmp_path / "x.gguf", env=environment)
    assert done.returncode in (3, 4)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 3


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    object_store.file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(EnvironmentProblem, match="s3fs is not installed") as caught:
        objects_below(ObjectPlace(BUCKET, "m"))
    assert caught.value.hint == "pip install 'kconv[s3]'"


def test_the_stores_own_sum_is_what_must_come(store: Any, folder: Path, tmp_path: Path) -> None:
    """Of an object that was put there with its SHA-256."""
    put(store, folder, "m")
    data = (folder / "model.safetensors").read_bytes()
    more = {"Bucket": BUCKET, "Key": "m/model.safetensors", "Body": data, "ChecksumAlgorithm": "SHA256"}
    store.call_s3("put_object", **more)
    where = object_store.object_checkpoint(ObjectPlace(BUCKET, "m"), tmp_path)
    assert isinstance(where.stream, WeightStream)
    file = where.stream.files["model.safetensors"]
    assert file.expected == hashlib.sha256(data).hexdigest()


def test_commands_that_know_no_stores_say_so(tmp_path: Path) -> None:
    done = kconv("to-onnx", tmp_path, "-o", "s3://shelf/x")
    assert done.returncode == 2
    assert "object stores" in done.stderr
