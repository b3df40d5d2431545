"""Models in several GGUF files: ``NAME-00001-of-00003.gguf`` and so on, as llama-gguf-split makes them.

The first file has all keys, every one the keys ``split.*`` and some of the tensors. llama.cpp is given the
first one and opens the others by their names (src/llama-model-loader.cpp; tools/gguf-split/gguf-split.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .byte_source import LocalFile, Opener
from .errors import GgufError, UsageError
from .gguf_file import ALIGNMENT, GgufHeader, TensorInfo, aligned, read_header, shown
from .gguf_pairs import INT32, UINT16, encode_pair

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
BY_SIZE = (NUMBER, TENSORS, COUNT)
"""The keys in the order llama-gguf-split writes them."""
AS_BEFORE = (NUMBER, COUNT, TENSORS)
"""The keys in the order llama_model_quantize writes them where it keeps parts."""

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MOST = 0xFFFF  # split.count is a uint16
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SHOWN = 3
_HINT = "put all parts into one folder under their original names; download the missing ones"


@dataclass(frozen=True)
class GgufModel:
    """A model's files and what they say together.

    ``header`` has the first file's metadata without ``split.*``, the tensors of all files with their
    ``part``, and the size of all files.
    """

    paths: tuple[Path, ...]
    parts: tuple[GgufHeader, ...]
    header: GgufHeader


def parse_split_size(text: str) -> int:
    """Bytes of ``2G``, ``500M`` (powers of ten, as llama-gguf-split has them), ``64K``. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,9})([KMG]?)", text.strip().upper())
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not size:
        raise UsageError(f"invalid part size {shown(text)}", hint=f"write it as {_as_llama_has_it(text)}")
    return size


def _as_llama_has_it(text: str) -> str:
    """A size with a unit as people write it, 2GB or 1.5 GiB, in whole G, M or K."""
    units = re.fullmatch(r"([0-9]{1,9})(\.[0-9]{1,3})?\s*([KMG])I?B?", text.strip().upper())
    if units is None or (units[3] == "K" and units[2]):
        return "2G or 500M"
    if not units[2]:
        return f"{units[1]}{units[3]}"
    return f"{round(float(units[1] + units[2]) * 1000)}{'M' if units[3] == 'G' else 'K'}"


def part_path(path: Path, part: int, count: int) -> Path:
    """``x.gguf`` -> ``x-00001-of-00003.gguf`` for part 0 of 3; a model of one file keeps its name."""
    return path if count == 1 else path.with_name(f"{base_name(path)}-{part + 1:05d}-of-{count:05d}.gguf")


def base_name(path: Path) -> str:
    """The name of a file without ``.gguf``, and without the number of a part."""
    found = _NAME.fullmatch(path.name)
    return found["stem"] if found else path.stem


def other_parts(path: Path) -> list[Path]:
    """Files beside ``path`` that are parts of a model of the same name in another number of parts."""
    own, others = _NAME.fullmatch(path.name), []
    try:
        there = list(path.absolute().parent.iterdir())
    except PermissionError:  # a folder may take files and show none
        return []
    for each in there:
        other = _NAME.fullmatch(each.name)
        if other and other["stem"] == base_name(path) and not (own and other["count"] == own["count"]):
            others.append(each)
    return sorted(others)


def split_pairs(part: int, count: int, tensors: int, keys: Sequence[str] = BY_SIZE) -> list[bytes]:
    """The keys of one part in the given order; none for a model of one file."""
    pairs = {
        NUMBER: encode_pair(NUMBER, UINT16, part),
        COUNT: encode_pair(COUNT, UINT16, count),
        TENSORS: encode_pair(TENSORS, INT32, tensors),
    }
    return [pairs[key] for key in keys] if count > 1 else []


def placed(
    tensors: Sequence[TensorInfo], limit: int | None = None, alignment: int = ALIGNMENT
) -> tuple[TensorInfo, ...]:
    """The tensors with part and offset, in the order given.

    A tensor that would take a part's data beyond ``limit`` bytes begins the next one, as in
    llama-gguf-split; without a limit the parts stay as they are. One larger than that has a part to itself.
    Raises UsageError for more parts than a file can name.
    """
    infos: list[TensorInfo] = []
    part = offset = 0
    for info in tensors:
        size = aligned(info.nbytes, alignment)
        if limit is None and info.part != part:
            part, offset = info.part, 0
        elif limit is not None and 0 < offset > limit - size:
            part, offset = part + 1, 0
        infos.append(replace(info, offset=offset, part=part))
        offset += size
    if part >= _MOST:
        raise UsageError(
            f"parts of at most {limit} bytes would make {part + 1} files; llama.cpp reads at most "
            f"{_MOST} at most",
            hint="allow larger parts with --split-max-size",
        )
    return tuple(infos)


