"""Files are hashed once: receipts, what they do not speak for, and what a damaged cache of them does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_material import kconv

from kconv.converters.checkpoint_hashes import CheckpointHashes
from kconv.converters.hashes import SourceHashes
from kconv.converters.recorded import read_manifest
from kconv.converters.samples import write_sample
from kconv.core import receipts
from kconv.core.byte_source import LocalFile
from kconv.core.errors import EnvironmentProblem
from kconv.core.input_files import InputFile
from kconv.core.reading import open_checkpoint

pytestmark = pytest.mark.usefixtures("kconv_server")
COMMAND_QUIET = receipts.QUIET / 1e9 + 0.1  # seconds
QUIET = 0.3  # in this process, to save time
HOURS = 10_000e9  # nanoseconds: whatever the machine does meanwhile, it was a moment ago


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for receipts."""
    folder = tmp_path_factory.mktemp("receipts")
    monkeypatch.setenv(receipts.FOLDER, str(folder))
    monkeypatch.setattr(receipts, "QUIET", QUIET * 0.9e9)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sample("42dot", tmp_path_factory.mktemp("receipts") / "checkpoint")
    time.sleep(COMMAND_QUIET)
    return folder


@pytest.fixture(scope="module")
def quiet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "weights"
    path.write_bytes(os.urandom(100_000))
    time.sleep(QUIET)
    return path


class Counted(LocalFile):
    """A file that says how many bytes were read of it."""

    read = 0

    def read_into(self, view: memoryview, offset: int) -> int:
        got = super().read_into(view, offset)
        self.read += got
        return got


def hashed(path: Path, *, anew: bool = False) -> tuple[str, str, int]:
    """SHA-256, how it is known, and how many bytes were read for that."""
    source = Counted(path)
    digest, how = receipts.sha256_of(InputFile(path, lambda _: source), anew=anew)
    return digest, how, source.read


def real_sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_second_time_nothing_is_read(quiet_file: Path) -> None:
    right = real_sum(quiet_file)
    assert hashed(quiet_file) == (right, "now", 100_000)
    assert hashed(quiet_file) == (right, "receipt", 0)
    assert receipts.known(quiet_file) == receipts.known(InputFile(quiet_file)) == right
    assert hashed(quiet_file, anew=True) == (right, "now", 100_000)


