"""Tokenizers a GPT-J folder may come with: byte-level ones, KoGPT's special tokens, ones without a home."""

from __future__ import annotations

import json
import shutil
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gptj_material import SPECIALS, byte_level_tokenizer, character_tokenizer, random_gptj

from kconv.converters import to_gguf
from kconv.converters.samples.tokenizer_files import LLAMA_3_PATTERN
from kconv.core.errors import TokenMismatch, VocabError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.core.vocabulary import TokenType
from kconv.verify import verify
from kconv.vocab.candidates import candidates
from kconv.vocab.parity import write_vocab_only
from kconv.vocab.pretokenizers import PRE_TOKENIZERS
from kconv.vocab.probe import LlamaProbe, Request
from kconv.vocab.sources import read_source
from kconv.vocab.texts import built_in

ROLES = {"bos": 0, "eos": 1, "unknown": 2, "padding": 3, "mask": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest GPT-J, without a tokenizer; it has more rows than tokens."""
    return random_gptj(
        tmp_path_factory.mktemp("gptj") / "model",
        n_embd=32,
        n_head=2,
        n_layer=1,
        rotary_dim=8,
        vocab_size=1300,
    )


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_tokenizer(tmp_path_factory.mktemp("byte-level"))


def folder_of(model: Path, tokenizer: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return Path(shutil.copytree(tokenizer, folder, dirs_exist_ok=True))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), "utf-8")


def special_ids(path: Path) -> dict[str, int]:
    keys = read_header(path).metadata
    ids = {role: keys.get(f"tokenizer.ggml.{role}_token_id") for role in ROLES}
    return {role: value for role, value in ids.items() if isinstance(value, int)}


def test_byte_level_is_exact_and_rows_without_a_token_are_padded(
    model: Path, byte_level: Path, tmp_path: Path
) -> None:
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    made = to_gguf(folder, tmp_path, types=("f32",), verify=False)
    assert made.parity.verdict == "exact"
    assert made.parity.texts > 3000
    assert special_ids(made.outputs[0].path) == ROLES
    keys = read_header(made.outputs[0].path).metadata
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert (len(tokens), tokens[1299]) == (1300, "[PAD1299]")
    assert tokens[:5] == SPECIALS
    assert set(types[:5]) == {TokenType.CONTROL}
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert verify(made.outputs[0].path, folder, tokens=40).verdict == "passed"


def test_special_tokens_no_file_names_are_found_by_their_texts(
    model: Path, byte_level: Path, tmp_path: Path
) -> None:
    """KoGPT's card gives the five by hand; config.json knows the first two."""
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    (folder / "special_tokens_map.json").unlink()
    made = to_gguf(folder, tmp_path, types=("f32",), verify=False)
    assert special_ids(made.outputs[0].path) == ROLES
    (note,) = [note for note in made.notes if note.name == "kogpt-specials"]
    assert "padding is 3 '[PAD]'" in note.message
    assert verify(made.outputs[0].path, folder, tokens=40).verdict == "passed"


def test_the_tokenizers_word_counts_before_texts_and_config(
    model: Path, byte_level: Path, tmp_path: Path
) -> None:
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    edit(folder / "special_tokens_map.json", pad_token="[EOS]")
    edit(folder / "config.json", bos_token_id=50256, eos_token_id=50256)
    made = to_gguf(folder, tmp_path, types=("f32",), verify=False)
    assert special_ids(made.outputs[0].path) == {**ROLES, "padding": 1}


def test_spelled_special_tokens_that_are_no_added_tokens_stay_text(
    model: Path, byte_level: Path, tmp_path: Path
) -> None:
    """The role of ``[MASK]`` is known, but the tokenizer cuts the text ``[MASK]`` into pieces."""
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "[MASK]"]
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    assert 4 not in read_source(open_checkpoint(folder)).encode("빈칸은 [MASK]입니다", True)
    made = to_gguf(folder, tmp_path, types=("f32",), verify=False)
    assert made.parity.verdict == "exact"
    assert special_ids(made.outputs[0].path) == ROLES


SPLITS: dict[str, tuple[dict[str, Any], str]] = {
    "gpt-2's own": (
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "gpt-2",
    ),
    "llama 3's": (
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": LLAMA_3_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "dbrx",
    ),
    "digits one by one": (
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "starcoder",
    ),
}


