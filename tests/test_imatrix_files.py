"""Imatrix files: read as llama-quantize does, written so that others can, refused where they are wrong."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imatrix_material import legacy_bytes, write_with_gguf_py

from kconv.core.errors import InputError, KconvError, OutputExists
from kconv.core.tensor import DType, Tensor
from kconv.quant.formats import FORMATS
from kconv.quant.ggml import dequantize, encode, library_path
from kconv.quant.imatrix_file import ActivationSums, read_imatrix, write_imatrix
from kconv.quant.importance import (
    importance_metadata,
    importance_notes,
    importance_of,
    read_importance,
    refuse_other_model,
)

_A, _B = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"


def _floats(*values: float) -> Any:
    return np.array(values, np.float32)


def _pair(name: str, sums: Any, counts: Any) -> dict[str, Any]:
    return {f"{name}.in_sum2": sums, f"{name}.counts": counts}


def _matrix(name: str, *shape: int) -> Tensor:
    return Tensor(
        name, shape, DType.F32, lambda start, stop: np.zeros((stop - start, *shape[1:]), np.float32)
    )


def test_sums_are_divided_by_counts(tmp_path: Path) -> None:
    """tools/quantize/quantize.cpp, load_imatrix; an expert no token came by counts as ones."""
    tensors = _pair(_A, _floats(3, 6, 0)[None], _floats(3)[None])
    tensors |= _pair("blk.0.ffn_up_exps.weight", _floats(2, 4, 0, 0).reshape(2, 2), _floats(4, 0)[:, None])
    path = write_with_gguf_py(tmp_path / "made.gguf", tensors)
    importance = read_importance(path)
    assert importance.values[_A].tolist() == [1, 2, 0]
    assert importance.values["blk.0.ffn_up_exps.weight"].tolist() == [0.5, 1, 1, 1]
    assert (importance.source, importance.datasets, importance.chunks, importance.chunk_size) == (
        "made.gguf",
        ("가.txt",),
        3,
        512,
    )


@pytest.mark.parametrize("tail", [False, True], ids=["without the text's name", "with it"])
def test_the_older_format(tmp_path: Path, *, tail: bool) -> None:
    data = legacy_bytes({_A: (4, (4.0, 10.0)), _B: (0, (3.0,))}, 7 if tail else None, "/data/가.txt")
    (tmp_path / "old.dat").write_bytes(data)
    importance = read_importance(tmp_path / "old.dat")
    assert importance.values[_A].tolist() == [1.0, 2.5]
    assert importance.values[_B].tolist() == [3.0]
    assert importance.datasets == (("/data/가.txt",) if tail else ())
    keys = importance_metadata(importance)
    assert keys["quantize.imatrix.file"] == "old.dat"
    assert keys.get("quantize.imatrix.dataset") == ("가.txt" if tail else None)
    assert keys["quantize.imatrix.entries_count"] == 2
    assert keys.get("quantize.imatrix.chunks_count") == (7 if tail else None)


def test_gguf_py_reads_what_is_written(tmp_path: Path) -> None:
    """Names, shapes and order as llama-imatrix has them (tools/imatrix/imatrix.cpp, save_imatrix)."""
    import gguf

    sums, counts = {_A: _floats(0.5, 7), _B: _floats(1, 2, 3)}, {_A: 9, _B: 9}
    written = ActivationSums(
        sums, {name: np.array([count]) for name, count in counts.items()}, ("가.txt", "b.txt"), 5, 512
    )
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, written, arch="llama")
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: (tensor.shape.tolist(), tensor.data.ravel().tolist()) for tensor in reader.tensors}
    assert stored == {
        f"{_B}.in_sum2": ([3, 1], [1, 2, 3]),
        f"{_B}.counts": ([1, 1], [9]),
        f"{_A}.in_sum2": ([2, 1], [0.5, 7]),
        f"{_A}.counts": ([1, 1], [9]),
    }
    assert reader.fields["imatrix.datasets"].contents() == ["가.txt", "b.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 5
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    assert reader.fields["general.type"].contents() == "imatrix"
    back, own = read_importance(path), importance_of(written)
    assert {name: values.tobytes() for name, values in back.values.items()} == {
        name: values.tobytes() for name, values in own.values.items()
    }
    with pytest.raises(OutputExists):
        write_imatrix(path, written)


def test_ggmls_own_reader_reads_what_is_written(tmp_path: Path) -> None:
    """gguf_init_from_file with the data, as common/imatrix-loader.cpp calls it."""

    class Parameters(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p)))

    sums, counts = {_A: np.arange(300, dtype=np.float32)}, {_A: np.array([70000])}
    write_imatrix(tmp_path / "a.gguf", ActivationSums(sums, counts, ("가.txt",), 5, 512), arch="llama")
    ggml, context = ctypes.CDLL(str(library_path())), ctypes.c_void_p()
    ggml.gguf_init_from_file.argtypes = (ctypes.c_char_p, Parameters)
    ggml.ggml_get_tensor.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    ggml.gguf_init_from_file.restype = ggml.ggml_get_tensor.restype = ctypes.c_void_p
    ggml.ggml_get_data_f32.argtypes = (ctypes.c_void_p,)
    ggml.ggml_get_data_f32.restype = ctypes.POINTER(ctypes.c_float)
    path = str(tmp_path / "a.gguf").encode()
    assert ggml.gguf_init_from_file(path, Parameters(False, ctypes.pointer(context)))
    for name, expected in ((f"{_A}.in_sum2", range(300)), (f"{_A}.counts", [70000])):
        data = ggml.ggml_get_data_f32(ggml.ggml_get_tensor(context, name.encode()))
        assert data[: len(expected)] == list(expected)


_GOOD = _pair(_A, _floats(1, 2)[None], _floats(2)[None])
_WRONG_GGUF: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a model": ({"blk.0.attn_q.weight": _floats(1, 2)}, {}, "not an imatrix"),
    "no counts": ({f"{_A}.in_sum2": _floats(1, 2)[None]}, {}, "counts' is missing"),
    "no chunks": (_GOOD, {"imatrix.chunk_count": None}, "chunk_count' is missing"),
    "a word for chunks": (_GOOD, {"imatrix.chunk_count": "viele"}, "expected a whole number"),
    "numbers for texts": (_GOOD, {"imatrix.datasets": [1, 2]}, "expected a list of names"),
    "half floats": (_pair(_A, np.ones((1, 2), np.float16), _floats(2)[None]), {}, "expected 0"),
    "NaN": (_pair(_A, _floats(1, np.nan)[None], _floats(2)[None]), {}, "NaN or infinite"),
    "infinite": (_pair(_A, _floats(1, np.inf)[None], _floats(2)[None]), {}, "NaN or infinite"),
    "negative": (_pair(_A, _floats(1, -1)[None], _floats(2)[None]), {}, "negative"),
    "all zeros": (_pair(_A, _floats(0, 0)[None], _floats(2)[None]), {}, "only zeros"),
    "a NaN count": (_pair(_A, _floats(1, 2)[None], _floats(np.nan)[None]), {}, "not a number of tokens"),
    "a negative count": (_pair(_A, _floats(1, 2)[None], _floats(-3)[None]), {}, "not a number of tokens"),
    "three counts": (_pair(_A, _floats(1, 2)[None], _floats(1, 1, 1)[None]), {}, "2 values and 3 counts"),
    "beyond arithmetic": (_pair(_A, _floats(1, 3e30)[None], _floats(1)[None]), {}, "at most 1e"),
}


@pytest.mark.parametrize("case", _WRONG_GGUF)
def test_wrong_gguf_files(tmp_path: Path, case: str) -> None:
    tensors, keys, message = _WRONG_GGUF[case]
    path = write_with_gguf_py(tmp_path / "wrong.gguf", tensors, keys)
    with pytest.raises(InputError, match=message) as refused:
        read_importance(path)
    assert "wrong.gguf" in refused.value.message
    assert refused.value.hint


_WRONG_LEGACY = {
    "empty": (b"", "ends at byte 0"),
    "a text": ("안녕하세요, 이것은 텍스트입니다.".encode(), "neither a GGUF nor an imatrix"),
    "no entries": (struct.pack("<i", 0), "number of entries"),
    "a billion entries": (struct.pack("<i", 1 << 30) + bytes(100), "number of entries"),
    "a long name": (struct.pack("<ii", 1, 1 << 30) + bytes(40), "length of the name"),
    "too many values": (
        legacy_bytes({_A: (1, (1.0,))})[:-8] + struct.pack("<if", 1 << 28, 1),
        "number of values",
    ),
    "negative chunks": (legacy_bytes({_A: (-1, (1.0,))}), "chunks of entry 1"),
    "NaN": (legacy_bytes({_A: (1, (1.0, float("nan")))}), "NaN or infinite"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
}


@pytest.mark.parametrize("case", _WRONG_LEGACY)
def test_wrong_files_of_the_older_format(tmp_path: Path, case: str) -> None:
    data, message = _WRONG_LEGACY[case]
    (tmp_path / "wrong.dat").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_importance(tmp_path / "wrong.dat")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_importance(tmp_path / "missing.gguf")
    with pytest.raises(InputError, match="is a folder"):
        read_importance(tmp_path)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    """Cut short anywhere, or with any byte another: a KconvError or values that are means of squares."""
    whole = tmp_path / f"whole.{kind}"
    if kind == "gguf":
        write_with_gguf_py(whole, _GOOD)
    else:
        whole.write_bytes(legacy_bytes({_A: (4, (4.0, 10.0)), _B: (1, (3.0,))}, 7, "가.txt"))
    data, generator = whole.read_bytes(), np.random.default_rng(5)
    damaged = tmp_path / f"damaged.{kind}"
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= int(generator.integers(1, 256))
        for content in (data[:at], bytes(changed)):
            damaged.write_bytes(content)
            try:
                importance = read_importance(damaged)
            except KconvError:
                continue
            assert all(
                np.isfinite(values).all() and (values >= 0).all() for values in importance.values.values()
            )


def test_another_models_data_is_refused(tmp_path: Path) -> None:
    importance = read_importance(write_with_gguf_py(tmp_path / "small.gguf", _GOOD))
    refuse_other_model(importance, [_matrix(_A, 3, 2), _matrix(_B, 2, 3)])
    with pytest.raises(InputError, match=r"another model: 'blk[^,]*', which is not in this model"):
        refuse_other_model(importance, [_matrix(_B, 2, 3)])
    with pytest.raises(InputError, match=r"2 values for 'blk[^,]*', which has 4 columns"):
        refuse_other_model(importance, [_matrix(_A, 3, 4)])


def test_an_embedding_of_another_width_goes_without(tmp_path: Path) -> None:
    """src/llama-quant.cpp warns of it and takes none."""
    path = write_with_gguf_py(
        tmp_path / "small.gguf", _pair("token_embd.weight", _floats(1, 2)[None], _floats(1)[None])
    )
    assert read_importance(path).of("token_embd.weight", 4) is None


def test_tensors_without_data_are_named_once(tmp_path: Path) -> None:
    importance = read_importance(write_with_gguf_py(tmp_path / "part.gguf", _GOOD))
    tensors = [_matrix(name, 256, 2) for name in ("token_embd.weight", _A, _B, "output.weight")]
    formats = {tensor.name: FORMATS["q4_K"] for tensor in tensors}
    (note,) = importance_notes(importance, tensors, formats, "Q4_K")
    assert note.warning
    assert "part.gguf" in note.message
    assert _B in note.message
    assert _A not in note.message
    rounded = {tensor.name: FORMATS["q8_0"] for tensor in tensors}
    (note,) = importance_notes(importance, tensors, rounded, "Q8_0")
    assert "part.gguf has no effect on the Q8_0 file" in note.message
    assert not importance_notes(importance, tensors, {**rounded, _A: FORMATS["q4_K"]}, "Q8_0")
    assert not importance_notes(importance, tensors, dict.fromkeys(rounded, FORMATS["f16"]), "F16")


@pytest.mark.parametrize(("first", "idle"), [(0, True), (1e-20, True), (1e-9, False)])
def test_blocks_that_nothing_flows_into_are_told_of(tmp_path: Path, first: float, idle: bool) -> None:
    """Ggml makes of such a block whatever it likes: half of the columns without importance ruin a model."""
    values = np.where(np.arange(256) // 32 == 5, first, 1).astype(np.float32)
    path = write_with_gguf_py(tmp_path / "a.gguf", _pair(_A, values[None], _floats(1)[None]))
    importance, tensors = read_importance(path), [_matrix(_A, 2, 256)]
    notes = importance_notes(importance, tensors, {_A: FORMATS["q4_K"]}, "Q4_K")
    assert [note.name for note in notes] == ["idle-columns"] * idle


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q2_K", "q4_K", "q6_K", "iq4_nl"])
def test_the_largest_values_allowed_do_no_harm(tmp_path: Path, name: str) -> None:
    """Up to the limit of reading no infinite weights come of it. Formats of grids have a stricter one."""
    format, generator = FORMATS[name], np.random.default_rng(3)
    weights = generator.standard_normal((4, 512)).astype(np.float32)
    values = np.where(np.arange(512) < 256, 1e15, generator.random(512)).astype(np.float32)
    path = write_with_gguf_py(tmp_path / "large.gguf", _pair(_A, values[None], _floats(1)[None]))
    importance = read_importance(path).of(_A, 512)
    out = np.empty(4 * format.row_bytes(512), np.uint8)
    encode(format, weights, out, importance)
    stored = dequantize(format, out, (4, 512))
    assert np.isfinite(stored).all()
    assert np.square(stored - weights).mean() < 0.4 * np.square(weights).mean()


def test_reading_gives_counts_as_they_are(tmp_path: Path) -> None:
    """std::lround in common/imatrix-loader.cpp."""
    path = write_with_gguf_py(tmp_path / "a.gguf", _pair(_A, _floats(1, 2)[None], _floats(2.5)[None]))
    assert read_imatrix(path).counts[_A].tolist() == [3]
