"""Codes are chosen once where a choice of formats is measured with them before it is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kconv.converters.samples import write_sample
from kconv.core import system_files
from kconv.flows.convert import to_gguf
from kconv.quant import feedback
from kconv.quant.kept_codes import KeptCodes

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
KEY = ("blk.0.ffn_up.weight", "q4_K", 0.3)


def test_the_bytes_are_those_of_choosing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written from what was kept, and in a second run by the policy and the statistics, from nothing."""
    text, sample = tmp_path / "part.txt", write_sample("42dot", tmp_path / "sample")
    text.write_text((TEXTS / "facts.txt").read_text("utf-8")[:2500], encoding="utf-8")
    plain, take = feedback.refine, KeptCodes.take
    asked: dict[bool, list[tuple[object, int, int]]] = {False: [], True: []}
    refined: list[int] = []

    def counted(format: object, weights: np.ndarray, *rest: object, **more: object) -> None:  # type: ignore[type-arg]
        if asked[True]:  # what is written is taken
            refined.append(len(weights))
        plain(format, weights, *rest, **more)  # type: ignore[arg-type]

    def took(self: KeptCodes, key: tuple[str, str, float], start: int, rows: int, data: object) -> bool:
        found = take(self, key, start, rows, data)  # type: ignore[arg-type]
        asked[found].append((key, start, rows))
        return found

    monkeypatch.setattr(feedback, "refine", counted)
    monkeypatch.setattr(KeptCodes, "take", took)
    (first,) = to_gguf(
        sample, tmp_path / "one", types=(), calibrate=[text], target_size="1.7M", optimize=True, verify=False
    ).outputs
    assert asked[True]
    assert {key for key, *_ in asked[True]} == {key for key, *_ in asked[False]}
    assert not refined
    assert not list((tmp_path / "one").glob("*.gathering"))
    monkeypatch.undo()
    (statistics,) = (tmp_path / "one").glob("*-statistics.gguf")
    (second,) = to_gguf(
        sample,
        tmp_path / "two",
        types=(),
        imatrix=statistics,
        policy=first.policy,
        optimize=True,
        verify=False,
    ).outputs  # fmt: skip
    assert _weights(first.path) == _weights(second.path)


def _weights(path: Path) -> dict[str, bytes]:
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def test_rows_come_back_in_other_pieces(tmp_path: Path) -> None:
    codes = KeptCodes(tmp_path / "codes")
    rows = np.arange(10 * 6, dtype=np.uint8)
    codes.keep(KEY, 4, 6, rows[24:])
    found = np.zeros(18, np.uint8)
    assert not codes.take(KEY, 3, 3, found)
    assert not found.any()
    codes.keep(KEY, 0, 4, rows[:24])
    assert codes.take(KEY, 3, 3, found)
    assert found.tolist() == rows[18:36].tolist()
    assert not codes.take(KEY, 8, 3, found), "the last of these rows was never there"
    assert not codes.take((KEY[0], KEY[1], 0.6), 3, 3, found), "another strength, so other codes"
    codes.close()
    assert not (tmp_path / "codes").exists()


def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = KeptCodes(tmp_path / "codes")

    def full(handle: int, data: object, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    codes.keep(KEY, 0, 1, np.ones(6, np.uint8))
    with monkeypatch.context() as patched:
        patched.setattr(system_files, "write_at", full)
        codes.keep(KEY, 1, 1, np.ones(6, np.uint8))
    found = np.zeros(6, np.uint8)
    assert not codes.take(KEY, 1, 1, found)
    assert not codes.take(KEY, 0, 1, found)
    assert not (tmp_path / "codes").exists(), "whoever needs the room has it"
    codes.keep(KEY, 0, 1, np.ones(6, np.uint8))
    assert not codes.take(KEY, 0, 1, found)
    codes.close()
