"""Counting what a protobuf file holds before it is parsed: two bytes make a message of 160 there."""

from __future__ import annotations

from typing import Any


def more_parts_than(data: bytes, descriptor: Any, most: int) -> bool:
    """Whether ``data``, a message of that kind, holds more than ``most`` fields, messages within it counted.

    What is no protobuf is left to the parser.
    """
    waiting = [(0, len(data), descriptor)]
    kinds: dict[str, dict[int, Any]] = {}
    parts = 0
    try:
        while waiting:
            at, end, kind = waiting.pop()
            if kind.full_name not in kinds:
                kinds[kind.full_name] = {field.number: field.message_type for field in kind.fields}
            fields = kinds[kind.full_name]
            while at < end:
                parts += 1
                if parts > most:
                    return True
                tag, at = varint(data, at)
                if tag & 7 == 2:
                    size, at = varint(data, at)
                    within = fields.get(tag >> 3)
                    if size and within is not None:
                        waiting.append((at, min(at + size, end), within))
                    at += size
                elif tag & 7 == 0:
                    _, at = varint(data, at)
                else:
                    at += 4 if tag & 7 == 5 else 8
    except IndexError:
        return False
    return False


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:
            return value, at
        shift += 7
