"""``make test-onnx-ways``: what test_onnx_ways.py asks, of every shape other tests know, at greater length.

``make test`` does not collect it. KCONV_SEED is the seed of other texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_decoder_families
import test_gemma_qwen
import test_llamas
import test_long_context
import test_onnx_causal
import test_onnx_gbst
import test_onnx_t5
import test_position_families
import test_t5_encoders
import test_umt5
from gbst_material import random_gbswt5
from onnx_ways_material import MODELS, Made, Sizes
from t5_checkpoints import write_t5

from kconv.converters.onnx.flavours import FLAVOURS
from kconv.converters.samples.decoders import write_mistral, write_qwen3, write_qwen3_moe
from kconv.converters.samples.encoders import write_bert, write_roberta, write_xlm_roberta
from kconv.converters.samples.positioned import write_mpt, write_opt
from kconv.converters.samples.qwen_gemma import write_gemma2, write_gemma3
from kconv.converters.samples.t5_encoder import write_t5_encoder
from kconv.converters.samples.umt5 import write_umt5

NEAR = 1e-4
SIZES = Sizes(texts=5, length=150, answer=60, steps=8, beams=4, seed=int(os.environ.get("KCONV_SEED", "1")))
Make = Callable[[Path], Path]

OWN: dict[str, Make] = {
    "one head of keys": partial(write_qwen3, num_key_value_heads=1),
    "one layer, wide heads": partial(write_qwen3, num_hidden_layers=1, head_dim=128),
    "a window of one": partial(write_mistral, sliding_window=1),
    "a window of two": partial(write_gemma2, sliding_window=2),
    "a window longer than texts": partial(write_gemma3, sliding_window=149),
    "windows everywhere, wide": partial(write_mistral, sliding_window=7, num_key_value_heads=1),
    "one expert a token": partial(write_qwen3_moe, num_experts_per_tok=1),
    "weights of experts not normalized": partial(write_qwen3_moe, norm_topk_prob=False),
    "slopes of twelve heads": partial(write_mpt, n_heads=12, d_model=192),
    "positions of OPT, no final norm's bias": partial(write_opt, enable_bias=True, num_hidden_layers=1),
    "three kinds of segments": partial(write_bert, type_vocab_size=3),
    "exact GELU": partial(write_roberta, hidden_act="gelu"),
    "few positions": partial(write_xlm_roberta, max_position_embeddings=160),
}


def every_shape(tokenizer: Path) -> Iterator[tuple[str, Make]]:
    """By name, how a checkpoint of it is written."""
    yield from MODELS.items()
    yield from OWN.items()
    for module in (test_decoder_families, test_gemma_qwen, test_llamas, test_long_context):
        for name, (write, changes, *_) in module.CASES.items():
            yield f"{module.__name__}: {name}", partial(write, **changes)
    for name, (write, changes, *_) in test_position_families.CASES.items():
        yield f"positions: {name}", partial(write, **changes)
    for name, make in test_onnx_causal.KINDS.items():
        given = {"tokenizer": tokenizer} if name.startswith("llama") else {}
        yield f"causal: {name}", partial(make, **given)
    for name, (t5, tied) in test_onnx_t5.KINDS.items():
        yield f"t5: {name}", partial(write_t5, head=not tied, **t5)
    for name, gbst in test_onnx_gbst.KINDS.items():
        yield f"gbst: {name}", partial(random_gbswt5, **gbst)
    for name, umt5 in test_umt5.VARIANTS.items():
        yield f"umt5: {name}", partial(write_umt5, **umt5)
    for name, alone in test_t5_encoders.KINDS.items():
        yield f"encoder: {name}", partial(write_t5_encoder, **alone)


SHAPES = [name for name, _ in every_shape(Path())]


@pytest.fixture(scope="module", params=SHAPES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path
) -> Made:
    make: Any = dict(every_shape(small_tokenizer))[request.param]
    return Made(make(tmp_path_factory.mktemp("ways") / "checkpoint"), SIZES)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_logits_are_those_of_transformers(made: Made, flavour: str) -> None:
    found = made.differences(flavour)
    print({name: f"{each:.1e}" for name, each in found.items()})
    assert {name: each for name, each in found.items() if not each < NEAR} == {}
