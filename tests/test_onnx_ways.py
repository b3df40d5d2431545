"""Every family in every flavour gives transformers' logits within 1e-4, however applications read.

``make test-onnx-ways`` (onnx_ways_wide.py) asks for further shapes, more and longer texts, other seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_causal_material import run
from onnx_ways_material import MODELS, Made, Sizes, apart, checkpoint_of

from kconv.converters.families import FAMILIES
from kconv.converters.onnx.flavours import FLAVOURS

NEAR = 1e-4


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(checkpoint_of(request.param, tmp_path_factory.mktemp("ways")), Sizes())


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_logits_are_those_of_transformers(made: Made, flavour: str) -> None:
    found = made.differences(flavour)
    print({name: f"{each:.1e}" for name, each in found.items()})
    assert {name: each for name, each in found.items() if not each < NEAR} == {}


def test_no_family_is_left_out(tmp_path: Path) -> None:
    asked = {Made(checkpoint_of(name, tmp_path), Sizes()).truth.family for name in MODELS}
    assert asked == {family.name for family in FAMILIES}


def test_contrib_refuses_several_tokens_of_several_texts_behind_a_cache(tmp_path: Path) -> None:
    """GroupQueryAttention does not take them (onnxruntime's group_query_attention_helper.h)."""
    model = Made(checkpoint_of("42dot", tmp_path), Sizes())
    for flavour in FLAVOURS:
        session = model.sessions(flavour, merged=False)["model"]
        texts, place = model.truth.texts, 50
        _, past = run(session, texts[:, :place])
        if flavour == "contrib":
            with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
                run(session, texts[:, place:], past)
            past = {name: each[:1] for name, each in past.items()}
            texts = texts[:1]
        logits, _ = run(session, texts[:, place:], past)
        assert apart(logits, model.truth.alone[: len(texts), place:]) < NEAR
    assert np.isfinite(logits).all()
