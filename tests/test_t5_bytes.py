"""ByT5's vocabulary of bytes: equal to transformers' ByT5Tokenizer, and in llama.cpp equal to itself."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from t5_checkpoints import write_t5

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.core.checkpoint import Checkpoint
from kconv.core.errors import VocabError
from kconv.core.gguf_file import read_header
from kconv.core.vocabulary import TokenType
from kconv.vocab.adapters import enabled_adapters
from kconv.vocab.byte_vocabulary import is_byte_tokenizer
from kconv.vocab.candidates import candidates
from kconv.vocab.context import read_context
from kconv.vocab.exam import exam
from kconv.vocab.parity import declared, grade, write_vocab_only
from kconv.vocab.probe import LlamaProbe, Request
from kconv.vocab.selection import adapted
from kconv.vocab.sources import read_source
from kconv.vocab.texts import built_in

BYT5 = {"tokenizer_class": "ByT5Tokenizer"}
NAMED = '{"tokenizer_class": "ByT5Tokenizer"}'


def folder_of(folder: Path, files: dict[str, Any], **config: Any) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Checkpoint(folder, {"vocab_size": 384, **config}, {}, ())


def random_text(chance: random.Random) -> str:
    """Valid UTF-8 of any planes, without surrogates."""
    tops = (0x7F, 0x7F, 0x7FF, 0xFFFF, 0x10FFFF)
    points = (chance.randint(0, chance.choice(tops)) for _ in range(chance.randint(1, 40)))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def texts() -> list[str]:
    """3,000: Korean in both forms, Jamo, emoji, control characters, U+2581, sentinels spelled, random."""
    chance = random.Random(4)
    known = list(built_in())
    chance.shuffle(known)
    spelled = [
        f"한국의 수도는 <extra_id_{number}>이다.{' ' * (number % 3)}<extra_id_{number + 1}>"
        for number in range(100)
    ]
    odd = [
        "".join(map(chr, range(32))),
        "\x7f\x80\x9f",
        "▁▁ ▁가▁",
        "<extra_id_125> <extra_id_-1> <extra_id_0",
        "\ufeff가",
    ]
    forms = [unicodedata.normalize("NFD", text) for text in known[:600]]
    all_texts = [*spelled, *odd, *forms, *known[600:1800], *(random_text(chance) for _ in range(1300))]
    return [text for text in all_texts if not any(special in text for special in ("<pad>", "</s>", "<unk>"))][
        :3000
    ]


def llama_ids(source: Any, checkpoint: Checkpoint, asked: Sequence[str], folder: Path) -> list[list[int]]:
    (candidate,) = candidates(source)
    rows = checkpoint.config["vocab_size"]
    vocab, _ = adapted(candidate, read_context(checkpoint, rows=rows), enabled_adapters())
    path = folder / "vocab.gguf"
    write_vocab_only(path, "t5", vocab)
    with LlamaProbe(path) as probe:
        return [list(ids) for ids in probe.encode([Request(text, True, True) for text in asked])]


def test_ids_are_those_of_byt5tokenizer(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    original = ByT5Tokenizer()
    checkpoint = folder_of(tmp_path, {"tokenizer_config.json": BYT5})
    source = read_source(checkpoint)
    asked = texts()
    assert len(asked) >= 3000
    right = [original(text)["input_ids"] for text in asked]
    assert [[*ids, 1] for ids in source.encode_batch(asked, True)] == right
    assert llama_ids(source, checkpoint, asked, tmp_path) == right
    plain = [original(text, split_special_tokens=True)["input_ids"] for text in asked[:100]]
    assert [[*ids, 1] for ids in source.encode_batch(asked[:100], False)] == plain


def test_the_vocabulary_of_a_converted_file(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", vocab_size=390)
    metadata = read_header(to_gguf(folder, tmp_path / "out", verify=False).outputs[0].path).metadata
    keys = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, types = keys["tokens"], keys["token_type"]
    assert tokens[:3] == ("<pad>", "</s>", "<unk>")
    assert (tokens[3 + 0x41], tokens[3 + 0x20], tokens[258]) == ("A", "Ġ", "ÿ")
    assert tokens[259:262] == ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    assert tokens[383:] == ("<extra_id_124>", *(f"[PAD{index}]" for index in range(384, 390)))
    assert types[:3] == (TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN)
    assert set(types[3:259]) == {TokenType.NORMAL}
    assert set(types[259:384]) == {TokenType.CONTROL}
    assert (keys["model"], keys["merges"]) == ("gpt2", ("ÿ ÿ",))
    flags = [keys[f"add_{name}"] for name in ("bos_token", "eos_token", "space_prefix")]
    assert flags == [False, True, False]
    roles = [keys[f"{role}_token_id"] for role in ("padding", "eos", "unknown")]
    assert roles == [0, 1, 2]


@pytest.mark.parametrize("text", ["가  나 .\n , !", " 앞뒤 ", "don ' t", "\u2581 a", "👍🏽", "e\u0301"])
def test_llama_cpp_gives_text_back_byte_for_byte(text: str, tmp_path: Path) -> None:
    import ctypes

    import llama_cpp

    checkpoint = folder_of(tmp_path, {"tokenizer_config.json": BYT5})
    llama_ids(read_source(checkpoint), checkpoint, [], tmp_path)
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(tmp_path / "vocab.gguf").encode(), parameters)
    vocab = llama_cpp.llama_model_get_vocab(model)
    ids = [byte + 3 for byte in text.encode()]
    room = ctypes.create_string_buffer(200)
    size = llama_cpp.llama_detokenize(
        vocab, (ctypes.c_int32 * len(ids))(*ids), len(ids), room, 200, False, False
    )
    llama_cpp.llama_model_free(model)
    assert room.raw[:size].decode() == text


def saved(folder: Path, **options: Any) -> dict[str, Any]:
    """The files transformers writes for a ByT5Tokenizer."""
    from transformers import ByT5Tokenizer

    ByT5Tokenizer(**options).save_pretrained(folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"extra_ids": 10},
        {"extra_ids": 0},
        {"bos_token": "<s>"},
        {"eos_token": "[EOS]", "pad_token": "[PAD]"},
        {"extra_ids": 2, "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<번역>"]},
    ],
    ids=repr,
)
def test_saved_tokenizers_have_the_ids_transformers_gives(options: dict[str, Any], tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    files = saved(tmp_path / "saved", **options)
    original = ByT5Tokenizer.from_pretrained(tmp_path / "saved")
    text = "가<extra_id_0>나<extra_id_1><번역>다<extra_id_9><s>라"
    for kept in (files, {"tokenizer_config.json": {**BYT5, **options}}):
        checkpoint = folder_of(tmp_path / str(len(kept)), kept)
        source = read_source(checkpoint)
        assert [*source.encode(text, True), 1] == original(text)["input_ids"]
        assert source.special["eos"] == original.eos_token_id == 1


def test_tokens_beyond_the_rows_are_left_out_and_told(tmp_path: Path) -> None:
    source = read_source(folder_of(tmp_path, {"tokenizer_config.json": BYT5}, vocab_size=300))
    assert source.size == 300
    assert [note.name for note in source.notes] == ["tokens-without-rows"]
    assert source.encode("<extra_id_40>", True) == [299]
    assert source.encode("<extra_id_41>", True) == [byte + 3 for byte in b"<extra_id_41>"]


def test_all_is_exact_for_any_number_of_rows(tmp_path: Path) -> None:
    for rows in (259, 260, 384, 1000):
        checkpoint = folder_of(tmp_path, {"tokenizer_config.json": BYT5}, vocab_size=rows)
        source = read_source(checkpoint)
        (candidate,) = candidates(source)
        vocab, _ = adapted(candidate, read_context(checkpoint, rows=rows), enabled_adapters())
        write_vocab_only(tmp_path / "vocab.gguf", "t5", vocab)
        with LlamaProbe(tmp_path / "vocab.gguf") as probe:
            assert grade("bytes", probe, exam(source), source, declared(vocab)).verdict == "exact"


@pytest.mark.parametrize(
    ("files", "config", "is_bytes"),
    [
        ({"tokenizer_config.json": NAMED}, {}, True),
        ({}, BYT5, True),
        ({"tokenizer_config.json": NAMED}, {"tokenizer_class": "T5Tokenizer", "vocab_size": 259}, True),
        ({}, {"tokenizer_class": "T5Tokenizer"}, True),
        ({"tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer"}'}, {}, True),
        ({}, {"tokenizer_class": "T5Tokenizer", "vocab_size": 32128}, False),
        ({"spiece.model": ""}, {"tokenizer_class": "T5Tokenizer"}, False),
        ({"tokenizer.json": "{}"}, {"tokenizer_class": "T5Tokenizer"}, False),
        ({}, {}, False),
        ({"tokenizer_config.json": '{"tokenizer_class": 7}'}, BYT5, False),
    ],
)
def test_which_folders_are_read_so(
    files: dict[str, str], config: dict[str, Any], is_bytes: bool, tmp_path: Path
) -> None:
    assert is_byte_tokenizer(folder_of(tmp_path, files, **config)) is is_bytes


def test_a_misnamed_tokenizer_is_told_of(tmp_path: Path) -> None:
    source = read_source(folder_of(tmp_path, {}, tokenizer_class="T5Tokenizer"))
    assert [(note.name, note.warning) for note in source.notes] == [("byte-vocabulary", True)]


def test_a_t5_folder_without_any_tokenizer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_t5(tmp_path / "model", tokenizer_class=None)
    assert main(["to-gguf", str(folder), "-o", str(tmp_path / "out")]) == 3
    assert "contains no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"extra_ids": -1}, "extra_ids is -1"),
        ({"extra_ids": "all"}, "extra_ids is 'all'"),
        ({"extra_ids": 10**12}, "extra_ids is 1000000000000"),
        ({"added_tokens_decoder": {"70": {"content": "<x>"}}}, "is given the id 70, which belongs to a byte"),
        ({"added_tokens_decoder": {"259": {"content": "A"}}}, "'A' appears twice"),
        ({"added_tokens_decoder": {"259": {"content": "</s>"}}}, "appears twice"),
        ({"eos_token": "<pad>"}, "'<pad>' appears twice"),
    ],
)
def test_contradictions_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = folder_of(tmp_path, {"tokenizer_config.json": {**BYT5, **config}})
    with pytest.raises(VocabError, match=re.escape(message)):
        read_source(checkpoint)


def test_inspect_shows_the_sentinels_by_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_t5(tmp_path / "model")
    (path,) = (output.path for output in to_gguf(folder, tmp_path / "out", verify=False).outputs)
    for shown in (folder, path):
        assert main(["inspect", str(shown)]) == 0
        printed = capsys.readouterr().out
        assert "258, 257, 256" in printed
        assert "<extra_id_0> is 259, <extra_id_124> is 383" in printed
