"""Gates: the table, which one a file belongs to, and what is said of figures beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_material import llama_quantize, llama_tensors, write_llama

from kconv.core.errors import UsageError
from kconv.core.gguf_file import GgufHeader, TensorInfo, read_header
from kconv.quant.formats import FORMATS
from kconv.quant.gate_table import FILE_TYPES, GATES, MIXTURES
from kconv.quant.policy import POLICIES
from kconv.verify.figures import Measure
from kconv.verify.gates import file_type, gate_for, judge, mislabelled, parse_gates, published_figure
from kconv.verify.measurements import Figures, NotFinite
from kconv.verify.proof import verdict_of

NUMBERS = {name: number for number, name in FILE_TYPES.items()}


def figures(**values: Any) -> Figures:
    """Figures of ten positions, all zero but for ``values``."""
    return replace(Measure([]).figures(), positions=10, **values)


# The table


def test_gates_are_those_agreed_on() -> None:
    """What warns: a loss is no failure, unless somebody says where it becomes one; f32 loses nothing."""
    agreed = {
        "f16": 1e-3, "bf16": 1e-3, "q8_0": 5e-3, "q6_K": 0.015, "q5_K": 0.03, "q5_0": 0.05, "q5_1": 0.05,
        "q4_K": 0.08, "iq4_nl": 0.08, "iq4_xs": 0.08, "q4_0": 0.15, "q4_1": 0.15, "q3_K": 0.25,
    }  # fmt: skip
    for name, limit in agreed.items():
        gate = gate_for(name)
        assert (gate.type, gate.measure, gate.warns, gate.fails) == (name, "kl_mean", limit, None)
        assert gate.source
    assert gate_for("f32").fails == gate_for("f32").warns == 1e-6
    assert gate_for("f32", gelu=True).fails == 1e-4
    assert gate_for("f32").measure == gate_for("f64").measure == "nmse"
    assert gate_for("q4_0", gelu=True) == gate_for("q4_0")
    for name in ("q2_K", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq1_0", "q1_0"):
        assert gate_for(name).fails is None


def test_every_format_of_weights_has_a_gate_with_a_source() -> None:
    assert set(GATES) == {name for name in FORMATS if name not in ("i8", "i16", "i32", "i64")}
    assert all(row.source for row in GATES.values())


def test_gates_are_about_twice_what_was_published() -> None:
    for name, row in GATES.items():
        if row.published and name not in ("f16", "bf16"):
            published = max(each.kl_mean for each in row.published if each.type in (name, f"{name}_M"))
            assert 1.9 <= row.limit / published <= 3.8, name


def test_finer_blocks_have_tighter_gates() -> None:
    bits = {name: 8 * FORMATS[name].block_bytes / FORMATS[name].block_size for name in GATES}
    limits = {name: row.limit for name, row in GATES.items() if row.measure == "kl_mean"}
    for one in limits:
        for other in limits:
            if bits[one] >= bits[other] + 1.2:
                assert limits[one] <= limits[other], (one, other)


def test_published_figures_stand_beside_the_gate_those_of_the_very_type_first() -> None:
    assert published_figure(gate_for("q4_0"), "kl_mean") == ("Llama-3-8B q4_0", 0.071940)
    assert published_figure(gate_for("q4_0"), "dp_rms") == ("Llama-3-8B q4_0", 0.08434)
    assert published_figure(gate_for("q4_k_s"), "kl_mean") == ("Llama-3-8B q4_K_S", 0.043136)
    assert published_figure(gate_for("Q4_K_M"), "kl_mean") == ("Llama-3-8B q4_K_M", 0.031273)
    gate = gate_for("q8_0")
    assert gate.published["kl_mean of Llama-2-7B q8_0"] == 0.000369
    assert gate.published["same_top1 of Llama-3-8B q8_0"] == 0.97674
    # README: Mean PPL ratio 1.028160 (q4_K_M of Llama 3), 1.107955 (q2_K of Llama 2)
    assert gate_for("q4_K_M").published["log_ratio of Llama-3-8B q4_K_M"] == pytest.approx(
        math.log(1.028160), abs=1e-5
    )
    assert gate_for("q2_K").published["log_ratio of Llama-2-7B q2_K"] == pytest.approx(
        math.log(1.107955), abs=1e-5
    )
    assert published_figure(gate_for("mxfp4"), "kl_mean") is None


# What the user asks for


def test_gates_given_for_a_run() -> None:
    assert gate_for("q4_0", overrides={"q4_0": 0.2}).warns == 0.2
    assert gate_for("q4_0", overrides={"q4_0": 0.2}).fails == 0.2
    assert gate_for("q4_0", overrides={"": 0.3, "q8_0": 1}).warns == 0.3
    assert gate_for("q4_0", overrides={"": 0.3, "Q4_0": 0.2}).warns == 0.2
    assert gate_for("q4_K_M", overrides={"q4_k": 0.2}).warns == 0.2
    assert gate_for("q4_K_M", overrides={"q4_K": 0.2, "q4_K_M": 0.1}).warns == 0.1
    assert gate_for("q4_K_S", overrides={"q4_K_M": 0.1}).warns == 0.08
    assert gate_for("q4_0", overrides={"q8_0": 1}) == gate_for("q4_0")
    assert gate_for("f32", gelu=True, overrides={"f32": 1e-3}).fails == 1e-3
    # a limit somebody asked for is meant, also where the table only warns
    assert gate_for("q2_K", overrides={"": 0.5}).fails == 0.5
    assert gate_for("q4_0", overrides={"": 0.3}).published == gate_for("q4_0").published
    assert "given" in gate_for("q4_0", overrides={"": 0.3}).source


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True])
def test_gates_that_are_no_limit_are_wrong_usage(value: float) -> None:
    with pytest.raises(UsageError, match="invalid gate"):
        gate_for("q4_0", overrides={"q8_0": value})


def test_gates_of_unknown_types_are_wrong_usage() -> None:
    for overrides in ({"q9_0": 0.1}, {"q4_0 ": 0.1, "x": 1}):
        with pytest.raises(UsageError, match="no gate for the type") as refused:
            gate_for("q4_0", overrides=overrides)
        assert refused.value.hint is not None
        assert "q4_0" in refused.value.hint
    with pytest.raises(UsageError, match="no gate for the type 'i32'"):
        gate_for("i32")


def test_gates_from_the_command_line() -> None:
    assert parse_gates([]) == {}
    assert parse_gates(["0.2"]) == {"": 0.2}
    assert parse_gates(["q4_0=0.2", " Q4_k_M = 1e-1", "=0.3"][:2]) == {"q4_0": 0.2, "q4_K_M": 0.1}
    for text, message in {
        "": "invalid gate", "q4_0": "invalid gate", "q4_0=": "invalid gate", "0,2": "invalid gate",
        "q4_0=nan": "invalid gate",
        "q4_0=-1": "invalid gate", "inf": "invalid gate", "=0.3": "no gate for the type", "a=b=1": "no gate",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=message):
            parse_gates([text])
    for texts in (["0.1", "0.2"], ["q4_0=1", "Q4_0=1"]):
        with pytest.raises(UsageError, match="two gates"):
            parse_gates(texts)


@given(value=st.floats(min_value=1e-12, max_value=1e12), name=st.sampled_from(["", *GATES, *MIXTURES]))
def test_what_is_parsed_is_the_gate(value: float, name: str) -> None:
    given_gates = parse_gates([f"{name}={value!r}" if name else repr(value)])
    gate = gate_for(name or "q5_1", overrides=given_gates)
    assert gate.warns == value
    assert gate.fails is not None
    assert gate.fails >= value


# Verdicts


def test_a_loss_above_the_gate_warns_however_large_and_fails_above_a_given_limit() -> None:
    gate = gate_for("q4_0")
    assert judge(figures(kl_mean=0.15), gate) == ()
    (warning,) = judge(figures(kl_mean=0.2), gate)
    assert not warning.grave
    assert warning.message == (
        "mean KL divergence 0.2 is above the gate of 0.15 for q4_0; published Llama-3-8B q4_0: 0.0719"
    )
    assert (warning.expected, warning.found) == ("at most 0.15", "0.2")
    assert not judge(figures(kl_mean=1e9), gate)[0].grave
    given = gate_for("q4_0", overrides={"": 0.3})
    assert judge(figures(kl_mean=0.3), given) == ()
    (failure,) = judge(figures(kl_mean=0.512345), given)
    assert failure.grave
    assert failure.message == (
        "mean KL divergence 0.512 is above the limit of 0.3 for q4_0; published Llama-3-8B q4_0: 0.0719"
    )


def test_max_kl_holds_for_every_type() -> None:
    for name in ("f32", "q8_0", "q2_K"):
        assert judge(figures(kl_mean=0.001), gate_for(name), max_kl=0.001) == ()
        (failure,) = judge(figures(kl_mean=0.002), gate_for(name), max_kl=0.001)
        assert failure.grave
        assert failure.message == "mean KL divergence 0.002 is above the limit of 0.001 given for this run"


def test_f32_fails_at_its_gate() -> None:
    assert judge(figures(nmse=1e-6, kl_mean=9.0), gate_for("f32")) == ()
    (failure,) = judge(figures(nmse=3.14e-5), gate_for("f32"))
    assert failure.grave
    assert failure.message == (
        "normalized squared error of the logits 3.14e-5 is above the limit of 1e-6 for f32"
    )
    assert judge(figures(nmse=3.14e-5), gate_for("f32", gelu=True)) == ()


def test_types_that_only_warn_never_fail() -> None:
    findings = judge(figures(kl_mean=1e9), gate_for("q2_K"))
    assert verdict_of(findings) == "warned"
    assert "above the gate of 0.9 for q2_K; published" in findings[0].message


@pytest.mark.parametrize("value", [0.15000001, 0.15000000000001])
def test_a_value_never_looks_equal_to_the_limit_it_passes(value: float) -> None:
    (finding,) = judge(figures(kl_mean=value), gate_for("q4_0"))
    assert finding.found == repr(value)


@pytest.mark.parametrize("name", sorted(set(FILE_TYPES.values())))
def test_logits_that_are_not_finite_fail_whatever_the_type(name: str) -> None:
    broken = NotFinite(1200, 2, 16, checkpoint=False, file=True)
    findings = judge(figures(not_finite=broken), gate_for(name))
    assert verdict_of(findings) == "failed"
    assert findings[0].message == (
        "logits of the file are NaN or infinite at 1,200 positions, first at window 3, position 17"
    )
    (itself,) = judge(figures(not_finite=NotFinite(1, 0, 0, checkpoint=True, file=False)), gate_for(name))
    assert "of the checkpoint itself are NaN or infinite at 1 position," in itself.message
    none = replace(figures(not_finite=broken), positions=0)
    assert verdict_of(judge(none, gate_for(name))) == "failed"
    assert verdict_of(judge(replace(none, not_finite=None), gate_for(name))) == "failed"


# Which gate a file belongs to


def header(weights: Mapping[str, tuple[str, tuple[int, ...]]], says: object = None) -> GgufHeader:
    """A header with these tensors (format and shape by name) and general.file_type."""
    tensors = tuple(
        TensorInfo(name, shape, FORMATS[format].ggml_type, 0) for name, (format, shape) in weights.items()
    )
    return GgufHeader({} if says is None else {"general.file_type": says}, tensors, 0, 0)


def layered(layers: Mapping[str, int], others: Mapping[str, int] | None = None, says: object = None) -> Any:
    """A header with that many weights by format, within the layers and outside, and the usual f32 rest."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        f"blk.{place}.ffn_up.weight": (name, (count, 256))
        for place, (name, count) in enumerate(layers.items())
    }
    tensors |= {f"{name}_embd.weight": (name, (count, 256)) for name, count in (others or {}).items()}
    tensors |= {"blk.0.attn_norm.weight": ("f32", (10**6,)), "blk.0.attn_q.bias": ("f32", (10**6,))}
    tensors |= {"blk.0.odd_norm.weight": ("f32", (10**6, 2)), "blk.0.table": ("i32", (10**6, 2))}
    return header(tensors, says)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """An f32 file with an output matrix, and one tied to an embedding that outweighs the layers."""
    folder = tmp_path_factory.mktemp("sources")
    made = {}
    for tied, vocabulary in ((False, 512), (True, 6000)):
        made[tied] = folder / f"{tied}.gguf"
        write_llama(made[tied], llama_tensors(hidden=256, feed_forward=512, vocabulary=vocabulary, tied=tied))
    return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "name",
    ["f32", "f16", "bf16", "q8_0", "q6_K", "q5_K_M", "q5_0", "q4_K_S", "q4_K_M", "q4_0", "q4_1", "iq4_xs",
     "q3_K_S", "q3_K_M", "q3_K_L", "iq3_s", "iq3_m", "q2_K", "tq2_0"],
)  # fmt: skip
def test_mixtures_llama_quantize_makes_are_what_they_say(
    sources: dict[bool, Path], tmp_path: Path, name: str, tied: bool
) -> None:
    target = tmp_path / "made.gguf"
    assert llama_quantize(sources[tied], target, NUMBERS[name], threads=2)
    made = read_header(target)
    assert file_type(made) == name
    assert mislabelled(made) is None
    silent = replace(made, metadata={})
    assert file_type(silent) == MIXTURES.get(name, name)
    # whatever the file says, its gate is no looser than that of what it holds
    for number in FILE_TYPES:
        read = file_type(replace(made, metadata={"general.file_type": number}))
        one, other = gate_for(read), gate_for(name)
        assert one.measure == "nmse" or (other.measure == "kl_mean" and one.warns <= other.warns), number


