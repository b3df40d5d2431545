"""--stream: checkpoints on the Hub converted while they arrive, held against conversions of a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_material import kconv
from hub_material import in_three_shards, sent_to
from hub_server import TOKEN, Hub

from kconv.converters.samples import write_sample
from kconv.core.elsewhere import Elsewhere
from kconv.core.errors import EnvironmentProblem, KconvError
from kconv.flows.convert import to_gguf
from kconv.hub.kept_granules import Kept
from kconv.hub.ranges import HubRanges
from kconv.hub.source import resolve
from kconv.hub.stream import GRANULE, StreamedFile, WeightStream
from kconv.hub.streaming import stream_checkpoint
from kconv.hub.tries import MANY

pytestmark = pytest.mark.usefixtures("kconv_server")
NAME = "maker/Model-1B"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 6 MB in three shards."""
    return in_three_shards(
        write_sample("42dot", tmp_path_factory.mktemp("sharded") / "Model-1B"), order=sorted
    )


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with that checkpoint, which this process asks and finds new at each test."""
    with Hub() as server, sent_to(server, tmp_path / "home", TOKEN, many=MANY):
        server.add(NAME, folder)
        yield server


def contents(name: str = "model-00002-of-00003.safetensors") -> HubRanges:
    """Ranges of a file of the Hub's."""
    source = resolve(NAME)
    file = source.file(name)
    assert file is not None
    return HubRanges(source, file)


def fetched(ranges: HubRanges, start: int = 0, stop: int | None = None) -> bytes:
    data = bytearray((ranges.size if stop is None else stop) - start)
    ranges.fetch(memoryview(data), start)
    return bytes(data)


def spans(hub: Hub) -> list[tuple[str, int, int]]:
    """What ranges the CDN was asked for."""
    asked = [(each.path, each.range) for each in hub.asked("GET /cdn/")]
    pairs = [(path, span.removeprefix("bytes=").split("-")) for path, span in asked if span]
    return [(path, int(first), int(last) + 1) for path, (first, last) in pairs]


def test_a_range_is_that_of_the_file_and_the_address_is_asked_for_once(hub: Hub, folder: Path) -> None:
    ranges = contents()
    expected = (folder / "model-00002-of-00003.safetensors").read_bytes()
    assert fetched(ranges, 7, 1000) == expected[7:1000]
    assert fetched(ranges) == expected
    assert len(hub.asked("HEAD .*/resolve/")) == 1
    cdn = hub.asked("GET /cdn/")
    assert {each.headers.get("accept-encoding") for each in cdn} == {"identity"}
    assert cdn[1].headers["if-range"]


def test_the_token_goes_to_the_hub_alone(hub: Hub) -> None:
    fetched(contents(), 0, 100)
    assert [each.headers.get("authorization") for each in hub.asked("resolve/")] == [f"Bearer {TOKEN}"]
    assert [each.headers.get("authorization") for each in hub.asked("/cdn/")] == [None]


@pytest.mark.parametrize("how", ["gated", "private", "by Xet, too"])
def test_repositories_of_all_kinds_are_streamed(hub: Hub, folder: Path, tmp_path: Path, how: str) -> None:
    if how == "by Xet, too":
        hub.offer_xet(tmp_path / "xet")
    else:
        hub.add(NAME, folder, gated="granted" if how == "gated" else False, private=how == "private")
    _, stream = streamed()
    assert through(stream) == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_an_address_that_has_run_out_is_asked_for_anew(hub: Hub, folder: Path) -> None:
    ranges, expected = contents(), (folder / "model-00002-of-00003.safetensors").read_bytes()
    assert fetched(ranges, 0, 100) == expected[:100]
    hub.ahead = hub.lifetime + 1
    assert fetched(ranges, 100, 300) == expected[100:300]
    assert len(hub.asked("HEAD .*/resolve/")) == 2