def part_names(path: str) -> list[str]:
    """The files of the model of which a file of that path is, by its name alone; itself if it is no part."""
    match = _NAME.fullmatch(path)
    if match is None or not 0 < int(match["count"]) <= _MOST:
        return [path]
    count = int(match["count"])
    return [f"{match['stem']}-{part + 1:05d}-of-{count:05d}.gguf" for part in range(count)]


def read_model(
    path: Path, opener: Opener = LocalFile, exists: Callable[[Path], bool] = Path.exists
) -> GgufModel:
    """The checked headers of a model, whichever of its files ``path`` is.

    ``opener`` gives the files, of which ``exists`` says whether they are there. Raises GgufError where a part
    is missing, is none of this model, stands in another's place, or the parts together have not the tensors
    they should; and what read_header raises.
    """
    header = read_header(path, opener)
    count = _number(path, header, COUNT, 1)
    if count <= 1:
        return GgufModel((path,), (header,), _joined([header]))
    paths = _paths(path, _number(path, header, NUMBER), count)
    missing = [str(part) for part in paths if not exists(part)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise GgufError(
            f"{path} is one of {count} parts of a model, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: "
            f"{', '.join(missing[:_SHOWN])}{more}",
            hint=_HINT,
        )
    parts = [header if part == path else read_header(part, opener) for part in paths]
    for index, (each, part_header) in enumerate(zip(paths, parts, strict=True)):
        _check_place(each, part_header, index, count)
    joined = _joined(parts)
    _check_tensors(paths, parts, joined)
    return GgufModel(tuple(paths), tuple(parts), joined)


def _number(path: Path, header: GgufHeader, key: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise GgufError(
            f"{path}: {key} is {shown(value)}, expected a number up to {_MOST}",
            hint="it is marked as a part of a model, but not as which one: make the parts again",
        )
    return value


def _paths(path: Path, number: int, count: int) -> list[Path]:
    """The files of all parts, from the name of the one that says it is ``number`` (from 0) of ``count``."""
    match = _NAME.fullmatch(path.name)
    if not match or (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise GgufError(
            f"{path} is marked as part {number + 1} of {count}, but its name is not that of a part",
            hint=f"give the parts their original names: NAME-{number + 1:05d}-of-{count:05d}.gguf",
        )
    return [part_path(path, part, count) for part in range(count)]


def _check_place(path: Path, header: GgufHeader, index: int, count: int) -> None:
    stated = _number(path, header, NUMBER) + 1, _number(path, header, COUNT, count)
    if stated != (index + 1, count):
        raise GgufError(
            f"{path} is marked as part {stated[0]} of {stated[1]}, expected part {index + 1} of {count}",
            hint=_HINT,
        )


def _check_tensors(paths: Sequence[Path], parts: Sequence[GgufHeader], joined: GgufHeader) -> None:
    seen: dict[str, Path] = {}
    for path, header in zip(paths, parts, strict=True):
        for info in header.tensors:
            if info.name in seen:
                raise GgufError(
                    f"tensor {shown(info.name)} is in {seen[info.name]} and in {path}", hint=_HINT
                )
            seen[info.name] = path
    expected = parts[0].metadata.get(TENSORS)
    if expected != len(joined.tensors):
        raise GgufError(
            f"the {len(paths)} parts of {paths[0]} have {len(joined.tensors)} tensors in all, "
            f"{shown(expected)} expected ({TENSORS})",
            hint=_HINT,
        )


def _joined(parts: Sequence[GgufHeader]) -> GgufHeader:
    first = parts[0]
    return replace(
        first,
        metadata={key: value for key, value in first.metadata.items() if key not in BY_SIZE},
        tensors=tuple(
            replace(info, part=part) for part, header in enumerate(parts) for info in header.tensors
        ),
        size=sum(header.size for header in parts),
    )
