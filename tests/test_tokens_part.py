"""The vocabulary of a file: every way an entry can be wrong is caught and named, other choices are let be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage_material import DAMAGES, edited, swapped_tokens
from llama_material import random_llama
from vocab_material import checkpoint, eagle_like, llama3_like
from vocabulary_material import SAMPLES, Made, graves, made_of, only, sample

from kconv.core.gguf_file import read_header
from kconv.core.vocabulary import TokenType
from kconv.verify.entries import compare_entries
from kconv.verify.tokens import cut
from kconv.vocab.candidates import candidates
from kconv.vocab.in_gguf import read_vocab
from kconv.vocab.sources import read_source

T = "tokenizer.ggml."
Change = Callable[[list[Any]], list[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("tokens")
    return {name: sample(name, folder) for name in SAMPLES}


@pytest.fixture(scope="module")
def stories(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_of(real / "hf_stories260K", tmp_path_factory.mktemp("stories"), "f32")


def with_list(good: Made, out: Path, name: str, change: Change) -> Path:
    return edited(good.file, out, metadata={T + name: change})


def replaced(index: int, value: Any) -> Change:
    return lambda values: [*values[:index], value, *values[index + 1 :]]


def swapped(first: int, second: int) -> Change:
    def change(values: list[Any]) -> list[Any]:
        values[first], values[second] = values[second], values[first]
        return values

    return change


@pytest.mark.parametrize("of_manifest", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_what_kconv_made_passes(name: str, of_manifest: bool, made: dict[str, Made]) -> None:
    part = made[name].tokens(made[name].file, of_manifest=of_manifest)
    assert part.verdict == "passed"
    assert part.findings == ()
    assert part.parity is not None
    assert part.parity.verdict == "exact"
    assert part.entries == len(read_header(made[name].file).metadata[T + "tokens"])


def test_stories_passes_with_the_remark_of_the_conversion(stories: Made) -> None:
    part = stories.tokens(stories.file)
    assert part.verdict == "warned"
    assert not graves(part)
    assert "removes spaces" in only(part, "spaces").message


@pytest.mark.parametrize("damage", [name for name, it in DAMAGES.items() if it.part == "tokens"])
@pytest.mark.parametrize("name", SAMPLES)
def test_damages_fail(name: str, damage: str, made: dict[str, Made], tmp_path: Path) -> None:
    bad = DAMAGES[damage].make(made[name].file, tmp_path / "bad.gguf")
    part = made[name].tokens(bad, of_manifest=False)
    assert part.verdict == "failed"
    assert part.findings[0].where.startswith("token ")


def test_tokens_no_text_reaches(made: dict[str, Made], tmp_path: Path) -> None:
    """Reserved tokens: parity sees only those it spells, the comparison of entries all of them."""
    good = made["llama-3-ko"]
    tokens = read_header(good.file).metadata[T + "tokens"]
    one, two = (tokens.index(f"<|reserved_special_token_{at}|>") for at in (40, 41))
    bad = swapped_tokens(good.file, tmp_path / "bad.gguf", one, two)
    for of_manifest in (True, False):
        part = good.tokens(bad, of_manifest=of_manifest)
        assert part.verdict == "failed"
        message = (
            f"tokens {one} '<|reserved_special_token_40|>' and {two} '<|reserved_special_token_41|>' are "
            "swapped"
        )
        assert part.findings[0].message == message


def test_every_single_token_counts(made: dict[str, Made]) -> None:
    """Any one text changed is grave, wherever the checkpoint has a token."""
    for name in SAMPLES:
        good = made[name]
        source, expected = good.source(), good.expected().vocab
        assert expected is not None
        metadata = read_header(good.file).metadata
        for index in range(0, source.size, 37):
            tokens = replaced(index, "changed")(list(metadata[T + "tokens"]))
            vocab, _ = read_vocab({**metadata, T + "tokens": tuple(tokens)})
            findings = compare_entries(vocab, expected, source)
            assert any(finding.grave and finding.where == f"token {index}" for finding in findings)


def test_shifted_tokens_are_one_finding(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    bad = with_list(good, tmp_path / "bad.gguf", "tokens", lambda t: [*t[:300], "new", *t[300:-1]])
    part = good.tokens(bad)
    assert part.verdict == "failed"
    assert "from token 300 on, texts are 1 place late" in only(part, "token 300").message


def test_many_findings_are_counted(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    bad = with_list(
        good,
        tmp_path / "bad.gguf",
        "tokens",
        lambda t: [text + "x" if 300 <= i < 340 else text for i, text in enumerate(t)],
    )
    part = good.tokens(bad)
    assert part.verdict == "failed"
    assert len(part.findings) == 8
    assert only(part, "tokens").message == "34 more vocabulary entries differ"


TYPES = (
    (TokenType.CONTROL, "missing from answers"),
    (TokenType.UNUSED, "missing from answers"),
    (TokenType.USER_DEFINED, "as spelled in the vocabulary"),
    (TokenType.BYTE, "read and shown differently"),
)


@pytest.mark.parametrize(("type_", "words"), TYPES)
def test_a_wrong_type(type_: TokenType, words: str, made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    bad = with_list(good, tmp_path / "bad.gguf", "token_type", replaced(1024, int(type_)))
    for of_manifest in (True, False):
        part = good.tokens(bad, of_manifest=of_manifest)
        assert part.verdict == "failed"
        finding = only(part, "token 1024")
        assert words in finding.message
        assert (finding.expected, finding.found) == ("normal", type_.name.lower().replace("_", " "))


def test_a_special_token_typed_normal(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["llama-3-ko"]
    bos = read_header(good.file).metadata[T + "bos_token_id"]
    bad = with_list(good, tmp_path / "bad.gguf", "token_type", replaced(bos, 1))
    part = good.tokens(bad, of_manifest=False)
    assert part.verdict == "failed"
    assert "show up in answers" in only(part, f"token {bos}").message


def test_shuffled_scores(stories: Made, tmp_path: Path) -> None:
    bad = with_list(stories, tmp_path / "bad.gguf", "scores", lambda s: [*s[:260], *reversed(s[260:])])
    part = stories.tokens(bad, of_manifest=False)
    assert part.verdict == "failed"
    assert "merged in another order" in only(part, T + "scores").message


def test_two_scores_swapped(made: dict[str, Made], stories: Made, tmp_path: Path) -> None:
    """Too small a difference for most texts, so the comparison of entries has to see it."""
    bad = with_list(stories, tmp_path / "bad.gguf", "scores", swapped(500, 501))
    assert only(stories.tokens(bad, of_manifest=False), T + "scores").grave
    bad = with_list(made["eagle"], tmp_path / "bad.gguf", "scores", swapped(2000, 2001))
    assert only(made["eagle"].tokens(bad), T + "scores").grave


def test_scores_in_the_same_order_are_as_good(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["eagle"]
    other = with_list(good, tmp_path / "other.gguf", "scores", lambda s: [score * 2 + 5 for score in s])
    assert good.tokens(other, of_manifest=False).findings == ()
    assert good.tokens(other, strict=True).verdict == "failed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swapped(5, 900), "2 merges have another rank, first at rank 5"),
        (lambda merges: merges[:700] + merges[701:], "1 merges missing, 0 not in the checkpoint"),
        (replaced(3, "Ġ kconv"), "1 merges missing, 1 not in the checkpoint, first at rank 3"),
    ],
)
def test_wrong_merges(change: Change, words: str, made: dict[str, Made], tmp_path: Path) -> None:
    bad = with_list(made["llama-3-ko"], tmp_path / "bad.gguf", "merges", change)
    part = made["llama-3-ko"].tokens(bad, of_manifest=False)
    assert part.verdict == "failed"
    assert any(
        finding.where.startswith(T + "merges[") and words in finding.message for finding in part.findings
    )


def test_lists_of_another_length(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    for name, change in (("tokens", lambda t: t[:-1]), ("token_type", lambda t: t[:-1])):
        bad = with_list(good, tmp_path / "bad.gguf", name, change)
        part = good.tokens(bad)
        assert part.verdict == "failed"
        assert any("refuses" in finding.message for finding in graves(part))
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "tokens": None})
    assert good.tokens(bad).verdict == "failed"
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "merges": None})
    assert good.tokens(bad).verdict == "failed"


def test_what_llama_cpp_dies_of(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    bad = with_list(good, tmp_path / "bad.gguf", "tokens", lambda t: [*t[:-1], t[500]])
    part = good.tokens(bad)
    assert part.verdict == "failed"
    assert part.parity is not None
    assert part.parity.error
    assert "failed an internal check" in only(part, "vocabulary").message
    assert any("have the same text" in finding.message for finding in part.findings)
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "pre": "nobody's"})
    assert "unknown pre-tokenizer type" in only(good.tokens(bad), "vocabulary").message


def test_lists_of_another_type(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    header = read_header(good.file)
    for name in ("tokens", "token_type", "merges"):
        gone = edited(good.file, tmp_path / "gone.gguf", metadata={T + name: None})
        value = {"tokens": "text", "token_type": [1.5, 2.5], "merges": [True]}[name]
        bad = edited(gone, tmp_path / "bad.gguf", metadata={T + name: value})
        part = good.tokens(bad)
        assert part.verdict == "failed"
        assert any(finding.where == T + name for finding in part.findings)
    strange = with_list(good, tmp_path / "bad.gguf", "token_type", replaced(4, 99))
    assert "99 for token 4" in only(good.tokens(strange), T + "token_type").message
    assert header.metadata[T + "token_type"][4] == 1


def test_another_pre_tokenizer_of_the_same_kind(made: dict[str, Made], tmp_path: Path) -> None:
    """Names differ, texts do not; and one that cuts otherwise fails by its texts."""
    good = made["llama-3-ko"]
    same = edited(good.file, tmp_path / "same.gguf", metadata={T + "pre": "llama3"})
    assert good.tokens(same, of_manifest=False).findings == ()
    assert good.metadata(same, of_manifest=False).findings == ()
    assert good.metadata(same).verdict == "warned"
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "pre": "gpt-2"})
    assert "texts as other tokens" in only(good.tokens(bad, of_manifest=False), "texts").message


def test_rows_without_a_token_may_have_any_name(tmp_path: Path) -> None:
    rows = llama3_like(tmp_path / "tokenizer")
    source = read_source(checkpoint(tmp_path / "tokenizer"))
    vocab = next(iter(candidates(source))).vocab
    padded = replace(
        vocab,
        tokens=(*vocab.tokens, "[PAD1]", "[PAD2]"),
        types=(*vocab.types, TokenType.UNUSED, TokenType.UNUSED),
    )
    assert padded.size == rows + 2
    for name in ("<extra_1>", "[UNUSED 7]", "<|dummy|>", ""):
        other = replace(padded, tokens=(*padded.tokens[:-1], name))
        assert not any(finding.grave for finding in compare_entries(other, padded, source))
        assert any(finding.grave for finding in compare_entries(other, padded, source, strict=True))
    types = (*padded.types[:-1], TokenType.USER_DEFINED)
    word = replace(padded, tokens=(*padded.tokens[:-1], "안녕"), types=types)
    assert any(finding.grave for finding in compare_entries(word, padded, source))


def test_silenced_tokens_may_have_their_texts(tmp_path: Path) -> None:
    """Another way to put a byte-fallback BPE leaves the texts of unreachable tokens in."""
    eagle_like(tmp_path / "tokenizer")
    source = read_source(checkpoint(tmp_path / "tokenizer"))
    able = [candidate.vocab for candidate in candidates(source) if candidate.vocab.model == "llama"]
    silenced, plain = able[0], able[-1]
    assert silenced.tokens != plain.tokens
    assert not any(finding.grave for finding in compare_entries(plain, silenced, source))


def test_texts_of_the_user(made: dict[str, Made], tmp_path: Path) -> None:
    """A token only the user's text has is found in it, and the passage shown is short."""
    good = made["42dot"]
    text = "가나다라 마바사. " * 300 + "\n" + "\n".join(f"{at}. 줄입니다" for at in range(500))
    part = good.tokens(good.file, [text])
    assert part.verdict == "passed"
    assert part.parity is not None
    plain = good.tokens(good.file).parity
    assert plain is not None
    assert part.parity.texts > plain.texts + 10
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "pre": "llama-bpe"})
    finding = only(good.tokens(bad, ["x" * 100_000 + " 1234567 " + "y" * 100_000]), "texts")
    assert len(finding.message) < 400
    assert finding.expected is not None
    assert len(finding.expected) < 400


