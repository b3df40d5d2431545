"""The embedded demo model: it is what its card says, it was trained, and it can be made again."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kconv.converters.samples import SAMPLES, write_sample
from kconv.core.errors import OutputExists, UsageError

TOOLS = Path(__file__).resolve().parent.parent / "tools"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as `kconv demo-checkpoint 42dot` writes it."""
    return write_sample("42dot", tmp_path_factory.mktemp("samples") / "42dot")


@pytest.fixture(scope="module")
def model(sample: Path) -> Any:
    """The sample in transformers, in float32, in which its float16 weights are exact."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(sample, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(sample: Path) -> Any:
    """The tokenizer its files describe, built with the tokenizers library and nothing of ours."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    files = (str(sample / "vocab.json"), str(sample / "merges.txt"))
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(json.loads((sample / "added_tokens.json").read_text("utf-8"))))
    return tokenizer


@pytest.fixture(scope="module")
def generator() -> Any:
    """tools/demo_texts/generator.py, which stands outside the package."""
    sys.path.insert(0, str(TOOLS))
    try:
        from demo_texts import generator
    finally:
        sys.path.remove(str(TOOLS))
    return generator


def perplexity(model: Any, tokenizer: Any, texts: list[str], eos: int = 2000) -> float:
    """Exp of the mean loss a token, each text from its start to <|endoftext|>."""
    import torch

    loss, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer.encode(text).ids, eos]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


def greedy(model: Any, tokenizer: Any, prompt: str, length: int = 60) -> str:
    """The greedy continuation, without the prompt."""
    import torch

    ids = torch.tensor([tokenizer.encode(prompt).ids])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=2000,
        pad_token_id=2002,
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :].tolist()))


def test_the_folder_has_the_files_of_42dot(sample: Path) -> None:
    names = {path.name for path in sample.iterdir()}
    assert names == {
        *TOKENIZER_FILES,
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
    }
    assert sum(path.stat().st_size for path in sample.iterdir()) < 7_000_000
    config = json.loads((sample / "config.json").read_text("utf-8"))
    added = json.loads((sample / "added_tokens.json").read_text("utf-8"))
    vocab = json.loads((sample / "vocab.json").read_text("utf-8"))
    # As 42dot's 50256 to 50259 of 50304 rows: right behind the BPE tokens, then rows without a token.
    assert sorted(vocab.values()) == list(range(2000))
    assert list(added.items()) == [
        ("<|endoftext|>", 2000),
        ("<||bos||>", 2001),
        ("<||pad||>", 2002),
        ("<||unk||>", 2003),
    ]
    assert (config["vocab_size"], config["eos_token_id"], config["bos_token_id"]) == (2048, 2000, 2001)
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0  # whole K-quant blocks


def test_config_has_the_keys_of_42dot(sample: Path) -> None:
    """The keys and fixed values of 42dot_LLM's config.json as its derivatives carry them."""
    config = json.loads((sample / "config.json").read_text("utf-8"))
    fixed = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "pretraining_tp": 1,
        "tokenizer_class": "GPT2TokenizerFast",
    }
    assert {key: config.get(key) for key in fixed} == fixed
    assert config["num_key_value_heads"] == config["num_attention_heads"]


def test_transformers_reads_the_tokenizer_alike(sample: Path, tokenizer: Any, generator: Any) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(sample)
    texts = [text for part in generator.held_out().values() for text in part]
    texts += [*generator.udhr_articles(), "각 각 漢字 🙂 a  b\n\n1234", "<|endoftext|><human>: 안녕 <bot>:"]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert max(ids) < 2004


def test_it_was_trained(model: Any, tokenizer: Any, generator: Any) -> None:
    """Bounds well above what the card says, and far below what random or damaged weights reach (2048)."""
    held_out = generator.held_out()
    assert perplexity(model, tokenizer, held_out["grown"]) < 1.6
    assert perplexity(model, tokenizer, held_out["written"]) < 250
    assert perplexity(model, tokenizer, held_out["chat"]) < 7


def test_the_card_tells_the_measured_perplexity(
    sample: Path, model: Any, tokenizer: Any, generator: Any
) -> None:
    card = (sample / "README.md").read_text("utf-8")
    for name, texts in generator.held_out().items():
        row = re.search(rf"^\| {name} \| (\d+) \| ([\d.]+) \|", card, re.MULTILINE)
        assert row is not None
        assert perplexity(model, tokenizer, texts) == pytest.approx(float(row[2]), rel=0.01)


def test_held_out_texts_are_not_trained_on(generator: Any) -> None:
    trained = set(itertools.islice(generator.documents(20231028), 3000))
    pieces = {sentence for text in trained for sentence in re.split(r"(?<=[.?!])\s", text)}
    for text in generator.held_out()["written"]:
        assert text not in trained
        long = [sentence for sentence in re.split(r"(?<=[.?!])\s", text) if len(sentence) > 15]
        assert sum(sentence in pieces for sentence in long) <= len(long) // 3


def test_it_writes_korean(model: Any, tokenizer: Any) -> None:
    text = greedy(model, tokenizer, "옛날 옛날 깊은 숲속에")
    syllables = sum("가" <= letter <= "힣" for letter in text)
    assert syllables > len(text) / 2
    assert "\ufffd" not in text


def test_it_answers(model: Any, tokenizer: Any) -> None:
    assert "파리" in greedy(model, tokenizer, "<human>: 프랑스의 수도는 어디인가요? <bot>:")
    assert "세종대왕" in greedy(model, tokenizer, "<human>: 한글은 누가 만들었나요? <bot>:")


def test_particles_follow_the_final_consonant(generator: Any) -> None:
    cases = {
        ("곰", "은"): "곰은",
        ("토끼", "은"): "토끼는",
        ("민준", "이"): "민준이",
        ("서울", "으로"): "서울로",
        ("숲", "으로"): "숲으로",
        ("7", "을"): "7을",
        ("2", "을"): "2를",
        ("10", "은"): "10은",
        ("모모", "이었어요"): "모모였어요",
        ("지호", "의"): "지호의",
    }
    assert {case: case[0] + generator.particle(*case) for case in cases} == cases


def test_training_again_gives_the_same_tokenizer(sample: Path, tmp_path: Path) -> None:
    """Two steps of the whole script: the tokenizer's files come out byte for byte, the rest has its shape."""
    command = [sys.executable, str(TOOLS / "train_demo.py"), "--steps", "2", "--rows", "2", "--out"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [*command, str(tmp_path / "again")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (sample / name).read_bytes(), name
    size = (tmp_path / "again" / "model.safetensors").stat().st_size
    assert size == (sample / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", sorted(SAMPLES))
def test_write_sample_twice_is_refused_and_forced(family: str, tmp_path: Path) -> None:
    folder = write_sample(family, tmp_path / "new" / "model")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputExists, match="not empty"):
        write_sample(family, folder)
    (folder / "config.json").write_text("{}")
    write_sample(family, folder, force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_write_sample_touches_nobodys_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "diary.txt").write_text("오늘은 비가 왔다.")
    with pytest.raises(OutputExists, match=re.escape("diary.txt")):
        write_sample("42dot", folder, force=True)
    assert [path.name for path in folder.iterdir()] == ["diary.txt"]
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputExists):
        write_sample("42dot", file, force=True)
    (tmp_path / "empty").mkdir()
    assert write_sample("42dot", tmp_path / "empty") == tmp_path / "empty"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine"]


def test_write_sample_of_an_unknown_family(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="42dot"):
        write_sample("gpt-5", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
