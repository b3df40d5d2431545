"""Downloads from the Hub: what is needed, into the cache of others, resumed, a half never taken for whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_material import NEEDED, REPOSITORY, check_blobs, same_files, sent_to, small_repository
from hub_server import TOKEN, Hub

from kconv.core.errors import EnvironmentProblem, HubRefusal
from kconv.hub.checkpoint import fetch, local_checkpoint
from kconv.hub.source import resolve

FETCH = """
import resource, sys
from kconv.core.errors import KconvError
from kconv.hub.checkpoint import local_checkpoint
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    print(local_checkpoint(sys.argv[1]))
except KconvError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's files, with weights in three."""
    return small_repository(tmp_path_factory.mktemp("source") / "files", shards=3)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Hub]:
    """A Hub with that repository, open, gated and private."""
    with Hub() as hub:
        hub.add(REPOSITORY, folder, refs=["main", "KoGPT6B-ryan1.5b-float16", "refs/pr/1"])
        hub.add("kconv-tests/gated", folder, gated="asked")
        hub.add("kconv-tests/granted", folder, gated="granted")
        hub.add("kconv-tests/private", folder, private=True)
        hub.add("kconv-tests/disabled", folder, disabled=True)
        yield hub


def weights(folder: Path) -> set[str]:
    """Their names, and that of the index."""
    return {path.name for path in folder.glob("model*safetensors*")}


