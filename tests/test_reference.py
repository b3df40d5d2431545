"""The streamed fp32 reference against transformers with the whole model in memory: the same bits."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama_material import random_llama, transformers_logits

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.families.gptj import GPTJ
from kconv.converters.families.llama import LLAMA
from kconv.converters.family import Family
from kconv.converters.mapping import build, unmapped
from kconv.converters.samples import write_sample
from kconv.converters.samples.synthetic import write_eagle
from kconv.converters.samples.weights import write_checkpoint
from kconv.core.checkpoint import Checkpoint
from kconv.core.errors import CheckpointError, EnvironmentProblem, InputError, MappingError
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Array, DType, Tensor
from kconv.core.windows import Window
from kconv.reference.model import Reading, Reference

Floats = npt.NDArray[np.float32]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied head": {"tie_word_embeddings": True},
    "grouped queries": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "head_dim of its own": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "linear rope scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama 3 rope scaling": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 50000.0},
    "bf16": {"dtype": "bfloat16"},
    "f16": {"dtype": "float16"},
    "a padding token": {"pad_token_id": 7},
}


def window(length: int, *, vocabulary: int = 320, seed: int = 0) -> Window:
    return Window(0, tuple(np.random.default_rng(seed).integers(0, vocabulary, length).tolist()))


def read(folder: Path, *windows: Window, **options: Any) -> Reading:
    checkpoint = open_checkpoint(folder)
    return Reference(checkpoint, family_for(checkpoint.config), threads=2).read(windows, **options)


def difference(folder: Path, *windows: Window) -> float:
    """The largest difference of any logit, windows read together, from transformers', each read by itself."""
    reading = read(folder, *windows)
    pairs = [
        (reading.logits(index, 0, len(each.ids)), transformers_logits(folder, list(each.ids)))
        for index, each in enumerate(windows)
    ]
    return max(float(np.abs(actual - expected).max()) for actual, expected in pairs)


# What is left where windows of several lengths are computed together: zeros added to a sum (padding) may
# group its other terms differently, and MKL multiplies few rows by other code than many, which differs by
# processor. Logits reach 4 here and 20 in stories260K; measured are 3e-6 and, on an Intel, 2.8e-5.
ROUNDING = 2e-4


@pytest.fixture(autouse=True)
def multiplied_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the bits have to be those of transformers; test_products.py holds the other library against it."""
    monkeypatch.setattr("kconv.reference.products._onednn", lambda: None)


@pytest.fixture(autouse=True)
def _as_many_threads() -> Iterator[None]:
    """Logits compared bit by bit are computed with as many threads as ``read`` asks for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    return random_llama(tmp_path_factory.mktemp("plain") / "checkpoint", small_tokenizer)


@pytest.mark.parametrize("feature", FEATURES)
def test_logits_are_transformers_own(feature: str, tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "checkpoint", small_tokenizer, **FEATURES[feature])
    assert difference(folder, window(120)) == 0.0
    assert difference(folder, window(120), window(77, seed=1), window(120, seed=2)) < ROUNDING


def test_windows_of_any_length(plain: Path) -> None:
    assert difference(plain, window(5)) == 0.0
    assert difference(plain, window(120), window(5), window(1)) < ROUNDING


def test_more_windows_than_go_together(plain: Path) -> None:
    progress_calls: list[tuple[str, int, int]] = []
    windows = [window(length, seed=length) for length in (200, 256, 130, 256, 256, 256, 256, 256, 256, 256)]
    reading = read(plain, *windows, progress=lambda *step: progress_calls.append(step))
    for index in (0, 2, 9):
        expected = transformers_logits(plain, list(windows[index].ids))
        assert np.abs(reading.logits(index, 0, len(windows[index].ids)) - expected).max() < ROUNDING
    assert progress_calls == [
        ("reference", done, progress_calls[-1][2]) for done in range(progress_calls[-1][2] + 1)
    ]


