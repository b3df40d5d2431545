"""Models in several files, in and out: placed as llama-gguf-split does, checked before anything is read."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import llama_cpp
import pytest
from requantize_material import llama_file, theirs

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import GgufError, UsageError
from kconv.core.gguf_file import TensorInfo, header_bytes, read_header, read_pairs
from kconv.core.gguf_pairs import INT32, UINT16, encode_pair
from kconv.core.gguf_split import base_name, parse_split_size, part_path, placed, read_model
from kconv.flows.quantize import quantize
from kconv.quant.policy import parse_policy
from kconv.verify import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_file(tmp_path_factory.mktemp("source") / "model-F32.gguf")


@pytest.fixture(scope="module")
def parts(source: Path) -> list[Path]:
    """The same model in several files."""
    (output,) = quantize(source, source.parent / "parts.gguf", types=["copy"], split_max_size="1M").outputs
    assert len(output.parts) > 3
    return list(output.parts)


# How tensors are placed, and names


def infos(*sizes: int) -> list[TensorInfo]:
    return [TensorInfo(f"t{number}", (size // 4,), 0, size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ((64, 64, 64), 128, [(0, 0), (0, 64), (1, 0)]),
        ((64, 64, 64), 127, [(0, 0), (1, 0), (2, 0)]),
        ((36, 4, 64), 96, [(0, 0), (0, 64), (1, 0)]),  # 36 bytes take 64, 4 take 32
        ((320, 32, 32), 64, [(0, 0), (1, 0), (1, 32)]),  # larger than a part: a part to itself
        ((32, 320, 32), 64, [(0, 0), (1, 0), (2, 0)]),
        ((64, 64), 10**9, [(0, 0), (0, 64)]),
        ((), 5, []),
    ],
)
def test_placing(sizes: Sequence[int], limit: int, expected: list[tuple[int, int]]) -> None:
    """By hand, after gguf-split.cpp: a tensor's size is padded to 32, and a part is full beyond the limit."""
    assert [(info.part, info.offset) for info in placed(infos(*sizes), limit)] == expected


def test_more_parts_than_a_file_can_count() -> None:
    with pytest.raises(UsageError, match="65536 files"):
        placed(infos(*[32] * 65536), 32)


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 * 10**9), ("500M", 500 * 10**6), ("64k", 64000), ("100", 100)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_split_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1G", "2GB", "1.5G", "2T", "G", "٣G", "9999999999G"])
def test_sizes_that_are_none(source: Path, text: str) -> None:
    with pytest.raises(UsageError, match="invalid part size"):
        quantize(source, types=["q8_0"], split_max_size=text)


def test_names() -> None:
    """As llama_split_path and llama_split_prefix have them."""
    buffer = ctypes.create_string_buffer(100)
    llama_cpp.llama_split_path(buffer, 100, b"/a/x-Q4_0", 1, 12)
    path = part_path(Path("/a/x-Q4_0.gguf"), 1, 12)
    assert str(path) == buffer.value.decode()
    assert llama_cpp.llama_split_prefix(buffer, 100, str(path).encode(), 1, 12)
    assert buffer.value == b"/a/x-Q4_0"
    assert base_name(path) == "x-Q4_0"
    assert part_path(path, 2, 12).name == "x-Q4_0-00003-of-00012.gguf"
    assert part_path(Path("x.gguf"), 0, 1) == Path("x.gguf")


# Out


def read_parts(paths: Sequence[Path]) -> list[list[tuple[str, int, bytes]]]:
    """Name, type and bytes of the tensors of each file, through gguf-py."""
    return [
        [(each.name, int(each.tensor_type), each.data.tobytes()) for each in gguf.GGUFReader(path).tensors]
        for path in paths
    ]


