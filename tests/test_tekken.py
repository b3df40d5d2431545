"""Tekken, Mistral's byte-level BPE: as transformers has it (Nemo, Small), and alone in Mistral's own file."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from packages_material import MISTRAL_COMMON, file_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from vocab_material import checkpoint, model

from kconv.converters.samples import write_sample
from kconv.core.errors import TokenMismatch, VocabError
from kconv.flows.convert import to_gguf
from kconv.vocab.letter_classes import concerned
from kconv.vocab.selection import select_vocab
from kconv.vocab.texts import built_in

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE, ENDS = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}|{REST}"
GPT_4O = rf"{BEFORE}{UPPER}*{LOWER}+{ENDS}|{BEFORE}{UPPER}+{LOWER}*{ENDS}|\p{{N}}{{1,3}}|{REST}"
SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
SPECIAL += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]")


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of Mistral Nemo's tokenizer, made of its real tekken.json by transformers' own converter."""
    from transformers.integrations.mistral.tokenizer import MistralConverter

    folder = tmp_path_factory.mktemp("nemo")
    raw = json.loads(file_of(MISTRAL_COMMON, "mistral_common/data/tekken_240718.json").read_text("utf-8"))
    raw["special_tokens"] = [{"rank": rank, "token_str": text} for rank, text in enumerate(SPECIAL)]
    (folder / "tekken.json").write_text(json.dumps(raw), "utf-8")
    MistralConverter(str(folder / "tekken.json")).converted().save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles), "utf-8")
    return folder


def test_tekken_of_transformers_is_exact_for_plain_letters(nemo: Path) -> None:
    found, parity = select_vocab(model(131072), checkpoint(nemo, model_type="mistral"))
    assert parity.verdict == "plain-letters"
    assert found.vocab is not None
    assert (found.vocab.pre, found.vocab.size) == ("tekken", 131072)
    (note,) = [note for note in found.notes if note.name == "plain-letters"]
    assert note.warning
    plain = [text for text in built_in() if not concerned(text)]
    assert len(plain) > 1000
    assert parity.texts - parity.exact < parity.texts / 2


def trained(pattern: str, texts: list[str]) -> dict[str, Any]:
    """A byte-level BPE with that pattern, trained on texts with marks and accents."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    return made


@pytest.mark.parametrize(
    ("pattern", "verdict"),
    [(TEKKEN, "plain-letters"), (GPT_4O, "plain-letters"), (TEKKEN.replace(r"\p{N}|", r"\p{N}{1,2}|"), None)],
    ids=["tekken", "gpt-4o", "digits in twos"],
)
def test_only_that_difference_is_forgiven(pattern: str, verdict: str | None, tmp_path: Path) -> None:
    texts = [text for text in built_in() if any(unicodedata.category(letter) == "Mn" for letter in text)]
    texts += ["हिन्दी में लिखा", "ÉCOLE école ÉÉé", "한국어 문장입니다", "The WHOLE Story", "12 12 34 34"] * 20
    spec = trained(pattern, texts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    rows = len(spec["model"]["vocab"])
    if verdict is None:
        with pytest.raises(TokenMismatch):
            select_vocab(model(rows), checkpoint(tmp_path, model_type="llama"))
        return
    _, parity = select_vocab(model(rows), checkpoint(tmp_path, model_type="llama"))
    assert parity.verdict == verdict
    assert 0 < parity.exact < parity.texts


@pytest.mark.parametrize(
    ("text", "is_concerned"),
    [("안녕하세요 hello 漢字 かな", False), ("école", True), ("हिन्दी", True), ("Ж", True), ("e\u0301", True)],
)
def test_letters_that_are_divided_otherwise(text: str, is_concerned: bool) -> None:
    assert concerned(text) is is_concerned


def test_tekken_json_alone_is_refused_with_the_way_out(nemo: Path, tmp_path: Path) -> None:
    folder = write_sample("mistral", tmp_path / "model")
    for path in folder.glob("*token*"):
        path.unlink()
    shutil.copy(nemo / "tekken.json", folder)
    with pytest.raises(VocabError) as caught:
        to_gguf(folder, tmp_path / "out", types=["f32"])
    assert "tekken.json alone" in caught.value.message
    assert caught.value.message.isprintable()
    assert "get the model's tokenizer.json" in str(caught.value.hint)
    assert not list((tmp_path / "out").glob("*"))