def test_any_positions_may_be_asked_for(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks and out of order, with an output matrix cut into slices, ahead of time or not."""
    monkeypatch.setattr("kconv.reference.reading._LOGITS", 40 * 4 * 320)
    monkeypatch.setattr("kconv.reference.reading._SLICE", 100 * 4 * 64)
    windows = window(230), window(180, seed=1)
    reading = read(plain, *windows)
    expected = [transformers_logits(plain, list(each.ids)) for each in windows]
    for index, start, stop in ((0, 0, 24), (0, 24, 48), (1, 3, 4), (0, 40, 230), (1, 179, 180), (1, 0, 180)):
        assert np.abs(reading.logits(index, start, stop) - expected[index][start:stop]).max() < ROUNDING
    kept = reading.logits(0, 0, 10)
    kept[:] = 0  # what is given out is the caller's own
    assert reading.logits(0, 0, 10).any()
    with pytest.raises(ValueError, match="positions 200 to 231 of 230"):
        reading.logits(0, 200, 231)


def test_layers_are_the_residual_stream(plain: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    followed = window(90)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        output = model(torch.tensor([followed.ids]), output_hidden_states=True)
    first, normed = (states[0].numpy() for states in output.hidden_states[1:])
    for windows in ((followed,), (window(120, seed=3), followed), (window(120, seed=3),)):
        reading = read(plain, *windows, layers_of=followed)  # among the windows or not
        assert len(reading.hidden) == len(windows)
        assert [layer.shape for layer in reading.layers] == [(90, 64)] * 2
        bound = 0 if windows == (followed,) else ROUNDING
        assert np.abs(reading.layers[0] - first).max() <= bound
        with torch.no_grad():  # transformers shows the last layer's only after the final norm
            last = model.model.norm(torch.from_numpy(reading.layers[1])).numpy()
        assert np.abs(last - normed).max() <= bound
    assert (read(plain, followed).hidden[0] == normed).all()


@pytest.mark.parametrize(
    ("dtype", "shards", "weight_format"), [("BF16", 3, "safetensors"), ("F16", 2, "bin")]
)
def test_files_of_every_kind(dtype: str, shards: int, weight_format: Any, tmp_path: Path) -> None:
    folder = write_eagle(
        tmp_path / "eagle", dtype=DType[dtype], shards=shards, weight_format=weight_format, vocab_size=600
    )
    assert difference(folder, window(150)) == 0.0


def test_trained_korean_model(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "42dot")
    config = json.loads((folder / "config.json").read_text())
    assert difference(folder, window(300, vocabulary=config["vocab_size"])) == 0.0


def test_loss_of_a_real_model(real: Path) -> None:
    import sentencepiece

    folder = real / "hf_stories260K"
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    stories = (real / "text" / "tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
    texts = [[1, *tokenizer.encode(story)][:512] for story in filter(None, map(str.strip, stories))]
    windows = [Window(index, tuple(ids)) for index, ids in enumerate(texts)]
    assert difference(folder, windows[0]) == 0.0
    assert difference(folder, *windows) < ROUNDING
    reading = read(folder, *windows)
    losses: list[float] = []
    for index, ids in enumerate(texts):
        logits = reading.logits(index, 0, len(ids) - 1).astype(np.float64)
        chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-chances[place, token] for place, token in enumerate(ids[1:])]
    assert np.mean(losses) == pytest.approx(1.266441, abs=1e-6)  # real/README.md


def gptj(folder: Path) -> tuple[Checkpoint, Family]:
    """A random GPT-J: parallel blocks, a head with a bias, rotary tables that are no parameters."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=300, n_positions=256, n_embd=64, n_layer=3, n_head=4, rotary_dim=8)
    model = GPTJForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
            assert name != "lm_head.bias" or parameter.any()
    model.save_pretrained(folder)
    return open_checkpoint(folder), GPTJ


def test_gpt_j_needs_no_code_of_its_own(tmp_path: Path) -> None:
    checkpoint, family = gptj(tmp_path)
    windows = window(120, vocabulary=300), window(80, vocabulary=300, seed=1)
    reading = Reference(checkpoint, family, threads=2).read(windows, layers_of=windows[1])
    for index, each in enumerate(windows):
        expected = transformers_logits(tmp_path, list(each.ids))
        assert np.abs(reading.logits(index, 0, len(each.ids)) - expected).max() < ROUNDING
    alone = Reference(checkpoint, family, threads=2).read(windows[:1])
    assert (alone.logits(0, 0, 120) == transformers_logits(tmp_path, list(windows[0].ids))).all()
    assert [layer.shape for layer in reading.layers] == [(80, 64)] * 3


def bits(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.read(0, tensor.rows) for name, tensor in tensors.items()}


UNMAPPED = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "dtype": "bfloat16"},
    "biases, grouped, llama 3 rope": {
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_scaling": LLAMA3_ROPE,
        "dtype": "float16",
    },
}


@pytest.mark.parametrize("case", UNMAPPED)
def test_unmapped_is_the_inverse_of_build(case: str, tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "checkpoint", small_tokenizer, **UNMAPPED[case])  # type: ignore[arg-type]
    checkpoint = open_checkpoint(folder)
    model = build(LLAMA, checkpoint)
    back = unmapped(LLAMA, checkpoint, {tensor.name: tensor for tensor in model.tensors})
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in checkpoint.tensors.items()
    }
    assert all(name == tensor.name for name, tensor in back.items())
    expected = bits(checkpoint.tensors)
    for name, actual in bits(back).items():
        assert actual.tobytes() == expected[name].tobytes(), name
    # Any rows may be asked for, not only whole heads.
    key = "model.layers.1.self_attn.k_proj.weight"
    assert back[key].read(5, 23).tobytes() == expected[key][5:23].tobytes()


