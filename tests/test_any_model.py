"""Models without a family: files of llama.cpp's own converter against transformers' classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from any_material import KINDS, any_checkpoints, any_files
from command_material import kconv
from damage_material import (
    another_epsilon,
    edited,
    neighbours_row,
    scaled,
    swapped_layers,
)
from llama_material import transformers_logits

from kconv.converters.by_config import keys_by_config
from kconv.converters.by_name import rows_by_name
from kconv.converters.gguf_names import names_in_gguf
from kconv.converters.samples.weights import write_json
from kconv.core.errors import InputError, UnsupportedModel
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Array, DType, Tensor
from kconv.core.windows import Window
from kconv.flows.any_artifact import deciding_gate
from kconv.flows.any_model import expected_of_any
from kconv.flows.verify import verify
from kconv.quant.gguf_weights import open_gguf
from kconv.reference import streamed_experts
from kconv.reference.any_model import any_model, class_for
from kconv.reference.model import Reference
from kconv.reference.recompute import Recomputation
from kconv.reference.weight_reader import RowRange, WeightReader
from kconv.runtimes.half_precision import flowing, halves_by_name
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.proof import Proof

pytestmark = pytest.mark.usefixtures("kconv_server")

TYPES = ("f32", "q8_0")
ALL_READ = ("mixtral", "gemma2", "phi")
CUT = ("deepseek", "gptoss")
"""Whose fused weights llama.cpp's converter cuts."""
TOKENS = 100
IDS = tuple(int(i) for i in np.random.default_rng(5).integers(3, 790, 48))
Damage = Callable[[Path, Path], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return any_checkpoints(tmp_path_factory)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return any_files(tmp_path_factory, TYPES)


def proof_of(file: Path, checkpoint: Path) -> Proof:
    return verify(file, checkpoint, tokens=TOKENS)


# The checkpoint's side


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_computes_what_transformers_computes(
    kind: str, checkpoints: Mapping[str, Path]
) -> None:
    checkpoint = open_checkpoint(checkpoints[kind])
    found = any_model(checkpoint.config, "config.json", 2)
    with_file = _family(kind, checkpoints)
    reading = Reference(checkpoint, with_file, threads=2).read([Window(0, IDS)])
    expected = transformers_logits(checkpoints[kind], list(IDS))
    assert found.reference.name == f"{KINDS[kind][0]}ForCausalLM"
    assert np.abs(reading.logits(0, 0, len(IDS)) - expected).max() < 1e-4 * np.abs(expected).max()


def _family(kind: str, checkpoints: Mapping[str, Path]) -> Any:
    """The family as it is made for a file; here for one that holds the checkpoint's own tensors by name."""
    from kconv.converters.family import Family

    checkpoint = open_checkpoint(checkpoints[kind])
    found = any_model(checkpoint.config, "config.json", 2)

    class Facts:
        sizes: Mapping[str, int] = {"layers": found.settings.num_hidden_layers}

    table = rows_by_name("llama", 3, checkpoint.tensors, {}, {"heads": 4, "kv_heads": 2}).rows
    return Family(
        kind, kind, (), (), "llama", lambda settings: Facts(), lambda facts, folder: frozenset(),
        lambda facts: {}, table, {}, found.reference,
    )  # fmt: skip


def test_experts_are_read_one_at_a_time(checkpoints: Mapping[str, Path]) -> None:
    checkpoint = open_checkpoint(checkpoints["mixtral"])
    read: list[str] = []

    def watched(name: str, tensor: Tensor) -> Tensor:
        def rows(start: int, stop: int) -> Array:
            read.append(name)
            return tensor.read(start, stop)

        return Tensor(name, tensor.shape, tensor.dtype, rows)

    held = {name: watched(name, tensor) for name, tensor in checkpoint.tensors.items()}
    found = any_model(checkpoint.config, "config.json", 2).reference.tensors(held, {})
    experts = found["model.layers.1.mlp.experts.gate_up_proj"]
    assert experts.shape == (4, 2 * 96, 64)
    assert read == []
    third = experts.read(2, 3)[0]
    assert set(read) == {f"model.layers.1.block_sparse_moe.experts.2.{w}.weight" for w in ("w1", "w3")}
    gate = checkpoint.tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    assert np.array_equal(third[:96], gate.read(0, 96))


@pytest.mark.parametrize("kind", ["mixtral", "gptoss"])
def test_large_experts_are_in_memory_one_at_a_time(
    kind: str, checkpoints: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, family = open_checkpoint(checkpoints[kind]), _family(kind, checkpoints)
    windows = [Window(0, IDS), Window(0, IDS[:20])]
    together = Reference(checkpoint, family, threads=2).read(windows)
    monkeypatch.setattr(streamed_experts, "LARGE", 1)
    asked: list[int] = []
    begin = WeightReader.begin

    def watched(self: WeightReader, wanted: Sequence[RowRange]) -> Any:
        asked.extend(rows.elements for rows in wanted if len(rows.tensor.shape) == 3)
        return begin(self, wanted)

    monkeypatch.setattr(WeightReader, "begin", watched)
    for by_layer in (False, True):
        reading = Reference(checkpoint, family, threads=2).read(windows, by_layer=by_layer)
        assert max(asked) == 2 * 96 * 64  # gate and up of one
        for window in range(2):
            one, other = (each.logits(window, 0, 20) for each in (together, reading))
            assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


def test_what_a_class_does_not_read_tells_nothing(checkpoints: Mapping[str, Path]) -> None:
    config = open_checkpoint(checkpoints["mixtral"]).config
    found = any_model({**config, "final_logit_softcapping": 3.0}, "config.json", 2)
    keys, unknown = keys_by_config(found.settings, {"final_logit_softcapping": 5.0})
    assert keys["final_logit_softcapping"] == 5.0
    assert unknown == ("final_logit_softcapping",)
    assert keys["attention.head_count_kv"] == 2


def test_code_of_a_checkpoints_own_is_never_run(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    own = {"model_type": "mystery", "architectures": ["MysteryForCausalLM"]}
    own["auto_map"] = {"AutoModelForCausalLM": "modeling.MysteryForCausalLM"}  # type: ignore[assignment]
    with pytest.raises(
        UnsupportedModel, match=r"code of the checkpoint's own \(auto_map\), which kconv never"
    ):
        class_for(own, "config.json")
    with pytest.raises(UnsupportedModel, match="transformers has no class for 'MysteryForCausalLM'"):
        class_for({**own, "auto_map": None}, "config.json")
    known = json.loads((checkpoints["mixtral"] / "config.json").read_text("utf-8"))
    assert class_for({**known, "auto_map": own["auto_map"]}, "config.json") == "MixtralForCausalLM"


# llama.cpp's side


def test_names_are_llama_cpps_and_its_tables_stay_as_they_are() -> None:
    before = repr(gguf.TensorNameMap.block_mappings_cfg)
    names = ["model.layers.1.block_sparse_moe.experts.3.w1.weight", "lm_head.weight", "nobody.knows"]
    told = names_in_gguf("llama", 2, names)
    assert list(told.values()) == ["blk.1.ffn_gate_exps.weight", "output.weight"]
    for arch in gguf.MODEL_ARCH_NAMES.values():
        names_in_gguf(arch, 1, ["model.norm.weight"])
    assert names_in_gguf("no such architecture", 1, names) == {}
    assert repr(gguf.TensorNameMap.block_mappings_cfg) == before


def test_a_layer_that_is_wrong_does_not_decide_what_was_done_with_all() -> None:
    random = np.random.default_rng(0)
    weights = {f"model.layers.{i}.self_attn.q_proj.weight": random.normal(size=(16, 8)) for i in range(5)}
    order = np.arange(16).reshape(2, 2, 4).transpose(0, 2, 1).ravel()
    stored = {f"blk.{i}.attn_q.weight": values[order] for i, values in enumerate(weights.values())}
    stored["blk.1.attn_q.weight"] = weights["model.layers.1.self_attn.q_proj.weight"]
    stored["blk.2.attn_q.weight"] = random.normal(size=(16, 8))
    told = rows_by_name("llama", 5, _tensors(weights), _tensors(stored), {"heads": 2, "kv_heads": 2})
    assert (told.untold, told.left) == ((), ())
    for row, (name, values) in zip(told.rows, weights.items(), strict=True):
        assert row.transform is not None
        made = row.transform.apply([_tensors(weights)[name]], {"heads": 2, "kv_heads": 2})
        assert np.array_equal(made.read(0, 16), values[order].astype(np.float32))


def test_nothing_is_claimed_of_weights_that_come_near_nowhere() -> None:
    random = np.random.default_rng(0)
    weights = {f"model.layers.{i}.mlp.up_proj.weight": random.normal(size=(16, 8)) for i in range(3)}
    stored = {f"blk.{i}.ffn_up.weight": random.normal(size=(16, 8)) for i in range(3)}
    told = rows_by_name("llama", 3, _tensors(weights), _tensors(stored), {"heads": 2, "kv_heads": 2})
    assert (told.rows, told.untold, told.left) == ((), tuple(stored), tuple(weights))


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    def lazy(name: str, values: Any) -> Tensor:
        held = values.astype(np.float32)
        return Tensor(name, held.shape, DType.F32, lambda start, stop: held[start:stop])

    return {name: lazy(name, values) for name, values in arrays.items()}


# Proofs


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("kind", ALL_READ)
def test_a_right_file_is_proven_in_all_parts(
    kind: str, type_: str, files: Path, checkpoints: Mapping[str, Path]
) -> None:
    proof = proof_of(files / f"{kind}-{type_}.gguf", checkpoints[kind])
    assert [part.verdict for part in proof.parts.values()] == ["passed"] * 5, proof.cause
    assert {tensor.state for tensor in proof.weights.tensors} == {"identical"}
    assert not proof.weights.untold


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("kind", CUT)
def test_fused_weights_that_were_cut_are_compared_and_recomputed(
    kind: str, type_: str, files: Path, checkpoints: Mapping[str, Path]
) -> None:
    proof = proof_of(files / f"{kind}-{type_}.gguf", checkpoints[kind])
    assert (proof.verdict, proof.right) == ("passed" if kind == "deepseek" else "warned", "passed"), (
        proof.cause
    )
    assert {tensor.state for tensor in proof.weights.tensors} == {"identical"}
    assert not proof.weights.untold
    assert [proof.metadata.verdict, proof.weights.verdict, proof.runtime.verdict] == ["passed"] * 3
    assert max(each.nmse / each.limit for each in proof.runtime.worst) < 1 / 20


def test_what_llama_cpp_computes_otherwise_is_a_remark_with_a_figure(
    files: Path, checkpoints: Mapping[str, Path]
) -> None:
    proof = proof_of(files / "gptoss-f32.gguf", checkpoints["gptoss"])
    figures = proof.logits.figures
    assert figures is not None
    assert figures.nmse > 1e-6  # against the checkpoint as it is
    assert figures.nmse_same_gelu is not None
    assert figures.nmse_same_gelu < 1e-11
    assert (proof.logits.verdict, proof.right) == ("warned", "passed")
    assert "rounds the ends of YaRN's ramp to whole dimensions" in (proof.cause or "")
    assert f"NMSE of the logits {figures.nmse:.2g}" in (proof.cause or "")


def test_the_half_precision_of_a_stack_of_experts_is_that_of_all(
    files: Path, checkpoints: Mapping[str, Path]
) -> None:
    checkpoint = open_checkpoint(checkpoints["gptoss"])
    with open_gguf(files / "gptoss-f32.gguf") as file:
        expected, _ = expected_of_any(file, checkpoint, None)
    reading = Reference(checkpoint, expected.family, threads=2).read([Window(0, IDS)])
    stack = ("blk.1.ffn_down_exps.weight",)
    modules = halves_by_name(stack, expected.family, checkpoint, tied=False)
    found = flowing(modules, reading.magnitudes.flows, out=False)
    assert found is not None
    place = "model.layers.1.mlp.experts."
    each = [
        flow.into.value
        for name, flow in reading.magnitudes.flows.items()
        if name.startswith(place) and "down" in name
    ]
    assert len(each) == 4
    assert found.into.value == max(each)


def another_factor(path: Path, out: Path) -> Path:
    return edited(path, out, metadata={f"{read_header(path).arch}.rope.scaling.factor": 31.0})


def another_context(path: Path, out: Path) -> Path:
    key = f"{read_header(path).arch}.rope.scaling.original_context_length"
    return edited(path, out, metadata={key: 2048})


@pytest.mark.parametrize(
    ("change", "says"),
    [(another_factor, "the scaling of positions"), (another_context, "original_context_length")],
)
@pytest.mark.parametrize("type_", TYPES)
def test_but_another_rope_fails_by_metadata_and_runtime(
    change: Damage, says: str, type_: str, files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    proof = proof_of(change(files / f"gptoss-{type_}.gguf", tmp_path / "damaged.gguf"), checkpoints["gptoss"])
    assert proof.verdict == "failed"
    assert (proof.cause or "").startswith("metadata: ")
    assert says in (proof.cause or "")
    assert proof.runtime.verdict == "failed"


@pytest.mark.parametrize("type_", TYPES)
def test_where_weights_cannot_be_told_right_is_not_decided(
    type_: str, files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    checkpoint = _with_a_weight_nobody_knows(checkpoints["mixtral"], tmp_path / "more")
    proof = proof_of(files / f"mixtral-{type_}.gguf", checkpoint)
    assert proof.verdict == "warned"
    assert proof.cause is not None
    assert proof.cause.startswith(
        "weights: whether the file is right is not decided: 1 tensor of the checkpoint "
        "(model.layers.0.mystery.weight)"
    )
    assert proof.weights.untold == ("model.layers.0.mystery.weight",)
    assert proof.logits.gate is not None
    assert proof.logits.gate == deciding_gate(type_, gelu=False)
    assert proof.logits.verdict == "passed"


def _with_a_weight_nobody_knows(checkpoint: Path, folder: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, folder)
    held = load_file(folder / "model.safetensors")
    save_file(
        {**held, "model.layers.0.mystery.weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors"
    )
    return folder


def another_rope_base(path: Path, out: Path) -> Path:
    return edited(path, out, metadata={f"{read_header(path).arch}.rope.freq_base": 123.0})


def more_heads(path: Path, out: Path) -> Path:
    """Twice as many heads of half the width, whichever of the keys are there."""
    header = read_header(path)
    changes: dict[str, Any] = {}
    for key in ("attention.head_count", "attention.head_count_kv"):
        changes[f"{header.arch}.{key}"] = lambda old: old * 2
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if f"{header.arch}.{key}" in header.metadata:
            changes[f"{header.arch}.{key}"] = lambda old: old // 2
    return edited(path, out, metadata=changes)


def scaled_tensor(path: Path, out: Path) -> Path:
    infos = read_header(path).tensors
    return scaled(path, out, next(each.name for each in infos if each.name.startswith("blk.1.ffn_up")))


DAMAGES: Mapping[str, tuple[Damage, str]] = {
    "epsilon": (another_epsilon, "metadata: attention.layer_norm_rms_epsilon is"),
    "rope base": (another_rope_base, "metadata: rope.freq_base is 123 in the file"),
    "heads": (more_heads, "metadata: attention.head_count is 8 in the file, but 4"),
    "swapped layers": (swapped_layers, "weights: "),
    "a scaled tensor": (scaled_tensor, "weights: blk.1.ffn_up"),
    "a row of the embedding": (neighbours_row, "weights: row 40 of token_embd.weight is row 41"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "type_"), [("mixtral", "f32"), ("gemma2", "q8_0")])
def test_a_damaged_file_fails_by_the_right_part(
    kind: str, damage: str, type_: str, files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    change, cause = DAMAGES[damage]
    proof = proof_of(change(files / f"{kind}-{type_}.gguf", tmp_path / "damaged.gguf"), checkpoints[kind])
    assert proof.verdict == "failed"
    assert (proof.cause or "").startswith(cause)


def wrong_part(path: Path, out: Path) -> Path:
    """What nothing tells of: a kind of tensor comes near the checkpoint's in no layer."""
    names = [info.name for info in read_header(path).tensors if "ffn_down_exps" in info.name]
    return edited(path, out, tensors={name: lambda rows: np.roll(rows, 1, axis=1) for name in names})


def values_of_another_layer(path: Path, out: Path) -> Path:
    """The values' part of DeepSeek's kv_b is another layer's."""
    pairs = {"blk.0.attn_v_b.weight": "blk.1.attn_v_b.weight"}
    pairs |= {new: old for old, new in pairs.items()}
    return edited(path, out, renamed=pairs)


@pytest.mark.parametrize("type_", TYPES)
def test_a_part_of_a_cut_weight_that_is_another_layers_is_found(
    type_: str, files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    wrong = values_of_another_layer(files / f"deepseek-{type_}.gguf", tmp_path / "damaged.gguf")
    proof = proof_of(wrong, checkpoints["deepseek"])
    assert (proof.verdict, proof.weights.verdict) == ("failed", "failed")
    assert "attn_v_b" in (proof.cause or "")


@pytest.mark.parametrize(
    ("type_", "says"),
    [
        ("f32", "logits: the file is wrong; normalized squared error"),
        ("q8_0", "logits: the file is wrong or very lossy: which of the two cannot be told; mean KL"),
    ],
)
def test_what_cannot_be_compared_the_logits_give_away(
    type_: str, says: str, files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    path = wrong_part(files / f"mixtral-{type_}.gguf", tmp_path / "damaged.gguf")
    proof = proof_of(path, checkpoints["mixtral"])
    assert proof.verdict == "failed"
    assert (proof.cause or "").startswith(says)
    assert proof.logits.diagnosis is None


def test_a_file_of_another_model_is_never_right(
    files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    assert proof_of(files / "gemma2-q8_0.gguf", checkpoints["deepseek"]).verdict == "failed"
    with pytest.raises(InputError, match="does not belong to this checkpoint"):
        proof_of(files / "gemma2-q8_0.gguf", _with_more_layers(checkpoints["gemma2"], tmp_path / "more"))


def _with_more_layers(checkpoint: Path, folder: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, folder)
    held = load_file(folder / "model.safetensors")
    last = "model.layers.2."
    more = {name.replace(last, "model.layers.3."): values for name, values in held.items() if last in name}
    save_file({**held, **more}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": 4, "layer_types": None}
    write_json(folder, {"config.json": config})
    return folder


@pytest.mark.parametrize("type_", ["q8_0"])
@pytest.mark.parametrize("kind", ALL_READ)
def test_what_llama_cpp_computes_is_computed_again(
    kind: str, type_: str, files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    path = files / f"{kind}-{type_}.gguf"
    limit = 1e-7 if kind == "gemma2" else 1e-9
    assert _remainder(path, checkpoints[kind]) < limit / 20
    wrong = another_rope_base(path, tmp_path / "damaged.gguf")
    assert _remainder(wrong, checkpoints[kind]) > 1e-3


def _remainder(path: Path, checkpoint: Path) -> float:
    opened, window = open_checkpoint(checkpoint), Window(0, IDS)
    with open_gguf(path) as file, LlamaReader(path, threads=2) as reader:
        expected, left = expected_of_any(file, opened, None)
        assert left.all_weights_read
        inputs, logits = reader.matrix_inputs(window)
        found = Recomputation.of_gguf(opened, expected.family, file, threads=2).compute(
            window, inputs, logits
        )
    assert not found.unused
    return max(each.nmse for each in found.errors)


def test_the_gate_that_decides_is_of_the_next_smaller_type() -> None:
    assert deciding_gate("f32", gelu=False).fails == 1e-6
    assert deciding_gate("f16", gelu=False).fails == pytest.approx(2.5e-4)
    q8_0 = deciding_gate("q8_0", gelu=False)
    assert q8_0.fails == 0.005452
    assert q8_0.source == "the worst published figure of q6_K, the next smaller type"
    assert deciding_gate("q4_K_M", gelu=False).fails == 0.228217  # iq4_xs loses less than q4_K_S
    assert deciding_gate("iq1_s", gelu=False).fails is None


def test_the_command_says_what_is_not_decided_and_ends_with_0(
    files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    checkpoint = _with_a_weight_nobody_knows(checkpoints["mixtral"], tmp_path / "more")
    target = ("--against", checkpoint, "--tokens", str(TOKENS))
    done = kconv("verify", files / "mixtral-q8_0.gguf", *target)
    assert done.returncode == 0, done.stderr
    assert "tensors, all exactly as encoding the original gives; 1 not compared" in done.stdout
    assert "whether the file is right is not decided" in done.stdout.splitlines()[-1]
    wrong = wrong_part(files / "mixtral-q8_0.gguf", tmp_path / "damaged.gguf")
    done = kconv("verify", wrong, *target, "--report", tmp_path / "report.html")
    assert done.returncode == 1
    assert "verdict: failed" in done.stdout
    assert "wrong or very lossy" in (tmp_path / "report.html").read_text("utf-8")


def test_a_model_of_remote_code_is_refused_in_a_sentence(
    files: Path, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    for path in checkpoints["mixtral"].iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    own = {"auto_map": {"AutoModelForCausalLM": "modeling.Mystery"}, "architectures": ["Mystery"]}
    write_json(tmp_path, {"config.json": {**own, "model_type": "mystery", "vocab_size": 800}})
    (tmp_path / "modeling.py").write_text("raise SystemExit('code of the checkpoint was run')")
    done = kconv("verify", files / "mixtral-f32.gguf", "--against", tmp_path)
    assert done.returncode == 3
    assert "'Mystery' is code of the checkpoint's own (auto_map), which kconv never runs" in done.stderr
