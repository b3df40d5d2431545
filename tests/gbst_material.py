"""Small GBST front ends and GBSWT5 checkpoints with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kconv.converters.families.gbst import GBSWT5
from kconv.converters.families.gbst.front_end import FrontEnd, front_end
from kconv.converters.families.gbst.front_end_file import front_end_path, write_front_end
from kconv.converters.families.gbst.settings import EMBEDDING, NORM, PREFIX, SCORE, GbstSettings
from kconv.converters.families.gbst.tensors import body_keys, front_end_model, own_fingerprint
from kconv.converters.gguf_plan import plan_file
from kconv.converters.gguf_writer import write_files
from kconv.converters.mapping import build
from kconv.core.reading import open_checkpoint
from kconv.quant.formats import F32
from kconv.vocab.selection import select_vocab

Floats = npt.NDArray[np.float32]

SMALL = GbstSettings((1, 2, 3), 2, consensus=True, norm=False, width=8, rows=20)
CONFIG: dict[str, Any] = {
    "architectures": ["GBSWT5ForConditionalGeneration"],
    "model_type": "gbswt5",
    "vocab_size": 384,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "ByT5Tokenizer",
    "max_subword_block_size": None,
    "subword_blocks": [[1, 0], [2, 0], [3, 0], [6, 0], [9, 0]],
    "downsample_factor": 3,
    "score_consensus_attn": True,
    "gbst_batchnorm": False,
}


def random_weights(settings: GbstSettings, seed: int = 0) -> dict[str, Floats]:
    """Weights of a front end by a checkpoint's names, such that every step matters."""
    generator = np.random.default_rng(seed)
    weights = {
        name: generator.standard_normal(shape, np.float32) for name, shape in settings.shapes().items()
    }
    for values in weights.values():
        if len(values.shape) == 3:
            values /= np.float32(np.sqrt(np.prod(values.shape[1:])))
    weights[SCORE + "weight"] *= np.float32(2 / np.sqrt(settings.width))
    if settings.norm:
        weights[NORM + "running_var"] = generator.uniform(0.2, 3, settings.width).astype(np.float32)
    return weights


def random_front_end(settings: GbstSettings, seed: int = 0) -> FrontEnd:
    return front_end(settings, random_weights(settings, seed))


def torch_front_end(settings: GbstSettings, weights: Mapping[str, Floats]) -> Any:
    """The torch module with those weights."""
    import torch

    from kconv.converters.families.gbst.torch_front_end import GbstEmbedding

    module = GbstEmbedding(settings).eval()
    module.load_state_dict({name.removeprefix(PREFIX): torch.from_numpy(w) for name, w in weights.items()})
    return module


def config_settings(config: Mapping[str, Any] = CONFIG) -> GbstSettings:
    """What CONFIG says, without kconv's own reading of it."""
    blocks = tuple(size for size, _ in config["subword_blocks"])
    return replace(
        SMALL,
        blocks=blocks,
        factor=config["downsample_factor"],
        consensus=config["score_consensus_attn"],
        norm=config["gbst_batchnorm"],
        width=config["d_model"],
        rows=config["vocab_size"],
    )


def random_gbswt5(folder: Path, *, half: bool = False, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """Save a random GBSWT5 checkpoint, tokenizer included, as ETRI's are laid out; returns the folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import ByT5Tokenizer

    config = {**CONFIG, **changes}
    model = random_model(config)
    folder.mkdir(parents=True, exist_ok=True)
    ByT5Tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {name: weight.detach().clone() for name, weight in model.state_dict().items() if name not in drop}
    dtype = torch.float16 if half else torch.float32
    save_file(
        {name: weight.to(dtype).contiguous() for name, weight in state.items()}, folder / "model.safetensors"
    )
    return folder


def random_model(config: Mapping[str, Any], *, alone: bool = False) -> Any:
    """Transformers' T5 with our GBST in front of its encoder, under the names of GBSWT5."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from kconv.converters.families.gbst.torch_front_end import set_front_end

    torch.manual_seed(0)
    own = {"architectures", "model_type"}
    model = T5ForConditionalGeneration(T5Config(**{k: v for k, v in config.items() if k not in own})).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    settings = config_settings(config)
    set_front_end(model, settings, alone=alone)
    weights = random_weights(settings)
    del weights[EMBEDDING]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(torch.from_numpy(weights[name]))
            elif "layer_norm" in name:  # all ones, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.startswith("decoder") and name.endswith("Attention.o.weight"):
                parameter.mul_(0.3)  # or else every text soon repeats one token
    return model


def f32_body(folder: Path) -> Path:
    """The f32 body of a random checkpoint, made in ``folder`` with its front end beside it."""
    checkpoint = open_checkpoint(random_gbswt5(folder / "model"))
    model, parity = select_vocab(build(GBSWT5, checkpoint), checkpoint)
    assert parity.verdict == "exact"
    front = front_end_model(checkpoint)
    path = folder / "model-F32.gguf"
    write_front_end(front_end_path(folder, "model"), front)
    plan = plan_file(path, model, [F32] * len(model.tensors), body_keys(own_fingerprint(front)))
    path.touch()
    write_files(model.tensors, [plan], [path])
    return path
