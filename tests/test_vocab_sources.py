"""Reading tokenizers: what the files say, in all the forms they come in, and files that are bad."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kconv.core.errors import CheckpointError, VocabError
from kconv.core.vocabulary import TokenType
from kconv.vocab.selection import select_vocab
from kconv.vocab.sentencepiece_proto import parse_model
from kconv.vocab.sources import Source, read_source
from kconv.vocab.texts import built_in


def read(folder: Path, **config: Any) -> Source:
    return read_source(material.checkpoint(folder, **config))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file, or make one."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def test_ids_are_those_of_the_library(tmp_path: Path) -> None:
    material.llama3_like(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    source = read(tmp_path)
    texts = [*built_in()[:300], "<|eot_id|>안녕<|begin_of_text|>"]
    for text in texts:
        assert source.encode(text, True) == library.encode(text, add_special_tokens=False).ids
    library.encode_special_tokens = True
    for text in texts:
        assert source.encode(text, False) == library.encode(text, add_special_tokens=False).ids


def test_vocab_json_and_merges_equal_the_same_as_tokenizer_json(tmp_path: Path) -> None:
    material.dot42_like(tmp_path)
    library = Tokenizer.from_str(json.dumps(material._byte_level(None, 2000)))
    source = read(tmp_path)
    for text in built_in():
        if "<|" not in text:
            assert source.encode(text, True) == library.encode(text).ids
    assert source.encode("<||bos||>안<|endoftext|>", True)[0] == source.special["bos"]


def test_truncation_padding_and_dropout_are_switched_off(tmp_path: Path) -> None:
    material.llama3_like(tmp_path)
    plain = read(tmp_path).encode("자유와 평등, freedom and equality " * 20, True)

    def change(spec: dict[str, Any]) -> None:
        spec["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        spec["padding"] = {
            "strategy": {"Fixed": 900}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!",
        }  # fmt: skip
        spec["model"]["dropout"] = 0.9

    edit(tmp_path / "tokenizer.json", change)
    assert read(tmp_path).encode("자유와 평등, freedom and equality " * 20, True) == plain


def test_tokenizer_json_wins_over_tokenizer_model(tmp_path: Path) -> None:
    material.sentencepiece_like(tmp_path)
    assert read(tmp_path).kind == "sentencepiece bpe"
    material.llama3_like(tmp_path)
    assert read(tmp_path).kind == "byte-level bpe"


def test_bos_and_eos_as_configured_or_as_measured(tmp_path: Path) -> None:
    material.llama3_like(tmp_path)
    assert (read(tmp_path).table.add_bos, read(tmp_path).table.add_eos) == (True, False)
    edit(
        tmp_path / "tokenizer_config.json",
        lambda config: config.update(add_bos_token=False, add_eos_token=True),
    )
    source = read(tmp_path)
    assert (source.table.add_bos, source.table.add_eos) == (False, True)
    assert [note.name for note in source.notes] == ["add-bos", "add-eos"]
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(add_bos_token="yes"))
    with pytest.raises(VocabError, match="add_bos_token"):
        read(tmp_path)


def test_sentencepiece_adds_bos_unless_told_otherwise(tmp_path: Path) -> None:
    material.sentencepiece_like(tmp_path)
    assert read(tmp_path).table.add_bos
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(add_bos_token=False))
    assert not read(tmp_path).table.add_bos


def test_special_tokens_come_as_text_or_objects(tmp_path: Path) -> None:
    material.llama3_like(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    roles = {"bos_token": {"content": "<|begin_of_text|>", "lstrip": False}, "pad_token": "<|end_of_text|>"}
    edit(tmp_path / "special_tokens_map.json", lambda content: content.update(roles))
    source = read(tmp_path)
    assert source.special["padding"] == source.special["bos"] + 1
    edit(tmp_path / "special_tokens_map.json", lambda content: content.update(sep_token="<|no such|>"))
    assert [note.name for note in read(tmp_path).notes] == ["missing-special-token"]
    edit(tmp_path / "special_tokens_map.json", lambda content: content.update(sep_token=["x"]))
    with pytest.raises(VocabError, match="sep_token"):
        read(tmp_path)


def test_tokens_other_files_add_keep_their_ids(tmp_path: Path) -> None:
    rows = material.llama3_like(tmp_path)
    decoder = {
        str(rows + 2): {"content": "<|tool|>", "special": True, "normalized": False},
        str(rows + 5): {"content": "한국어단어", "special": False, "normalized": True},
    }
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(added_tokens_decoder=decoder))
    source = read(tmp_path)
    assert source.size == rows + 6
    assert source.tokens[rows] is None
    assert source.types[rows + 2] is TokenType.CONTROL
    assert source.types[rows + 5] is TokenType.USER_DEFINED
    assert source.encode("a<|tool|>한국어단어", True)[1:] == [rows + 2, rows + 5]
    _, result = select_vocab(material.model(rows + 8), material.checkpoint(tmp_path))
    assert result.verdict == "exact"


def test_an_added_token_in_anothers_place_is_refused(tmp_path: Path) -> None:
    material.llama3_like(tmp_path)
    edit(tmp_path / "added_tokens.json", lambda content: content.update({"<|tool|>": 300}))
    with pytest.raises(VocabError, match="300"):
        read(tmp_path)


def test_chat_templates_as_text_list_and_file(tmp_path: Path) -> None:
    material.llama3_like(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    edit(config, lambda content: content.update(chat_template="{{ messages }}"))
    assert read(tmp_path).chat_template == "{{ messages }}"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(config, lambda content: content.update(chat_template=named))
    source = read(tmp_path)
    assert source.chat_template == "D"
    assert "tool_use" in source.notes[0].message
    edit(config, lambda content: content.update(chat_template=7))
    source = read(tmp_path)
    assert source.chat_template is None
    assert [note.warning for note in source.notes if "chat_template is neither text nor" in note.message] == [
        True
    ]
    edit(config, lambda content: content.update(chat_template=None))
    (tmp_path / "chat_template.jinja").write_text("F\n", encoding="utf-8")
    assert read(tmp_path).chat_template == "F\n"


def test_the_description_names_the_parts(tmp_path: Path) -> None:
    material.eagle_like(tmp_path)
    description = read(tmp_path).description
    assert description.kind == "byte-fallback bpe"
    assert description.files == ("tokenizer.json", "tokenizer_config.json")
    assert "byte_fallback" in description.model
    assert description.normalizer.startswith("Sequence(Prepend(")
    assert "Digits(individual_digits=true)" in description.pre_tokenizer
    assert description.specials["eos"] == (description.specials["bos"][0], "</s>")


def _no_merges(folder: Path) -> None:
    (folder / "merges.txt").unlink()


def _bad_merge(folder: Path) -> None:
    (folder / "merges.txt").write_text("a b c\n", encoding="utf-8")


def _unknown_merge(folder: Path) -> None:
    (folder / "merges.txt").write_text("가 나\n", encoding="utf-8")


def _negative_id(folder: Path) -> None:
    edit(folder / "vocab.json", lambda vocab: vocab.update(model=-1))


def _huge_id(folder: Path) -> None:
    edit(folder / "vocab.json", lambda vocab: vocab.update(model=2**40))


def _text_for_id(folder: Path) -> None:
    edit(folder / "vocab.json", lambda vocab: vocab.update(model={"vocab": {}}))


def _same_id_twice(folder: Path) -> None:
    edit(folder / "vocab.json", lambda vocab: vocab.update(model=vocab["a"]))


def _no_json(folder: Path) -> None:
    (folder / "vocab.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    "spoil",
    [_no_merges, _bad_merge, _unknown_merge, _negative_id, _huge_id, _text_for_id, _same_id_twice, _no_json],
)
def test_bad_vocab_files_are_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    material.dot42_like(tmp_path)
    spoil(tmp_path)
    with pytest.raises((VocabError, CheckpointError)) as caught:
        read(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"type": "BPE"}}',
        '{"model": {"type": "WordPiece", "vocab": {}}}',
    ],
)
def test_bad_tokenizer_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises((VocabError, CheckpointError)):
        read(tmp_path)


def test_a_word_level_tokenizer_is_named_as_unsupported(tmp_path: Path) -> None:
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1}},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(VocabError, match="WordLevel"):
        read(tmp_path)


def test_a_truncated_tokenizer_model_is_refused(tmp_path: Path) -> None:
    material.sentencepiece_like(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(VocabError, match=r"tokenizer\.model"):
        read(tmp_path)


def test_a_folder_without_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(VocabError, match=r"tokenizer\.json"):
        read(tmp_path)


def test_sentencepiece_models_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    import sentencepiece

    material.sentencepiece_like(tmp_path, user_defined_symbols="[A],[B]", control_symbols="<ctl>")
    path = tmp_path / "tokenizer.model"
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    proto = parse_model(path.read_bytes(), path)
    assert len(proto.pieces) == library.get_piece_size()
    for token_id, piece in enumerate(proto.pieces):
        assert piece.text == library.id_to_piece(token_id)
        assert piece.score == pytest.approx(library.get_score(token_id))
        assert (piece.kind is TokenType.CONTROL) == library.is_control(token_id)
        assert (piece.kind is TokenType.BYTE) == library.is_byte(token_id)
        assert (piece.kind is TokenType.UNKNOWN) == library.is_unknown(token_id)
        assert (piece.kind is TokenType.UNUSED) == library.is_unused(token_id)
    assert {piece.text for piece in proto.pieces if piece.kind is TokenType.USER_DEFINED} == {"[A]", "[B]"}
    assert (proto.algorithm, proto.byte_fallback, proto.remove_extra_whitespaces) == (2, True, False)
    assert proto.roles == {"unknown": 0, "bos": 1, "eos": 2, "padding": -1}


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60), cut=st.integers(0, 400), place=st.integers(0, 400))
def test_damaged_sentencepiece_models_are_refused_or_read(data: bytes, cut: int, place: int) -> None:
    whole = b"".join(
        b"\x0a" + bytes([len(text) + 7]) + b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\x80?"
        for text in (b"<unk>", b"a", b"b", b"ab", b"\xed\x95\x9c")
    )
    damaged = (whole[:place] + data + whole[place:])[: len(whole) - cut % 50]
    with contextlib.suppress(VocabError):  # anything else would be a crash on a hostile file
        parse_model(damaged, Path("tokenizer.model"))