def fetching(hub: Hub, home: Path, *more: str) -> subprocess.Popen[str]:
    """Another process that fetches the repository."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, REPOSITORY, *more],
        env={**os.environ, **hub.environment(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_only_what_is_needed_and_once(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with sent_to(hub, tmp_path):
        found = fetch(resolve(f"{REPOSITORY}@KoGPT6B-ryan1.5b-float16"))
        assert same_files(found, folder) == NEEDED | weights(folder)
        asked = hub.asked("/resolve/")
        assert len(asked) == len(NEEDED | weights(folder))
        hub.heal()
        assert local_checkpoint(f"hf://{REPOSITORY}@refs/pr/1") == found
        assert [each.line for each in hub.requests] == [f"GET /api/models/{REPOSITORY}/revision/refs/pr/1"]
        hub.heal()
        assert local_checkpoint(f"{REPOSITORY}@{found.name}") == found
        assert not hub.requests


def test_huggingface_hub_finds_what_kconv_fetched_and_the_other_way_round(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download, snapshot_download

    with sent_to(hub, tmp_path / "a") as cache:
        found = fetch(resolve(REPOSITORY))
        hub.heal()
        patterns = ["*.json", "model-*", "README.md"]
        theirs = snapshot_download(REPOSITORY, cache_dir=cache, allow_patterns=patterns)
        assert theirs == str(found)
        assert not hub.asked("/resolve/")
    with sent_to(hub, tmp_path / "b") as cache:
        hf_hub_download(REPOSITORY, "model-00002-of-00003.safetensors", cache_dir=cache)
        snapshot_download(REPOSITORY, cache_dir=cache, allow_patterns=["*.json", "README.md"])
        hub.heal()
        same_files(fetch(resolve(REPOSITORY)), folder)
        assert len(hub.asked("/resolve/")) == 2  # the other two


def test_killed_at_nine_tenths(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """By kill -9: what was written stays, and is not asked for again."""
    hub.fail("GET /cdn/", "trickle", seconds=0.15)
    first = fetching(hub, tmp_path)
    blobs = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def here() -> int:
        return sum(path.stat().st_size for path in blobs.glob("*") if path.stat().st_size > 10_000)

    until = time.monotonic() + 60
    while (not blobs.is_dir() or here() < 0.8 * total) and time.monotonic() < until:
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = here()
    assert 0.8 * total <= kept < total
    hub.heal()
    out, _ = fetching(hub, tmp_path).communicate(timeout=60)
    same_files(Path(out.strip()), folder)
    assert not list(blobs.glob("*.incomplete"))
    (size,) = {path.stat().st_size for path in folder.glob("*.safetensors")}
    asked = [int((each.range or "bytes=0-")[6:].partition("-")[0]) for each in hub.asked("/cdn/")]
    assert sum(size - begin for begin in asked) == total - kept


def test_two_at_once_fetch_once(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.fail("GET /cdn/", "trickle", seconds=0.05)
    both = [fetching(hub, tmp_path) for _ in range(2)]
    for each in both:
        out, err = each.communicate(timeout=60)
        assert same_files(Path(out.strip()), folder) == NEEDED | weights(folder), err
    assert len(hub.asked("/cdn/")) == 3


def test_a_commit_stays_what_it_was(tmp_path: Path) -> None:
    old, new = small_repository(tmp_path / "old"), small_repository(tmp_path / "new", size=200_000)
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(REPOSITORY, old)
        source = resolve(REPOSITORY)
        hub.add(REPOSITORY, new)
        assert same_files(fetch(source), old)
        assert same_files(fetch(resolve(REPOSITORY)), new)


def test_a_damaged_or_cut_file_in_the_cache_is_fetched_again(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with sent_to(hub, tmp_path) as cache:
        found = fetch(resolve(REPOSITORY))
        config = (found / "config.json").resolve()
        config.write_bytes(config.read_bytes().replace(b"small", b"smalt"))
        shard = (found / "model-00001-of-00003.safetensors").resolve()
        os.truncate(shard, 1000)
        same_files(fetch(resolve(REPOSITORY)), folder)
        check_blobs(cache)


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("gated", None, ("is gated", "ask for access at", "hf auth login")),
        ("gated", TOKEN, ("is gated", "has no access", "ask for access at")),
        ("private", None, ("no such one, or it is private", "hf auth login")),
        ("nothing", TOKEN, ("no such one, or it is private", "check the name")),
        ("disabled", TOKEN, ("was disabled by the Hub",)),
        ("small-model@v9", None, ("has no revision 'v9'", "main", "KoGPT6B-ryan1.5b-float16")),
        ("small-model@" + "a" * 40, None, ("has no revision",)),
        ("small-model", "hf_wrong", ("refuses the token", "hf auth login")),
    ],
)
def test_refusals(hub: Hub, tmp_path: Path, name: str, token: str | None, words: tuple[str, ...]) -> None:
    with sent_to(hub, tmp_path, token), pytest.raises(HubRefusal) as refused:
        local_checkpoint(f"kconv-tests/{name}")
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert TOKEN not in str(refused.value)
    assert "hf_wrong" not in str(refused.value)
    assert refused.value.exit_code == 3


def test_with_access_gated_and_private_ones_come(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with sent_to(hub, tmp_path, TOKEN):
        for name in ("granted", "private"):
            same_files(fetch(resolve(f"kconv-tests/{name}")), folder)
    assert not any("authorization" in each.headers for each in hub.asked("/cdn/"))
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not kept


def test_a_gated_one_in_the_cache_needs_neither_token_nor_network(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with sent_to(hub, tmp_path, TOKEN):
        fetch(resolve("kconv-tests/granted"))
    with sent_to(hub, tmp_path):
        same_files(fetch(resolve("kconv-tests/granted")), folder)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.heal()
        same_files(fetch(resolve("kconv-tests/granted")), folder)
        assert not hub.requests


@pytest.mark.parametrize("how", ["offline", "no network", "listed"])
def test_a_part_in_the_cache_is_not_the_whole(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    with sent_to(hub, tmp_path) as cache:
        if how == "listed":
            snapshot_download(REPOSITORY, cache_dir=cache, allow_patterns=["*.json"])
        else:
            hf_hub_download(REPOSITORY, "config.json", cache_dir=cache)
        if how == "no network":
            hub.fail("GET", "drop")
        else:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        expected = EnvironmentProblem if how == "no network" else HubRefusal
        with pytest.raises(expected, match="holds only a part of") as refused:
            local_checkpoint(REPOSITORY)
    assert ("model-00001-of-00003.safetensors" if how == "listed" else "config.json") in str(refused.value)


def test_offline_with_nothing_here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with sent_to(hub, tmp_path):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubRefusal, match="HF_HUB_OFFLINE forbids") as refused:
            local_checkpoint(REPOSITORY)
    assert f"hf download {REPOSITORY}" in str(refused.value)
    assert not hub.requests


def test_no_room(hub: Hub, tmp_path: Path) -> None:
    out, _ = fetching(hub, tmp_path, "100000").communicate(timeout=60)
    assert out.startswith("EnvironmentProblem")
    assert "would be larger than the file system or limit allows" in out
    assert "HF_HOME" in out


def test_more_than_the_disk_has(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Refused before anything is fetched: the list says how much it is."""
    from dataclasses import replace

    with sent_to(hub, tmp_path):
        source = resolve(REPOSITORY)
        huge = tuple(replace(each, size=each.size << 40) if each.sha256 else each for each in source.files)
        fetch_small = replace(source, files=huge)
        with pytest.raises(EnvironmentProblem, match=r"needs .* TiB more in the Hub's cache"):
            fetch(fetch_small)
    assert not hub.asked("/cdn/")


def test_a_list_of_several_pages(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.page = 3
    try:
        with sent_to(hub, tmp_path):
            names = {each.path for each in resolve(REPOSITORY).files}
    finally:
        hub.page = 1000
    assert names == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert len(hub.asked("/tree/")) > 3


@pytest.mark.parametrize(
    "path", ["../outside.json", "/etc/outside.json", "a/../../outside.json", "config.json\0"]
)
def test_paths_that_lead_elsewhere_are_left_alone(folder: Path, tmp_path: Path, path: str) -> None:
    with Hub() as hub, sent_to(hub, tmp_path):
        commit = hub.add(REPOSITORY, folder)
        files = hub.repositories[REPOSITORY].commits[commit]
        files[path] = files["config.json"]
        source = resolve(REPOSITORY)
        assert source.file(path) is None
        fetch(source)
    assert not list(tmp_path.rglob("outside*"))
