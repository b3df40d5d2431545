"""Checkpoints as they lie on disks: what is put right, with a note, and what is refused with the way out."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kconv.converters.intake import open_model, prepared
from kconv.converters.mapping import build
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.core.errors import CheckpointError, InputError, MappingError, UnsupportedModel
from kconv.core.model import Model, Note
from kconv.core.reading import open_checkpoint
from kconv.core.small_floats import widened
from kconv.flows.convert import to_gguf
from kconv.flows.plan import plan
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify

Weights = dict[str, torch.Tensor]
DECODERS = ("llama", "gptj", "qwen3", "qwen3-moe", "gpt-neox", "exaone4", "mistral")
_SAMPLES = {"llama": "eagle", "gptj": "kogpt", "t5": "kebyt5"}
PREFIXES = (
    "_orig_mod.",
    "module.",
    "base_model.model.",
    "_fsdp_wrapped_module.",
    "language_model.",
    "a.b.c.",
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a sample checkpoint, written once."""
    place = tmp_path_factory.mktemp("samples")

    def folder(name: str) -> Path:
        if not (place / name).exists():
            write_sample(_SAMPLES.get(name, name), place / name)
        return place / name

    return folder


def weights_of(folder: Path) -> Weights:
    held: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= load_file(file)
    for file in sorted(folder.glob("*.bin")):
        held |= torch.load(file, weights_only=True)
    return held


def changed(
    sound: Path,
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    kind: str = "safetensors",
    **config: Any,
) -> Path:
    """The sound folder with other weights, in one file or (``sharded``) two, and other keys."""
    shutil.copytree(sound, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json"))
    held = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    if kind == "bin":
        torch.save(held, folder / "pytorch_model.bin")
    elif kind == "sharded":
        save_shards(folder, held)
    else:
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, **config)
    return folder


def save_shards(folder: Path, held: Weights, index: Mapping[str, str] | None = None) -> dict[str, str]:
    names = sorted(held)
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    where = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: held[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": where if index is None else index})
    (folder / "model.safetensors.index.json").write_text(text)
    return where


def set_config(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    held = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))


def model_of(folder: Path) -> Model:
    checkpoint, family = open_model(folder)
    return build(family, checkpoint)


def assert_same(folder: Path, sound: Path) -> tuple[Note, ...]:
    """The two become the same tensors and keys; returns the notes of the first."""
    model, other = model_of(folder), model_of(sound)
    assert model.hparams == other.hparams
    assert [tensor.name for tensor in model.tensors] == [tensor.name for tensor in other.tensors]
    for one, two in zip(model.tensors, other.tensors, strict=True):
        assert one.shape == two.shape
        np.testing.assert_array_equal(one.read(0, one.rows), two.read(0, two.rows), err_msg=one.name)
    return tuple(note for note in model.notes if note not in other.notes)


def refused(folder: Path, *words: str, error: type[InputError] = CheckpointError) -> InputError:
    """Refused in one line with these words in message or hint."""
    with pytest.raises(error) as caught:
        model_of(folder)
    said = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 700, said
    assert caught.value.hint
    for word in words:
        assert word in said, said
    return caught.value


# Names


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_taken_off(
    samples: Callable[[str], Path], tmp_path: Path, prefix: str, kind: str
) -> None:
    sound = samples("llama")
    held = {prefix + name: tensor for name, tensor in weights_of(sound).items()}
    notes = assert_same(changed(sound, tmp_path / "x", held, kind=kind), sound)
    assert prefix in notes[0].message


@pytest.mark.parametrize("name", [*DECODERS, "t5"])
@pytest.mark.parametrize("prefix", ["module._orig_mod.", "base_model.model.", "net."])
def test_so_it_is_of_every_family(
    samples: Callable[[str], Path], tmp_path: Path, name: str, prefix: str
) -> None:
    sound = samples(name)
    held = {prefix + name: tensor for name, tensor in weights_of(sound).items()}
    assert assert_same(changed(sound, tmp_path / "x", held), sound)


