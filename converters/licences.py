"""What licences say of passing on converted files: data/licences.toml, with sources.

A reminder for whoever publishes files, and a barrier where distribution is forbidden; not legal advice.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Distribution = Literal["yes", "conditions", "no", "unknown", "none"]
"""Whether files may be passed on; ``unknown``: terms kconv does not know, ``none``: no licence is named."""


@dataclass(frozen=True)
class Terms:
    """The terms in one sentence for each language (``en``, ``ko``), and where they stand (None: nowhere)."""

    distribution: Distribution
    sentences: Mapping[str, str]
    source: str | None = None


_UNKNOWN = Terms(
    "unknown",
    {
        "en": "The model has terms of its own; read them before you use or pass on the files.",
        "ko": "모델에 고유한 약관이 있습니다. 파일을 쓰거나 배포하기 전에 읽어 보십시오.",
    },
)
_NONE = Terms(
    "none",
    {
        "en": "The original names no licence. Without one, only its author may pass it on.",
        "ko": "원본에 라이선스가 적혀 있지 않습니다. 라이선스가 없으면 저작자만 배포할 수 있습니다.",
    },
)


def terms_of(licence: str | None, name: str | None = None, link: str | None = None) -> Terms:
    """The terms of a licence by its identifier on the Hub and, of ``other``, by its name and link."""
    words = " ".join(part for part in (licence, name, link) if part).lower()
    if words.strip() in ("", "unknown"):
        return _NONE
    text = re.sub(r"[\s_]+", "-", words)
    return next((terms for pattern, terms in _table() if pattern.search(text)), _UNKNOWN)


def hub_identifiers() -> frozenset[str]:
    """The licences that the Hub knows by name."""
    return frozenset(_data()["identifiers"].split())


@functools.cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads((resources.files(__package__) / "data" / "licences.toml").read_text("utf-8"))


@functools.cache
def _table() -> Sequence[tuple[re.Pattern[str], Terms]]:
    return [
        (
            re.compile(entry["pattern"]),
            Terms(entry["distribution"], {"en": entry["en"], "ko": entry["ko"]}, entry["source"]),
        )
        for entry in _data()["licence"]
    ]
