"""Each fault of the test Hub at each request, plain HTTP and Xet: the right bytes, or a named refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_material import NEEDED, REPOSITORY, check_blobs, same_files, sent_to, small_repository
from hub_server import TOKEN, Hub

from kconv.core.elsewhere import Elsewhere
from kconv.core.errors import EnvironmentProblem, HubRefusal, KconvError
from kconv.core.reading import open_checkpoint
from kconv.hub.checkpoint import fetch, remote_checkpoint
from kconv.hub.source import resolve

REQUESTS = {
    "the revision": r"GET /api/models/[^/]+/[^/]+$",
    "the list": "GET /api/models/.*/tree/",
    "a small file": "GET .*/resolve/.*/config.json",
    "where a small file is": "GET .*/resolve-cache/.*/config.json",
    "a large file": "GET .*/resolve/.*/model.safetensors$",
    "its contents": "GET /cdn/",
}
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "500": ("status", {"code": 500}),
    "429": ("status", {"code": 429, "headers": {"Retry-After": "0"}}),
    "401": ("status", {"code": 401}),
    "403": ("status", {"code": 403}),
    "404": ("status", {"code": 404}),
    "drop": ("drop", {}),
    "page": ("page", {}),
    "slow": ("slow", {"seconds": 0.5}),
}
CONTENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "503": ("status", {"code": 503}),
    "410": ("status", {"code": 410}),
    "rate limit": ("status", {"code": 429, "headers": {"RateLimit": '"resolvers";r=0;t=0'}}),
    "cut": ("cut", {}),
    "cut at once": ("cut", {"after": 0}),
    "short": ("short", {}),
    "corrupt": ("corrupt", {}),
    "corrupt at the start": ("corrupt", {"at": 20}),
    "norange": ("norange", {}),
    "shifted": ("shifted", {}),
    "stall": ("stall", {"after": 50, "seconds": 0.5}),
    "trickle": ("trickle", {"seconds": 0.01}),
}
ALWAYS = 1_000_000  # times
FINAL = {"401", "403", "404", "410"}
"""Answers of the Hub itself that are not asked for again: once is always."""
_WHERE_CONTENTS_COME_FROM = ("where a small file is", "its contents")
CASES = [
    (request, fault, times)
    for request in REQUESTS
    for fault in (*ANSWERS, *(CONTENTS if request in _WHERE_CONTENTS_COME_FROM else ()))
    for times in (1, ALWAYS)
    if not (fault in FINAL and times == 1 and request != "its contents")
    if not (fault in ("slow", "stall") and times > 1 and request != "its contents")
]
HARMLESS = {"norange", "trickle", "shifted"}
"""Of those a download comes through: it asks for no ranges as long as nothing breaks off."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's files."""
    return small_repository(tmp_path_factory.mktemp("source") / "files")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Hub]:
    """A Hub with that repository."""
    with Hub() as hub:
        hub.add(REPOSITORY, folder)
        yield hub


def check_secrets(hub: Hub, message: str) -> None:
    """The token went to the Hub alone, and nowhere into what people read; nor did signed addresses."""
    assert all("authorization" not in each.headers for each in hub.asked("/cdn/"))
    assert {each.host for each in hub.asked("/cdn/")} <= {"localhost"}
    assert TOKEN not in message
    assert "Signature" not in message


@pytest.mark.parametrize(("request_", "fault", "times"), CASES)
def test_a_fault_while_downloading(
    hub: Hub, folder: Path, tmp_path: Path, request_: str, fault: str, times: int
) -> None:
    kind, details = {**ANSWERS, **CONTENTS}[fault]
    hub.fail(REQUESTS[request_], kind, times=times, **details)
    message = ""
    with sent_to(hub, tmp_path, TOKEN) as cache:
        try:
            found = fetch(resolve(REPOSITORY))
        except (EnvironmentProblem, HubRefusal) as error:
            message = f"{error.message} {error.hint or pytest.fail('no hint')}"
        else:
            assert same_files(found, folder) == {*NEEDED, "model.safetensors"}
        check_blobs(cache)
    may_refuse = times > 1 or (fault in FINAL and request_ != "its contents")
    assert may_refuse or not message, message
    assert bool(message) or times == 1 or fault in HARMLESS
    assert not message or any(word in message for word in (REPOSITORY, "127.0.0.1", "the Hub")), message
    check_secrets(hub, message)
    if fault.startswith("corrupt") and times > 1:
        assert "other contents than the Hub lists" in message