@pytest.mark.parametrize("name", DECODERS)
def test_names_without_their_base_are_read_as_if_they_had_it(
    samples: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    sound = samples(name)
    base = {"gptj": "transformer.", "gpt-neox": "gpt_neox."}.get(name, "model.")
    held = {name.removeprefix(base): tensor for name, tensor in weights_of(sound).items()}
    (note,) = assert_same(changed(sound, tmp_path / "x", held), sound)
    assert base in note.message


def test_wrappers_in_the_middle_of_names(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = {
        "_fsdp_wrapped_module."
        + name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn._orig_mod."): tensor
        for name, tensor in weights_of(sound).items()
    }
    (note,) = assert_same(changed(sound, tmp_path / "x", held), sound)
    for word in ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"):
        assert word in note.message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("llama", "model.layers", "model.module.layers"),
        ("gpt-neox", "attention.dense", "_fpw_module.attention.dense"),
        ("mistral", "model.", "model.model."),
        ("mistral", "model.", "model.language_model."),
        ("qwen3", "model.", "language_model."),
        ("exaone4", "model.", "language_model.model."),
    ],
)
def test_more_in_front_of_layers_alone(
    samples: Callable[[str], Path], tmp_path: Path, name: str, old: str, new: str
) -> None:
    sound = samples(name)
    held = {name.replace(old, new): tensor for name, tensor in weights_of(sound).items()}
    assert assert_same(changed(sound, tmp_path / "x", held), sound)


def test_two_models_in_one_file_are_refused(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = {
        f"{who}.{name}": tensor for who in ("actor", "critic") for name, tensor in weights_of(sound).items()
    }
    refused(changed(sound, tmp_path / "x", held), "actor.", "critic.", "more than once")


def test_two_tensors_of_one_name_are_refused(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = weights_of(sound)
    held["_orig_mod.model.norm.weight"] = held["model.norm.weight"] + 1
    refused(changed(sound, tmp_path / "x", held), "would both be 'model.norm.weight'")


# What config.json says of the class


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("llama", "LlamaModel"),
        ("mistral", "MistralModel"),
        ("gpt-neox", "GPTNeoXModel"),
        ("qwen3", "FSDPQwen3ForCausalLM"),
        ("llama", "OptimizedModule"),
        ("llama", "PeftModelForCausalLM"),
        ("t5", "T5Model"),
    ],
)
def test_a_base_class_or_a_wrapper_is_read_as_the_class_that_writes(
    samples: Callable[[str], Path], tmp_path: Path, name: str, named: str
) -> None:
    sound = samples(name)
    folder = changed(sound, tmp_path / "x", weights_of(sound), architectures=[named])
    (note,) = assert_same(folder, sound)
    assert named in note.message


