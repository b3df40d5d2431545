"""The weights of a file against the checkpoint's: every damage is caught and named, honest files pass."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage_material import DAMAGES, edited, not_permuted, scaled, zeroed_row
from kernel_material import without_kernels
from llama_cpp_material import (
    FLOATS,
    VARIANTS,
    checkpoints,
    conversions,
    run_quantizer,
)
from weights_material import mapped, quantize_elsewhere

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import GgufError, InputError, UsageError
from kconv.core.gguf_file import read_header
from kconv.core.model import Model
from kconv.core.tensor import DType, Tensor
from kconv.quant.gguf_weights import open_gguf
from kconv.verify.proof import WeightsPart
from kconv.verify.same_model import refuse_other_model
from kconv.verify.weight_rows import as_stored
from kconv.verify.weights import check_weights

TYPES = ("f32", "q8_0", "q4_0")

# What the finding on each damage says.
SAID: Mapping[str, str] = {
    "q and k not permuted": "another order: attention heads are not permuted",
    "two layers swapped": "layers 0 and 1 are swapped",
    "a tensor scaled by 1.01": "blk.1.ffn_up.weight is scaled by 1.0100",
    "a row zeroed": "row 17 of blk.0.ffn_down.weight is all zeros",
    "embedding rows shifted by one": "token_embd.weight are shifted by one from row 40 on",
    "an embedding row taken from its neighbour": "row 40 of token_embd.weight is row 41 of the checkpoint",
    "an embedding row rolled": "row 40 of token_embd.weight is shifted by 1 column",
    "the last shard's tensors zeroed": "tensors are all zeros",
    "a norm's weights replaced by ones": "blk.1.ffn_norm.weight is all ones",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint."""
    return write_sample("42dot", tmp_path_factory.mktemp("demo") / "hf")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return mapped(folder)[0]


@pytest.fixture(scope="module")
def raw(folder: Path) -> dict[str, Tensor]:
    return mapped(folder)[1]


@pytest.fixture(scope="module")
def good(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kconv's own files, by type."""
    types = (*TYPES, "f16", "bf16")
    made = to_gguf(folder, tmp_path_factory.mktemp("good"), types=types, verify=False)
    return {output.type: output.path for output in made.outputs}


def check(path: Path, model: Model, *, strict: bool = False, **rest: Any) -> WeightsPart:
    with open_gguf(path) as file:
        refuse_other_model(file, model)
        return check_weights(file, model, strict=strict, threads=2, **rest)


def messages(part: WeightsPart) -> str:
    return "\n".join(finding.message for finding in part.findings)


# What is right


@pytest.mark.parametrize("type_name", [*TYPES, "f16", "bf16"])
def test_kconvs_own_files_are_identical(good: dict[str, Path], model: Model, type_name: str) -> None:
    part = check(good[type_name], model, strict=True)
    assert (part.verdict, part.findings) == ("passed", ())
    assert {tensor.state for tensor in part.tensors} == {"identical"}
    assert [tensor.name for tensor in part.tensors] == [tensor.name for tensor in model.tensors]
    assert {tensor.layer for tensor in part.tensors} == {None, 0, 1, 2}
    for tensor in part.tensors:
        usual = {"q4_0": 0.086, "q8_0": 0.0054, "q6_K": 0.018, "bf16": 0.0017, "f16": 0.0002}
        assert tensor.error == tensor.own_error <= 1.1 * usual.get(tensor.format, 0)
        assert tensor.error <= tensor.worst_row_error < 1.6 * tensor.error + 1e-9
        assert tensor.slope == pytest.approx(1, abs=0.005)


def test_figures_do_not_depend_on_threads(good: dict[str, Path], model: Model, tmp_path: Path) -> None:
    path = scaled(good["q4_0"], tmp_path / "scaled.gguf")
    with open_gguf(path) as file:
        one, other = (check_weights(file, model, strict=False, threads=count) for count in (1, 5))
    assert one == other


def test_progress_is_told(good: dict[str, Path], model: Model) -> None:
    progress_calls: list[tuple[str, int, int]] = []
    check(good["q8_0"], model, strict=True, progress=lambda *step: progress_calls.append(step))
    size = sum(info.nbytes for info in read_header(good["q8_0"]).tensors)
    assert progress_calls[-1] == ("weights", size, size)


# What is wrong


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "elsewhere"])
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("damage", SAID)
def test_every_damage_is_named(
    good: dict[str, Path],
    model: Model,
    raw: dict[str, Tensor],
    tmp_path: Path,
    damage: str,
    type_name: str,
    strict: bool,
) -> None:
    bad = DAMAGES[damage].make(good[type_name], tmp_path / "bad.gguf")
    part = check(bad, model, strict=strict, originals=raw)
    assert part.verdict == "failed"
    assert SAID[damage] in messages(part)
    assert len(part.findings) == 1
    wrong = {tensor.name for tensor in part.tensors if tensor.state == "differs"}
    assert part.findings[0].where in wrong


