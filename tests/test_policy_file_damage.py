"""Policy files that are damaged, hostile or of dates and huge numbers get one clear error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kconv.cli.policy import read_policy
from kconv.core.errors import InputError
from kconv.quant.formats import FORMATS
from kconv.quant.policy_file import Choice, read_choice

WHOLE = Choice(
    "3M", "llama", {"output.weight": FORMATS["q6_K"]}, 0.01, {"output.weight": {"q6_K": 0.01}}
).to_toml()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kconv_policy = 1", "kconv_policy = true", "kconv_policy is True"),
        ("q6_K = 0.01", "q6_K = " + "9" * 400, "expected a number of nats"),
        ("q6_K = 0.01", "q6_K = " + "9" * 5000, "not a policy file"),
        ("q6_K = 0.01", "q6_K = nan", "expected a number of nats"),
        ("[measured]", "[measured]\nwhen = 2020-01-01", "measured.'when' is no number"),
        ("[measured]", "[measured]\nx = " + "[" * 5000, "not a policy file"),
    ],
)
def test_damage_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "a.policy.toml"
    path.write_text(WHOLE.replace(old, new))
    assert old in WHOLE
    with pytest.raises(InputError, match=re.escape(says)):
        read_choice(path)


def test_what_is_no_text_is_called_a_policy_file(tmp_path: Path) -> None:
    binary = tmp_path / "a.gguf"
    binary.write_bytes(b"GGUF\xff\xfe")
    for path in (binary, tmp_path / "missing.toml", tmp_path):
        with pytest.raises(InputError, match=r"^policy file: ") as caught:
            read_choice(path)
        assert "--target-size" in (caught.value.hint or "")


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "[" * 5000])
def test_limits_of_any_length_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(f"max_kl = {value}\n")
    with pytest.raises(InputError):
        read_policy(path)