def test_a_file_written_to_with_its_mtime_put_back_is_noticed(
    quiet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed(quiet_file)
    before = quiet_file.stat()
    with open(quiet_file, "r+b") as file:
        file.seek(5)
        file.write(bytes([file.read(1)[0] ^ 1]))
    os.utime(quiet_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = quiet_file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (100_000, before.st_mtime_ns, before.st_ino)
    assert receipts.known(quiet_file) is None
    with monkeypatch.context() as patch:
        patch.setattr(receipts, "QUIET", HOURS)
        assert hashed(quiet_file) == (real_sum(quiet_file), "now", 100_000)
        assert hashed(quiet_file)[1] == "now", "it was changed a moment ago"
    time.sleep(QUIET)
    assert hashed(quiet_file)[1] == "now"
    assert hashed(quiet_file)[1] == "receipt"


def test_another_file_under_the_name(quiet_file: Path, tmp_path: Path) -> None:
    hashed(quiet_file)
    shutil.copy2(quiet_file, tmp_path / "copy")
    assert receipts.known(tmp_path / "copy") is None
    os.link(quiet_file, tmp_path / "link")  # which sets ctime: whoever makes a link could have written, too
    assert receipts.known(quiet_file) is None


def test_a_download_is_known_once_it_has_been_quiet(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "download"
    path.write_bytes(b"weights")
    with monkeypatch.context() as patch:
        patch.setattr(receipts, "QUIET", HOURS)
        receipts.remember(path, real_sum(path))
        assert receipts.known(path) is None
        assert list(cache.iterdir()) == []
    time.sleep(QUIET)
    assert receipts.known(path) == real_sum(path)
    assert len([*cache.glob("*/*")]) == 1
    path.write_bytes(b"others ")
    assert receipts.known(path) is None


def test_no_receipts_where_ctime_means_nothing(cache: Path) -> None:
    path = Path("/proc/sys/kernel/ostype")
    receipts.remember(path, "0" * 64)
    assert receipts.known(path) is None
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "a digit", "no object", "folder", "link"])
def test_a_damaged_receipt_is_none(damage: str, quiet_file: Path, cache: Path, tmp_path: Path) -> None:
    right = hashed(quiet_file, anew=True)[0]
    (receipt,) = cache.glob("*/*")
    text = receipt.read_bytes()
    if damage in ("folder", "link"):
        receipt.unlink()
    if damage == "folder":
        receipt.mkdir()
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(text)
        receipt.symlink_to(tmp_path / "elsewhere")
    else:
        other = text.replace(
            right.encode(), right.replace(right[7], "f" if right[7] != "f" else "e").encode()
        )
        receipt.write_bytes({"empty": b"", "cut": text[:70], "a digit": other, "no object": b"[1]"}[damage])
    assert receipts.known(quiet_file) is None
    assert hashed(quiet_file) == (right, "now", 100_000)
    if damage != "folder":
        assert receipts.known(quiet_file) == right


@pytest.mark.parametrize("place", ["a file", "not writable", "none"])
def test_a_cache_that_cannot_be_kept(
    place: str, quiet_file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"a file": tmp_path / "file" / "receipts", "not writable": Path("/proc/receipts"), "none": ""}[
        place
    ]
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(receipts.FOLDER, str(folder))
    assert hashed(quiet_file)[1] == hashed(quiet_file)[1] == "now"


def test_in_the_user_s_cache(quiet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(receipts.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hashed(quiet_file)
    (receipt,) = (tmp_path / "kconv" / "receipts").glob("*/*")
    assert real_sum(quiet_file) in receipt.read_text("ascii")
    assert str(quiet_file) not in receipt.read_text("ascii")


MANY = """
import sys
from pathlib import Path
from kconv.core import receipts
for path in sorted(Path(sys.argv[1]).iterdir()):
    receipts.remember(path, path.name.zfill(64))
    receipts.known(path)
"""


def test_many_processes_and_a_bound(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(250):
        (tmp_path / str(number)).write_bytes(b"x")
    time.sleep(COMMAND_QUIET)  # these are processes
    running = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in running] == [0] * 3
    assert all(receipts.known(path) == path.name.zfill(64) for path in tmp_path.iterdir())
    assert len([*cache.glob("*/*")]) == len([*cache.glob("*/*-*")]) == 250
    monkeypatch.setattr(receipts, "_SHARD", 1)
    for path in tmp_path.iterdir():
        receipts.remember(path, path.name.zfill(64))
    assert len([*cache.glob("*/*")]) == len([*cache.iterdir()])


def source_files(manifest: Path, part: str = "source") -> dict[str, str]:
    content = json.loads(manifest.read_text("utf-8"))[part]
    return {each["name"]: each["hashed"] for each in (content["files"] if part == "source" else content)}


def converted(checkpoint: Path, output: Path, *words: str) -> dict[str, str]:
    """How each file of the source was hashed."""
    done = kconv("to-gguf", checkpoint, "--no-verify", "-o", output, *words)
    assert done.returncode == 0, done.stderr
    return source_files(output.with_name(output.name + ".manifest.json"))


def test_the_next_type_hashes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    first = converted(checkpoint, tmp_path / "a.gguf", "-q", "q8_0")
    assert set(first.values()) == {"now"}
    second = converted(checkpoint, tmp_path / "b.gguf", "-q", "q4_0")
    assert second == dict.fromkeys(first, "receipt")
    assert set(converted(checkpoint, tmp_path / "c.gguf", "-q", "q8_0", "--rehash").values()) == {"now"}
    texts = [
        (tmp_path / f"{name}.gguf.manifest.json").read_text("utf-8").replace(f"{name}.gguf", "")
        for name in "ac"
    ]
    assert texts[0] == texts[1]


def test_verify_hashes_anew_on_request(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "a.gguf", "-q", "q8_0")
    time.sleep(QUIET)
    for anew, expected in (
        (False, ("receipt", "now")),
        (False, ("receipt", "receipt")),
        (True, ("now", "now")),
    ):
        with CheckpointHashes(
            tmp_path / "a.gguf", read_manifest(tmp_path / "a.gguf"), open_checkpoint(checkpoint), rehash=anew
        ) as hashes:
            found = {each["hashed"] for each in hashes.result()}
        assert (found, hashes.artifact["a.gguf"].hashed) == ({expected[0]}, expected[1])
    assert "--rehash" in kconv("verify", "--help").stdout


def test_onnx_and_quantize(checkpoint: Path, tmp_path: Path) -> None:
    converted(checkpoint, tmp_path / "f32.gguf", "-q", "f32")
    done = kconv("to-onnx", checkpoint, "-q", "f32", "--no-verify", "-o", tmp_path / "onnx")
    assert done.returncode == 0, done.stderr
    assert set(source_files(tmp_path / "onnx" / "kconv.manifest.json").values()) == {"receipt"}
    time.sleep(COMMAND_QUIET)
    for name, words, expected in (("a", (), "now"), ("b", (), "receipt"), ("c", ("--rehash",), "now")):
        made = tmp_path / f"{name}.gguf"
        done = kconv("quantize", tmp_path / "f32.gguf", "-q", "q8_0", "-o", made, *words)
        assert done.returncode == 0, done.stderr
        found = source_files(tmp_path / f"{name}.gguf.manifest.json", "made_from")
        assert found == {"f32.gguf": expected}


def test_a_checkpoint_written_to_behind_a_receipt(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    time.sleep(COMMAND_QUIET)
    converted(copy, tmp_path / "a.gguf", "-q", "q8_0")
    assert set(converted(copy, tmp_path / "b.gguf", "-q", "q8_0").values()) == {"receipt"}
    (weights,) = copy.glob("*.safetensors")
    before = weights.stat()
    with open(weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3c")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused = kconv("verify", tmp_path / "a.gguf", "--against", copy)
    assert (refused.returncode, "changed: model.safetensors" in refused.stderr) == (3, True), refused.stderr


def test_changed_behind_its_mtime_while_it_is_read(quiet_file: Path) -> None:
    with SourceHashes([InputFile(quiet_file)]) as hashes:
        assert hashes._thread is not None
        hashes._thread.join()
        quiet_file.chmod(0o600)  # no change of contents
        assert hashes.result()[0].sha256 == real_sum(quiet_file)
    before = quiet_file.stat()
    with SourceHashes([InputFile(quiet_file)]) as hashes:
        assert hashes._thread is not None
        hashes._thread.join()
        data = quiet_file.read_bytes()
        quiet_file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(quiet_file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(EnvironmentProblem, match="was changed while it was read"):
            hashes.result()
