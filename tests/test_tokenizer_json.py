"""A tokenizer.json for ByT5 and for vocab.json with merges.txt: in other hands it gives what these give."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_t5_bytes import BYT5, folder_of, texts

from kconv.converters.samples import write_sample
from kconv.core.errors import VocabError
from kconv.core.reading import open_checkpoint
from kconv.vocab.sources import read_source
from kconv.vocab.tokenizer_json import byte_tokenizer_json, gpt2_tokenizer_json

# What a vocabulary of bytes in llama.cpp cannot follow: white space beside the first three is dropped.
SPELLED = ["a <pad> b", "<pad>", "x</s> y", " <unk>\t가", "<extra_id_0> <pad><pad> ", "a\u3000<pad>\u00a0b"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """ByT5Tokenizer and its copy."""
    from tokenizers import Tokenizer
    from transformers import ByT5Tokenizer

    checkpoint = folder_of(tmp_path_factory.mktemp("byt5"), {"tokenizer_config.json": BYT5})
    return ByT5Tokenizer(), Tokenizer.from_str(byte_tokenizer_json(read_source(checkpoint)))


def test_ids_are_those_of_byt5tokenizer(both: tuple[Any, Any]) -> None:
    original, copy = both
    asked = [*texts(), *SPELLED]
    assert len(asked) > 3000
    assert [each.ids for each in copy.encode_batch(asked)] == [original(text)["input_ids"] for text in asked]
    plain = [each.ids for each in copy.encode_batch(asked[:500], add_special_tokens=False)]
    assert plain == [original(text, add_special_tokens=False)["input_ids"] for text in asked[:500]]
    pair = copy.encode("가", "나다")
    assert (pair.ids, set(pair.type_ids)) == (original("가", "나다")["input_ids"], {0})


@pytest.mark.parametrize("skip", [True, False])
def test_decoding_is_that_of_byt5tokenizer(both: tuple[Any, Any], skip: bool) -> None:
    original, copy = both
    chance = random.Random(6)
    # all ids, so that most are no UTF-8; and texts, but for those that hold U+FFFD themselves
    asked = [[chance.randrange(384) for _ in range(chance.randint(1, 30))] for _ in range(1500)]
    asked += [original(text)["input_ids"] for text in texts()[:1500] if "\ufffd" not in text]
    for ids in asked:
        assert copy.decode(ids, skip_special_tokens=skip) == original.decode(ids, skip_special_tokens=skip)


def test_ids_and_flags_of_the_tokens(both: tuple[Any, Any]) -> None:
    _, copy = both
    added = copy.get_added_tokens_decoder()
    assert sorted(added) == [0, 1, 2, *range(259, 384)]
    assert (added[0].content, added[1].content, added[2].content) == ("<pad>", "</s>", "<unk>")
    assert all(token.special for token in added.values())
    assert (copy.token_to_id("<extra_id_0>"), copy.token_to_id("<extra_id_124>")) == (259, 383)
    assert (copy.token_to_id("Ġ"), copy.get_vocab_size()) == (0x20 + 3, 384)


FLAGS = {"content": "<pad>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
STRINGS = {**BYT5, "pad_token": "<pad>"}
DECODER = {"added_tokens_decoder": {"0": {**FLAGS, "special": True, "lstrip": True}}}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": STRINGS},
        {"tokenizer_config.json": {**BYT5, "pad_token": {**FLAGS, "__type": "AddedToken"}}},
        {"tokenizer_config.json": STRINGS, "special_tokens_map.json": {"pad_token": FLAGS}},
        {"tokenizer_config.json": {**STRINGS, **DECODER}},
    ],
    ids=["string", "object", "special tokens map", "decoder"],
)
def test_white_space_beside_padding(files: dict[str, Any], tmp_path: Path) -> None:
    """Dropped as the flags say, where a file has any."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    checkpoint = folder_of(tmp_path, {**files, "config.json": {"model_type": "t5"}})
    copy = Tokenizer.from_str(byte_tokenizer_json(read_source(checkpoint)))
    assert copy.encode("a <pad> b").ids == AutoTokenizer.from_pretrained(tmp_path)("a <pad> b")["input_ids"]


def test_holes_and_tokens_of_its_own(tmp_path: Path) -> None:
    """Ids without a token stay free; a token added behind them has its own id."""
    from tokenizers import Tokenizer

    config = {**BYT5, "extra_ids": 2, "added_tokens_decoder": {"300": {"content": "<가>", "special": False}}}
    checkpoint = folder_of(tmp_path, {"tokenizer_config.json": config})
    source = read_source(checkpoint)
    copy = Tokenizer.from_str(byte_tokenizer_json(source))
    assert copy.encode("a<가> <extra_id_1>").ids == [100, 300, 35, 260, 1]
    assert copy.encode("a<가> <extra_id_1>", add_special_tokens=False).ids == source.encode(
        "a<가> <extra_id_1>", True
    )
    assert copy.id_to_token(290) is None


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    source = read_source(folder_of(tmp_path, {}))
    with pytest.raises(VocabError, match="not a byte vocabulary"):
        byte_tokenizer_json(source)
    with pytest.raises(VocabError, match=r"has no vocab\.json and merges\.txt"):
        gpt2_tokenizer_json(source)


@pytest.mark.parametrize("adds", [{}, {"add_bos_token": True}, {"add_prefix_space": True}])
def test_vocab_and_merges(adds: dict[str, bool], tmp_path: Path) -> None:
    """42dot's tokenizer, as transformers makes it of its files, and as the file made of them says it."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = write_sample("42dot", tmp_path / "model")
    assert not (folder / "tokenizer.json").exists()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **adds}))
    source = read_source(open_checkpoint(folder))
    copy = Tokenizer.from_str(gpt2_tokenizer_json(source))
    asked = [*texts()[:1500], "<||bos||>가<|endoftext|>", " <||pad||> \n\n 나", "3 <||unk||>42"]
    assert [each.ids for each in copy.encode_batch(asked, add_special_tokens=False)] == [
        list(ids) for ids in source.encode_batch(asked, True)
    ]
    original = AutoTokenizer.from_pretrained(folder)
    right = [original(text)["input_ids"] for text in asked]
    assert [each.ids for each in copy.encode_batch(asked)] == right
    for ids in right:
        assert copy.decode(ids) == original.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    (folder / "tokenizer.json").write_text(gpt2_tokenizer_json(source))
    reread = AutoTokenizer.from_pretrained(folder)  # which prefers the file
    assert [reread(text)["input_ids"] for text in asked] == right
