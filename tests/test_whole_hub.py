"""The calculation for the whole Hub, and that the docs show what it gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import whole_hub  # noqa: E402


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_docs_show_the_table(language: str) -> None:
    page = (ROOT / "docs" / language / "whole-hub.md").read_text("utf-8")
    shown = re.search(r"<!-- tools/whole_hub.py -->\n(.*?)\n<!-- /tools", page, re.DOTALL)
    given = whole_hub.Inputs()
    assert shown is not None
    assert shown[1] == whole_hub.table(whole_hub.calculate(given), given, language)


def test_the_measured_line_goes_through_what_was_measured() -> None:
    """docs/en/speed.md: 1.44 billion weights in 25 s, a Llama-3-8B (8.03 billion) in 118 s."""
    given = whole_hub.Inputs(models=1, refused=0, again=0)
    for billions, seconds in ((1.44, 25), (8.03, 118)):
        result = whole_hub.calculate(given, [(billions, 1.0)])
        assert 3600 * result.hours_computing == pytest.approx(seconds, abs=0.5)


def test_by_hand() -> None:
    given = replace(
        whole_hub.Inputs(), models=100, refused=0.5, failed=0, again=0, distributable=1, machines=2
    )
    result = whole_hub.calculate(given, [(8.0, 1.0)])
    assert (result.converted, result.published) == (50, 50)
    assert result.bytes_down == 50 * 16e9
    assert result.bytes_up == 50 * 13e9
    assert result.hours_down == pytest.approx(50 * 16e9 / 100e6 / 3600)
    assert result.hours == result.hours_down / 2
    assert result.requests_api == 100 * 3 + 50 * 16


def test_the_command() -> None:
    words = [
        sys.executable,
        str(ROOT / "tools" / "whole_hub.py"),
        "--models",
        "10",
        "--sizes",
        "1:1",
        "--json",
    ]
    said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert said["inputs"]["models"] == said["result"]["tried"] == 10
    assert said["result"]["billions"] == 1.0