FAULTS: list[tuple[str, dict[str, Any], bool]] = [
    ("status", {"code": 503}, True),
    ("status", {"code": 429, "headers": {"Retry-After": "0"}}, True),
    ("status", {"code": 500}, True),
    ("status", {"code": 403}, True),
    ("status", {"code": 416}, False),
    ("drop", {}, True),
    ("cut", {}, True),
    ("cut", {"after": 0}, True),
    ("short", {}, True),
    ("stall", {"after": 5000, "seconds": 1.5}, True),
    ("norange", {}, False),
    ("shifted", {}, False),
    ("page", {}, False),
]


@pytest.mark.parametrize(("kind", "details", "passes"), FAULTS, ids=lambda value: str(value)[:30])
def test_a_fault_is_overcome_or_refused(
    hub: Hub, folder: Path, kind: str, details: dict[str, Any], passes: bool
) -> None:
    """Whatever the server does once, the bytes are right or an error says what came."""
    ranges = contents()
    hub.fail("GET /cdn/", kind, times=1, **details)
    if passes:
        expected = (folder / "model-00002-of-00003.safetensors").read_bytes()
        assert fetched(ranges, 0, 200_000) == expected[:200_000]
    else:
        with pytest.raises(EnvironmentProblem, match="not given as the Hub has listed it"):
            fetched(ranges, 0, 200_000)


def test_what_broke_off_goes_on_where_it_broke_off(hub: Hub) -> None:
    ranges = contents()
    hub.fail("GET /cdn/", "cut", times=2, after=70_000)
    fetched(ranges, 0, 400_000)
    starts = [start for _, start, _ in spans(hub)]
    assert starts[0] == 0
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("fault", ["status", "drop"])
def test_what_never_gets_better_is_given_up(hub: Hub, fault: str) -> None:
    ranges = contents()
    hub.fail("GET /cdn/", fault, **({"code": 503} if fault == "status" else {}))
    with pytest.raises(EnvironmentProblem, match="was asked 6 times for") as caught:
        fetched(ranges, 0, 100)
    assert "Signature" not in str(caught.value)


def test_a_file_that_is_replaced_is_noticed(hub: Hub) -> None:
    """Another ETag at the same address, or another name of the contents at the Hub."""
    ranges = contents()
    fetched(ranges, 0, 10)
    with hub.lock:
        for sha256, file in list(hub.blobs.items()):
            hub.blobs[sha256] = type(file)(file.path, file.size, "0" * 64, file.git, file.large)
    with pytest.raises(EnvironmentProblem, match="ETag"):
        fetched(ranges, 10, 20)


def streamed(block: int = GRANULE, **settings: int) -> tuple[Elsewhere, WeightStream]:
    """The checkpoint with a stream of small blocks."""
    where = stream_checkpoint(resolve(NAME))
    stream = where.stream
    assert isinstance(stream, WeightStream)
    stream.block = block
    for name, value in settings.items():
        setattr(stream, name, value)
    return where, stream


@pytest.mark.parametrize("threads", [1, 3])
def test_every_byte_is_fetched_once_in_the_order_of_the_files(
    hub: Hub, folder: Path, tmp_path: Path, threads: int
) -> None:
    where, stream = streamed(ahead=1, window=3)
    to_gguf(where, tmp_path / "a.gguf", types=["q8_0"], verify="off", threads=threads)
    heads = len(stream.files)  # of each file its first granule, which is not asked for again
    asked = spans(hub)
    seen = [(path, start) for path, start, _ in asked]
    assert len(seen) == len(set(seen))
    assert sum(stop - start for _, start, stop in asked) == stream.size
    for path in {path for path, _, _ in asked}:
        starts = [start for each, start, _ in asked if each == path]
        assert starts == sorted(starts)
    assert sum(file.fetched for file in stream.files.values()) <= heads * GRANULE


def said(path: Path) -> bytes:
    """A file's bytes, of a manifest but for whether a receipt of the download told the sums."""
    return path.read_bytes().replace(b'"hashed": "receipt"', b'"hashed": "now"')


