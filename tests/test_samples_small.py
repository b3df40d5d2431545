"""The small trained models but 42dot's: their layout, what their cards say, and made again the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_material import kconv

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.reading import open_checkpoint
from kconv.verify import verify

pytestmark = pytest.mark.usefixtures("kconv_server")
TOOLS = Path(__file__).resolve().parent.parent / "tools"
SMALL = ("kogpt", "kebyt5", "gbst-kebyt5")
MASKED = SMALL[1:]  # trained to fill masks
BYTES_ALONE = {
    "README.md",
    "config.json",
    "pytorch_model.bin",
    "special_tokens_map.json",
    "tokenizer_config.json",
}
FILES = {"kogpt": BYTES_ALONE | {"tokenizer.json"}, "kebyt5": BYTES_ALONE, "gbst-kebyt5": BYTES_ALONE}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The samples as `kconv demo-checkpoint` writes them."""
    folder = tmp_path_factory.mktemp("samples")
    return {family: write_sample(family, folder / family) for family in SMALL}


@pytest.fixture(scope="module")
def tools() -> dict[str, ModuleType]:
    """The modules of tools/small_models by family; they stand outside the package."""
    sys.path.insert(0, str(TOOLS))
    try:
        from small_models import gbst_kebyt5, kebyt5, kogpt
    finally:
        sys.path.remove(str(TOOLS))
    return {family.NAME: family for family in (kogpt, kebyt5, gbst_kebyt5)}


@pytest.fixture(scope="module")
def models(samples: dict[str, Path], tools: dict[str, ModuleType]) -> dict[str, Any]:
    """The samples in transformers, in float32, in which their 16-bit weights are exact.

    Transformers has no GBST: there it is T5 with kconv's own front end.
    """
    import torch
    from transformers import GPTJForCausalLM, T5ForConditionalGeneration

    classes = {"kogpt": GPTJForCausalLM, "kebyt5": T5ForConditionalGeneration}
    models = {
        family: of.from_pretrained(samples[family], dtype=torch.float32).eval()
        for family, of in classes.items()
    }
    gbst = tools["gbst-kebyt5"].new_model().eval()
    gbst.load_state_dict(torch.load(samples["gbst-kebyt5"] / "pytorch_model.bin", weights_only=True))
    return {**models, "gbst-kebyt5": gbst}


