"""Good GGUF files made bad in one exact place, for the tests of every part of the proof.

``edited`` copies a file and changes what it is told to; keys keep their types, tensors their formats and
places, and every byte that was not asked for stays as it was. ``DAMAGES`` are the ways converters have been
wrong. Keys are read by a few lines of our own, since ``core.gguf_file`` does not keep the types of numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kconv.core.gguf_file import ALIGNMENT, TensorInfo, aligned, read_header
from kconv.quant.formats import format_of_type
from kconv.quant.ggml import dequantize, encode

Floats = npt.NDArray[np.float32]
RowEdit = Callable[[Floats], Any]
Order = npt.NDArray[np.int64]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def edited(
    path: Path,
    out: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, RowEdit | None] | None = None,
    rows: Mapping[str, Order] | None = None,
    renamed: Mapping[str, str] | None = None,
    added: Mapping[str, Floats] | None = None,
    arch: str | None = None,
) -> Path:
    """Write ``path`` with changes to ``out`` and return ``out``.

    ``metadata``: the new value of a key in its old type, a function of the old value, or None to leave the
    key out; a new key takes its type from the value. ``tensors``: a function of the tensor's weights in
    float32, (rows, columns), giving as many, of which the rows that changed are encoded anew; None leaves the
    tensor out. ``rows``: for each row of the tensor which old one to take, bytes and all. ``renamed``: old to
    new name, all at once. ``added``: new F32 tensors. ``arch``: another architecture, also in front of keys.
    """
    header = read_header(path)
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    keys = _edited_keys(_raw_keys(path), metadata or {})
    if arch is not None:
        old = header.arch + "."
        keys = {arch + "." + key.removeprefix(old) if key.startswith(old) else key: keys[key] for key in keys}
        keys["general.architecture"] = _packed(_STRING, arch)
    blobs: list[tuple[TensorInfo, bytes]] = []
    with path.open("rb") as file:
        for info in header.tensors:
            file.seek(header.data_offset + info.offset)
            data = np.frombuffer(file.read(info.nbytes), np.uint8)
            name = (renamed or {}).get(info.name, info.name)
            if rows and info.name in rows:
                data = data.reshape(info.shape[0], -1)[rows[info.name]]
            if tensors and info.name in tensors:
                change = tensors[info.name]
                if change is None:
                    continue
                data = _reencoded(info, data, change)
            blobs.append((TensorInfo(name, info.shape, info.ggml_type, info.nbytes), data.tobytes()))
    for name, array in (added or {}).items():
        blobs.append((TensorInfo(name, array.shape, 0, array.nbytes), array.astype("<f4").tobytes()))
    _write(out, header.version, keys, blobs, alignment)
    return out


def _reencoded(info: TensorInfo, data: npt.NDArray[np.uint8], change: RowEdit) -> npt.NDArray[np.uint8]:
    format = format_of_type(info.ggml_type)
    assert format is not None
    columns = info.shape[-1]
    before = dequantize(format, data, (data.size // format.row_bytes(columns), columns))
    after = np.ascontiguousarray(change(before.copy()), dtype=np.float32)
    assert after.shape == before.shape, f"{info.name}: {after.shape} instead of {before.shape}"
    result = data.reshape(len(before), -1).copy()
    different = np.flatnonzero((before.view(np.uint32) != after.view(np.uint32)).any(axis=1))
    if not len(different):
        return data
    changed = np.ascontiguousarray(after[different])
    encoded = np.empty(changed.shape[0] * format.row_bytes(columns), np.uint8)
    encode(format, changed, encoded)
    result[different] = encoded.reshape(len(different), -1)
    return result


def _write(
    out: Path,
    version: int,
    keys: Mapping[str, bytes],
    blobs: Sequence[tuple[TensorInfo, bytes]],
    alignment: int,
) -> None:
    parts = [b"GGUF", struct.pack("<IQQ", version, len(blobs), len(keys))]
    parts += [_text(key) + value for key, value in keys.items()]
    offset = 0
    for info, data in blobs:
        sizes = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
        parts += [_text(info.name), sizes, struct.pack("<IQ", info.ggml_type, offset)]
        offset += aligned(len(data), alignment)
    start = b"".join(parts)
    padded = [start, *(data for _, data in blobs)]
    out.write_bytes(b"".join(piece + bytes(aligned(len(piece), alignment) - len(piece)) for piece in padded))


# Keys


def _edited_keys(keys: Mapping[str, bytes], changes: Mapping[str, Any]) -> dict[str, bytes]:
    result = dict(keys)
    for key, change in changes.items():
        if change is None:
            result.pop(key)
            continue
        raw = result.get(key)
        value = change(_unpacked(raw)) if callable(change) and raw is not None else change
        kind = _kind_of(value) if raw is None else struct.unpack_from("<I", raw)[0]
        item = struct.unpack_from("<I", raw, 4)[0] if raw is not None and kind == _ARRAY else None
        result[key] = _packed(kind, value, item)
    return result


def _kind_of(value: Any) -> int:
    for type_, kind in ((bool, 7), (int, 4), (float, 6), (str, _STRING)):
        if isinstance(value, type_):
            return kind
    return _ARRAY


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _packed(kind: int, value: Any, item: int | None = None, *, bare: bool = False) -> bytes:
    """A value with its type in front, or without it where ``bare``."""
    front = b"" if bare else struct.pack("<I", kind)
    if kind == _STRING:
        return front + _text(value)
    if kind != _ARRAY:
        return front + struct.pack("<" + _SCALARS[kind], value)
    item = _kind_of(value[0]) if item is None else item
    items = b"".join(_packed(item, one, bare=True) for one in value)
    return front + struct.pack("<IQ", item, len(value)) + items


def _unpacked(raw: bytes) -> Any:
    return _value(raw, 4, struct.unpack_from("<I", raw)[0])[0]


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """The value at ``at`` and where it ends."""
    if kind in _SCALARS:
        code = "<" + _SCALARS[kind]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    if kind == _STRING:
        (size,) = struct.unpack_from("<Q", data, at)
        return data[at + 8 : at + 8 + size].decode("utf-8", "surrogateescape"), at + 8 + size
    item, count = struct.unpack_from("<IQ", data, at)
    at += 12
    values = []
    for _ in range(count):
        value, at = _value(data, at, item)
        values.append(value)
    return values, at


def _raw_keys(path: Path) -> dict[str, bytes]:
    """Type and value of every key, as they stand in the file."""
    with path.open("rb") as file:
        data = file.read(read_header(path).data_offset)
    keys, at = {}, 24
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key, at = _value(data, at, _STRING)
        _, end = _value(data, at + 4, struct.unpack_from("<I", data, at)[0])
        keys[key], at = data[at:end], end
    return keys


# Damages


@dataclass(frozen=True)
class Damage:
    """One way to be wrong: ``part`` of the proof that has to name it, ``make(good, out)`` writes the file."""

    part: str
    make: Callable[[Path, Path], Path]


def swapped_layers(path: Path, out: Path, first: int = 0, second: int = 1) -> Path:
    """Two layers in each other's place."""
    one, other = f"blk.{first}.", f"blk.{second}."
    names = {}
    for info in read_header(path).tensors:
        for old, new in ((one, other), (other, one)):
            if info.name.startswith(old):
                names[info.name] = new + info.name.removeprefix(old)
    return edited(path, out, renamed=names)