def test_files_equal_those_of_a_folder(hub: Hub, tmp_path: Path) -> None:
    """Bytes and manifests; the folder is the Hub's cache, so that names and commits are the same."""
    environment = {**os.environ, **hub.environment(tmp_path / "first", token=TOKEN)}
    types = ["-q", "q4_k_m,f16", "--no-verify", "--verbose"]
    done = kconv("to-gguf", NAME, *types, "-o", tmp_path / "streamed", "--stream", env=environment)
    assert done.returncode == 0, done.stderr
    assert "are fetched for the conversion; none of it is kept" in done.stderr
    assert not list((tmp_path / "first").rglob("*.safetensors"))
    assert {each.headers.get("authorization") for each in hub.asked("/cdn/")} == {None}
    assert TOKEN not in done.stdout + done.stderr
    assert "Signature" not in done.stdout + done.stderr
    done = kconv("to-gguf", NAME, *types, "-o", tmp_path / "local", env=environment)
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert len(made) == 4
    for name in made:
        assert TOKEN.encode() not in (tmp_path / "streamed" / name).read_bytes()
        assert said(tmp_path / "streamed" / name) == said(tmp_path / "local" / name), name


def test_a_stream_onnx_equals_that_of_a_folder(hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, **hub.environment(tmp_path / "first")}
    options = ["--no-verify", "-q", "q8_0"]
    for name, more in (("streamed", ["--stream"]), ("local", [])):
        done = kconv("to-onnx", NAME, *options, "-o", tmp_path / name, *more, env=environment)
        assert done.returncode == 0, done.stderr
    for path in (tmp_path / "local").rglob("*"):
        if path.is_file():
            other = tmp_path / "streamed" / path.relative_to(tmp_path / "local")
            assert said(other) == said(path), path