@pytest.mark.parametrize("times", [1, 1_000_000], ids=["once", "always"])
@pytest.mark.parametrize("fault", [each for each in {**ANSWERS, **CONTENTS} if "corrupt" not in each])
def test_a_fault_while_reading_headers(
    hub: Hub, folder: Path, tmp_path: Path, fault: str, times: int
) -> None:
    """A flipped bit is not among them: of a part of a file there is no hash."""
    kind, details = {**ANSWERS, **CONTENTS}[fault]
    hub.fail("GET /cdn/", kind, times=times, **details)
    message = ""
    with sent_to(hub, tmp_path, TOKEN):
        try:
            place = remote_checkpoint(resolve(REPOSITORY))
            assert isinstance(place, Elsewhere)
            tensors = open_checkpoint(place).tensors
        except KconvError as error:
            message = str(error)
        else:
            expected = open_checkpoint(folder).tensors
            assert {name: each.shape for name, each in tensors.items()} == {
                name: each.shape for name, each in expected.items()
            }
    assert bool(message) <= (times > 1), message
    assert not message or "model.safetensors" in message
    check_secrets(hub, message)


@pytest.fixture(scope="module")
def by_xet(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub that offers the weights by Xet, too."""
    with Hub() as hub:
        hub.add(REPOSITORY, folder)
        hub.offer_xet(tmp_path_factory.mktemp("store") / "xet")
        yield hub


@pytest.mark.parametrize("fault", [None, "500", "drop", "page", "404"])
def test_xet_comes_first_and_plain_http_helps(
    by_xet: Hub, folder: Path, tmp_path: Path, fault: str | None
) -> None:
    by_xet.heal()
    if fault is not None:
        by_xet.fail("xet-read-token", ANSWERS[fault][0], **ANSWERS[fault][1])
    with sent_to(by_xet, tmp_path, TOKEN) as cache:
        assert "model.safetensors" in same_files(fetch(resolve(REPOSITORY)), folder)
        check_blobs(cache)
    assert bool(by_xet.asked("/cdn/")) == (fault is not None)


@pytest.mark.parametrize("what", ["flipped", "gone"])
def test_a_damaged_store_of_xet(folder: Path, tmp_path: Path, what: str) -> None:
    """What its streams pass on is hashed here; the second try is by plain HTTP."""
    with Hub() as hub:
        hub.add(REPOSITORY, folder)
        hub.offer_xet(tmp_path / "store")
        blocks = [
            path
            for path in (tmp_path / "store").rglob("*")
            if path.is_file() and path.stat().st_size > 200_000
        ]
        assert blocks
        for path in blocks:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.chmod(0o644)
            path.unlink() if what == "gone" else path.write_bytes(data)
        with sent_to(hub, tmp_path / "home") as cache:
            assert "model.safetensors" in same_files(fetch(resolve(REPOSITORY)), folder)
            check_blobs(cache)
        assert hub.asked("/cdn/")


def test_xet_goes_on_where_a_download_was_ended(by_xet: Hub, folder: Path, tmp_path: Path) -> None:
    by_xet.heal()
    with sent_to(by_xet, tmp_path) as cache:
        source = resolve(REPOSITORY)
        file = source.file("model.safetensors")
        assert file is not None
        blobs = cache / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
        blobs.mkdir(parents=True)
        begun = blobs / f"{file.sha256}.kconv.incomplete"
        begun.write_bytes((folder / "model.safetensors").read_bytes()[:200_000])
        assert "model.safetensors" in same_files(fetch(source), folder)
        assert not begun.exists()
    assert not by_xet.asked("/cdn/")
