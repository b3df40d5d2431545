"""The GGUF of a repository that is of a type, as llama.cpp and Ollama ask for it: ``org/name:Q4_K_M``.

The type is looked for in the names, where publishers write it, and in the headers of those files whose names
have none. Nothing is guessed: neither a default nor the nearest type is taken in place of what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.byte_source import ByteSource
from ..core.errors import GgufError
from ..core.gguf_file import read_header
from ..core.gguf_file_type import file_type
from ..core.gguf_split import part_names
from .cache import snapshot
from .download import is_here
from .ranges import HubRanges
from .source import HubSource
from .stream import StreamedFile

_SOME_TYPE = re.compile(r"(?<![A-Za-z0-9])(I?Q[1-8]|TQ[12]|MXFP4|NVFP4|B?FP?16|FP?32)", re.IGNORECASE)
_HEADERS = 8
"""Files of which a header is read, at most: a repository whose names say nothing has one or two."""


def models_of_type(source: HubSource, models: Sequence[str], type_name: str) -> list[str]:
    """Those of a repository's GGUF ``models`` that are of a type, whichever way it is written.

    One whose name ends in the type is meant before others that have it elsewhere in their paths. Raises what
    reading headers raises.
    """
    named = [path for path in models if _says(path, type_name)]
    last = [path for path in named if _says(path, type_name, at_the_end=True)]
    if named:
        return last or named
    silent = [path for path in models if not _SOME_TYPE.search(path)][:_HEADERS]
    return [path for path in silent if _plain(_type_inside(source, path)) == _plain(type_name)]


def _says(path: str, type_name: str, *, at_the_end: bool = False) -> bool:
    """Whether a path has the type as a word: ``Q4_K`` is none of ``x-Q4_K_M.gguf``, nor ``Q4_0`` of IQ4_0."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path, flags=re.IGNORECASE)
    word = rf"(?<![a-z0-9]){re.escape(_plain(type_name))}(?![a-z0-9_])" + ("$" if at_the_end else "")
    return re.search(word, _plain(stem)) is not None


def _plain(text: str | None) -> str:
    """In small letters, F16 where some write FP16."""
    return re.sub(r"(?<![a-z0-9])(b?)fp(?=(16|32)(?![0-9]))", r"\1f", (text or "").lower())


def _type_inside(source: HubSource, path: str) -> str | None:
    """What the header of a model says, of which ranges are fetched; None of what is no GGUF."""
    file = source.file(part_names(path)[0])
    if file is None:
        return None
    local = snapshot(source.repository, source.commit) / file.path
    try:
        if is_here(source, file):
            return file_type(read_header(local))
        remote: ByteSource = StreamedFile(HubRanges(source, file), file.sha256, file.git)
        return file_type(read_header(local, lambda _: remote))
    except GgufError:
        return None
