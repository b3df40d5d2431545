"""A checkpoint that is smaller than one merged range: no byte of it is asked for twice."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hub_material import sent_to
from hub_server import Hub

from kconv.converters.samples import write_sample
from kconv.flows.convert import to_gguf
from kconv.hub.ranges import HubRanges
from kconv.hub.source import resolve
from kconv.hub.stream import StreamedFile, WeightStream

pytestmark = pytest.mark.usefixtures("kconv_server")
NAME = "kconv-tests/tiny"


def spans(hub: Hub) -> list[tuple[int, int]]:
    """The ranges of weights that were asked for."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", each.range or "") for each in hub.asked("GET /cdn/")]
    return [(int(each[1]), int(each[2]) + 1) for each in found if each is not None]


def test_a_conversion_asks_for_each_byte_once(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "tiny")
    size = (folder / "model.safetensors").stat().st_size
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(NAME, folder)
        to_gguf(NAME, tmp_path / "a.gguf", types=["f16"], verify="off", stream=True)
        asked = sorted(spans(hub))
    assert asked[0][0] == 0
    assert asked[-1][1] == size
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(asked))
    assert len(asked) == 2  # the header's mebibyte, and the rest


def test_a_file_of_one_mebibyte_is_asked_for_once(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "model.safetensors").write_bytes(data)
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(NAME, tmp_path / "repository")
        source = resolve(NAME)
        (listed,) = source.files
        file = StreamedFile(HubRanges(source, listed), listed.sha256, listed.git)
        head = bytearray(8)
        file.read_into(memoryview(head), 0)
        stream = WeightStream({listed.path: file})
        whole = bytearray(len(data))
        (part,) = stream.arranged([0], lambda _: file.read_into(memoryview(whole), 0))
        with stream.working_on(part):
            file.read_into(memoryview(whole), 0)
        assert file.sha256(lambda *_: None, lambda: False) == listed.sha256
        assert spans(hub) == [(0, len(data))]
    assert whole == data