def test_an_allowed_mismatch_warns(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["llama-3-ko"]
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "pre": "gpt-2"})
    part = good.tokens(bad, of_manifest=False, allow_mismatch=True)
    assert part.verdict == "warned"
    assert not only(part, "texts").grave


def test_texts_are_cut_without_losing_a_character() -> None:
    texts = ["", "a", "가" * 1000, "짧은 줄\r\n" * 200 + "끝", "말 " * 900 + "\n\n", "줄\u2028줄\n" * 10]
    for text in texts:
        pieces = cut([text])
        assert "".join(pieces) == text
        assert all(0 < len(piece) <= 400 for piece in pieces)
    long = cut(["긴 글입니다.\n" * 1_000_000])
    assert sum(map(len, long)) <= 2_000_000


def test_the_space_before_a_text_is_a_remark(tmp_path: Path) -> None:
    """A vocabulary that cannot add the leading space says so and passes, with its manifest and without."""
    rows = eagle_like(tmp_path / "tokenizer", metaspace="first")
    folder = random_llama(tmp_path / "model", tmp_path / "tokenizer", vocab_size=rows)
    template = "{{ messages[0]['content'] }}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    good = made_of(folder, tmp_path, "q8_0")
    assert read_header(good.file).metadata["kconv.leading_space"] is True
    for of_manifest in (True, False):
        part = good.tokens(good.file, of_manifest=of_manifest)
        assert part.verdict == "passed"
        assert part.parity is not None
        assert part.parity.verdict == "leading-space"
        assert "add the space yourself" in only(part, "spaces").message
        assert good.metadata(good.file, of_manifest=of_manifest).findings == ()
