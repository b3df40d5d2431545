"""Token parity in llama.cpp itself: tokenizers trained here, and real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material

from kconv.core.errors import TokenMismatch, VocabError
from kconv.core.vocabulary import TokenType
from kconv.vocab import exam, parity
from kconv.vocab.candidates import candidates
from kconv.vocab.selection import select_vocab
from kconv.vocab.sources import read_source
from kconv.vocab.texts import built_in


def settled(folder: Path, rows: int) -> tuple[Any, parity.Parity]:
    """Settle the folder's vocabulary and print the count, which is what a run of the tests is read for."""
    model, result = select_vocab(material.model(rows), material.checkpoint(folder))
    print(f"{folder.name}: {result.verdict}, {result.exact}/{result.texts}, {result.candidate}")
    assert model.vocab is not None
    assert model.vocab.size == rows
    return model, result


def test_a_folder_like_42dots_is_exact(tmp_path: Path) -> None:
    rows = material.dot42_like(tmp_path)
    model, result = settled(tmp_path, rows)
    vocab = model.vocab
    assert (result.verdict, result.exact) == ("exact", result.texts)
    assert result.texts > 3000
    assert (vocab.model, vocab.pre) == ("gpt2", "gpt-2")
    first = rows - 44 - 4
    assert vocab.tokens[first : first + 4] == material.DOT42_SPECIALS
    assert set(vocab.types[first : first + 4]) == {TokenType.CONTROL}
    assert vocab.special == {"bos": first + 1, "eos": first, "padding": first + 2, "unknown": first + 3}
    assert (vocab.add_bos, vocab.add_eos, vocab.add_space_prefix) == (False, False, False)
    assert set(vocab.types[first + 4 :]) == {TokenType.UNUSED}
    assert "model" in vocab.tokens


@pytest.mark.parametrize("merges_as", ["pairs", "strings"])
def test_a_tokenizer_like_llama_3s_is_exact(tmp_path: Path, merges_as: str) -> None:
    rows = material.llama3_like(tmp_path, merges_as=merges_as)
    model, result = settled(tmp_path, rows)
    assert (result.verdict, model.vocab.pre) == ("exact", "llama-bpe")
    assert (model.vocab.add_bos, model.vocab.add_eos) == (True, False)  # as its post-processor does
    assert model.vocab.tokens[model.vocab.special["bos"]] == "<|begin_of_text|>"


def test_llama_3s_regex_without_ignore_merges_takes_another_name(tmp_path: Path) -> None:
    model, result = settled(tmp_path, material.llama3_like(tmp_path, ignore_merges=False))
    assert (result.verdict, model.vocab.pre) == ("exact", "dbrx")


@pytest.mark.parametrize("all_pairs", [False, True])
def test_byte_fallback_bpe_like_eagles_is_exact(tmp_path: Path, all_pairs: bool) -> None:
    model, result = settled(tmp_path, material.eagle_like(tmp_path, all_pairs=all_pairs))
    vocab = model.vocab
    assert (result.verdict, vocab.model, vocab.add_space_prefix) == ("exact", "llama", True)
    end = vocab.tokens.index("</s>")
    assert (vocab.special["bos"], vocab.special["eos"]) == (end, end)
    assert sum(kind is TokenType.BYTE for kind in vocab.types) == 256
    # "▁1" and the like stand in the vocabulary, but digits are split before: they must not match.
    assert "\u20811" not in vocab.tokens
    assert not any(text[:1] == "\u2581" and text[1:].isdigit() for text in vocab.tokens)
    assert any(
        kind is TokenType.UNUSED and " " in text for text, kind in zip(vocab.tokens, vocab.types, strict=True)
    )


@pytest.mark.parametrize("all_pairs", [False, True])
def test_the_second_way_for_byte_fallback_lacks_only_the_space(tmp_path: Path, all_pairs: bool) -> None:
    material.eagle_like(tmp_path, all_pairs=all_pairs, newlines=False)  # it always splits at newlines
    source = read_source(material.checkpoint(tmp_path))
    raw = next(candidate for candidate in candidates(source) if candidate.name == "raw BPE")
    assert (raw.vocab.model, raw.vocab.pre) == ("gpt2", "sarvam-moe")
    path = tmp_path / "raw.gguf"
    parity.write_vocab_only(path, "llama", raw.vocab)
    result = parity.check_file(path, source)
    assert (result.verdict, result.error) == ("leading-space", None)


@pytest.mark.parametrize(("scheme", "verdict"), [("first", "leading-space"), ("always", "extra-spaces")])
def test_only_spaces_at_the_start_may_differ(tmp_path: Path, scheme: str, verdict: str) -> None:
    rows = material.eagle_like(tmp_path, metaspace=scheme)
    model, result = settled(tmp_path, rows)
    assert result.verdict == verdict
    assert verdict in [note.name for note in model.notes]
    assert result.to_json()["verdict"] == verdict
    # What was called equal but for spaces is equal once they are as the tokenizer has them.
    assert model.vocab.add_space_prefix is (verdict == "extra-spaces")


