"""Tokens that are none: said at once, and never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_material import kconv
from hub_server import Hub

pytestmark = pytest.mark.usefixtures("kconv_server")


def test_a_token_that_cannot_be_sent(tmp_path: Path) -> None:
    """Hangul in HF_TOKEN: it fits in no header, so asking again is in vain."""
    with Hub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path), "HF_TOKEN": "hf_비밀입니다"}
        done = kconv("plan", "kconv-tests/nothing", "--verbose", env=environment, cwd=tmp_path)
        assert not hub.asked(".")
    assert done.returncode == 3
    assert "the token here has characters that no token has" in done.stderr
    assert "비밀" not in done.stderr
