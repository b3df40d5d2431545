"""Kernels for grids are held against libggml beside the work, and what a wrong one made is made again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kconv.converters.gguf_plan import FilePlan, placed
from kconv.converters.gguf_writer import write_files
from kconv.core.gguf_file import TensorInfo, tensor_bytes
from kconv.core.tensor import DType, Tensor
from kconv.quant import native
from kconv.quant.formats import FORMATS
from kconv.quant.importance import Importance
from kconv.quant.late_checks import LateChecks

KEY = ("avx2", "iq2_xs", True)
needs_kernels = pytest.mark.skipif(native.chosen().name == native.LIBGGML, reason="kernels were not built")


def test_what_is_told_waits_for_comparisons_that_could_take_it_back() -> None:
    judged: list[tuple[Any, int, bool]] = []
    passed: list[int] = []
    late = LateChecks(lambda *how: judged.append(how))
    late.tell(0, lambda: passed.append(0))
    assert passed == [0]
    go = threading.Event()
    late.ask(KEY, 8, lambda: go.wait(10))
    late.tell(1, lambda: passed.append(1))
    assert passed == [0]
    go.set()
    assert late.settled() == frozenset()
    late.tell(2, lambda: passed.append(2))
    assert passed == [0, 1, 2]
    assert (judged, late.asked(KEY)) == ([(KEY, 8, True)], 8)


def test_what_a_wrong_kernel_made_is_not_passed_on() -> None:
    passed: list[int] = []
    late = LateChecks(lambda *how: None)
    late.ask(KEY, 8, lambda: False)
    late.tell(1, lambda: passed.append(1))
    late.tell(2, lambda: passed.append(2))
    assert late.settled() == {"iq2_xs"}
    late.pass_on(frozenset({2}))
    assert passed == [1]
    late.tell(2, lambda: passed.append(2))
    assert passed == [1, 2]


def test_a_comparison_that_fails_is_told() -> None:
    """Nothing is known of the kernel then: it is not trusted later, and what it made is not passed on."""
    judged: list[tuple[Any, int, bool]] = []
    passed: list[int] = []
    late = LateChecks(lambda *how: judged.append(how))

    def fail() -> bool:
        raise MemoryError("tables")

    late.ask(KEY, 8, fail)
    late.ask(KEY, 8, lambda: True)
    with pytest.raises(MemoryError, match="tables"):
        late.settled()
    late.tell(0, lambda: passed.append(0))
    assert not judged
    assert not passed


@needs_kernels
@pytest.mark.parametrize("wrong", [False, True])
def test_files_are_those_of_libggml_even_where_a_kernel_is_wrong(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((2, 64, 1024)).astype(np.float32)
    tensors = [
        Tensor(f"blk.{i}.ffn_up.weight", (64, 1024), DType.F32, lambda a, b, i=i: values[i, a:b])
        for i in range(2)
    ]
    formats = (FORMATS["iq2_xs"], FORMATS["q8_0"])
    importance = Importance({each.name: np.ones(1024, np.float32) for each in tensors}, "", (), 1, 512)

    def written(name: str) -> tuple[bytes, tuple[Any, ...]]:
        path = tmp_path / name
        path.touch()
        infos = [
            TensorInfo(each.name, each.shape, kind.ggml_type, tensor_bytes(each.shape, kind.ggml_type))
            for each, kind in zip(tensors, formats, strict=True)
        ]
        plan = FilePlan(path, "llama", {"general.architecture": "llama"}, formats, placed(infos, None))
        made = write_files(tensors, [plan], [path], threads=1, importance=importance)
        return path.read_bytes(), made.kernels

    monkeypatch.setenv(native.VARIABLE, native.LIBGGML)
    native.chosen.cache_clear()
    expected, _ = written("libggml")
    monkeypatch.delenv(native.VARIABLE)
    native.chosen.cache_clear()
    monkeypatch.setattr(native, "_checks", {})
    if wrong:
        run = native.run

        def other(set: str, format: Any, rows: Any, out: Any, importance: Any, ggml: Any) -> None:
            run(set, format, rows, out, importance, ggml)
            out[7] ^= 1

        monkeypatch.setattr(native, "run", other)
    found, notes = written("kernels")
    assert found == expected
    assert [note.name for note in notes] == (["kernel-differs"] if wrong else [])