def test_numbers_of_types_are_llama_cpps() -> None:
    for name, number in vars(llama_cpp).items():
        if name.startswith("LLAMA_FTYPE_MOSTLY_"):
            assert FILE_TYPES[number].lower() == name.removeprefix("LLAMA_FTYPE_MOSTLY_").lower()
    assert FILE_TYPES[llama_cpp.LLAMA_FTYPE_ALL_F32] == "f32"
    for policy in POLICIES.values():
        assert FILE_TYPES[policy.file_type] == policy.name
    assert all(name in GATES or name in MIXTURES for name in FILE_TYPES.values())


def test_a_file_that_says_it_is_coarser_is_held_to_what_it_holds() -> None:
    lie = layered({"q8_0": 900, "q2_K": 100}, says=NUMBERS["q2_K"])
    assert file_type(lie) == "q8_0"
    finding = mislabelled(lie)
    assert finding is not None
    assert not finding.grave
    assert finding.message == (
        "the file is labelled q2_K, but the weights of its layers are q8_0; the gate of q8_0 is applied"
    )
    assert (finding.where, finding.expected, finding.found) == ("general.file_type", "q2_K", "q8_0")


def test_a_file_that_says_it_is_finer_is_held_to_its_word() -> None:
    boast = layered({"q4_0": 2}, says=NUMBERS["q8_0"])
    assert file_type(boast) == "q8_0"
    assert mislabelled(boast) is not None


