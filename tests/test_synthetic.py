"""Synthetic checkpoints: readable by the libraries they imitate, the same each time, random as they say."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kconv.converters.samples.synthetic import write_eagle, write_llama_3_ko
from kconv.converters.samples.weights import llama_shapes, write_checkpoint
from kconv.core.errors import UsageError
from kconv.core.tensor import DType

ROOT = Path(__file__).parent.parent
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
}


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


@pytest.mark.parametrize("write", [write_eagle, write_llama_3_ko])
def test_each_process_writes_the_same_bytes(write: object, tmp_path: Path) -> None:
    name = getattr(write, "__name__", "")
    code = (
        f"from pathlib import Path; from kconv.converters.samples.synthetic import {name} as write; "
        f"write(Path({str(tmp_path)!r}) / 'other')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    here = write_eagle if write is write_eagle else write_llama_3_ko
    made = here(tmp_path / "here")
    assert digests(made) == digests(tmp_path / "other")
    assert len({path.stat().st_mode for path in made.iterdir()}) == 1  # whoever may read one may read all


@pytest.mark.parametrize("dtype", list(DType))
def test_weights_do_not_depend_on_how_they_are_stored(dtype: DType, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    one = load_file(write_checkpoint(tmp_path / "one", CONFIG, dtype=dtype)[0])
    sharded = write_checkpoint(tmp_path / "sharded", CONFIG, dtype=dtype, shards=5)
    pickled = write_checkpoint(tmp_path / "bin", CONFIG, dtype=dtype, shards=2, weight_format="bin")
    parts = [load_file(path) for path in sharded]
    loaded = [torch.load(path, weights_only=True) for path in pickled]
    for others in (parts, loaded):
        assert all(others)
        merged = {name: tensor for part in others for name, tensor in part.items()}
        assert sorted(merged) == sorted(one)
        assert all(torch.equal(merged[name], one[name]) for name in one)
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == llama_shapes(CONFIG)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text("utf-8"))
    places = {name: path.name for path, part in zip(sharded, parts, strict=True) for name in part}
    assert index["weight_map"] == places


@pytest.mark.parametrize("dtype", list(DType))
def test_what_bench_streams_is_what_the_library_writes(dtype: DType, tmp_path: Path) -> None:
    """Benchmarks need more weights than fit into memory, so their files are written without the library."""
    spec = importlib.util.spec_from_file_location("weights", ROOT / "bench" / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    streamed = functools.partial(bench.write_safetensors, threads=2)
    write_checkpoint(tmp_path / "library", CONFIG, dtype=dtype, shards=3, seed=7)
    write_checkpoint(tmp_path / "bench", CONFIG, dtype=dtype, shards=3, seed=7, writer=streamed)
    assert digests(tmp_path / "bench") == digests(tmp_path / "library")


def test_transformers_runs_them(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write_checkpoint(tmp_path, CONFIG, dtype=DType.BF16, shards=2)
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        logits = model(torch.arange(2, 90)[None]).logits[0]
    assert torch.isfinite(logits).all()
    assert 0.3 < float(logits.std()) < 3  # neither faded nor blown up


def test_no_two_rows_are_equal(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(write_checkpoint(tmp_path, {**CONFIG, "vocab_size": 5000}, dtype=DType.F16)[0])
    rows = [row.tobytes() for tensor in tensors.values() if tensor.ndim == 2 for row in tensor]
    assert len(set(rows)) == len(rows)
    embedding = tensors["model.embed_tokens.weight"].astype(np.float64)
    assert embedding.std() == pytest.approx(1 / 8, rel=0.02)
    assert abs(embedding.mean()) < 0.01


def test_the_card_says_the_weights_are_random(tmp_path: Path) -> None:
    for write, name in ((write_eagle, "eagle"), (write_llama_3_ko, "llama")):
        card = (write(tmp_path / name) / "README.md").read_text("utf-8")
        assert "weights are random" in card


def test_eagle_has_one_token_for_both_ends_and_splits_digits(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = write_eagle(tmp_path / "eagle")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert config["bos_token_id"] == config["eos_token_id"] == tokenizer.token_to_id("</s>") == 2
    assert config["vocab_size"] == tokenizer.get_vocab_size() == 2500
    tokens = tokenizer.encode("안녕 2024년 🦕뷁").tokens
    assert tokens[-7:] == [f"<0x{byte:02X}>" for byte in "🦕뷁".encode()]
    assert "\u25812" in tokenizer.get_vocab()
    assert [token for token in tokens if token.strip("\u2581").isdigit()] == ["2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer.encode("안녕 2024년 🦕뷁").ids) == "안녕 2024년 🦕뷁"


def test_llama_3_ko_names_stale_ids_and_reaches_words_without_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = write_llama_3_ko(tmp_path / "llama", rope_scaling=True, pairs=False)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["num_attention_heads"] == 4 * config["num_key_value_heads"]
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    assert tokenizer.token_to_id("<|eot_id|>") == begin + 9
    assert config["vocab_size"] == tokenizer.get_vocab_size() == begin + 256
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    assert all(isinstance(merge, str) for merge in model["merges"])
    ids = tokenizer.encode("안녕하세요").ids
    assert ids[0] == begin
    assert len(ids) == 2
    made = {"".join(merge.split(" ")) for merge in model["merges"]}
    assert tokenizer.id_to_token(ids[1]) not in made


def test_more_shards_than_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1000 shards"):
        write_checkpoint(tmp_path, CONFIG, shards=1000)
