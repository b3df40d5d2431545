"""GGUF files of the Hub where nobody can ask it: what the cache has, and what it has not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_material import sent_to
from hub_server import Hub

from kconv.converters.samples import write_sample
from kconv.core.errors import HubRefusal
from kconv.flows.convert import to_gguf
from kconv.flows.release import read_release
from kconv.hub.artifact import local_artifact

pytestmark = pytest.mark.usefixtures("kconv_server")
SHELF = "other/shelf"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sample("42dot", tmp_path_factory.mktemp("sample") / "m")
    to_gguf(folder, folder.parent / "shelf", types=["q8_0", "f16"], verify="off")
    return folder.parent / "shelf"


@pytest.fixture(params=[True, False], ids=["listed", "unlisted"])
def cache(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """One of two files is in the cache, with the list of all or as huggingface_hub used to leave it."""
    from huggingface_hub import constants

    with Hub() as hub, sent_to(hub, tmp_path):
        hub.add(SHELF, made)
        local_artifact(f"{SHELF}:q8_0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for path in () if request.param else tmp_path.rglob("trees/*.json"):
            path.unlink()
        yield


@pytest.mark.usefixtures("cache")
def test_what_is_in_the_cache_is_taken() -> None:
    assert local_artifact(f"{SHELF}:q8_0").name == "m-Q8_0.gguf"
    assert local_artifact(f"{SHELF}/m-Q8_0.gguf").name == "m-Q8_0.gguf"
    assert read_release([f"{SHELF}:q8_0"]).artifacts[0].type == "q8_0"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("text", [f"{SHELF}:f16", f"hf://{SHELF}/m-F16.gguf"])
def test_what_is_not_is_said_to_be_missing_here_and_no_more(text: str) -> None:
    for call in (
        local_artifact,
        lambda name: read_release([name]),
        lambda name: read_release([name], fetch=True),
    ):
        with pytest.raises(HubRefusal, match="HF_HUB_OFFLINE") as refused:
            call(text)
        assert "has no" not in refused.value.message
