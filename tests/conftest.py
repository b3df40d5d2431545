"""Material several test files share: where the real files are, and small checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import Hub

# What kconv says is compared in English, whatever the locale here; tests/test_language.py takes this away.
os.environ["KCONV_LANG"] = "en"
# Whether a file is hashed must not depend on what the user's cache holds; tests/test_receipts.py sets it.
os.environ["KCONV_RECEIPTS"] = ""

pytest_plugins = ["workers", "skips", "leftovers", "signals_material", "command_material", "store_material"]

KOREAN = (
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. "
    "인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다. "
    "고양이가 창가에서 햇볕을 쬐고 있었어요. 오늘은 2026년 11월 22일입니다. Hello, world! "
)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real tokenizers, models and texts, which is not part of the project."""
    folder = os.environ.get("KCONV_REAL")
    if not folder:
        pytest.skip("KCONV_REAL is not set: no real tokenizers and models to compare with")
    return Path(folder)


@pytest.fixture
def hub(served: Hub) -> Iterator[Hub]:
    """The test Hub that a file has ``served``, with no fault before or after a test."""
    served.heal()
    yield served
    served.heal()


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer files of a 320-token byte-level BPE, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([KOREAN] * 10, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
