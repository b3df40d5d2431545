"""Tekken, Mistral's byte-level BPE: as transformers has it (Nemo, Small), and alone in Mistral's own file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from packages_material import MISTRAL_COMMON, file_of
from vocab_material import checkpoint, model

from kconv.converters.samples import write_sample
from kconv.core.errors import VocabError
from kconv.flows.convert import to_gguf
from kconv.vocab.selection import select_vocab

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


def test_tekken_of_transformers_is_exact(nemo: Path) -> None:
    found, parity = select_vocab(model(131072), checkpoint(nemo, model_type="mistral"))
    assert parity.verdict == "exact"
    assert found.vocab is not None
    assert (found.vocab.pre, found.vocab.size) == ("tekken", 131072)


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
