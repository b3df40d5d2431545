"""What plan and compare recommend, why, and the commands they name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from command_material import kconv_here

from kconv.cli.main import main
from kconv.cli.recommended import command_of
from kconv.converters import to_gguf
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.core.language import speaking, translated
from kconv.core.machine import memory
from kconv.flows.plan import Plan, plan
from kconv.flows.recommendation import for_this_machine, free_memory
from kconv.quant.published import Band, expected_divergence
from kconv.quant.wish import Wanted
from kconv.runtimes.loading import CONTEXT

TYPES = ("q2_k", "iq2_m", "q4_0", "q4_k_m", "q6_k", "q8_0", "f16", "f32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("recommended") / "tiny-42dot")


@pytest.fixture(scope="module")
def planned(checkpoint: Path) -> Plan:
    return plan(checkpoint, options=Options(TYPES))


@pytest.fixture(scope="module")
def bands(planned: Plan) -> Mapping[str, Band]:
    found = {each.type: expected_divergence(each.type) for each in planned.types}
    return {name: band for name, band in found.items() if band is not None}


def needed(planned: Plan, name: str) -> int:
    (each,) = (each for each in planned.types if each.type.lower() == name)
    return each.bytes + planned.run_memory.total


@pytest.mark.parametrize("sample", ["42dot", "kebyt5"])
def test_the_cache_is_as_large_as_llama_cpps(
    sample: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_sample(sample, tmp_path / "model")
    (made,) = to_gguf(folder, tmp_path / "a.gguf", types=["q8_0"], verify=False).outputs
    memory_needed = plan(folder, options=Options(("q8_0",))).run_memory
    words = ["run", str(made.path), "-p", "한국", "-n", "1", "--ctx", str(memory_needed.context), "--verbose"]
    assert main(words) == 0
    told = re.findall(r"KV buffer size = +([\d.]+) MiB", capfd.readouterr().err)
    assert told
    assert sum(map(float, told)) == pytest.approx(memory_needed.cache / (1 << 20), abs=0.01)


def test_the_least_loss_that_fits(planned: Plan, bands: Mapping[str, Band]) -> None:
    plenty = for_this_machine(planned, bands, 1 << 40)
    assert plenty.type == "q8_0"  # not F16, of which nobody notices anything
    assert plenty.needed == needed(planned, "q8_0")
    just = for_this_machine(planned, bands, needed(planned, "q8_0"))
    assert just.type == "q8_0"
    less = for_this_machine(planned, bands, needed(planned, "q8_0") - 1)
    assert less.type == "q6_K"
    least = for_this_machine(planned, bands, needed(planned, "q4_0") - 1)
    assert least.type == "q2_K"  # iq2_m is smaller than q4_0, too, but nobody gave importance data
    none = for_this_machine(planned, bands, needed(planned, "q2_k") - 1)
    assert none.type is None
    assert none.reason.startswith("the smallest type, q2_K, takes about ")
    unknown = for_this_machine(planned, bands, None)
    assert unknown.type == "q8_0"


def test_without_published_figures_the_most_bits_below_nine(planned: Plan) -> None:
    assert for_this_machine(planned, {}, 1 << 40).type == "q8_0"
    assert for_this_machine(planned, {}, needed(planned, "q6_k")).type == "q6_K"
    wide = replace(planned, types=tuple(each for each in planned.types if each.bits_per_weight > 9))
    chosen = for_this_machine(wide, {}, 1 << 40)
    assert chosen.type == "f16"
    assert "the smallest" in chosen.reason


def test_what_does_not_fit_on_the_disk_is_not_recommended(planned: Plan, bands: Mapping[str, Band]) -> None:
    sizes = {each.type: each.bytes for each in planned.types}
    assert for_this_machine(replace(planned, free=sizes["q8_0"] - 1), bands, 1 << 40).type == "q6_K"
    nothing = for_this_machine(replace(planned, free=1), bands, 1 << 40)
    assert nothing.type is None


def test_an_encoder_keeps_no_cache_and_long_contexts_count_as_conversations(tmp_path: Path) -> None:
    encoder = plan(write_sample("bert", tmp_path / "bert"), options=Options(("q8_0",)))
    assert encoder.run_memory.cache == 0
    folder = write_sample("42dot", tmp_path / "long")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 17}), "utf-8")
    long = plan(folder, options=Options(("q8_0",))).run_memory
    assert long.context == CONTEXT
    layers, heads, width = config["num_hidden_layers"], config["num_key_value_heads"], 32
    assert long.cache == layers * heads * 2 * width * CONTEXT * 2


def test_free_memory_is_the_machines() -> None:
    free, found = free_memory(), memory()
    assert free is not None
    assert 0 < free <= (found.total or free)


def test_plan_is_sorted_by_size_and_marks_one_row(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(checkpoint), "-q", ",".join(TYPES)]
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    sizes = [each["bytes"] for each in content["types"]]
    assert sizes == sorted(sizes)
    (marked,) = [each["type"] for each in content["types"] if each["recommended"]]
    chosen = content["recommended"]
    assert chosen["type"] == marked == "q8_0"
    assert chosen["needed"] <= chosen["available"]
    assert chosen["command"] == f"kconv to-gguf {checkpoint} -q q8_0"
    assert content["run_memory"]["context"] == 512
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if re.match(r"(i?q\d|f\d\d)", line)]
    assert len(rows) == len(TYPES)
    (row,) = [line for line in rows if "recommended" in line]
    assert row.startswith("q8_0")
    (why,) = [line for line in lines if line.startswith("recommended: q8_0: the least expected loss")]
    assert "cache of 512 tokens" in why
    assert lines[-1] == f"  kconv to-gguf {checkpoint} -q q8_0"
    assert main([*words, "--lang", "ko"]) == 0
    korean = capsys.readouterr().out
    assert "권장: q8_0: 이곳의 여유 메모리 " in korean
    assert "중요도 데이터 필요" in korean


def test_the_command_has_the_options_asked_for(tmp_path: Path) -> None:
    options = Options(
        ("q4_0",), pure=True, tensor_types=("ffn=q8_0", "attn=q6_k"), imatrix="a b.gguf", keep_wo=True
    )
    command = command_of("./model", options, "q4_0:pure")
    words = shlex.split(command)
    assert words[:5] == ["kconv", "to-gguf", "./model", "-q", "q4_0:pure"]
    assert words.count("--tensor-type") == 2
    assert words[words.index("--imatrix") + 1] == "a b.gguf"
    assert {"--pure", "--keep-wo"} <= set(words)
    from kconv.cli.to_gguf import command as to_gguf_command

    with to_gguf_command.make_context("to-gguf", words[2:]) as context:  # the real command takes all of it
        read = {name: context.params[name] for name in ("pure", "keep_wo", "tensor_types", "imatrix")}
    assert read == {
        "pure": True,
        "keep_wo": True,
        "tensor_types": options.tensor_types,
        "imatrix": Path("a b.gguf"),
    }


def test_the_command_of_a_chosen_file_has_its_target() -> None:
    chosen = Wanted(("4.5G", "4 bpw"), (0.02,), ("q4_K", "q8_0"), None)
    options = Options(("q4_0",), calibrate=("k.txt",), chosen=chosen)
    menu = "--menu q4_K,q8_0 --calibrate k.txt"
    assert command_of("m", options, "q4_0") == "kconv to-gguf m -q q4_0 --calibrate k.txt"
    assert command_of("m", options, "4.5G") == f"kconv to-gguf m --target-size 4.5G {menu}"
    assert command_of("m", options, "4bpw") == f"kconv to-gguf m --target-size '4 bpw' {menu}"
    assert command_of("m", options, "KL0.02") == f"kconv to-gguf m --target-kl 0.02 {menu}"
    policy = Options(("q8_0",), chosen=Wanted(policy="p.toml"))
    assert command_of("m", policy, "policy") == "kconv to-gguf m --policy p.toml"


def test_compare_ends_with_what_to_take(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(checkpoint), "-q", "q2_k,q4_0,q8_0", "--tokens", "60", "--threads", "1"]
    assert main([*words, "--json", "-o", str(tmp_path)]) == 0
    content = json.loads(capsys.readouterr().out)
    loss = {each["type"]: each["kl_mean"] for each in content["types"]}
    chosen = content["recommended"]
    smallest = next(name for name in ("q2_K", "q4_0", "q8_0") if loss[name] < 0.1)
    assert chosen["type"] == smallest
    assert chosen["command"] == f"kconv to-gguf {checkpoint} -q {smallest}"
    assert chosen["reason"].startswith("the smallest of these that loses less than 0.1 nats (mean KL ")


@pytest.mark.parametrize(
    ("most_loss", "most_bytes", "type_name", "reason"),
    [
        (None, None, "q4_0", "the smallest of these that loses less than 0.1 nats (mean KL 0.05, "),
        (0.01, None, "q8_0", "the smallest of these that loses less than 0.01 nats"),
        (1e-5, None, "q8_0", "none of these loses less than 1e-05 nats; this one loses the least"),
        (None, 2_000_000, "q4_0", "it loses the least (mean KL 0.05) of those of at most 1.91 MiB"),
        (None, 1_500_000, "q2_K", "it loses the least"),
        (1.0, 2_000_000, "q2_K", "the smallest of these that loses less than 1 nats"),
        (None, 1, None, "no file is both right and small enough"),
    ],
)
def test_levels_and_sizes_of_a_comparison(
    most_loss: float | None, most_bytes: int | None, type_name: str | None, reason: str
) -> None:
    import proof_material

    from kconv.flows.compare import ComparedType, Comparison
    from kconv.flows.recommendation import of_comparison

    def compared(name: str, size: int, loss: float, *, right: bool = True) -> ComparedType:
        proof = proof_material.passed()
        figures = replace(proof_material.FIGURES, kl_mean=loss)
        proof = replace(proof, logits=replace(proof.logits, figures=figures))
        if not right:
            proof = replace(proof, weights=replace(proof.weights, verdict="failed"))
        return ComparedType(name, True, size, 4.5, None, proof)

    types = (
        compared("q8_0", 3_000_000, 0.001),
        compared("q4_0", 1_900_000, 0.05),
        compared("q2_K", 1_400_000, 0.5),
        compared("q3_K_S", 1_000_000, 0.0001, right=False),  # small and close, but not the checkpoint's
    )
    comparison = Comparison(Path("m"), "llama", 1, types, (), None, {"windows": [1]}, (), 1.0)
    chosen = of_comparison(comparison, most_loss=most_loss, most_bytes=most_bytes)
    assert chosen.type == type_name
    assert chosen.reason.startswith(reason)
    with speaking("ko"):
        assert re.search("[가-힣]", translated(chosen.reason))


@pytest.mark.parametrize("given", [["--max-kl", "0"], ["--max-size", "2X"], ["--max-kl", "-1"]])
def test_levels_that_are_none_are_refused(given: list[str], checkpoint: Path) -> None:
    assert kconv_here("compare", str(checkpoint), "-q", "q4_0,q8_0", *given).returncode == 2
