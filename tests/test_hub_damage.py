"""Headers that come damaged: no part of a file has a sum, and that is no verdict on the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_material import sent_to
from hub_server import Hub

from kconv.converters.samples import write_sample
from kconv.core.errors import DamagedOnTheWay, EnvironmentProblem
from kconv.flows.convert import to_gguf
from kconv.flows.plan import plan
from kconv.hub.names import HubName, parse_hub_name

NAME = "Org.Name/Llama-3.1_Ko"
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("llama-3-ko", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(NAME, folder)
        yield hub


def damage(hub: Hub, at: int, times: int) -> None:
    repository = hub.repositories[NAME]
    file = repository.commits[repository.refs["main"]][FIRST]
    hub.fail(f"GET /cdn/{file.sha256}", "corrupt", at=at, times=times)


@pytest.mark.parametrize("at", [0, 5, 12])
def test_a_header_that_came_damaged_once_is_fetched_again(hub: Hub, tmp_path: Path, at: int) -> None:
    """In its length, and in its JSON."""
    damage(hub, at, 1)
    assert plan(NAME, tmp_path).types
    damage(hub, at, 1)
    made = to_gguf(NAME, tmp_path / "s.gguf", types=["q8_0"], verify="off", stream=True)
    assert made.outputs[0].path.is_file()


def test_a_name_of_a_tensor_that_came_damaged_once_is_no_verdict(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    """The header is good JSON, of a model with another tensor."""
    at = (folder / FIRST).read_bytes().index(b"model.")
    damage(hub, at, 1)
    assert to_gguf(NAME, tmp_path / "a.gguf", types=["q8_0"], verify="off").outputs[0].path.is_file()


def test_a_header_that_is_always_damaged_is_no_verdict_either(hub: Hub, tmp_path: Path) -> None:
    damage(hub, 5, 1_000_000)
    with pytest.raises(EnvironmentProblem, match="came with other contents than the Hub lists"):
        to_gguf(NAME, tmp_path / "a.gguf", types=["q8_0"], verify="off")
    words = f"the header of {FIRST} of {NAME} came damaged"
    with pytest.raises(DamagedOnTheWay, match=words):
        to_gguf(NAME, tmp_path / "a.gguf", types=["q8_0"], verify="off", stream=True)
    with pytest.raises(DamagedOnTheWay, match=words):
        plan(NAME, tmp_path)
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize("code", [520, 522, 524, 529])
def test_what_a_mirror_behind_a_proxy_answers_passes(hub: Hub, tmp_path: Path, code: int) -> None:
    hub.fail("GET ", "status", code=code, times=2)
    assert plan(NAME, tmp_path).types


def test_addresses_at_a_hub_below_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example.org/hub/hf")
    page = "https://mirror.example.org/hub/hf/org/name"
    assert parse_hub_name(page) == HubName("org/name")
    assert parse_hub_name(f"{page}/tree/refs%2Fpr%2F3") == HubName("org/name", "refs/pr/3")
    assert parse_hub_name(f"{page}/blob/main/x.gguf") == HubName("org/name", "main", "x.gguf")
    assert parse_hub_name("https://huggingface.co/org/name/tree/v1") == HubName("org/name", "v1")