def test_a_sentencepiece_model_is_exact(tmp_path: Path) -> None:
    model, result = settled(tmp_path, material.sentencepiece_like(tmp_path))
    assert (result.verdict, model.vocab.model) == ("exact", "llama")
    assert (model.vocab.add_bos, model.vocab.add_space_prefix) == (True, True)
    assert model.vocab.types[:3] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL)


def test_sentencepiece_without_a_dummy_prefix(tmp_path: Path) -> None:
    model, result = settled(tmp_path, material.sentencepiece_like(tmp_path, add_dummy_prefix=False))
    assert (result.verdict, model.vocab.add_space_prefix) == ("exact", False)


def test_a_model_that_only_drops_spaces_is_not_short_of_a_leading_one(
    tmp_path: Path,
) -> None:
    rows = material.sentencepiece_like(tmp_path, add_dummy_prefix=False, remove_extra_whitespaces=True)
    model, result = settled(tmp_path, rows)
    assert (result.verdict, model.vocab.add_space_prefix) == ("extra-spaces", False)
    assert [note.name for note in model.notes if "space" in note.name] == ["extra-spaces"]


def test_sentencepiece_with_added_tokens(tmp_path: Path) -> None:
    rows = material.sentencepiece_like(tmp_path)
    added = {"<|im_start|>": rows, "<|im_end|>": rows + 1, "안녕하세요": rows + 3}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    specials = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(specials), encoding="utf-8")
    model, result = settled(tmp_path, rows + 8)
    assert result.verdict == "exact"
    kinds = [model.vocab.types[at] for at in range(rows, rows + 5)]
    assert kinds == [
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.UNUSED,
        TokenType.USER_DEFINED,
        TokenType.UNUSED,
    ]


def test_a_unigram_model_without_bytes_is_exact_if_it_drops_surplus_spaces(tmp_path: Path) -> None:
    options = {"model_type": "unigram", "byte_fallback": False, "normalization_rule_name": "nmt_nfkc"}
    rows = material.sentencepiece_like(tmp_path, remove_extra_whitespaces=True, **options)
    model, result = settled(tmp_path, rows)
    assert (result.verdict, model.vocab.model) == ("exact", "t5")


def test_a_unigram_model_that_keeps_spaces_is_refused(tmp_path: Path) -> None:
    rows = material.sentencepiece_like(tmp_path, model_type="unigram", byte_fallback=False)
    with pytest.raises(TokenMismatch, match="unigram, spaces kept"):
        select_vocab(material.model(rows), material.checkpoint(tmp_path))


def test_a_bpe_model_without_bytes_is_refused(tmp_path: Path) -> None:
    rows = material.sentencepiece_like(tmp_path, model_type="bpe", byte_fallback=False)
    with pytest.raises(VocabError, match="no token for every byte"):
        select_vocab(material.model(rows), material.checkpoint(tmp_path))


def test_texts_of_the_caller_are_measured_too(tmp_path: Path) -> None:
    material.dot42_like(tmp_path)
    source = read_source(material.checkpoint(tmp_path))
    assert "제 텍스트" not in built_in()
    questions = exam.exam(source, ["제 텍스트"])
    assert "제 텍스트" in questions.texts


def test_a_finished_file_is_checked_again(tmp_path: Path) -> None:
    model, result = settled(tmp_path, material.llama3_like(tmp_path))
    path = tmp_path / "model.gguf"
    parity.write_vocab_only(path, "llama", model.vocab)
    again = parity.check_file(path, read_source(material.checkpoint(tmp_path)))
    assert (again.verdict, again.exact, again.texts) == ("exact", result.texts, result.texts)


def test_phi_2_is_exact(real: Path) -> None:
    model, result = settled(real / "tokenizers" / "phi-2", 51200)
    assert (result.verdict, model.vocab.pre) == ("exact", "gpt-2")
    assert result.texts > 5000


def test_pythia_is_exact_on_text_in_nfc(real: Path) -> None:
    model, result = settled(real / "tokenizers" / "pythia", 50304)
    print(f"pythia: {result.exact}/{result.texts}, {result.not_nfc} not in NFC")
    assert result.verdict == "nfc"
    assert result.texts - result.exact <= result.not_nfc
    assert [note.warning for note in model.notes if note.name == "nfc"] == [True]


def test_stories260k_is_exact_but_for_spaces_its_model_drops(real: Path) -> None:
    folder = real / "hf_stories260K"
    config = json.loads((folder / "config.json").read_text())
    model, result = select_vocab(material.model(512), material.checkpoint(folder, **config))
    print(f"stories260K: {result.verdict}, {result.exact}/{result.texts}")
    assert result.verdict == "extra-spaces"
    assert model.vocab.special == {"bos": 1, "eos": 2, "unknown": 0}
    assert model.vocab.add_bos


def test_a_real_bpe_model_without_bytes_is_refused(real: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to(real / "tokenizers" / "kortok_sp-32k.model")
    with pytest.raises(VocabError, match="no token for every byte"):
        select_vocab(material.model(70000), material.checkpoint(tmp_path))
