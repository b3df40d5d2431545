"""Texts cut into windows: nothing of a text is lost, BOS stands in each window and counts."""

from __future__ import annotations

import pytest

from kconv.core.errors import InputError
from kconv.core.windows import Window, cut


@pytest.mark.parametrize("before", [(), (9,)])
@pytest.mark.parametrize("length", [2, 3, 10, 11, 1000])
def test_a_whole_text_is_read(length: int, before: tuple[int, ...]) -> None:
    text = list(range(100, 100 + length))
    windows = cut([text], size=5, before=before)
    read = [token for window in windows for token in window.ids[len(before) :]]
    assert read == text[: len(read)]
    assert length - len(read) <= 1  # a single token left over is no window
    assert all(window.ids[: len(before)] == before and len(window.ids) <= 5 for window in windows)


def test_so_many_tokens_of_each_text() -> None:
    windows = cut([range(100), range(200, 300)], size=8, before=(9,), tokens=20)
    assert [window.text for window in windows] == [0, 0, 0, 1, 1, 1]
    assert [len(window.ids) for window in windows] == [8, 8, 4] * 2


def test_one_token_after_bos_can_be_predicted() -> None:
    assert cut([[5]], size=8, before=(9,)) == [Window(0, (9, 5))]
    with pytest.raises(InputError, match="text 2 has 1 token, too few"):
        cut([[5, 6], [5]], size=8)


@pytest.mark.parametrize(("size", "before"), [(1, ()), (1, (9,))])
def test_windows_that_leave_nothing_to_predict(size: int, before: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="windows of 1 token leave nothing"):
        cut([[5, 6, 7]], size=size, before=before)
