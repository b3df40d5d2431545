"""Key-value pairs of a GGUF file as the bytes of its header (ggml/docs/gguf.md)."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence

from .model import MetadataValue

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Numbers of value types with struct's codes; the others are texts and arrays."""
UINT8, UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 2, 4, 5, 6, 7, 8, 9


def encode_pairs(metadata: Mapping[str, MetadataValue]) -> list[bytes]:
    """Each pair in ``MetadataValue``'s types. Empty arrays, whose items have no type, and texts are left out.

    So does llama.cpp's converter (gguf-py).
    """
    return [_encode(key, value) for key, value in metadata.items() if value not in ((), b"", "")]


def encode_pair(key: str, kind: int, value: float) -> bytes:
    """A pair with a number of the given type."""
    return encode_text(key) + struct.pack("<I" + SCALARS[kind], kind, value)


def encode_text(text: str, errors: str = "strict") -> bytes:
    """Length and UTF-8 bytes; with ``surrogateescape`` a text read from a header becomes its bytes again."""
    data = text.encode("utf-8", errors)
    return struct.pack("<Q", len(data)) + data


def _encode(key: str, value: MetadataValue) -> bytes:
    if isinstance(value, bool):
        return encode_pair(key, BOOL, value)
    if isinstance(value, int):
        return encode_pair(key, UINT32, value)
    if isinstance(value, float):
        return encode_pair(key, FLOAT32, value)
    if isinstance(value, str):
        return encode_text(key) + struct.pack("<I", STRING) + encode_text(value)
    kind, items = (UINT8, value) if isinstance(value, bytes) else _items(value)
    return encode_text(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + items


@functools.lru_cache(maxsize=4)  # tokens and merges, of the file that is checked and of each that is written
def _texts(values: tuple[str, ...]) -> bytes:
    length = struct.Struct("<Q").pack
    return b"".join([length(len(data)) + data for data in map(str.encode, values)])


def _items(values: Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]) -> tuple[int, bytes]:
    """Type and bytes of an array's items, by the type of the first."""
    if isinstance(values[0], str):
        return STRING, _texts(tuple(map(str, values)))
    kind = BOOL if isinstance(values[0], bool) else INT32 if isinstance(values[0], int) else FLOAT32
    return kind, struct.pack(f"<{len(values)}{SCALARS[kind]}", *values)
