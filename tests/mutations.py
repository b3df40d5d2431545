"""Files with something wrong in them: every kind of file kconv reads, changed at places that matter.

A mutation is a function of bytes and a seeded ``random.Random``, so that a file name, the name of a mutation
and a seed are the whole recipe of a damaged file.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from json_mutations import LARGE, NUMBERS, PARTS, dumped, mutated_value

Mutation = Callable[[bytes, random.Random], bytes]

TELLING = b'{}[]",:0123456789-.eE\\ \x00\xff\x80}XKMJtR(Qs.\n\r\t%{<>'


def any_bytes(content: bytes, choose: random.Random) -> bytes:
    """A few bytes changed, put in, taken out, repeated or moved, or the end cut off."""
    data = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 4, 16))):
        at = choose.randrange(len(data) or 1)
        match choose.randrange(8):
            case 0 if data:
                data[at] = choose.choice(TELLING)
            case 1 if data:
                data[at] ^= 1 << choose.randrange(8)
            case 2:
                data.insert(at, choose.choice(TELLING))
            case 3:
                del data[at : at + choose.choice((1, 2, 8, 100, 5000))]
            case 4:
                data[at:at] = data[at : at + choose.randrange(1, 400)]
            case 5:
                del data[at:]
            case 6:
                code, largest = choose.choice((("<I", 2**32 - 1), ("<Q", 2**64 - 1), ("<H", 65535)))
                number = choose.choice((*NUMBERS, *LARGE)) & largest
                data[at : at + struct.calcsize(code)] = struct.pack(code, number)
            case 7:
                data += bytes(choose.choice((1, 7, 4096)))
    return bytes(data)


# --- JSON ---


def json_values(content: bytes, choose: random.Random) -> bytes:
    """A JSON file with values of the wrong kind or size, keys too many or too few."""
    try:
        return dumped(mutated_value(json.loads(content), choose)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # what was moved into another place had raw text in it
        return any_bytes(content, choose)


def safetensors_header(content: bytes, choose: random.Random) -> bytes:
    """A safetensors file with another table, the length in front of it mostly right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json_values(content[8 : 8 + length], choose)
    stated = len(header) if choose.random() < 0.9 else choose.choice((*NUMBERS, *LARGE))
    return struct.pack("<Q", stated) + header + content[8 + length :]


# --- GGUF ---

_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def gguf_numbers(content: bytes) -> Iterator[tuple[int, str, str]]:
    """Every number of a GGUF header: its place, its ``struct`` code, and what it is; long arrays in part.

    What it is: a ``count``, a ``length``, a letter of a ``text``, a ``type``, a ``value``, an ``item`` of an
    array, a ``size`` or an ``offset``.
    """
    at = 4

    def number(code: str, what: str) -> Iterator[tuple[int, str, str]]:
        nonlocal at
        yield at, code, what
        at += struct.calcsize("<" + code)

    def last(code: str) -> int:
        return int(struct.unpack_from("<" + code, content, at - struct.calcsize("<" + code))[0])

    def text() -> Iterator[tuple[int, str, str]]:
        nonlocal at
        yield from number("Q", "length")
        length = last("Q")
        yield from ((at + each, "B", "text") for each in range(min(length, 8)))
        at += length

    def value(kind: int, what: str = "value") -> Iterator[tuple[int, str, str]]:
        if kind == 8:
            yield from text()
        elif kind == 9:
            yield from number("I", "type")
            item = last("I")
            yield from number("Q", "length")
            count = last("Q")
            for each in range(count):
                pieces = list(value(item, "item"))
                if each < 4 or each > count - 4:
                    yield from pieces
        else:
            yield from number(_SIZES[kind], what)

    yield from number("I", "type")
    yield from number("Q", "count")
    tensors = last("Q")
    yield from number("Q", "count")
    for _ in range(last("Q")):
        yield from text()
        yield from number("I", "type")
        yield from value(last("I"))
    for _ in range(tensors):
        yield from text()
        yield from number("I", "count")
        for _ in range(last("I")):
            yield from number("Q", "size")
        yield from number("I", "type")
        yield from number("Q", "offset")


