"""Fused weights that converters cut into several tensors, and back again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from kconv.converters.by_config import keys_by_config
from kconv.converters.by_name import rows_by_name
from kconv.converters.cutting import cuts, parted
from kconv.converters.departures import departure_by_config
from kconv.converters.gguf_names import names_in_gguf, names_of_parts
from kconv.core.tensor import DType, Tensor

RANDOM = np.random.default_rng(0)
Split = Callable[[Any], Sequence[Any]]


def lazy(name: str, values: Any) -> Tensor:
    held = np.ascontiguousarray(values, np.float32)
    return Tensor(name, held.shape, DType.F32, lambda start, stop: held[start:stop])


SPLITS: Mapping[str, tuple[tuple[int, ...], Split]] = {
    "query, key and value": ((12, 6), lambda w: np.split(w, [6, 9])),
    "their biases": ((12,), lambda w: np.split(w, [6, 9])),
    "gate and up": ((8, 5), lambda w: np.split(w, 2)),
    "gate and up in turns": ((8, 5), lambda w: (w[::2], w[1::2])),
    "of experts": ((3, 8, 5), lambda w: np.split(w, 2, axis=1)),
    "of experts, turned and in turns": (
        (3, 5, 8),
        lambda w: [w[:, :, at::2].transpose(0, 2, 1) for at in (0, 1)],
    ),
    "their biases in turns": ((3, 8), lambda w: (w[:, ::2], w[:, 1::2])),
    "keys and values of four heads": (
        (4 * 5, 6),
        lambda w: (w.reshape(4, 5, 6)[:, :3].transpose(0, 2, 1), w.reshape(4, 5, 6)[:, 3:]),
    ),
    "squares": (
        (4 * 6, 3),
        lambda w: (w.reshape(4, 6, 3)[:, :3].transpose(0, 2, 1), w.reshape(4, 6, 3)[:, 3:]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_a_cut_is_among_those_tried_and_comes_back(name: str) -> None:
    shape, split = SPLITS[name]
    whole = RANDOM.normal(size=shape).astype(np.float32)
    parts = [np.ascontiguousarray(part) for part in split(whole)]
    source = lazy("whole", whole)
    right = 0
    for cut in cuts(source, [part.shape for part in parts]):
        pairs = [cut.part(place) for place in range(len(parts))]
        made = [transform.apply([source], {}) for transform, _ in pairs]
        assert [each.shape for each in made] == [part.shape for part in parts]
        same = all(
            np.array_equal(each.read(0, each.rows), part) for each, part in zip(made, parts, strict=True)
        )
        right += same
        joined = pairs[0][1].join([lazy("part", each.read(0, each.rows)) for each in made], {})
        assert np.array_equal(joined.read(0, joined.rows), whole)
        assert np.array_equal(joined.read(1, 2), whole[1:2])
        for each in made:
            assert np.array_equal(each.read(1, each.rows), each.read(0, each.rows)[1:])
    assert right == 1


def test_the_weights_tell_how_a_kind_was_cut() -> None:
    names = [f"model.layers.{i}.self_attn.kv_b_proj.weight" for i in range(3)]
    wholes = {name: RANDOM.normal(size=(4 * 16, 8)) for name in names}
    stored: dict[str, Any] = {}
    for i, whole in enumerate(wholes.values()):
        heads = whole.reshape(4, 16, 8)
        stored[f"blk.{i}.attn_k_b.weight"] = heads[:, :8].transpose(0, 2, 1)
        stored[f"blk.{i}.attn_v_b.weight"] = heads[:, 8:]
    stored["blk.1.attn_v_b.weight"] = RANDOM.normal(size=(4, 8, 8))  # a wrong layer decides nothing
    checkpoint = {name: lazy(name, whole) for name, whole in wholes.items()}
    file = {name: lazy(name, part) for name, part in stored.items()}
    told = rows_by_name("deepseek2", 3, checkpoint, file, {"heads": 4, "kv_heads": 4})
    assert (told.untold, told.left) == ((), ())
    for row in told.rows:
        assert row.transform is not None
        made = row.transform.apply([checkpoint[row.sources[0]]], {})
        same = np.array_equal(made.read(0, 4), np.asarray(stored[row.target], np.float32))
        assert same == (row.target != "blk.1.attn_v_b.weight")


def test_queries_keys_and_values_in_groups_are_put_together() -> None:
    """Falcon's four heads in two groups, each of two queries, a key and a value; told by the weights."""
    names = [f"transformer.h.{i}.self_attention.query_key_value.weight" for i in range(2)]
    wholes = {name: RANDOM.normal(size=(2 * 4 * 3, 5)).astype(np.float32) for name in names}
    stored = {}
    for i, whole in enumerate(wholes.values()):
        groups = whole.reshape(2, 4, 3, 5)
        parts = (groups[:, :2].reshape(-1, 5), groups[:, 2].reshape(-1, 5), groups[:, 3].reshape(-1, 5))
        stored[f"blk.{i}.attn_qkv.weight"] = np.concatenate(parts)
    checkpoint = {name: lazy(name, whole) for name, whole in wholes.items()}
    file = {name: lazy(name, part) for name, part in stored.items()}
    told = rows_by_name("falcon", 2, checkpoint, file, {"heads": 4, "kv_heads": 4})
    assert (told.untold, told.left) == ((), ())
    transform = parted(2, 2)
    for (name, whole), target in zip(wholes.items(), stored.values(), strict=True):
        made = transform.apply([checkpoint[name]], {})
        assert np.array_equal(made.read(3, 20), target[3:20])
        (back,) = transform.undo(lazy("made", target), {})
        assert np.array_equal(back.read(0, 24), whole)


