"""GPT-J (KoGPT) as llama.cpp's phi2 graph, against transformers: weights, logits, generated text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command_material import kconv
from damage_material import edited
from gptj_material import byte_level_tokenizer, random_gptj
from llama_material import nmse, transformers_logits

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.families.gptj import GPTJ
from kconv.converters.mapping import build, parameters, unmapped
from kconv.core.errors import KconvError
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType, Tensor
from kconv.core.windows import Window
from kconv.reference.empty_model import empty_model
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify import verify
from kconv.vocab.sources import read_source

pytestmark = pytest.mark.usefixtures("kconv_server")
EXACT = 1e-6  # NMSE of an f32 file; the limit
TEXT = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. Hello, world! " * 6
Floats = npt.NDArray[np.float32]

LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "kogpt": {"dtype": "float16"},
    "eleuther": {
        "weights": "safetensors",
        "rotary": True,
        "scale_attn_weights": True,
        "summary_type": "cls_index",
        "n_inner": 192,
        "vocab_size": 1264,
    },
    "whole heads": {"rotary_dim": None, "activation_function": "gelu_pytorch_tanh", "n_layer": 2},
    "tied": {"tie_word_embeddings": True, "weights": "safetensors", "dtype": "bfloat16", "n_layer": 2},
    "terse": {
        **dict.fromkeys(("rotary_dim", "n_positions", "n_inner", "activation_function"), ...),
        "n_head": 2,
        "architectures": ...,
        "n_layer": 2,
        "weights": "safetensors",
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folders(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint in each layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name, settings in LAYOUTS.items():
        made[name] = random_gptj(root / name.replace(" ", "-"), **settings)
        for file in tokenizer.iterdir():
            (made[name] / file.name).write_bytes(file.read_bytes())
    return made


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of them in f32."""
    out = tmp_path_factory.mktemp("files")
    return {
        name: to_gguf(folder, out / f"{name}.gguf", types=("f32",), verify=False).outputs[0].path
        for name, folder in folders.items()
    }


def window(folder: Path, count: int = 200) -> Window:
    ids = read_source(open_checkpoint(folder)).encode(TEXT, True)
    assert len(ids) >= count
    return Window(0, tuple(ids[:count]))


def llama_logits(path: Path, text: Window) -> Floats:
    """Logits of all positions but the last."""
    with LlamaReader(path, threads=2) as reader:
        return np.concatenate([block.logits.copy() for block in reader.logits([text])])


def ties_apart(actual: Floats, expected: Floats) -> int:
    """Positions with another argmax, but those where the two logits are nearer than the error."""
    left, right = actual.argmax(1), expected.argmax(1)
    rows = np.arange(len(expected))
    gap = expected[rows, right] - expected[rows, left]
    return int((gap > 2 * np.abs(actual - expected).max()).sum())


@pytest.mark.parametrize("name", LAYOUTS)
def test_f32_is_what_transformers_computes(
    name: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    checkpoint, text = open_checkpoint(folders[name]), window(folders[name])
    reference = Reference(checkpoint, family_for(checkpoint.config), threads=2)
    expected = reference.read([text]).logits(0, 0, len(text.ids) - 1)
    logits = llama_logits(files[name], text)[:, : expected.shape[1]]
    assert expected.std() > 0.5
    assert nmse(logits, expected) < EXACT
    assert ties_apart(logits, expected) == 0
    if name == "eleuther":  # a folder transformers opens by itself
        own = transformers_logits(folders[name], list(text.ids))[:-1]
        assert np.abs(own - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["kogpt", "whole heads", "tied"])
def test_verify_passes_in_all_parts(name: str, folders: dict[str, Path], files: dict[str, Path]) -> None:
    proof = verify(files[name], folders[name], tokens=150, diagnose=True, threads=2)
    parts = (proof.tokens, proof.metadata, proof.weights, proof.logits)
    assert [part.verdict for part in parts] == ["passed"] * 4
    assert not [finding for part in parts for finding in part.findings]
    assert proof.logits.figures is not None
    assert proof.logits.figures.nmse < EXACT
    assert proof.logits.diagnosis is not None
    layers = proof.logits.diagnosis.layers
    assert len(layers) == open_checkpoint(folders[name]).config["n_layer"]
    assert all(layer.weights == 0 and layer.runtime < EXACT for layer in layers)


def test_most_of_the_error_is_llama_cpps_table_of_gelu(
    folders: dict[str, Path], files: dict[str, Path]
) -> None:
    """ggml-cpu/vec.h looks GELU up by a half float and keeps the result as one."""
    import torch

    class Table(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = x.half().float()
            rounded = torch.nn.functional.gelu(half, approximate="tanh").half().float()
            return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, rounded))

    checkpoint, text = open_checkpoint(folders["kogpt"]), window(folders["kogpt"])
    logits = llama_logits(files["kogpt"], text)
    exact = Reference(checkpoint, GPTJ, threads=2).read([text]).logits(0, 0, len(logits))
    same = Reference(checkpoint, GPTJ, threads=2)
    for block in same._model.transformer.h:
        block.mlp.act = Table()
    assert nmse(logits, exact) > 10 * nmse(logits, same.read([text]).logits(0, 0, len(logits)))


