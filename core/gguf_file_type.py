"""The type of a GGUF as it calls itself, ``general.file_type``: of files whose names do not tell."""

from __future__ import annotations

from .gguf_file import GgufHeader


def file_type(header: GgufHeader) -> str | None:
    """The type in small letters, ``q4_k_m``; None where the file does not say, or says what nobody knows."""
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(header.metadata.get("general.file_type")).name
    except ValueError:
        return None
    return str(name).removeprefix("MOSTLY_").removeprefix("ALL_").lower()
