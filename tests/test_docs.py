"""The README says what the code does: its generated table, its commands."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest
from command_material import kconv

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("kconv_server")


@functools.cache
def shown(*words: str) -> str:
    """What a command that must succeed prints."""
    if words[0] == "kconv":
        done = kconv(*words[1:], cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_model_table_is_the_generated_one(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    table = re.search(r"<!-- models: kconv models --markdown -->\n(.*?)<!-- /models -->", text, re.DOTALL)
    assert table is not None
    assert table[1].strip() == shown("kconv", "models", "--markdown").strip()


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_every_make_target_and_option_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    offered = shown("make", "help")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]*)", text)):
        assert f"make {target} " in offered
    code = "\n".join([*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])
    for command in set(re.findall(r"^kconv ([a-z][a-z-]+)", code, re.MULTILINE)):
        assert shown("kconv", command, "--help")
    for line in re.findall(r"^kconv (to-gguf|to-onnx|run|verify) (.*?)(?:  +#.*)?$", text, re.MULTILINE):
        offered = shown("kconv", line[0], "--help")
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", " " + line[1]):
            assert re.search(rf"(?<![\w-]){re.escape(option)}\b", offered), f"{option} of {line}"