@pytest.mark.parametrize("name", ["kogpt", "tied"])
def test_greedy_generation_is_that_of_transformers(
    name: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    import torch
    from transformers import GPTJForCausalLM

    prompt = "모든 인간은"
    ids = read_source(open_checkpoint(folders[name])).encode(prompt, True)
    model = GPTJForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    limits = {"max_new_tokens": 128, "do_sample": False, "eos_token_id": 1, "pad_token_id": 3}
    with torch.no_grad():
        expected = model.generate(torch.tensor([ids]), **limits)[0, len(ids) :].tolist()
    words = ["run", files[name], "-p", prompt, "-n", "128", "--greedy", "--kv-type", "f32", "--json"]
    done = kconv(*words)
    answer = json.loads(done.stdout)
    assert answer["prompt_ids"] == ids
    assert answer["ids"] == expected
    assert len(expected) == 128 or expected[-1] == 1


def bits(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.read(0, tensor.rows).tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_unmapped_is_the_inverse_of_build(name: str, folders: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(folders[name])
    model = build(GPTJ, checkpoint)
    back = bits(unmapped(GPTJ, checkpoint, {tensor.name: tensor for tensor in model.tensors}))
    originals = bits({key: value for key, value in checkpoint.tensors.items() if value.shape != ()})
    if name == "tied":
        originals["lm_head.weight"] = originals["transformer.wte.weight"]
    assert back == originals
    assert parameters(model) == sum(tensor.elements for tensor in checkpoint.tensors.values())


def test_rows_of_a_head_go_from_neighbours_to_halves() -> None:
    """Two heads of six dimensions, of which four are rotated."""
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)
    source = Tensor("q", (12, 1), DType.F32, lambda start, stop: rows[start:stop])
    transform = next(row.transform for row in GPTJ.rows if row.target.endswith("attn_q.weight"))
    assert transform is not None
    sizes = {"heads": 2, "rotary": 4}
    made = transform.apply([source], sizes)
    assert made.read(0, 12).ravel().tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert made.read(1, 8).ravel().tolist() == [2, 1, 3, 4, 5, 6, 8]
    (back,) = transform.undo(made, sizes)
    assert back.read(3, 10).ravel().tolist() == [3, 4, 5, 6, 7, 8, 9]


def test_the_file_says_what_the_configuration_says(files: dict[str, Path]) -> None:
    from kconv.core.gguf_file import read_header

    keys = {name: read_header(path).metadata for name, path in files.items()}
    kogpt = keys["kogpt"]
    assert kogpt["general.architecture"] == "phi2"
    assert (kogpt["phi2.context_length"], kogpt["phi2.feed_forward_length"]) == (512, 512)
    assert (kogpt["phi2.attention.head_count"], kogpt["phi2.attention.head_count_kv"]) == (4, 4)
    assert kogpt["phi2.rope.dimension_count"] == 16
    assert kogpt["phi2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert keys["eleuther"]["phi2.feed_forward_length"] == 192
    assert keys["whole heads"]["phi2.rope.dimension_count"] == 32
    assert keys["terse"]["phi2.rope.dimension_count"] == 64
    assert keys["terse"]["phi2.context_length"] == 2048
    zeros = [info for info in read_header(files["kogpt"]).tensors if info.name == "blk.1.attn_output.bias"]
    assert [info.shape for info in zeros] == [(128,)]


def test_a_bin_file_with_masks_is_read_without_torch(folders: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folders["kogpt"])
    assert checkpoint.weight_files[0].name == "pytorch_model.bin"
    assert "transformer.h.0.attn.bias" in checkpoint.dropped
    code = (
        "import sys; sys.modules['torch'] = None; from kconv.converters import to_gguf\n"
        f"made = to_gguf({str(folders['kogpt'])!r}, {str(tmp_path)!r}, verify=False)\n"
        "print(made.outputs[0].path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "kogpt-F16.gguf"  # the checkpoint's own type


def test_float_masks_are_dropped_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """``model.half()`` of an old transformers made halves of masks that were bytes or floats."""
    from safetensors.torch import load_file, save_file

    state = load_file(folders["eleuther"] / "model.safetensors")
    import torch

    for layer in range(3):
        state[f"transformer.h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 8, 8)).half()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.full((1,), -1e4).half()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders["eleuther"] / "config.json").read_bytes())
    assert len(build(GPTJ, open_checkpoint(tmp_path)).tensors) == 1 + 3 * 14 + 4


def test_a_head_that_differs_counts_whatever_is_said_of_tying(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = {**open_checkpoint(folders["eleuther"]).config, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folders["eleuther"] / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    model = build(GPTJ, checkpoint)
    assert [note.name for note in model.notes] == ["untied-head"]
    head = checkpoint.tensors["lm_head.weight"]
    assert bits({"": model.tensor("output.weight")}) == bits({"": head})


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "relu": ({"activation_function": "relu"}, "only GELU"),
    "no text": ({"activation_function": 5}, "activation_function"),
    "odd rotation": ({"rotary_dim": 15}, "rotary_dim"),
    "no rotation": ({"rotary_dim": 0}, "rotary_dim"),
    "more than a head": ({"rotary_dim": 64}, "rotary_dim"),
    "two widths": ({"hidden_size": 64}, "hidden_size is 64, expected 128, as n_embd says"),
    "two numbers of heads": ({"num_attention_heads": 2}, "num_attention_heads is 2"),
    "heads that do not divide": ({"n_head": 7}, "n_embd"),
    "no heads": ({"n_head": 0}, "n_head"),
    "another inner width": ({"n_inner": 500}, "fc_in.weight"),
    "another width": ({"n_embd": 64}, "wte.weight"),
    "more layers": ({"n_layer": 4}, "the files hold layers 0 to 2"),
    "fewer layers": ({"n_layer": 2}, "the files hold layers 0 to 2"),
    "layers without end": ({"n_layer": 2**31 - 1}, "layers"),
    "positions without end": ({"n_positions": 2**31 - 1}, "n_positions"),
    "more rows": ({"vocab_size": 1300}, "wte.weight"),
    "no epsilon": ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    "tied, by a word": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configurations_that_contradict_are_refused(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    changes, message = REFUSED[case]
    for file in folders["kogpt"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(KconvError) as caught:
        to_gguf(tmp_path, tmp_path / "out", types=("q8_0",), verify=False)
    assert caught.value.exit_code == 3
    assert message in caught.value.message
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("change", "message"), [("lm_head.bias", "missing: lm_head.bias"), ("", "unexpected")]
)
def test_tensors_that_do_not_fit_are_named(
    change: str, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folders["eleuther"] / "model.safetensors")
    if change:
        del state[change]
    else:
        state["transformer.h.0.attn.q_proj.bias"] = state["transformer.ln_f.bias"].clone()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders["eleuther"] / "config.json").read_bytes())
    with pytest.raises(KconvError, match=message):
        build(GPTJ, open_checkpoint(tmp_path))


def test_tables_for_many_positions_are_in_memory_once() -> None:
    """Six layers of 65536 positions and 64 dimensions would be 96 MiB."""
    sizes = {"n_layer": 6, "n_embd": 64, "n_head": 1, "rotary_dim": 64, "n_positions": 65536}
    model = empty_model(GPTJ.reference, {**sizes, "vocab_size": 10}, "config.json")
    tables = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    assert sum(tables.values()) == 65536 * 64 * 4


def test_heads_left_as_they_were_are_found_out(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """What a converter forgets that takes GPT-J for Phi-2."""
    head = np.r_[np.arange(16).reshape(2, 8).T.ravel(), 16:32]
    order = np.concatenate([32 * number + head for number in range(4)])
    rows = {f"blk.1.attn_{part}.weight": order for part in "qk"}
    bad = edited(files["kogpt"], tmp_path / "bad.gguf", rows=rows)
    proof = verify(bad, folders["kogpt"], tokens=64, threads=2)
    assert (proof.weights.verdict, proof.logits.verdict) == ("failed", "failed")
    (finding,) = proof.weights.findings
    assert "attention heads are not permuted" in finding.message
    assert all(name in finding.message for name in rows)
    assert proof.logits.diagnosis is not None
    assert proof.logits.diagnosis.first == 1


def test_metadata_that_changes_what_is_computed_is_found(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    keys = {"phi2.rope.dimension_count": 32, "phi2.attention.layer_norm_epsilon": 1e-6}
    for key, value in keys.items():
        bad = edited(files["kogpt"], tmp_path / "bad.gguf", metadata={key: value})
        proof = verify(bad, folders["kogpt"], tokens=64, threads=2)
        assert proof.metadata.verdict == "failed"
        assert [finding.where for finding in proof.metadata.findings] == [key]