def not_permuted(path: Path, out: Path, layers: Sequence[int] | None = None) -> Path:
    """Q and K with their rows as Hugging Face has them, in all layers or in some."""
    header = read_header(path)
    orders = {}
    for kind, count in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
        heads = header.metadata[f"{header.arch}.attention.{count}"]
        for info in header.tensors:
            layer, _, rest = info.name.removeprefix("blk.").partition(".")
            if rest.startswith(kind + ".") and (layers is None or int(layer) in layers):
                places = np.arange(info.shape[0]).reshape(heads, -1, 2)  # neighbours were d/2 apart
                orders[info.name] = places.transpose(0, 2, 1).ravel()
    return edited(path, out, rows=orders)


def scaled(path: Path, out: Path, name: str = "blk.1.ffn_up.weight", factor: float = 1.01) -> Path:
    """All weights of a tensor times a factor."""
    return edited(path, out, tensors={name: lambda rows: rows * np.float32(factor)})


def zeroed_row(path: Path, out: Path, name: str = "blk.0.ffn_down.weight", row: int = 17) -> Path:
    """A row of zeros."""

    def change(rows: Floats) -> Floats:
        rows[row] = 0
        return rows

    return edited(path, out, tensors={name: change})


def zeroed_tensors(path: Path, out: Path, names: Sequence[str] | None = None) -> Path:
    """Tensors of zeros; without names the last third of the file, as if a shard had not been read."""
    infos = read_header(path).tensors
    chosen = names if names is not None else [info.name for info in infos[-(len(infos) // 3) :]]
    return edited(path, out, tensors=dict.fromkeys(chosen, np.zeros_like))


def shifted_rows(path: Path, out: Path, name: str = "token_embd.weight", start: int = 40) -> Path:
    """Rows from ``start`` on are each the one before: a token was counted twice."""
    rows = next(info.shape[0] for info in read_header(path).tensors if info.name == name)
    order = np.arange(rows)
    order[start:] -= 1
    return edited(path, out, rows={name: order})


def neighbours_row(path: Path, out: Path, name: str = "token_embd.weight", row: int = 40) -> Path:
    """One row is a copy of the next."""
    rows = next(info.shape[0] for info in read_header(path).tensors if info.name == name)
    order = np.arange(rows)
    order[row] += 1
    return edited(path, out, rows={name: order})


def rolled_row(path: Path, out: Path, name: str = "token_embd.weight", row: int = 40) -> Path:
    """One row is shifted by a column."""

    def change(rows: Floats) -> Floats:
        rows[row] = np.roll(rows[row], 1)
        return rows

    return edited(path, out, tensors={name: change})


def changed_token(path: Path, out: Path, token: int | None = None) -> Path:
    """Another text for one token, which stays unique."""

    def change(tokens: list[str]) -> list[str]:
        place = len(tokens) // 2 if token is None else token
        return [*tokens[:place], tokens[place] + "damaged", *tokens[place + 1 :]]

    return edited(path, out, metadata={"tokenizer.ggml.tokens": change})


def swapped_tokens(path: Path, out: Path, first: int | None = None, second: int | None = None) -> Path:
    """The texts of two tokens in each other's place."""

    def change(tokens: list[str]) -> list[str]:
        one = len(tokens) // 2 if first is None else first
        other = one + 1 if second is None else second
        tokens[one], tokens[other] = tokens[other], tokens[one]
        return tokens

    return edited(path, out, metadata={"tokenizer.ggml.tokens": change})


def another_eos(path: Path, out: Path) -> Path:
    """The end of sequence is the token before or after the right one."""
    return edited(
        path, out, metadata={"tokenizer.ggml.eos_token_id": lambda old: old - 1 if old else old + 1}
    )


def flipped_bos(path: Path, out: Path) -> Path:
    """A BOS is added where none belongs, or left out."""
    return edited(path, out, metadata={"tokenizer.ggml.add_bos_token": lambda old: not old})


def _hparam(path: Path, out: Path, **changes: Callable[[Any], Any]) -> Path:
    arch = read_header(path).arch
    return edited(
        path, out, metadata={f"{arch}.{key.replace('__', '.')}": new for key, new in changes.items()}
    )


def another_rope_base(path: Path, out: Path) -> Path:
    """Llama 3's frequency base for an older model, or the other way round."""
    return _hparam(path, out, rope__freq_base=lambda old: 10000.0 if old > 100000 else 500000.0)


def another_epsilon(path: Path, out: Path) -> Path:
    """A norm epsilon ten times as large."""
    return _hparam(path, out, attention__layer_norm_rms_epsilon=lambda old: old * 10)


def another_head_split(path: Path, out: Path) -> Path:
    """Twice as many heads of half the width: all shapes still fit and llama.cpp loads it."""
    double, half = (lambda old: old * 2), (lambda old: old // 2)
    return _hparam(
        path,
        out,
        attention__head_count=double,
        attention__head_count_kv=double,
        attention__key_length=half,
        attention__value_length=half,
        rope__dimension_count=half,
    )


def scaled_positions(path: Path, out: Path) -> Path:
    """Positions divided by four, as for a model that was trained on longer texts that way."""
    start = f"{read_header(path).arch}.rope.scaling."
    return edited(path, out, metadata={f"{start}type": "linear", f"{start}factor": 4.0})


def norm_of_ones(path: Path, out: Path, name: str = "blk.1.ffn_norm.weight") -> Path:
    """A norm's weights as they were before training."""
    return edited(path, out, tensors={name: np.ones_like})


def another_window(path: Path, out: Path) -> Path:
    """Half the window, for models whose layers have one; of the samples none has, so it is no entry below."""
    return _hparam(path, out, attention__sliding_window=lambda old: old // 2)


def merged_adapter(
    path: Path, out: Path, names: Sequence[str] | None = None, *, rank: int = 8, size: float = 0.05
) -> Path:
    """Matrices changed by products of thin ones, of ``size`` times their norm: a LoRA adapter merged.

    Without names, those of the attention, which is where adapters mostly are.
    """
    random = np.random.default_rng(1)

    def change(rows: Floats) -> Floats:
        thin, flat = (random.standard_normal(shape) for shape in ((len(rows), rank), (rank, rows.shape[1])))
        update = thin @ flat
        factor = size * np.linalg.norm(rows) / np.linalg.norm(update)
        return np.asarray(rows + factor * update, np.float32)

    kinds = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")
    chosen = names or [info.name for info in read_header(path).tensors if info.name.endswith(kinds)]
    return edited(path, out, tensors=dict.fromkeys(chosen, change))


# Each of these files loads in llama.cpp and runs.
DAMAGES: Mapping[str, Damage] = {
    "q and k not permuted": Damage("weights", not_permuted),
    "two layers swapped": Damage("weights", swapped_layers),
    "a tensor scaled by 1.01": Damage("weights", scaled),
    "a row zeroed": Damage("weights", zeroed_row),
    "embedding rows shifted by one": Damage("weights", shifted_rows),
    "an embedding row taken from its neighbour": Damage("weights", neighbours_row),
    "an embedding row rolled": Damage("weights", rolled_row),
    "the last shard's tensors zeroed": Damage("weights", zeroed_tensors),
    "a token's text changed": Damage("tokens", changed_token),
    "two tokens swapped": Damage("tokens", swapped_tokens),
    "wrong eos id": Damage("metadata", another_eos),
    "BOS wrongly added": Damage("metadata", flipped_bos),
    "wrong rope theta": Damage("metadata", another_rope_base),
    "wrong norm epsilon": Damage("metadata", another_epsilon),
    "wrong head split": Damage("metadata", another_head_split),
    "rope scaling added": Damage("metadata", scaled_positions),
    "a norm's weights replaced by ones": Damage("weights", norm_of_ones),
}