def config_of(folder: Path) -> dict[str, Any]:
    """config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


@pytest.mark.parametrize("family", SMALL)
def test_the_folder_has_the_files_of_its_family(samples: dict[str, Path], family: str) -> None:
    assert {path.name for path in samples[family].iterdir()} == FILES[family]
    assert sum(path.stat().st_size for path in samples[family].iterdir()) < 2_200_000
    card = (samples[family] / "README.md").read_text("utf-8")
    assert "license: apache-2.0" in card
    assert "Universal Declaration of Human Rights" in " ".join(card.split())
    assert "@" not in card  # every slot of the card is filled


def test_kogpt_has_the_layout_of_kogpt(samples: dict[str, Path]) -> None:
    config = config_of(samples["kogpt"])
    fixed = {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "activation_function": "gelu_new",
        "n_inner": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "layer_norm_epsilon": 1e-05,
        "tie_word_embeddings": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "torch_dtype": "float16",
    }
    assert {key: config.get(key) for key in fixed} == fixed
    assert config["rotary_dim"] < config["n_embd"] // config["n_head"]
    described = json.loads((samples["kogpt"] / "tokenizer.json").read_text("utf-8"))
    added = [(token["id"], token["content"]) for token in described["added_tokens"]]
    assert added == [(0, "[BOS]"), (1, "[EOS]"), (2, "[UNK]"), (3, "[PAD]"), (4, "[MASK]")]
    checkpoint = open_checkpoint(samples["kogpt"])
    masks = {f"transformer.h.{layer}.attn.bias": "BOOL" for layer in range(config["n_layer"])}
    scalars = {f"transformer.h.{layer}.attn.masked_bias": "F16 scalar" for layer in range(config["n_layer"])}
    assert checkpoint.dropped == {**masks, **scalars}
    assert {tensor.dtype.value for tensor in checkpoint.tensors.values()} == {"F16"}
    assert checkpoint.tensors["lm_head.bias"].shape == (config["vocab_size"],)


def test_kebyt5_has_the_layout_of_kebyt5(samples: dict[str, Path]) -> None:
    config = config_of(samples["kebyt5"])
    fixed = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "tokenizer_class": "ByT5Tokenizer",
        "vocab_size": 384,
    }
    assert {key: config.get(key) for key in fixed} == fixed
    assert "n_positions" not in config
    assert config["num_heads"] * config["d_kv"] != config["d_model"]
    assert config["num_layers"] != config["num_decoder_layers"]
    assert config["d_ff"] % 256  # K-quants fall back there, as with ByT5's widths
    checkpoint = open_checkpoint(samples["kebyt5"])
    shared = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert shared <= set(checkpoint.tensors)
    assert len(shared & set(checkpoint.aliases)) == 2  # the same bytes, as old versions of transformers saved


def test_gbst_kebyt5_has_the_layout_of_gbst_kebyt5(samples: dict[str, Path]) -> None:
    """KEByT5's, the settings of GBST-KEByT5's card, and the front end's tensors under ETRI's names."""
    config, plain = config_of(samples["gbst-kebyt5"]), config_of(samples["kebyt5"])
    fixed = {
        "architectures": ["GBSWT5ForConditionalGeneration"],
        "model_type": "gbswt5",
        "subword_blocks": [[1, 0], [2, 0], [3, 0], [6, 0], [9, 0]],
        "max_subword_block_size": None,
        "downsample_factor": 3,
        "score_consensus_attn": True,
        "gbst_batchnorm": False,
    }
    assert {key: config.get(key) for key in fixed} == fixed
    assert "n_positions" not in config
    sizes = {"d_ff", "architectures", "model_type", "transformers_version"}
    assert {key: config[key] for key in plain if key not in sizes} == {
        key: value for key, value in plain.items() if key not in sizes
    }
    checkpoint, body = open_checkpoint(samples["gbst-kebyt5"]), open_checkpoint(samples["kebyt5"])
    width, prefix = config["d_model"], "encoder.embed_tokens."
    shapes = {
        f"{prefix}embeds.weight": (384, width),
        f"{prefix}positional_convol.2.convol.weight": (width, 1, 9),
        f"{prefix}positional_convol.2.convol.bias": (width,),
        f"{prefix}positional_convol.2.proj.weight": (width, width, 1),
        f"{prefix}positional_convol.2.proj.bias": (width,),
        f"{prefix}cand_scoring.0.weight": (1, width),
        f"{prefix}cand_scoring.0.bias": (1,),
    }
    assert set(checkpoint.tensors) - set(body.tensors) == set(shapes)
    assert set(body.tensors) - set(checkpoint.tensors) == {f"{prefix}weight"}
    assert {name: checkpoint.tensors[name].shape for name in shapes} == shapes
    shared = {"shared.weight", f"{prefix}embeds.weight", "decoder.embed_tokens.weight"}
    assert len(shared & set(checkpoint.aliases)) == 2


def test_transformers_reads_them_whole(models: dict[str, Any], samples: dict[str, Path]) -> None:
    import torch

    for family in MASKED:
        assert not torch.equal(models[family].lm_head.weight, models[family].shared.weight)
    for family, model in models.items():
        stored = torch.load(samples[family] / "pytorch_model.bin", weights_only=True)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, stored[name].float()), name


# Far below what a model that knows nothing reaches (7.15 and 5.95), and a little above what the cards say.
LOSSES = {
    "kogpt": {"written": 4.6, "questions": 1.4, "grown": 0.35},
    "kebyt5": {"written": 0.9, "questions": 0.75, "grown": 0.72},
    "gbst-kebyt5": {"written": 1.0, "questions": 1.0, "grown": 1.0},
}


@pytest.mark.parametrize("family", SMALL)
def test_losses_on_held_out_text_are_those_of_the_card(
    family: str, samples: dict[str, Path], models: dict[str, Any], tools: dict[str, ModuleType]
) -> None:
    measured = tools[family].measure(models[family], tokenizer_of(family, samples))
    card = (samples[family] / "README.md").read_text("utf-8")
    for name, figures in measured.items():
        row = re.search(rf"^\| {name} \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", card, re.MULTILINE)
        assert row is not None
        assert figures["tokens"] == int(row[1])
        assert figures["loss"] == pytest.approx(float(row[2]), rel=1e-3)
        assert figures["loss"] < LOSSES[family][name]


def tokenizer_of(family: str, samples: dict[str, Path]) -> Any:
    """The tokenizer of KoGPT's tokenizer.json; bytes need none."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(samples["kogpt"] / "tokenizer.json")) if family == "kogpt" else None