class _Settings:
    def __init__(self, turning: Any) -> None:
        self.rope_parameters = turning


YARN = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("turning", "departs"),
    [
        ({**YARN, "truncate": False}, True),
        (
            {"full_attention": {**YARN, "truncate": False}, "sliding_attention": {"rope_type": "default"}},
            True,
        ),
        ({**YARN, "truncate": True}, False),
        (YARN, False),
        ({"rope_type": "linear", "factor": 2.0, "truncate": False}, False),
        (None, False),
    ],
)
def test_what_llama_cpp_rounds_is_known(turning: Any, departs: bool) -> None:
    departure = departure_by_config(_Settings(turning))
    assert (departure is not None) == departs
    if departure is not None:
        config = departure.config({"hidden_size": 8, "rope_scaling": {"type": "yarn", "truncate": False}})
        assert config["hidden_size"] == 8
        assert "rope_scaling" not in config
        assert "'truncate': False" not in str(config)


LAYER = "model.layers.1."


@pytest.mark.parametrize(
    ("arch", "name", "parts"),
    [
        (
            "gpt-oss",
            f"{LAYER}mlp.experts.gate_up_proj",
            {
                "blk.1.ffn_gate_exps.weight": f"{LAYER}mlp.experts.gate_proj",
                "blk.1.ffn_up_exps.weight": f"{LAYER}mlp.experts.up_proj",
            },
        ),
        (
            "granitemoe",
            f"{LAYER}block_sparse_moe.input_linear.weight",
            {
                "blk.1.ffn_gate_exps.weight": f"{LAYER}block_sparse_moe.experts.gate_proj.weight",
                "blk.1.ffn_up_exps.weight": f"{LAYER}block_sparse_moe.experts.up_proj.weight",
            },
        ),
        (
            "llama",
            f"{LAYER}self_attn.qkv_proj.weight",  # all parts have one input: the whole's
            {f"blk.1.attn_{part}.weight": f"{LAYER}self_attn.qkv_proj.weight" for part in "qkv"},
        ),
        ("llama", f"{LAYER}self_attn.q_proj.weight", {}),
    ],
)
def test_parts_are_called_as_llama_cpp_and_the_class_call_them(
    arch: str, name: str, parts: Mapping[str, str]
) -> None:
    told = names_in_gguf(arch, 2, [name])
    assert names_of_parts(arch, 2, told, [name]) == ({name: parts} if parts else {})


def test_layers_that_predict_further_tokens_count_in_the_file() -> None:
    class Settings:
        num_hidden_layers = 3

    keys, _ = keys_by_config(Settings(), {"block_count": 4, "nextn_predict_layers": 1})
    assert keys["block_count"] == 4
    assert keys_by_config(Settings(), {"block_count": 4})[0]["block_count"] == 3
