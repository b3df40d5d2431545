"""Tokens to text: syllables spread over tokens, stop strings, white space; and text for people."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kconv.cli.console import markdown_table, printable, seconds_text, size_text, table, terminal_text, width
from kconv.runtimes.generation import TextStream, choose_sampling, sampling_in_file
from kconv.runtimes.sampling import Sampling


def streamed(pieces: list[bytes], stops: tuple[str, ...] = (), *, trim: bool = False) -> list[str]:
    stream = TextStream(stops, trim=trim)
    return [*(stream.feed(piece) for piece in pieces), stream.finish()]


def test_a_syllable_spread_over_tokens_waits_until_it_is_whole() -> None:
    whole = "값".encode()
    assert streamed([whole[:1], whole[1:2], whole[2:], "이".encode()]) == ["", "", "값", "이", ""]


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert "".join(streamed([b"\xea", b"A", b"\xff", "가".encode()[:2]])) == "\ufffdA\ufffd\ufffd"


def test_half_a_character_is_left_out_where_the_text_was_cut_off() -> None:
    stream = TextStream()
    assert stream.feed("가나".encode()[:5]) == "가"
    assert stream.finish(cut=True) == ""


def test_text_before_a_stop_string_comes_at_once_and_the_stop_never() -> None:
    pieces = [piece.encode() for piece in ("안녕 <", "hum", "bug> <hu", "man", ":", " 뭐")]
    assert streamed(pieces, ("<human>:", "<human:")) == ["안녕 ", "", "<humbug> ", "", "", "", ""]


def test_what_waited_for_a_stop_string_comes_at_the_end() -> None:
    assert streamed([b"abc <hum"], ("<human>:",)) == ["abc ", "<hum"]


def test_the_stop_string_complete_first_wins() -> None:
    stream = TextStream(["world", "lo"])
    assert stream.feed(b"hello world") == "hel"
    assert stream.stopped == "lo"
    assert stream.feed(b"more") == ""
    assert stream.finish() == ""


def test_trimming_drops_leading_white_space_only() -> None:
    assert "".join(streamed([b" ", b"\n", b" ab ", b"\n"], trim=True)) == "ab \n"


@given(
    text=st.text(alphabet="가나ab<>: \n값", max_size=60),
    stops=st.lists(st.text(alphabet="가ab<>:", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 180), max_size=20),
)
def test_however_the_bytes_are_cut_the_text_is_the_same(text: str, stops: list[str], cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    expected = text
    for end in range(len(text) + 1):  # as if the letters came one by one
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            expected = text[: end - max(complete)]
            break
    assert "".join(streamed(pieces, tuple(stops))) == expected


def test_sampling_of_the_file_overrules_the_defaults_and_wishes_overrule_both() -> None:
    metadata = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_p": 0.949999988079071,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.2000000476837158,
    }
    chosen = choose_sampling(sampling_in_file(metadata), {"temperature": None, "top_k": 5, "seed": 7})
    assert chosen == Sampling(temperature=0.5, top_k=5, top_p=0.95, repeat_penalty=1.2, seed=7)


@pytest.mark.parametrize("value", [float("nan"), -1.0, 0, "0.5", True, None, 1e30, (1, 2)])
def test_senseless_sampling_in_a_file_is_left_out(value: object) -> None:
    assert sampling_in_file({"general.sampling.penalty_repeat": value}) == {}


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31m\u202eb\x00값\ud800") == "a\\x1b[31m\\u202eb\\x00값\\ud800"
    assert terminal_text("a\x1b]0;x\x07\x9b\r\n\t👨‍👩‍👧값\u3000") == (
        "a\\x1b]0;x\\x07\\x9b\\x0d\n\t👨‍👩‍👧값\u3000"
    )


def test_tables_count_hangul_as_two_columns() -> None:
    assert width("값a") == 3
    assert table([("값", "1"), ("abcd", "22")], header=("이름", "n"), right=(1,)).splitlines() == [
        "이름   n",
        "값     1",
        "abcd  22",
    ]
    assert table([]) == ""
    assert markdown_table([("a|b", "c")], header=("x", "y")) == "| x | y |\n| --- | --- |\n| a\\|b | c |"


def test_sizes_and_times() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 1536 * 1024, 1 << 34, 1020 << 10)] == [
        "0 bytes", "1023 bytes", "1.00 KiB", "1.50 MiB", "16.0 GiB", "1020 KiB",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (0.04, 9.9, 59.6, 185)] == ["0.0 s", "9.9 s", "1 min 00 s", "3 min 05 s"]
