"""The recording in the README: what a terminal showed, when, as one SVG that needs nothing else."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    pytest.importorskip("pyte")
    spec = importlib.util.spec_from_file_location("record_terminal", ROOT / "tools" / "record_terminal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["record_terminal"] = module
    spec.loader.exec_module(module)
    return module


def shown_last(text: str) -> list[str]:
    """The lines of the last picture."""
    rows = [
        group for group in ElementTree.fromstring(text).iter(f"{SVG}g") if "last" in group.get("class", "")
    ]
    rows.sort(key=lambda group: float(group[0].get("y", "0")))
    return ["".join(run.text or "" for run in row) for row in rows]


def test_the_last_picture_is_what_the_terminal_shows_at_the_end(recorder: ModuleType, tmp_path: Path) -> None:
    commands = [
        r"printf 'one\ntwo\rTWO\n\033[1;32mpassed\033[0m 한글 <&>\n'",
        "tput cols; sleep 0.3; echo 끝",
    ]
    environment = {**os.environ, "TERM": "xterm-256color"}
    recording = recorder.record(commands, tmp_path, environment, shown=0.1)
    text = recorder.svg_of(recording, 'a "title"')
    last = shown_last(text)
    assert last[1:4] == ["one", "TWO", "passed 한글 <&>"]
    assert last[5:] == [str(recorder.COLUMNS), "끝", "$"]
    assert "two" not in last
    passed = next(run for run in ElementTree.fromstring(text).iter(f"{SVG}text") if run.text == "passed")
    assert passed.get("class") == "green bold"
    wide = next(run for run in ElementTree.fromstring(text).iter(f"{SVG}text") if run.text == "끝")
    assert wide.get("textLength") == f"{2 * recorder.CELL:.1f}"  # a Korean letter takes two cells
    # 0.3 s of waiting were shortened to 0.1.
    typed = sum(map(len, commands)) * recorder.TYPING
    assert recording.end < typed + 2 * 0.1 + 2 * recorder.PAUSE + recorder.LAST + 0.05


def test_a_command_that_fails_leaves_no_recording(recorder: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        recorder.record(["exit 3"], tmp_path, dict(os.environ))


@pytest.mark.parametrize("name", ["demo.svg", "demo.ko.svg"])
def test_the_recording_of_the_readme_is_one_small_file_of_a_proven_conversion(name: str) -> None:
    path = ROOT / "docs" / "assets" / name
    text = path.read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert path.stat().st_size < 150_000
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "style", "rect", "circle", "g", "text",
    }  # fmt: skip
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    for media in ("prefers-color-scheme: dark", "prefers-reduced-motion: reduce"):
        assert media in text
    last = "\n".join(shown_last(text))
    assert ("통과" if ".ko" in name else "passed") in last
    assert "kconv run" in last
