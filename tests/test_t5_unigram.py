"""SentencePiece unigram vocabularies as llama.cpp's tokenizer of that kind."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import vocab_material as material

from kconv.converters.tokenizer import read_tokenizer
from kconv.core.checkpoint import Checkpoint
from kconv.core.errors import TokenMismatch, VocabError
from kconv.core.model import Model
from kconv.core.vocabulary import TokenType, Vocab, gguf_keys
from kconv.verify.tokenizer_keys import check_tokenizer_keys
from kconv.vocab.in_gguf import read_vocab
from kconv.vocab.parity import Parity
from kconv.vocab.selection import select_vocab
from kconv.vocab.unigram import equally_good

T5 = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
SIZE = 1800


def t5_like(folder: Path, *, byte_fallback: bool = False) -> int:
    """spiece.model trained as T5's was, padding 0, EOS 1, unknown 2; the number of its pieces."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    size = material.sentencepiece_like(
        folder,
        size=SIZE,
        model_type="unigram",
        byte_fallback=byte_fallback,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        **ids,
    )
    (folder / "tokenizer.model").rename(folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(T5))
    return size


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    assert t5_like(folder) == SIZE
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained tokenizer."""
    return Path(shutil.copytree(trained, tmp_path / "t5"))


def checkpoint(folder: Path, rows: int) -> Checkpoint:
    return Checkpoint(folder, {"model_type": "t5", "vocab_size": rows}, {}, ())


def settled(folder: Path, rows: int) -> tuple[Model, Parity]:
    read = checkpoint(folder, rows)
    return select_vocab(material.model(rows), read, read_tokenizer(read))


def test_a_spiece_model_is_exact_with_its_sentinels(folder: Path) -> None:
    model, parity = settled(folder, SIZE + 128)
    assert (parity.verdict, parity.exact) == ("exact", parity.texts)
    assert model.vocab is not None
    vocab = model.vocab
    assert (vocab.model, vocab.add_bos, vocab.add_eos, vocab.add_space_prefix) == ("t5", False, True, True)
    assert vocab.remove_extra_whitespaces
    assert len(vocab.charsmap) > 100_000
    assert vocab.special == {"padding": 0, "eos": 1, "unknown": 2}
    assert vocab.tokens[SIZE : SIZE + 101] == (
        *(f"<extra_id_{n}>" for n in range(99, -1, -1)),
        f"[PAD{SIZE + 100}]",
    )
    assert vocab.types[SIZE + 99] is TokenType.CONTROL


def test_sentinels_only_where_the_embedding_has_rows_for_them(folder: Path) -> None:
    assert read_tokenizer(checkpoint(folder, SIZE + 99)).size == SIZE
    (folder / "tokenizer_config.json").write_text(json.dumps({**T5, "extra_ids": 7}))
    source = read_tokenizer(checkpoint(folder, SIZE + 99))
    assert (source.size, source.tokens[-1]) == (SIZE + 7, "<extra_id_0>")
    (folder / "tokenizer_config.json").unlink()  # then config.json says that it is a T5
    bare = read_tokenizer(checkpoint(folder, SIZE + 100))
    assert (bare.size, bare.table.add_bos, bare.table.add_eos) == (SIZE + 100, False, True)
    (folder / "tokenizer_config.json").write_text(json.dumps({**T5, "extra_ids": "some"}))
    with pytest.raises(VocabError, match="extra_ids is 'some'"):
        read_tokenizer(checkpoint(folder, SIZE + 100))


def test_bytes_that_llama_cpp_cannot_spell_are_named_as_the_reason(tmp_path: Path) -> None:
    size = t5_like(tmp_path, byte_fallback=True)
    with pytest.raises(TokenMismatch, match="encodes as bytes"):
        settled(tmp_path, size + 100)


def test_ke_t5_is_exact(real: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").symlink_to(real / "tokenizers" / "ke-t5.model")
    model, parity = settled(tmp_path, 64128)
    print(f"ke-t5: {parity.exact}/{parity.texts}, {parity.ties} ties")
    assert parity.verdict == "exact"
    assert parity.ties < 0.01 * parity.texts
    assert [note.name for note in model.notes] == ["pad-rows", "equally-good"]


def test_a_tokenizer_json_alone_is_measured_as_it_is(real: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(real / "hf_t5x_tiny" / name)
    model, parity = settled(tmp_path, 32128)
    print(f"tokenizer.json of hf_t5x_tiny: {parity.exact}/{parity.texts}")
    assert parity.verdict == "sentencepiece"
    assert 0.99 * parity.texts < parity.exact < parity.texts
    assert [note.name for note in model.notes if note.warning] == ["sentencepiece"]


def test_a_spiece_model_counts_before_its_copy_unless_they_differ(real: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model"):
        (tmp_path / name).write_bytes((real / "hf_t5x_tiny" / name).read_bytes())
    assert read_tokenizer(checkpoint(tmp_path, 32128)).description.files[0] == "spiece.model"
    text = (tmp_path / "tokenizer.json").read_text("utf-8").replace("<extra_id_99>", "<번역>")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    source = read_tokenizer(checkpoint(tmp_path, 32128))
    assert source.description.files[0] == "tokenizer.json"
    assert source.tokens[32000] == "<번역>"


def test_cuts_that_are_equally_good(folder: Path) -> None:
    source = read_tokenizer(checkpoint(folder, SIZE))
    ids = {text: token for token, text in enumerate(source.tokens) if text}
    same = equally_good(source.table, source.scores)
    a, b = ids["이"], ids["다"]
    assert same([a, b, a], [a, b, a])
    assert not same([a, b], [b, a])  # as good, but another text
    whole = next(text for text in ids if len(text) == 2 and set(text) <= set(ids) and "▁" not in text)
    assert not same([ids[whole]], [ids[character] for character in whole])  # the same text, not as good


def test_the_keys_of_the_file_are_read_back(tmp_path: Path) -> None:
    vocab = Vocab("t5", ("<pad>", "</s>", "<unk>", "▁가"), (TokenType.NORMAL,) * 4, (0.0, 0.0, 0.0, -1.5),
                  add_eos=True, special={"eos": 1, "unknown": 2, "padding": 0}, remove_extra_whitespaces=True,
                  charsmap=bytes(range(256)))  # fmt: skip
    assert read_vocab(gguf_keys(vocab)) == (vocab, ())
    from kconv.core.gguf_file import read_header, write_header

    write_header(tmp_path / "vocab.gguf", "t5", gguf_keys(vocab), ())
    assert read_vocab(read_header(tmp_path / "vocab.gguf").metadata) == (vocab, ())
    bare, faults = read_vocab({"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": "x"})
    assert (bare.add_eos, bare.add_bos, bare.add_space_prefix) == (True, False, False)
    assert [fault.key for fault in faults] == ["tokenizer.ggml.precompiled_charsmap"]


@pytest.mark.parametrize(
    "damage", [b"", b"\x00", b"\xff\xff\xff\x7f", b"\xff" * 64, b"\x08\0\0\0" + b"\xff" * 9]
)
def test_a_damaged_normalization_ends_nothing_but_the_conversion(damage: bytes, folder: Path) -> None:
    """Sentencepiece or llama.cpp may refuse or die of it, in the child."""
    data = (folder / "spiece.model").read_bytes()
    # normalizer_spec again (field 3), merged into the first: precompiled_charsmap (field 2) replaced
    (folder / "spiece.model").write_bytes(data + bytes([0x1A, 2 + len(damage), 0x12, len(damage)]) + damage)
    with contextlib.suppress(VocabError, TokenMismatch):
        settled(folder, SIZE)


# Key, new value (None: left out), words of the finding.
DAMAGES = {
    "add_space_prefix": (False, "no space before a text"),
    "add_space_prefix missing": (None, "no space before a text"),
    "remove_extra_whitespaces": (False, "would keep extra spaces"),
    "remove_extra_whitespaces missing": (None, "would keep extra spaces"),
    "precompiled_charsmap": (bytes(64), "compiled normalization"),
    "precompiled_charsmap missing": (None, "compiled normalization"),
}


def test_a_damage_to_what_precedes_the_cutting_is_named(folder: Path) -> None:
    """Each by its key, whatever the parity texts show of it."""
    vocab = settled(folder, SIZE)[0].vocab
    assert vocab is not None
    good = gguf_keys(vocab)
    assert check_tokenizer_keys(good, vocab)[0] == []
    for name, (value, words) in DAMAGES.items():
        key = "tokenizer.ggml." + name.removesuffix(" missing")
        bad = {**good, key: value} if value is not None else {k: v for k, v in good.items() if k != key}
        (finding,), _ = check_tokenizer_keys(bad, vocab)
        assert (finding.where, finding.grave) == (key, True)
        assert words in finding.message
        assert finding.expected != finding.found