@pytest.mark.parametrize("family", SMALL)
def test_the_model_says_what_its_card_says(
    family: str, samples: dict[str, Path], models: dict[str, Any], tools: dict[str, ModuleType]
) -> None:
    answers = tools[family].show(models[family], tokenizer_of(family, samples))
    assert f"> {answers}\n" in (samples[family] / "README.md").read_text("utf-8")
    assert "\ufffd" not in answers
    assert sum("가" <= letter <= "힣" for letter in answers) > len(answers) / 3


@pytest.mark.parametrize("family", MASKED)
def test_the_model_reads_what_stands_around_the_masks(
    family: str, models: dict[str, Any], tools: dict[str, ModuleType]
) -> None:
    """What is hidden in a text is far harder to say from another text."""
    import torch

    kebyt5 = tools["kebyt5"]
    examples = [example for texts in kebyt5.held_out_examples().values() for example in texts[:8]]
    turned = [
        (source, target) for (source, _), (_, target) in zip(examples[1:] + examples, examples, strict=False)
    ]

    def total(pairs: list[tuple[list[int], list[int]]]) -> float:
        with torch.no_grad():
            return sum(
                kebyt5.loss(models[family], kebyt5.padded([pair], *map(len, pair)), 0.0).item() * len(pair[1])
                for pair in pairs
            )

    assert total(turned) > 1.2 * total(examples)


def test_masks_hide_what_is_to_be_said(tools: dict[str, ModuleType]) -> None:
    """Source and target of the training examples put together give the text, whatever was drawn."""
    from random import Random

    text = '프랑스\x1f의 수도\x1f는 파리\x1f입니다. \x1f고양이\x1f는 "야옹" 하고 웁니다.'
    for seed in range(200):
        source, target = tools["kebyt5"].masked(text, Random(seed), (1 / 6, 1 / 4, 1 / 2)[seed % 3])
        assert source[-1] == target[-1] == 1
        hidden: dict[int, list[int]] = {}
        for token in target[:-1]:
            if token > 250:
                hidden[mask := token] = []
            else:
                hidden[mask].append(token)
        assert list(hidden) == list(range(258, 258 - len(hidden), -1))
        assert hidden.popitem()[1] == []  # the last one only ends what is said
        assert 1 <= len(hidden) <= 7
        whole = [token for place in source[:-1] for token in hidden.get(place, [place])]
        assert bytes(token - 3 for token in whole).decode() == text.replace("\x1f", "")
        assert all(bytes(token - 3 for token in part).decode().strip() for part in hidden.values())


@pytest.mark.parametrize("family", SMALL)
def test_training_again_gives_the_same_files(family: str, samples: dict[str, Path], tmp_path: Path) -> None:
    """Two steps of the whole script: tokenizer and settings come out byte for byte, the weights as long."""
    import torch

    if family in MASKED and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    command = [sys.executable, str(TOOLS / "train_small.py"), family, "--steps", "2", "--rows", "2", "--out"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == FILES[family]
    for name in FILES[family] - {"README.md", "pytorch_model.bin"}:
        assert (tmp_path / name).read_bytes() == (samples[family] / name).read_bytes(), name
    sizes = [(folder / "pytorch_model.bin").stat().st_size for folder in (tmp_path, samples[family])]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("family", SMALL)
def test_conversions_pass_their_proof(family: str, samples: dict[str, Path], tmp_path: Path) -> None:
    made = to_gguf(samples[family], tmp_path, types=["f32", "q8_0", "q4_0"], verify=False)
    assert made.parity.verdict == "exact"
    for output in made.outputs:
        proof = verify(output.path, samples[family], tokens=512, threads=2)
        assert proof.verdict == "passed", (output.type, proof)


@pytest.mark.parametrize("family", MASKED)
def test_kconv_run_fills_the_mask_as_transformers_does(
    family: str, samples: dict[str, Path], tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    """In llama.cpp, which has the front end of GBST-KEByT5 beside the body, as the card has it from torch."""
    (output,) = to_gguf(samples[family], tmp_path, types=["f32"], verify=False).outputs
    text = tools["kebyt5"].PROMPT.replace("\ufffc", "<extra_id_0>")
    done = kconv("run", output.path, "--fill", text, "-n", "60")
    assert done.returncode == 0, done.stderr
    filled = re.search(
        r"^> .*<258>(.*)<257>$", (samples[family] / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert filled is not None
    assert done.stdout.splitlines()[0] == f"<extra_id_0>: {filled[1]}"