def nothing_made(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("where", ["weights", "end"])
def test_one_flipped_bit_is_found(hub: Hub, tmp_path: Path, where: str) -> None:
    place, stream = streamed(ahead=1, window=3)
    smallest = min(file.size for file in stream.files.values())
    hub.fail("GET /cdn/", "corrupt", at=smallest - 1 if where == "end" else 1_500_000)
    with pytest.raises(EnvironmentProblem, match="SHA-256 of the bytes that came"):
        to_gguf(place, tmp_path / "out" / "a.gguf", types=["q8_0"], verify="off")
    assert nothing_made(tmp_path / "out")


def test_a_flipped_bit_is_found_in_what_is_read_a_second_time(hub: Hub) -> None:
    file, view = StreamedFile(contents()), memoryview(bytearray(3000))
    file.read_into(view, 1_100_000)
    file.kept = Kept()
    hub.fail("GET /cdn/", "corrupt", at=1_200_000)
    with pytest.raises(EnvironmentProblem, match="fetched twice came differently"):
        file.read_into(view, 1_100_000)


def test_a_flipped_bit_in_what_the_proof_fetches_is_no_verdict(hub: Hub, tmp_path: Path) -> None:
    place, stream = streamed()
    made: list[Path] = []

    def damage(paths: Any) -> None:
        made.extend(paths)
        for file in stream.files.values():
            file.kept = Kept()
        hub.fail("GET /cdn/", "corrupt", at=1_300_000)

    with pytest.raises(EnvironmentProblem, match="came differently"):
        to_gguf(place, tmp_path / "a.gguf", types=["q8_0"], made=damage)
    assert made
    assert json.loads((tmp_path / "a.gguf.manifest.json").read_text())["proof"]["verdict"] == "not run"


def test_a_pytorch_file_is_streamed_too(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Its zip directory lies at the end; the weights in it are as they are in memory."""
    import torch
    from safetensors.torch import load_file

    place = tmp_path / "Model-1B"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    torch.save(tensors, place / "pytorch_model.bin")
    hub.add("maker/old", place)
    where = stream_checkpoint(resolve("maker/old"))
    to_gguf(where, tmp_path / "a.gguf", types=["f16"], verify="off")
    to_gguf(place, tmp_path / "b.gguf", types=["f16"], verify="off")
    a, b = (path.read_bytes() for path in (tmp_path / "a.gguf", tmp_path / "b.gguf"))
    assert a[-1_000_000:] == b[-1_000_000:]


def test_a_matrix_that_does_not_fit_the_window_is_fetched_twice_and_said(hub: Hub, folder: Path) -> None:
    """Parts that each need three blocks of a file, of which two fit."""
    said: list[str] = []
    _, stream = streamed(ahead=1, window=2)
    stream.announce = said.append
    path, file = max(stream.files.items(), key=lambda item: item[1].size)
    assert file.size > 2 * GRANULE
    data = np.frombuffer((folder / path).read_bytes(), np.uint8)
    far = file.size - 10

    def read(part: int) -> bytes:
        view = bytearray(30)
        for place, offset in enumerate((part * 100, file.size // 2, far)):
            file.read_into(memoryview(view)[place * 10 : place * 10 + 10], offset)
        return bytes(view)

    for part in stream.arranged(range(4), read):
        with stream.working_on(part):
            got = read(part)
        expected = [data[at : at + 10] for at in (part * 100, file.size // 2, far)]
        assert got == np.concatenate(expected).tobytes()
    assert file.sha256(lambda *_: None, lambda: False)
    assert len(said) == 1
    assert "fetched twice" in said[0]


def through(stream: WeightStream) -> dict[str, bytes]:
    """All bytes of all files, read as a conversion reads them: in parts, in whatever order they come."""
    parts = [(name, start) for name, file in stream.files.items() for start in range(0, file.size, 300_000)]
    data = {name: bytearray(file.size) for name, file in stream.files.items()}

    def read(part: tuple[str, int]) -> None:
        name, start = part
        stream.files[name].read_into(memoryview(data[name])[start : start + 300_000], start)

    for part in stream.arranged(parts[::-1], read):
        with stream.working_on(part):
            read(part)
    for file in stream.files.values():
        file.sha256(lambda *_: None, lambda: False)
    return {name: bytes(each) for name, each in data.items()}


@pytest.mark.parametrize(
    ("kind", "details"),
    [(kind, details) for kind, details, _ in FAULTS if kind != "stall"] + [("corrupt", {})],
    ids=lambda value: str(value)[:30],
)
def test_each_fault_at_each_request(hub: Hub, folder: Path, kind: str, details: dict[str, Any]) -> None:
    """The right bytes, or an error that says what happened; never others."""
    expected = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    def forgetful() -> WeightStream:
        """With nothing at hand of the headers, so that there are more requests."""
        _, stream = streamed(ahead=2, window=4)
        for file in stream.files.values():
            file.kept = Kept()
        return stream

    stream = forgetful()
    hub.requests.clear()
    assert through(stream) == expected
    right, refused = 0, []
    for skip in range(len(hub.requests)):
        hub.heal()
        stream = forgetful()
        hub.fail("", kind, skip=skip, times=1, **details)
        try:
            assert through(stream) == expected
            right += 1
        except KconvError as error:
            refused.append(str(error))
            stream.abort()
    assert right + len(refused) > 6
    assert not [text for text in refused if "Signature" in text or not (NAME in text or "Hub" in text)]
    if kind in ("drop", "cut") or details.get("code") in (429, 500, 503):
        assert not refused


def test_stream_of_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", folder, "--stream", "-o", tmp_path / "a.gguf")
    assert done.returncode == 2
    assert "nothing to stream" in done.stderr


def test_offline_is_said_in_one_sentence(hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, **hub.environment(tmp_path / "first"), "HF_HUB_OFFLINE": "1"}
    done = kconv("to-gguf", NAME, "--stream", "-o", tmp_path / "a.gguf", env=environment)
    assert done.returncode in (3, 4)
    assert "HF_HUB_OFFLINE" in done.stderr
    assert done.stderr.count("\n") <= 4


def test_a_damaged_stream_leaves_nothing_to_resume(hub: Hub, tmp_path: Path) -> None:
    """What a run has made of weights that were damaged is not gone on with."""
    place, _ = streamed(ahead=1, window=3)
    hub.fail("GET /cdn/", "corrupt", at=1_500_000)
    with pytest.raises(EnvironmentProblem, match="SHA-256 of the bytes that came"):
        to_gguf(place, tmp_path / "a.gguf", types=["q8_0"], verify="off")
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*"))