def test_parts_hold_the_file(source: Path, tmp_path: Path) -> None:
    (whole,) = quantize(source, tmp_path / "whole.gguf", types=["q4_k_m"]).outputs
    (split,) = quantize(source, tmp_path / "x.gguf", types=["q4_k_m"], split_max_size="100K").outputs
    assert split.path == split.parts[0] == tmp_path / f"x-00001-of-{len(split.parts):05d}.gguf"
    assert split.manifest.name == f"{split.path.name}.manifest.json"
    assert split.bytes == sum(part.stat().st_size for part in split.parts)
    ours_read = read_parts(split.parts)
    assert [each for part in ours_read for each in part] == read_parts([whole.path])[0]
    for part, after in zip(ours_read, [*ours_read[1:], []], strict=True):
        filled = sum(-(-len(data) // 32) * 32 for _, _, data in part)
        assert filled <= 100_000 or len(part) == 1
        assert not after or filled + len(after[0][2]) > 100_000
    before = read_pairs(whole.path)
    for number, path in enumerate(split.parts):
        keys = read_pairs(path)
        split_keys = [keys.pop(key) for key in ("split.no", "split.tensors.count", "split.count")]
        assert split_keys[0][-6:] == struct.pack("<IH", UINT16, number)
        assert split_keys[1][-8:] == struct.pack("<Ii", INT32, len(read_header(whole.path).tensors))
        assert split_keys[2][-6:] == struct.pack("<IH", UINT16, len(split.parts))
        assert keys == ({} if number else before)


def test_a_limit_nothing_reaches_makes_one_plain_file(source: Path, tmp_path: Path) -> None:
    (whole,) = quantize(source, tmp_path / "whole.gguf", types=["q8_0"]).outputs
    (split,) = quantize(source, tmp_path / "x.gguf", types=["q8_0"], split_max_size="2G").outputs
    assert split.parts == ()
    assert split.path.read_bytes() == whole.path.read_bytes()


def test_keeping_parts_equals_llama_quantize(parts: list[Path], tmp_path: Path) -> None:
    for name in ("q8_0", "q4_k_m"):
        (made,) = quantize(parts[1], tmp_path / "ours.gguf", types=[name], keep_split=True).outputs
        file_type = parse_policy(name).file_type
        assert theirs(parts[0], tmp_path / "theirs", file_type, keep_split=True)
        for number, path in enumerate(made.parts):
            expected = part_path(tmp_path / "theirs.gguf", number, len(parts))
            assert path.read_bytes() == expected.read_bytes(), (name, number)
            path.unlink()
        made.manifest.unlink()


def test_parts_of_an_earlier_run_are_told_of(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", str(source), "-q", "q8_0", "-o", str(tmp_path / "x.gguf"), "--force"]
    left: dict[str, int] = {}
    for size in ("300K", "500K", "1G"):
        assert main([*words, "--split-max-size", size]) == 0
        printed = capsys.readouterr().out
        assert (f"{sum(left.values())} parts of that name from an earlier run" in printed) == bool(left)
        left[size] = len(list(tmp_path.glob("x-*.gguf"))) - sum(left.values())
    assert list(left.values())[1:] == [3, 0]
    first = tmp_path / f"x-00001-of-{left['300K']:05d}.gguf"
    assert main(["quantize", str(first), "-q", "copy", "-o", str(tmp_path / "x.gguf"), "--force"]) == 0
    assert "3 parts of that name" in capsys.readouterr().out  # without those that were read


def test_conversion_in_parts(tmp_path: Path) -> None:
    """llama.cpp loads them, and the proof takes them as any file, whichever is named."""
    checkpoint = write_sample("42dot", tmp_path / "small")
    conversion = to_gguf(checkpoint, tmp_path, types=["q4_0"], split_max_size="1M", verify="quick", threads=1)
    whole = to_gguf(checkpoint, tmp_path / "whole.gguf", types=["q4_0"], verify="off")
    (output,) = conversion.outputs
    assert conversion.verdict == "passed"
    assert len(output.parts) == 2
    ours_read = read_parts(output.parts)
    assert [each for part in ours_read for each in part] == read_parts([whole.outputs[0].path])[0]
    proof = verify(output.parts[1], checkpoint, tokens=64, threads=1)
    assert (proof.verdict, proof.artifact) == ("passed", output.path)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.parts}
    assert proof.provenance["artifact"]["sha256"] == digests


# In


def test_any_part_may_be_named(source: Path, parts: list[Path], tmp_path: Path) -> None:
    expected = quantize(source, tmp_path / "expected.gguf", types=["q4_k_m"]).outputs[0].path.read_bytes()
    for number in (0, 1, len(parts) - 1):
        made = quantize(parts[number], tmp_path / "made.gguf", types=["q4_k_m"], force=True)
        assert made.outputs[0].path.read_bytes() == expected
        assert made.parts == tuple(parts)
    assert theirs(parts[0], tmp_path / "theirs.gguf", parse_policy("q4_k_m").file_type)
    assert (tmp_path / "theirs.gguf").read_bytes() == expected
    assert quantize(parts[1], tmp_path, types=["q8_0"]).outputs[0].path.name == "parts-Q8_0.gguf"


def rewritten(path: Path, **changed: int | None) -> None:
    """Other values for keys ``split_no`` and so on, none to take them away."""
    header, pairs = read_header(path), read_pairs(path)
    data = path.read_bytes()[header.data_offset :]
    for name, value in changed.items():
        key = {"split_no": "split.no", "split_count": "split.count"}.get(name, "split.tensors.count")
        if value is None:
            pairs.pop(key)
        else:
            pairs[key] = encode_pair(key, INT32, value)
    path.write_bytes(header_bytes(list(pairs.values()), header.tensors) + data)


DAMAGES: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "a part is missing": (lambda p: p[2].unlink(), "1 is missing: .*-00003-of"),
    "several are missing": (lambda p: [path.unlink() for path in p[1:]], "are missing: .*-00002-of"),
    "a part is empty": (lambda p: p[1].write_bytes(b""), "not a GGUF file"),
    "a part is cut short": (lambda p: p[1].write_bytes(p[1].read_bytes()[:-40]), "truncated"),
    "two parts changed places": (
        lambda p: (
            p[1].rename(p[1].with_suffix(".x")),
            p[2].rename(p[1]),
            p[1].with_suffix(".x").rename(p[2]),
        ),
        "is marked as part 3 of",
    ),
    "a part appears twice": (lambda p: shutil.copy(p[1], p[2]), "is marked as part 2 of"),
    "a copy says it is the next": (
        lambda p: (shutil.copy(p[1], p[2]), rewritten(p[2], split_no=2)),
        "is in .*-00002-of.* and in .*-00003-of",
    ),
    "a part without its number": (lambda p: rewritten(p[1], split_no=None), "split.no is None"),
    "a negative number": (lambda p: rewritten(p[1], split_no=-1), "split.no is -1"),
    "a part of another set": (lambda p: rewritten(p[1], split_count=9), "part 2 of 9"),
    "a huge count": (lambda p: rewritten(p[0], split_count=2**30), "split.count is 1073741824"),
    "another count than in the name": (
        lambda p: rewritten(p[0], split_count=9),
        "but its name is not that of a part",
    ),
    "another number of tensors": (lambda p: rewritten(p[0], tensors=7), "7 expected"),
    "no number of tensors": (lambda p: rewritten(p[0], tensors=None), "None expected"),
    "the first is not the first": (
        lambda p: rewritten(p[0], split_no=1),
        "but its name is not that of a part",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sets_are_refused(parts: list[Path], tmp_path: Path, damage: str) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in parts]
    change, message = DAMAGES[damage]
    change(copies)
    with pytest.raises(GgufError, match=message) as refused:
        quantize(copies[0], tmp_path / "made.gguf", types=["q8_0"])
    assert refused.value.hint
    assert not (tmp_path / "made.gguf").exists()


def test_a_renamed_part_is_refused(parts: list[Path], tmp_path: Path) -> None:
    for path in parts:
        shutil.copy(path, tmp_path / path.name.replace("parts-", "parts_"))
    with pytest.raises(GgufError, match="but its name is not that of a part"):
        read_model(tmp_path / parts[0].name.replace("parts-", "parts_"))