@pytest.mark.parametrize("case", SPLITS)
def test_byte_level_with_other_splits_is_exact(
    case: str, model: Path, byte_level: Path, tmp_path: Path
) -> None:
    splits, name = SPLITS[case]
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    edit(folder / "tokenizer.json", pre_tokenizer=splits)
    made = to_gguf(folder, tmp_path, types=("f32",), verify=False)
    assert made.parity.verdict == "exact"
    assert read_header(made.outputs[0].path).metadata["tokenizer.ggml.pre"] == name


def test_byte_level_that_begins_every_text_with_a_space_needs_only_that(
    model: Path, byte_level: Path, tmp_path: Path
) -> None:
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    splits = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    edit(folder / "tokenizer.json", pre_tokenizer=splits)
    assert to_gguf(folder, tmp_path, types=("f32",), verify=False).parity.verdict == "leading-space"


@pytest.mark.parametrize("pre", [*(pre.name for pre in PRE_TOKENIZERS), "sarvam-moe"])
def test_every_pre_tokenizer_does_the_same_in_phi2(
    pre: str, model: Path, byte_level: Path, tmp_path: Path
) -> None:
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    candidate = next(iter(candidates(read_source(open_checkpoint(folder)))))
    answers = []
    for arch in ("llama", "phi2"):
        path = tmp_path / f"{arch}.gguf"
        write_vocab_only(path, arch, replace(candidate.vocab, pre=pre))
        with LlamaProbe(path) as probe:
            answers.append(probe.encode([Request(text) for text in built_in()[:200]]))
    assert answers[0] == answers[1]
    assert any(len(ids) > 5 for ids in answers[1])


@pytest.mark.parametrize("kind", ["metaspace", "whitespace"])
def test_a_bpe_over_characters_is_refused_with_the_reason(kind: str, model: Path, tmp_path: Path) -> None:
    folder = folder_of(
        model, character_tokenizer(tmp_path / "tokenizer", pre_tokenizer=kind), tmp_path / "kogpt"
    )
    with pytest.raises(VocabError) as caught:
        to_gguf(folder, tmp_path / "out", types=("f32",), verify=False)
    assert caught.value.exit_code == 3
    assert "character BPE without byte tokens" in caught.value.message
    assert "raw BPE" in caught.value.message
    assert "--allow-tokenizer-mismatch" in str(caught.value.hint)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("kind", ["metaspace", "whitespace"])
def test_the_nearest_to_a_bpe_over_characters_loads_and_reads_what_it_knows(
    kind: str, model: Path, tmp_path: Path
) -> None:
    folder = folder_of(
        model, character_tokenizer(tmp_path / "tokenizer", pre_tokenizer=kind), tmp_path / "kogpt"
    )
    made = to_gguf(folder, tmp_path, types=("f32",), verify=False, allow_tokenizer_mismatch=True)
    assert made.parity.verdict == "mismatch"
    assert [note.name for note in made.notes if note.warning][-1] == "tokenizer-mismatch"
    path = made.outputs[0].path
    source = read_source(open_checkpoint(folder))
    texts = [text for text in built_in() if text and 2 not in source.encode(text, True)]
    assert len(texts) > 100
    space = " " if kind == "metaspace" else ""  # which the tokenizer adds where there is none
    with LlamaProbe(path) as probe:
        asked = [Request(text if text[:1] in (" ", "\u2581") else space + text) for text in texts]
        ids = probe.encode(asked)
    assert ids == [array("i", source.encode(text, True)) for text in texts]
    proof = verify(path, folder, tokens=40)
    assert (proof.verdict, proof.tokens.verdict) == ("warned", "warned")


def test_bytes_the_vocabulary_lacks_are_told(model: Path, byte_level: Path, tmp_path: Path) -> None:
    """A byte-level BPE trained without the alphabet gives ``[UNK]`` where llama.cpp gives nothing."""
    folder = folder_of(model, byte_level, tmp_path / "kogpt")
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    lost = "ð"  # the first byte of emoji
    spec["model"]["merges"] = [merge for merge in merges if lost not in "".join(merge)]
    for text in [text for text in vocab if lost in text]:
        number = vocab.pop(text)
        vocab[f"[unused {number}]"] = number
    (folder / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with pytest.raises(TokenMismatch) as caught:
        to_gguf(folder, tmp_path / "out", types=("f32",), verify=False)
    assert "characters outside the vocabulary" in str(caught.value.hint)