def test_other_classes_stay_unsupported(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    folder = changed(sound, tmp_path / "x", weights_of(sound), architectures=["BambaForCausalLM"])
    with pytest.raises(UnsupportedModel, match="BambaForCausalLM"):
        model_of(folder)


# Embedding and head


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
def test_a_tied_model_that_kept_only_its_head(
    samples: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    sound = samples("qwen3")
    held = weights_of(sound)
    held["lm_head.weight"] = held.pop("model.embed_tokens.weight")
    (note,) = assert_same(changed(sound, tmp_path / "x", held, kind=kind), sound)
    assert "lm_head.weight" in note.message
    folder = changed(sound, tmp_path / "untied", held, tie_word_embeddings=False)
    refused(folder, "model.embed_tokens.weight is missing", "tie_word_embeddings false")


def test_a_tied_t5_that_kept_only_its_head(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("t5")
    held = weights_of(sound)
    shared = held.pop("shared.weight")
    for gone in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        held.pop(gone, None)
    tied = {"tie_word_embeddings": True}
    other = changed(sound, tmp_path / "sound", {**held, "shared.weight": shared}, **tied)
    folder = changed(sound, tmp_path / "x", {**held, "lm_head.weight": shared}, **tied)
    (note,) = assert_same(folder, other)
    assert "lm_head.weight" in note.message


@pytest.mark.parametrize("said", [False, ...])
def test_a_lost_head_is_named_with_what_config_json_says(
    samples: Callable[[str], Path], tmp_path: Path, said: object
) -> None:
    sound = samples("llama")
    held = weights_of(sound)
    del held["lm_head.weight"]
    folder = changed(sound, tmp_path / "x", held, tie_word_embeddings=said)
    refused(folder, "lm_head.weight is missing", "tie_word_embeddings")


# Indexes


def test_an_index_of_another_model_beside_whole_files(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    folder = changed(sound, tmp_path / "x", weights_of(sound), kind="sharded")
    names = sorted(weights_of(sound))
    where = {name: f"model-{i % 4 + 1:05}-of-00004.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (note,) = assert_same(folder, sound)
    assert note.warning
    assert "stale" in note.message
    # a part of the files it names: that could be either model
    (folder / "model-00003-of-00004.safetensors").write_bytes(b"")
    refused(folder, "model-00003-of-00004", "model-00001-of-00002")


def test_an_index_beside_a_whole_pytorch_file(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    folder = changed(sound, tmp_path / "x", weights_of(sound), kind="bin")
    where = {"model.norm.weight": "model-00001-of-00004.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (note,) = assert_same(folder, sound)
    assert "pytorch_model.bin" in note.message


def test_a_stale_index_of_another_kind(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    folder = changed(sound, tmp_path / "x", weights_of(sound), kind="sharded")
    (folder / "model.safetensors.index.json").unlink()
    where = {"model.norm.weight": "pytorch_model-00001-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (note,) = assert_same(folder, sound)
    assert "stale" in note.message


def test_what_the_index_does_not_name(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = weights_of(sound)
    for extra in ("model.layers.0.self_attn.rotary_emb.inv_freq", "ema.decay"):
        folder = tmp_path / extra
        changed(sound, folder, {**held, extra: torch.ones(4)}, kind="sharded")
        path = folder / "model.safetensors.index.json"
        where = json.loads(path.read_text())["weight_map"]
        del where[extra]
        path.write_text(json.dumps({"weight_map": where}))
        (note,) = assert_same(folder, sound)
        assert extra in note.message
    del where["model.norm.weight"]
    path.write_text(json.dumps({"weight_map": where}))
    refused(folder, "the index does not name", "model.norm.weight", "remove the index")


# What nobody needs


@pytest.mark.parametrize(
    "extra",
    [
        {"v_head.summary.weight": (1, 64), "v_head.summary.bias": (1,)},
        {"score.weight": (2, 64)},
        {"model.layers.0.self_attn.rotary_emb.cos_cached": (1, 1, 8, 8)},
        {"model.rotary_emb.inv_freq": (8,), "model.layers.1.self_attn.rotary_emb.sin_cached": (8, 8)},
        {"model.layers.0.self_attn.k_scale": (1,), "model.layers.0.self_attn.v_scale": ()},
        {"model.layers.0.self_attn.k_proj.output_scale": (1,)},
    ],
)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_leftovers_are_left_out_with_a_note(
    samples: Callable[[str], Path], tmp_path: Path, extra: dict[str, tuple[int, ...]], prefix: str
) -> None:
    sound = samples("llama")
    held = {**weights_of(sound), **{name: torch.ones(shape) for name, shape in extra.items()}}
    folder = changed(sound, tmp_path / "x", {prefix + name: tensor for name, tensor in held.items()})
    notes = assert_same(folder, sound)
    said = " ".join(note.message for note in notes)
    assert all(name in said or "rotary" in name for name in extra)


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float32, torch.float16])
def test_biases_of_zeros_are_left_out(
    samples: Callable[[str], Path], tmp_path: Path, type_: torch.dtype
) -> None:
    sound = samples("llama")
    held = weights_of(sound)
    for name in [name for name in held if "_proj.weight" in name]:
        held[name.replace("weight", "bias")] = -torch.zeros(held[name].shape[0], dtype=type_)
    (note,) = assert_same(changed(sound, tmp_path / "x", held), sound)
    assert "zero" in note.message
    assert "bias" in note.message
    held["model.layers.1.mlp.up_proj.bias"][3] = 0.5
    folder = changed(sound, tmp_path / "y", held)
    refused(folder, "model.layers.1.mlp.up_proj.bias", "mlp_bias", "not all zeros")
    other = samples("qwen3")
    held = {**weights_of(other), "model.norm.bias": torch.zeros(weights_of(other)["model.norm.weight"].shape)}
    assert_same(changed(other, tmp_path / "z", held), other)


# 8-bit floats


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E4M3FNUZ", torch.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", torch.float8_e5m2fnuz),
        ("F8_E8M0", torch.float8_e8m0fnu),
    ],
)
def test_every_8_bit_float_is_torchs(name: str, type_: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(widened(codes.numpy(), name), codes.view(type_).float().numpy())


def _scaled(tensor: torch.Tensor, way: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """F8 codes, their scales, and the exact product in fp32."""
    weight = tensor.float()
    rows, columns = weight.shape
    size = {"tensor": (rows, columns), "scalar": (rows, columns), "row": (1, columns), "block": (16, 32)}[way]
    grid = (-(-rows // size[0]), -(-columns // size[1]))
    scale = (torch.rand(grid) + 0.5) / 100
    whole = scale.repeat_interleave(size[0], 0)[:rows].repeat_interleave(size[1], 1)[:, :columns]
    codes = (weight / whole).to(torch.float8_e4m3fn)
    shaped = scale.reshape({"tensor": (1,), "scalar": ()}.get(way, grid))
    return codes, shaped, codes.float() * whole


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
@pytest.mark.parametrize(
    ("way", "ending"),
    [
        ("tensor", "weight_scale"),
        ("scalar", "weight_scale"),
        ("row", "weight_scale"),
        ("block", "weight_scale_inv"),
    ],
)
def test_weights_of_8_bits_times_their_scales(
    samples: Callable[[str], Path], tmp_path: Path, way: str, ending: str, kind: str
) -> None:
    sound = samples("qwen3")
    held, exact = weights_of(sound), weights_of(sound)
    for name in [name for name in held if "_proj.weight" in name]:
        held[name], scale, exact[name] = _scaled(held[name], way)
        held[name.removesuffix("weight") + ending] = scale
        held[name.removesuffix("weight") + "input_scale"] = torch.ones(())
    group = {"weights": {"num_bits": 8, "strategy": way, "block_structure": [16, 32]}}
    settings: dict[str, Any] = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    if kind == "bin":
        settings = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    folder = changed(sound, tmp_path / "x", held, kind=kind, quantization_config=settings)
    notes = assert_same(folder, changed(sound, tmp_path / "exact", exact))
    said = " ".join(note.message for note in notes)
    assert "F8_E4M3" in said
    assert "input_scale" in said
    checkpoint = prepared(open_checkpoint(folder))
    name = "model.layers.0.mlp.down_proj.weight"
    whole = checkpoint.tensors[name].read(0, checkpoint.tensors[name].rows)
    for start, stop in ((0, 1), (5, 23), (17, 17)):
        np.testing.assert_array_equal(checkpoint.tensors[name].read(start, stop), whole[start:stop])
    arrived = pickle.loads(pickle.dumps(checkpoint))
    np.testing.assert_array_equal(arrived.tensors[name].read(0, len(whole)), whole)


def test_scales_that_are_missing_or_do_not_fit(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("qwen3")
    held = weights_of(sound)
    name = "model.layers.0.mlp.down_proj.weight"
    held[name] = held[name].to(torch.float8_e4m3fn)
    plain = {**weights_of(sound), name: held[name].float()}
    (note,) = assert_same(changed(sound, tmp_path / "a", held), changed(sound, tmp_path / "plain", plain))
    assert "as they are" in note.message
    folder = changed(sound, tmp_path / "b", held, quantization_config={"quant_method": "fp8"})
    refused(folder, name, "without the scales they need")
    folder = changed(sound, tmp_path / "c", {**held, name + "_scale": torch.ones(7, 3)})
    refused(folder, name, "nothing says which belongs to what", "`AutoModel")


@pytest.mark.parametrize(
    ("method", "name", "type_", "words"),
    [
        ("bitsandbytes", "weight", torch.uint8, "dequantize()"),
        ("gptq", "qweight", torch.int32, "unquantized checkpoint"),
        ("awq", "qweight", torch.int32, "unquantized checkpoint"),
        ("compressed-tensors", "weight_packed", torch.int32, "unquantized checkpoint"),
    ],
)
def test_quantized_checkpoints_are_refused_with_the_way_out(
    samples: Callable[[str], Path], tmp_path: Path, method: str, name: str, type_: torch.dtype, words: str
) -> None:
    sound = samples("llama")
    held = weights_of(sound)
    del held["model.layers.0.mlp.up_proj.weight"]
    held[f"model.layers.0.mlp.up_proj.{name}"] = torch.ones(8, 8).to(type_)
    folder = changed(sound, tmp_path / "x", held, quantization_config={"quant_method": method})
    refused(folder, f"already quantized ('{method}')", words)


def test_a_stale_quantization_config_is_ignored(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = changed(sound, tmp_path / "x", weights_of(sound), quantization_config=settings)
    (note,) = assert_same(folder, sound)
    assert "bitsandbytes" in note.message


# Refused in one line


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(("name", "prefix"), [("llama", ""), ("gpt-neox", "module."), ("t5", "")])
def test_empty_weights_of_zero_3(
    samples: Callable[[str], Path], tmp_path: Path, name: str, prefix: str, axes: int, kind: str
) -> None:
    sound = samples(name)
    held = {
        prefix + name: tensor if tensor.ndim < axes else torch.zeros(0)
        for name, tensor in weights_of(sound).items()
    }
    refused(changed(sound, tmp_path / "x", held, kind=kind), "empty", "ZeRO-3", "zero_to_fp32.py")


def test_flattened_weights_of_fsdp(samples: Callable[[str], Path], tmp_path: Path) -> None:
    held = {"_fsdp_wrapped_module._flat_param": torch.ones(999)}
    refused(changed(samples("llama"), tmp_path / "x", held), "FSDP", "FULL_STATE_DICT")


def test_adapters_that_are_not_merged(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = {
        f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}": tensor
        for name, tensor in weights_of(sound).items()
    }
    (tmp_path / "merged").mkdir()
    assert assert_same(changed(sound, tmp_path / "base", held), sound)  # names alone are harmless
    held["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(4, 64)
    refused(changed(sound, tmp_path / "x", held), "LoRA", "merge_and_unload")
    folder = changed(sound, tmp_path / "beside", weights_of(sound))
    (folder / "adapter_config.json").write_text("{}")
    (note,) = assert_same(folder, sound)
    assert note.warning
    assert "adapter_config.json" in note.message
    save_file({"a": torch.ones(2)}, folder / "adapter_model.safetensors")
    refused(folder, "adapter_model.safetensors", "merge_and_unload")
    (folder / "model.safetensors").unlink()
    refused(folder, "a LoRA adapter, not a whole model", "merge_and_unload")


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gptj", "t5"])
def test_a_wrong_number_of_rows_or_layers(samples: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    sound = samples(name)
    said = json.loads((sound / "config.json").read_text())
    rows = said["vocab_size"]
    folder = changed(sound, tmp_path / "rows", weights_of(sound), vocab_size=rows - 3)
    refused(folder, f"vocab_size {rows - 3}", f"set vocab_size to {rows}")
    key = next(key for key in ("num_hidden_layers", "n_layer", "num_layers") if key in said)
    for other in (said[key] - 1, said[key] + 5):
        folder = changed(sound, tmp_path / f"{other} layers", weights_of(sound), **{key: other})
        refused(folder, f"{key} {other}", f"set {key} to {said[key]}")


def test_a_missing_layer_in_the_middle(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = {name: tensor for name, tensor in weights_of(sound).items() if ".layers.0." not in name}
    refused(changed(sound, tmp_path / "x", held), "but not 0", "complete the download")


def test_a_long_list_is_summarized(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    held = {name.replace("self_attn", "attn"): tensor for name, tensor in weights_of(sound).items()}
    held |= {f"model.layers.{i}.new.{part}": torch.ones(2) for i in range(30) for part in "abc"}
    with pytest.raises(MappingError) as caught:
        model_of(changed(sound, tmp_path / "x", held))
    assert len(str(caught.value).splitlines()) < 18
    assert "unexpected: model.layers.#.new.a [2]: 30 of them" in str(caught.value)


# Folders


def test_a_folder_of_a_weight_files_name(samples: Callable[[str], Path], tmp_path: Path) -> None:
    sound = samples("llama")
    folder = changed(sound, tmp_path / "x", weights_of(sound))
    inside = folder / "pytorch_model.bin"
    inside.mkdir()
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(held)
    where = {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: held[name] for name in part}, inside / file)
        where |= dict.fromkeys(part, file)
    (inside / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (note,) = assert_same(folder, sound)
    assert "pytorch_model.bin is a folder" in note.message
    assert pickle.loads(pickle.dumps(open_checkpoint(folder))).weight_files[0].is_file()
    done = to_gguf(folder, tmp_path / "out", types=["f32"], verify=False)
    manifest = json.loads(done.outputs[0].manifest.read_text())
    files = [file["name"] for file in manifest["source"]["files"]]
    assert "pytorch_model.bin/pytorch_model-00001-of-00002.bin" in files
    assert any("pytorch_model.bin is a folder" in each["message"] for each in manifest["notes"])
    assert verify(done.outputs[0].path, folder, tokens=64).verdict == "passed"


def test_a_folder_in_itself_is_no_model(samples: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(samples("llama"), tmp_path / "x", {"a": torch.ones(2)})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(".")
    with pytest.raises(CheckpointError, match="expected a file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("with_config", [True, False])
def test_checkpoints_below(samples: Callable[[str], Path], tmp_path: Path, with_config: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (900, 1000, 50):
        changed(samples("llama"), folder / f"checkpoint-{step}", weights_of(samples("llama")))
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "training_args.bin").write_bytes(b"x")
    if with_config:
        shutil.copy(samples("llama") / "config.json", folder)
    error = refused(folder, "checkpoint-50, checkpoint-900, checkpoint-1000")
    assert (error.hint or "").endswith(str(folder / "checkpoint-1000"))


def test_weights_that_are_still_split(samples: Callable[[str], Path], tmp_path: Path) -> None:
    for name, file, words in (
        ("zero", "zero_to_fp32.py", "python zero_to_fp32.py"),
        ("fsdp", "pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
    ):
        folder = tmp_path / name
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_bytes(b"x")
        shutil.copy(samples("llama") / "config.json", folder)
        refused(folder, words)


# Models that also see


def _vision(sound: Path, folder: Path, part: str, *, prefix: str, **extra: torch.Tensor) -> Path:
    """A vision-language folder of which a sound one is the text part."""
    config = json.loads((sound / "config.json").read_text())
    held = {f"{prefix}{name}": tensor for name, tensor in weights_of(sound).items()}
    held |= {f"vision_model.encoder.layers.{i}.attn.qkv.weight": torch.ones(6, 2) for i in range(3)}
    held |= {"mm_projector.net.weight": torch.ones(2, 2), "image_newline": torch.ones(8), **extra}
    changed(sound, folder, held)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["HCXVisionForCausalLM"],
                "model_type": "hyperclovax_vlm",
                part: config,
                "vision_config": {"model_type": "siglip_vision_model"},
                "auto_map": {"AutoConfig": "x.Y"},
            }
        )
    )
    return folder


@pytest.mark.parametrize("part", ["language_config", "text_config"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_text_part_of_a_model_that_sees(
    samples: Callable[[str], Path], tmp_path: Path, name: str, part: str
) -> None:
    sound = samples(name)
    notes = assert_same(_vision(sound, tmp_path / "x", part, prefix="language_model."), sound)
    said = " ".join(note.message for note in notes)
    assert "HCXVisionForCausalLM" in said
    assert "vision_model.encoder (3)" in said
    assert "image_newline" in said


def test_the_text_part_is_proven(samples: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _vision(samples("llama"), tmp_path / "x", "text_config", prefix="model.language_model.")
    assert to_gguf(folder, tmp_path, types=["f32"]).verdict == "passed"
    made = to_onnx(folder, tmp_path / "onnx", type="f32")
    assert made.proof is not None
    assert made.proof.verdict == "passed"
    assert "text_config" not in json.loads((tmp_path / "onnx" / "config.json").read_text())


def test_text_that_depends_on_what_is_seen(samples: Callable[[str], Path], tmp_path: Path) -> None:
    gate = {"language_model.model.layers.1.cross_attn_gate": torch.ones(1)}
    folder = _vision(samples("llama"), tmp_path / "x", "text_config", prefix="language_model.", **gate)
    refused(folder, "model.layers.1.cross_attn_gate", "depend on", error=UnsupportedModel)


# All that reads a folder sees the same


def test_every_command_reads_what_is_meant(samples: Callable[[str], Path], tmp_path: Path) -> None:
    """A prefix, a leftover, 8-bit floats and a base class at once."""
    from kconv.cli.descriptions import describe
    from kconv.flows.importance import gather

    sound = samples("qwen3")
    held = weights_of(sound)
    for name in [name for name in held if "_proj.weight" in name]:
        held[name], scale, _ = _scaled(held[name], "block")
        held[f"{name}_scale_inv"] = scale
    held["v_head.weight"] = torch.ones(1, 2)
    folder = changed(
        sound,
        tmp_path / "odd",
        {f"module.{name}": tensor for name, tensor in held.items()},
        architectures=["Qwen3Model"],
        quantization_config={"quant_method": "fp8", "weight_block_size": [16, 32]},
    )
    names = {"wrapped-names", "float8", "base-class", "other-heads"}
    done = to_gguf(folder, tmp_path / "out", types=["f32"])
    assert done.verdict == "passed"
    manifest = json.loads(done.outputs[0].manifest.read_text())
    assert names <= {note["name"] for note in manifest["notes"]}
    proof = verify(done.outputs[0].path, folder, tokens=64)
    assert proof.verdict == "passed"
    assert any("module." in note for note in proof.notes)
    made = to_onnx(folder, tmp_path / "onnx", type="f32")
    assert made.proof is not None
    assert made.proof.verdict == "passed"
    config = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "quantization_config" not in config
    assert verify(tmp_path / "onnx", folder, tokens=64).verdict == "passed"
    assert names <= {note.name for note in plan(folder, options=Options(types=("f32",))).notes}
    sums, _ = gather(folder, {"text": "맑은 하늘 아래에서 책을 읽습니다. " * 40}, chunks=1)
    assert sums.sums
    described = describe(folder)
    assert names <= {note["name"] for note in described["notes"]}
    assert described["supported"]
    assert described["types"]["f8_e4m3"]["tensors"]