def test_only_a_file_of_nothing_else_is_f32() -> None:
    """Above the limit of f32 a file is wrong; what a coarser head costs is a loss."""
    f32 = NUMBERS["f32"]
    assert file_type(layered({"f32": 10}, {"f32": 10}, f32)) == "f32"
    assert file_type(layered({"f32": 900}, {"f32": 50, "q4_0": 50}, f32)) == "q4_0"
    assert file_type(layered({"f32": 900, "q6_K": 2}, {"q4_0": 50}, f32)) == "q6_K"
    assert file_type(layered({"f32": 900, "f16": 100})) == "f16"
    assert file_type(layered({"f16": 900}, {"q4_0": 50}, NUMBERS["f16"])) == "f16"  # whose gate only warns
    boast = layered({"q4_0": 2}, says=f32)
    assert file_type(boast) == "q4_0"
    assert mislabelled(boast) is not None


def test_mixtures_are_judged_by_their_layers() -> None:
    assert file_type(layered({"q4_0": 100}, {"q6_K": 900}, NUMBERS["q4_0"])) == "q4_0"
    assert file_type(layered({"q4_0": 100}, {"q6_K": 900})) == "q4_0"
    assert file_type(layered({"q4_K": 60, "q6_K": 40}, {"q6_K": 50}, NUMBERS["q4_K_M"])) == "q4_K_M"
    # a third of the layers counts, in one coarse format or in several; less does not
    assert file_type(layered({"q4_0": 40, "q8_0": 60})) == "q4_0"
    assert file_type(layered({"q4_0": 20, "q8_0": 80})) == "q8_0"
    assert file_type(layered({"q4_0": 20, "q4_1": 15, "q8_0": 65})) == "q4_1"
    # rows that no block fits are kept in f16
    assert file_type(layered({"f16": 90, "q8_0": 10}, says=NUMBERS["q8_0"])) == "f16"
    # what two types share a gate, the tensors decide
    assert file_type(layered({"f16": 10}, says=NUMBERS["bf16"])) == "f16"


def test_files_that_say_nothing_sensible() -> None:
    for says in (None, 4, 1024, -1, 2**31, True, "2", 2.0, [2], {"a": 1}):
        assert file_type(layered({"q5_1": 10}, says=says)) == "q5_1"
        assert mislabelled(layered({"q5_1": 10}, says=says)) is None
    assert file_type(header({})) == "f32"
    assert file_type(header({}, NUMBERS["q4_0"])) == "q4_0"
    assert file_type(header({"a.weight": ("q4_0", (0, 32)), "b": ("i8", (4, 4))})) == "f32"
    assert file_type(header({"token_embd.weight": ("q4_0", (4, 32))})) == "q4_0"
    assert file_type(header({"dec.blk.0.attn_q.weight": ("q5_0", (4, 32)), "x": ("q8_0", (9, 9))})) == "q5_0"
    assert file_type(header({"blk.0.ffn_up_exps.weight": ("mxfp4", (8, 4, 32))})) == "mxfp4"