def test_weights_of_a_gguf_stand_in(tmp_path: Path, small_tokenizer: Path) -> None:
    """A real f32 file, read with gguf-py, gives the checkpoint's logits."""
    from gguf import GGUFReader

    folder = random_llama(tmp_path / "checkpoint", small_tokenizer, num_key_value_heads=2)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", types=["f32"], verify=False).outputs
    stored = {}
    for tensor in GGUFReader(made.path).tensors:
        data = np.asarray(tensor.data, np.float32)
        stored[tensor.name] = Tensor(
            tensor.name, data.shape, DType.F32, lambda start, stop, data=data: data[start:stop].copy()
        )
    checkpoint = open_checkpoint(folder)
    weights = unmapped(LLAMA, checkpoint, stored)
    for name, tensor in checkpoint.tensors.items():
        assert (weights[name].read(0, tensor.rows) == tensor.read(0, tensor.rows)).all(), name
    reading = Reference(checkpoint, LLAMA, weights=weights, threads=2).read([window(100)])
    assert (reading.logits(0, 0, 100) == transformers_logits(folder, list(window(100).ids))).all()

    del stored["blk.1.ffn_up.weight"]
    stored["blk.0.attn_q.weight"] = stored["blk.0.attn_k.weight"]
    with pytest.raises(MappingError) as caught:
        unmapped(LLAMA, checkpoint, stored)
    assert "missing in the file: blk.1.ffn_up.weight" in str(caught.value)
    assert "shape of blk.0.attn_q.weight in the file: [32, 64], but config.json implies [64, 64]" in str(
        caught.value
    )


def with_config(source: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_nothing_of_the_checkpoint_runs(plain: Path, tmp_path: Path) -> None:
    """Remote code, quantization, another attention, half precision: asked for in vain."""
    folder = with_config(
        plain,
        tmp_path / "hostile",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
        torch_dtype="float16",
        _attn_implementation="flash_attention_2",
        attn_implementation="someone/kernel",
        pad_token_id=100_000,
        use_cache=True,
        output_attentions=True,
        return_dict=False,
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    logits = read(folder, window(80)).logits(0, 0, 80)
    assert (logits == transformers_logits(plain, list(window(80).ids))).all()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "evil"}, ("transformers cannot make the LlamaForCausalLM", "evil")),
        ({"get_text_config": "x"}, ("transformers cannot make the LlamaForCausalLM",)),
        ({"vocab_size": 400}, ("model.embed_tokens.weight is [320, 64]", "[400, 64]")),
        ({"intermediate_size": 128}, ("gate_proj.weight is [96, 64]", "[128, 64]")),
        ({"attention_bias": True}, ("q_proj.bias is missing", "[64]")),
        ({"num_hidden_layers": 100_000_000}, ("100000000 layers", "21 tensors")),
    ],
)
def test_configurations_that_make_no_model(
    changes: dict[str, Any], words: tuple[str, ...], plain: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(with_config(plain, tmp_path / "bad", **changes))
    with pytest.raises(CheckpointError) as caught:
        Reference(checkpoint, LLAMA)
    assert caught.value.exit_code == 3
    for word in ("bad/config.json", *words):
        assert word in caught.value.message
    assert len(caught.value.message) < 600


def test_tokens_the_embedding_does_not_have(plain: Path) -> None:
    with pytest.raises(InputError, match="0 to 319"):
        read(plain, Window(0, (1, 320)))


def test_damaged_weights_are_named(plain: Path, tmp_path: Path) -> None:
    folder = with_config(plain, tmp_path / "short")
    checkpoint = open_checkpoint(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(EnvironmentProblem, match="it was longer when it was opened"):
        Reference(checkpoint, LLAMA).read([window(40)])


def test_the_process_is_left_as_it_was(plain: Path) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    transformers_logging.set_verbosity_info()
    try:
        checkpoint = open_checkpoint(plain)
        reference = Reference(checkpoint, LLAMA, threads=2)
        reading = reference.read([window(100)])
        assert torch.get_num_threads() == 3
        assert reference.vocabulary == 320
        assert (reading.logits(0, 0, 100) == read(plain, window(100)).logits(0, 0, 100)).all()
        assert transformers_logging.get_verbosity() == logging.INFO
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)
        transformers_logging.set_verbosity_warning()


MEASURED = """
import sys
from checkpoint_material import private_bytes
from kconv.converters.families.gptj import GPTJ
from kconv.converters.families.llama import LLAMA
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.reference.model import Reference

def read(length):
    window = Window(0, tuple(range(length)))
    reading = Reference(open_checkpoint(sys.argv[1]), LLAMA, threads=2).read([window], progress=look)
    for start in range(0, length, 8):
        reading.logits(0, start, start + 8)
        look()

def look(*step):
    global most
    most = max(most, private_bytes())

most = 0
import torch, transformers
transformers.LlamaForCausalLM
before = private_bytes()
read(64)
print(most - before)
"""


def test_memory_is_that_of_a_few_modules(tmp_path: Path) -> None:
    """The weights are 300 MB in fp32; two modules, a slice of the head and logits are some 90 MB."""
    folder = tmp_path / "large"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 20_000,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    folder.mkdir()
    write_checkpoint(folder, config, dtype=DType.BF16, shards=1, seed=0, weight_format="safetensors")
    one_arena = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # what many arenas keep back depends on the load
    taken = []
    for _ in range(3):  # a busy machine adds some MB now and then, never takes any away
        run = subprocess.run(
            [sys.executable, "-c", MEASURED, str(folder)],
            cwd=Path(__file__).parent,
            env=one_arena,
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(int(run.stdout))
    assert min(taken) < 130e6