def gguf_header(content: bytes, choose: random.Random) -> bytes:
    """A GGUF file with other numbers in its header: counts, lengths, types, sizes, offsets, values."""
    data, places = bytearray(content), list(gguf_numbers(content))
    kinds = sorted({what for _, _, what in places})
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        kind = choose.choice((*kinds, "value", "value"))
        at, code, _ = choose.choice([place for place in places if place[2] == kind])
        (old,) = struct.unpack_from("<" + code, content, at)
        if code in "fd":
            new = choose.choice((0.0, -0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), old * 2, -old))
            struct.pack_into("<" + code, data, at, new)
            continue
        changed = (old + 1, old - 1, old * 2, old + 32, old - 32, old // 2, old ^ 1, *NUMBERS, *LARGE, -1)
        bits = 8 * struct.calcsize(code)
        struct.pack_into("<" + code.upper(), data, at, choose.choice(changed) & ((1 << bits) - 1))
    return bytes(data)


# --- ONNX, zip, text ---


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if not hasattr(value, "ListFields") else (value,):
                yield from _messages(each)


def onnx_fields(content: bytes, choose: random.Random) -> bytes:
    """An ONNX graph with fields changed, doubled or left out: names, sizes, types, places of weights."""
    import onnx

    model = onnx.load_from_string(content)
    messages = list(_messages(model))
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        message = choose.choice(messages)
        fields = message.ListFields()
        if not fields:
            continue
        field, value = choose.choice(fields)
        if choose.random() < 0.15:
            message.ClearField(field.name)
        elif hasattr(value, "append") or hasattr(value, "add"):
            at = choose.randrange(len(value))
            match choose.randrange(3):
                case 0:
                    del value[at]
                case 1:
                    value.extend([value[at]])
                case 2 if field.message_type is None:
                    value[at] = _field(value[at], choose)
        elif field.message_type is None:
            with_limits(message, field.name, _field(value, choose))
    return bytes(model.SerializeToString())


def with_limits(message: Any, name: str, value: Any) -> None:
    """Set a field, unless its type forbids the value."""
    try:
        setattr(message, name, value)
    except (ValueError, TypeError):
        message.ClearField(name)


def _field(old: Any, choose: random.Random) -> Any:
    if isinstance(old, bytes):
        names = (b"../../etc/passwd", b"x", b"Loop", b"9223372036854775807", b"-1", b"99999999", b"\xff")
        return choose.choice((*names, old + b"x", old[:-1], any_bytes(old, choose)))
    if isinstance(old, str):
        names = (
            "",
            "x",
            "../x",
            "/etc/passwd",
            "Loop",
            "If",
            "com.microsoft",
            "Scan",
            "99999999999999",
            "-1",
        )
        return choose.choice((*names, old + "x", old[:-1], old * 50))
    if isinstance(old, float):
        return choose.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    return choose.choice((0, 1, -1, 2, 3, old + 1, old - 1, old * 2, 2**31 - 1, -(2**31), 255, 2**20))


def zip_records(content: bytes, choose: random.Random) -> bytes:
    """A PyTorch zip archive, whole, with a changed record, one that lacks or one that appears twice."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w") as target:
        names = source.namelist()
        changed = choose.choice([name for name in names if name.endswith("data.pkl")] * 3 + names)
        for name in names:
            data = source.read(name)
            if name == changed:
                how = choose.randrange(8)
                data = any_bytes(data, choose) if how else data
                if how == 1:
                    continue
                name = name + "x" if how == 2 else name
            target.writestr(name, data)
    return stream.getvalue()


JINJA = (
    *("{% for i in range(999999999) %}x{% endfor %}", "{{ 'a' * 999999999 }}", "{{ ''.__class__.__mro__ }}"),
    *("{% endfor %}", "{{", "{% generation %}", "{{ x.y.z }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}"),
    *("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages[99] }}", "{% include 'x' %}", "{#"),
    *(
        "{{ '%s' % cycler }}",
        "{{ [1] * 99999999 | length }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ strftime_now('%Y') }}",
    ),
    *(
        "{{ namespace.__init__.__globals__ }}",
        "{% set x = x ~ x %}" * 60,
        "((" * 500,
        "{{ " + "-" * 9999 + "1 }}",
    ),
)


def template_text(content: bytes, choose: random.Random) -> bytes:
    """A chat template with something of Jinja's put in, or any other damage."""
    if choose.random() < 0.3:
        return any_bytes(content, choose)
    at = choose.randrange(len(content) + 1) if choose.random() < 0.5 else choose.choice((0, len(content)))
    return content[:at] + choose.choice(JINJA).encode() + content[at:]


def template_in_json(content: bytes, choose: random.Random) -> bytes:
    """tokenizer_config.json with a damaged chat template."""
    config = json.loads(content)
    template = template_text(config["chat_template"].encode(), choose)
    return json.dumps({**config, "chat_template": template.decode("utf-8", "replace")}).encode()


def tokenizer_parts(content: bytes, choose: random.Random) -> bytes:
    """tokenizer.json with other normalizers, splits, decoders or another kind of model."""
    spec = json.loads(content)
    part = choose.choice(list(PARTS))
    made = choose.choice(PARTS[part])
    if choose.random() < 0.4 and spec.get(part):
        key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(part)
        made = {"type": "Sequence", key: [spec[part], made]} if key else made
    return json.dumps({**spec, part: made}, ensure_ascii=False).encode()


MUTATIONS: dict[str, Mutation] = {
    **{"bytes": any_bytes, "json": json_values, "safetensors": safetensors_header, "gguf": gguf_header},
    **{
        "onnx": onnx_fields,
        "zip": zip_records,
        "template": template_text,
        "chat": template_in_json,
        "parts": tokenizer_parts,
    },
}


def mutated(content: bytes, mutation: str, seed: int) -> bytes:
    """The content after a mutation of that name with that seed."""
    return MUTATIONS[mutation](content, random.Random(f"{mutation} {seed}"))