def test_the_damages_are_all_of_them() -> None:
    assert set(SAID) == {name for name, damage in DAMAGES.items() if damage.part == "weights"}


def test_another_order_is_seen_without_the_raw_tensors(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    part = check(not_permuted(good["q4_0"], tmp_path / "bad.gguf", layers=[1]), model)
    assert part.verdict == "failed"
    assert "the rows of 2 of 30 tensors are in another order: blk.1.attn_q" in messages(part)


def test_causes_beyond_the_closely_searched_are_not_invented(
    good: dict[str, Path], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kconv.verify.weight_findings._SEARCHED", 2)
    part = check(not_permuted(good["q4_0"], tmp_path / "bad.gguf"), model)
    assert "the rows of 2 of 30 tensors are in another order: blk.0.attn_q" in messages(part)
    assert "4 of 30 tensors also differ: blk.1.attn_q" in messages(part)


def in_row(number: int, change: Any) -> Any:
    def apply(rows: Any) -> Any:
        rows[number] = change(rows[number])
        return rows

    return apply


OTHER_DAMAGES: Mapping[str, tuple[Any, str]] = {
    "not finite": (in_row(3, lambda row: row * np.nan), "256 weights of blk.0.attn_v.weight are NaN"),
    "transposed": (lambda rows: rows.T, "blk.0.attn_v.weight is transposed"),
    "reversed": (lambda rows: rows[::-1], "in another order (row 0 is row 255 of the checkpoint)"),
    "negated": (lambda rows: -rows, "scaled by -1.0000"),
    "noise": (
        lambda rows: np.random.default_rng(0).standard_normal(rows.shape) * rows.std(),
        "blk.0.attn_v.weight does not match the checkpoint: 65536 of 65536 weights differ",
    ),
    "a noisy row": (in_row(3, lambda row: np.sin(np.arange(256))), "row 3 of blk.0.attn_v.weight differs"),
    "rows zeroed": (lambda rows: rows * (np.arange(256) > 5)[:, None], "6 rows of blk.0.attn_v.weight, from"),
}


@pytest.mark.parametrize("damage", OTHER_DAMAGES)
def test_other_damages_are_named_too(
    good: dict[str, Path], model: Model, tmp_path: Path, damage: str
) -> None:
    change, words = OTHER_DAMAGES[damage]
    bad = edited(good["f32"], tmp_path / "bad.gguf", tensors={"blk.0.attn_v.weight": change})
    part = check(bad, model, strict=damage != "noise")
    assert part.verdict == "failed"
    assert words in messages(part)


def test_two_tensors_of_a_layer_in_each_others_place(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    one, other = "blk.0.attn_k.weight", "blk.0.attn_v.weight"
    bad = edited(good["q4_0"], tmp_path / "bad.gguf", renamed={one: other, other: one})
    assert messages(check(bad, model)) == f"{one} and {other} are swapped"
    with open_gguf(good["f32"]) as file:
        info = next(info for info in file.header.tensors if info.name == "blk.1.ffn_up.weight")
        rows = file.tensor(info).read(0, info.shape[0])
    copied = {"blk.1.ffn_gate.weight": lambda _: rows}
    bad = edited(good["f32"], tmp_path / "bad.gguf", tensors=copied)
    assert (
        messages(check(bad, model)) == "blk.1.ffn_gate.weight contains blk.1.ffn_up.weight of the checkpoint"
    )


def test_weights_of_another_training_are_told_once(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    """All tensors differ a little everywhere, as a fine-tune's do."""
    chance = np.random.default_rng(0)
    tensors = {
        tensor.name: lambda rows: rows + chance.standard_normal(rows.shape) * rows.std() * 0.3
        for tensor in model.tensors
    }
    part = check(edited(good["q8_0"], tmp_path / "bad.gguf", tensors=tensors), model)
    assert part.verdict == "failed"
    assert len(part.findings) == 1
    assert "30 of 30 tensors do not match the checkpoint, perhaps from another revision" in messages(part)


def flipped(path: Path, to: Path, name: str) -> Path:
    """A copy with another bit in the middle of a tensor."""
    data, header = bytearray(path.read_bytes()), read_header(path)
    info = next(info for info in header.tensors if info.name == name)
    data[header.data_offset + info.offset + info.nbytes // 2 + 2] ^= 1
    to.write_bytes(data)
    return to


@pytest.mark.parametrize("type_name", TYPES)
def test_one_flipped_bit_fails_a_file_of_our_own(
    good: dict[str, Path], model: Model, tmp_path: Path, type_name: str
) -> None:
    bad = flipped(good[type_name], tmp_path / "bad.gguf", "blk.1.attn_v.weight")
    part = check(bad, model, strict=True)
    assert part.verdict == "failed"
    assert [finding.where for finding in part.findings] == ["blk.1.attn_v.weight"]
    assert "row 128 of blk.1.attn_v.weight differs" in messages(part)


def test_zeros_of_the_other_sign_pass_unless_the_file_is_ours(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    zeros = edited(good["f32"], tmp_path / "0.gguf", tensors={"blk.0.attn_v.weight": np.zeros_like})
    name = "blk.0.attn_v.weight"
    nothing = np.zeros((256, 256), np.float32)
    zero = Tensor(name, (256, 256), DType.F32, lambda start, stop: nothing[start:stop])
    tensors = tuple(zero if tensor.name == name else tensor for tensor in model.tensors)
    changed = replace(model, tensors=tensors)
    assert check(zeros, changed, strict=True).verdict == "passed"
    other = edited(zeros, tmp_path / "1.gguf", tensors={name: lambda rows: -rows})
    assert check(other, changed, strict=False).verdict == "passed"
    assert "the same numbers in other bytes" in messages(check(other, changed, strict=True))


def test_rounding_on_the_way_is_recognized(good: dict[str, Path], model: Model, tmp_path: Path) -> None:
    """An F32 file made by way of a shorter float is not exact, and that is said."""
    name = "blk.0.attn_v.weight"
    exact = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    tensor = Tensor(name, exact.shape, DType.F32, lambda start, stop: exact[start:stop])
    changed = replace(model, tensors=tuple(tensor if t.name == name else t for t in model.tensors))
    for short, rounded in (("F16", exact.astype(np.float16)), ("BF16", as_stored(exact, "bf16"))):
        path = edited(good["f32"], tmp_path / "bad.gguf", tensors={name: lambda rows, new=rounded: new})
        part = check(path, changed)
        assert part.verdict == "failed"
        assert f"the weights of {name} were rounded to {short} on the way" in messages(part)


# Tensors only one side has


def test_missing_and_extra_tensors(good: dict[str, Path], model: Model, tmp_path: Path) -> None:
    extra = {
        "blk.0.more.weight": np.ones((2, 4), np.float32),
        "rope_freqs.weight": np.full(16, 2, np.float32),
    }
    bad = edited(good["q8_0"], tmp_path / "bad.gguf", tensors={"blk.1.ffn_norm.weight": None}, added=extra)
    part = check(bad, model, strict=True)
    assert part.verdict == "failed"
    assert "tensor blk.1.ffn_norm.weight of the checkpoint is not in the file" in messages(part)
    assert "the file has a tensor blk.0.more.weight [2, 4] that the checkpoint does not have" in messages(
        part
    )
    assert "the file has a tensor rope_freqs.weight [16]" in messages(part)


def test_what_changes_nothing_may_be_written_or_left_out(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    """A tied head written out or left out, biases of zeros, rotary divisors that are all one."""
    added = {
        "blk.0.attn_q.bias": np.zeros(256, np.float32),
        "rope_freqs.weight": np.ones(16, np.float32),
    }
    embedding = model.tensor("token_embd.weight")
    head = model.tensor("output.weight")
    tied = replace(model, tensors=tuple(tensor for tensor in model.tensors if tensor is not head))
    both = replace(model, tensors=(*tied.tensors, replace(embedding, name="output.weight")))
    without = edited(good["f32"], tmp_path / "tied.gguf", tensors={"output.weight": None}, added=added)
    assert check(without, tied).verdict == "passed"
    assert check(without, both).verdict == "passed"
    assert "output.weight of the checkpoint is not in the file" in messages(check(without, model))
    assert check(good["f32"], tied).verdict == "failed"
    rows = embedding.read(0, embedding.rows)
    values = (rows.astype(np.uint32) << 16).view(np.float32) if embedding.dtype is DType.BF16 else rows
    twice = edited(without, tmp_path / "twice.gguf", added={"output.weight": values.astype(np.float32)})
    part = check(twice, tied)
    assert (part.verdict, part.tensors[-1].name) == ("passed", "output.weight")


# Made elsewhere


@pytest.mark.parametrize("sigma", [None, 1.0, 2.0], ids=["plain", "importance", "uneven importance"])
def test_llama_quantizes_files_pass(
    good: dict[str, Path], model: Model, tmp_path: Path, sigma: float | None
) -> None:
    types = ("Q8_0", "Q4_0", "Q4_K_M", "IQ4_XS", *(("Q2_K",) if sigma == 1.0 else ()))
    paths = {tmp_path / f"{name}.gguf": (name, sigma) for name in types}
    quantize_elsewhere(good["f32"], paths)
    for path, (name, _) in paths.items():
        part = check(path, model)
        assert (part.verdict, part.findings) == ("passed", ()), name
        states = {tensor.state for tensor in part.tensors}
        assert states == ({"identical"} if sigma is None or name == "Q8_0" else {"identical", "within"})
        if sigma in (None, 1.0) and name != "Q2_K":
            assert check(scaled(path, tmp_path / "bad.gguf"), model).verdict == "failed", name
        assert check(zeroed_row(path, tmp_path / "bad.gguf"), model).verdict == "failed", name


def test_formats_without_a_second_encoding_are_passed_with_a_remark(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "iq3.gguf"
    quantize_elsewhere(good["f32"], {path: ("IQ3_S", None)})
    with without_kernels():
        part = check(path, model)
    assert part.verdict == "warned"
    assert "22 tensors in IQ3_S were not compared byte by byte" in messages(part)
    assert "they differ from the checkpoint no more than is usual" in messages(part)
    assert [tensor.format for tensor in part.tensors if tensor.state == "not compared"] == ["iq3_s"] * 22
    assert part.not_compared == 22


def test_files_of_our_own_are_compared_in_formats_on_grids_too(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    made = to_gguf(folder, tmp_path, types=("iq3_s",), verify=False)
    part = check(made.outputs[0].path, model, strict=True)
    assert (part.verdict, part.findings, part.not_compared) == ("passed", (), 0)
    assert {tensor.state for tensor in part.tensors} == {"identical"}
    assert "iq3_s" in {tensor.format for tensor in part.tensors}
    bad = flipped(made.outputs[0].path, tmp_path / "bad.gguf", "blk.1.ffn_up.weight")
    part = check(bad, model, strict=True)
    assert [finding.where for finding in part.findings] == ["blk.1.ffn_up.weight"]


@pytest.fixture(scope="module")
def from_llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Path]]]:
    """Checkpoints, with what llama.cpp's own converter and quantizer make of them, by variant."""
    converted, folder = conversions(tmp_path_factory), tmp_path_factory.mktemp("quantized")
    made: dict[str, tuple[Path, list[Path]]] = {}
    quantizations = []
    for name, checkpoint in checkpoints(tmp_path_factory).items():
        floats = [converted[name, kind] for kind in FLOATS]
        small = folder / f"{name}-q4_0.gguf"
        quantizations.append((floats[0], small, "Q4_0", False))
        made[name] = (checkpoint, [*floats, small])
    run_quantizer(quantizations)
    return made


@pytest.mark.parametrize("name", [variant.name for variant in VARIANTS])
def test_llama_cpps_own_conversions_pass(
    from_llama_cpp: dict[str, tuple[Path, list[Path]]], name: str
) -> None:
    checkpoint, files = from_llama_cpp[name]
    model, _ = mapped(checkpoint)
    for path in files:
        part = check(path, model)
        assert (part.verdict, part.findings) == ("passed", ()), path.name


# Other models and files that are none


def test_another_model_is_refused(good: dict[str, Path], model: Model, tmp_path: Path) -> None:
    def refused(path: Path, wanted: Model, *words: str) -> None:
        with pytest.raises(InputError) as caught, open_gguf(path) as file:
            refuse_other_model(file, wanted)
        assert caught.value.exit_code == 3
        assert caught.value.hint
        assert len(caught.value.message.splitlines()) <= 13
        for word in words:
            assert word in caught.value.message

    for family in ("eagle", "llama-3-ko"):
        other, _ = mapped(write_sample(family, tmp_path / family))
        refused(good["q8_0"], other, "does not belong to this checkpoint", "the vocabulary has 2048 rows")
    copy = tmp_path / "copy.gguf"
    refused(edited(good["q8_0"], copy, arch="phi2"), model, "architecture is 'phi2', expected 'llama'")
    fewer = {info.name: None for info in read_header(good["q8_0"]).tensors if "blk.2." in info.name}
    path = edited(good["q8_0"], copy, tensors=fewer, metadata={"llama.block_count": 2})
    refused(path, model, "it has 2 layers, expected 3")
    refused(edited(good["q8_0"], copy, metadata={"split.count": 3}), model, "split.no is None")
    refused(edited(good["q8_0"], copy, metadata={"general.type": "adapter"}), model, "'adapter'")
    nothing: dict[str, None] = dict.fromkeys(info.name for info in read_header(good["q8_0"]).tensors)
    refused(edited(good["q8_0"], copy, tensors=nothing), model, "no tensors")
    renamed = {name: f"x{number}" for number, name in enumerate(nothing)}
    refused(edited(good["q8_0"], copy, renamed=renamed), model, "none of the checkpoint's tensors")


def test_missing_layers_and_wrong_metadata_are_for_the_verdict(
    good: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    fewer = {info.name: None for info in read_header(good["q8_0"]).tensors if "blk.2." in info.name}
    part = check(edited(good["q8_0"], copy, tensors=fewer), model)
    assert part.verdict == "failed"
    assert sum("not in the file" in finding.message for finding in part.findings) == 9
    assert check(edited(good["q8_0"], copy, metadata={"llama.block_count": 7}), model).verdict == "passed"


def test_truncated_and_changed_files(good: dict[str, Path], model: Model, tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    path.write_bytes(good["q8_0"].read_bytes())
    size = path.stat().st_size
    with open_gguf(path) as file:
        last = file.header.tensors[-1]
        os.truncate(path, size - 100_000)
        with pytest.raises(GgufError, match=f"ends at byte {size - 100_000}, within tensor {last.name}"):
            file.read(last, 0, last.shape[0])
        with pytest.raises(GgufError, match=r"changed while|ends at byte"):
            check_weights(file, model, strict=True)
    with pytest.raises(GgufError, match="truncated"):
        open_gguf(path)
    path.write_bytes(good["q8_0"].read_bytes())
    with open_gguf(path) as file:
        stamp = path.stat().st_mtime_ns + 1
        os.utime(path, ns=(stamp, stamp))
        with pytest.raises(GgufError, match="changed while tensor token_embd"):
            file.read(file.header.tensors[0], 0, 1)


# Reading


def test_rows_are_read_from_several_threads(good: dict[str, Path], model: Model) -> None:
    embedding = model.tensor("token_embd.weight")
    with open_gguf(good["f32"]) as file:
        info = next(info for info in file.header.tensors if info.name == embedding.name)
        tensor = file.tensor(info)
        assert (tensor.dtype, tensor.shape, tensor.granule) == (DType.F32, info.shape, 1)
        whole = tensor.read(0, tensor.rows)
        collected: dict[int, Any] = {}

        def read(row: int) -> None:
            collected[row] = tensor.read(row, row + 1)

        threads = [threading.Thread(target=read, args=(row,)) for row in range(0, 2048, 64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(collected) == 32
    assert all(np.array_equal(rows[0], whole[row]) for row, rows in collected.items())
    with pytest.raises(UsageError), open_gguf(good["f32"]) as file:
        file.read(info, 0, 2049)


def test_types_that_are_no_weights_are_refused(good: dict[str, Path], tmp_path: Path) -> None:
    added = edited(good["f32"], tmp_path / "i32.gguf", added={"counts": np.zeros(4, np.float32)})
    data = bytearray(added.read_bytes())
    place = data.index(b"counts") + len("counts") + 4 + 8
    data[place] = 26  # i32
    added.write_bytes(data)
    with open_gguf(added) as file, pytest.raises(GgufError, match=r"tensor counts \[4\] has the type I32"):
        file.tensor(file.header.tensors[-1])
