"""Files of a size or a loss: chosen from measured losses, exact in size, kept as a policy, proven."""

from __future__ import annotations

import itertools
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kconv.cli.choice_text import choice_text
from kconv.cli.descriptions import describe
from kconv.cli.progress import shown_progress
from kconv.cli.telling import Teller
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError, KconvError, UsageError
from kconv.core.gguf_file import read_header
from kconv.core.tensor import DType, Reader, Tensor
from kconv.flows.compare import ComparedType
from kconv.flows.convert import to_gguf
from kconv.flows.plan import plan
from kconv.flows.quantize import quantize
from kconv.flows.results import Conversion
from kconv.flows.verify import verify
from kconv.quant.choice_groups import Group, groups_of
from kconv.quant.choice_losses import as_stored, offered, parse_menu, relative_errors
from kconv.quant.formats import FORMATS, format_of_type
from kconv.quant.importance import importance_to_be
from kconv.quant.policy_file import Choice, read_choice
from kconv.quant.wish import Wanted, parse_size
from kconv.report.size_chart import size_chart
from kconv.vocab.texts import udhr

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
SIZE, BITS, KL = 1_700_000, 4.0, 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "sample")


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """One file of each kind of target beside a stock recipe, all from one measurement."""
    wanted = Wanted(sizes=("1.7M", "4bpw"), divergences=(KL,))
    place = tmp_path_factory.mktemp("made")
    text = place / "part.txt"
    text.write_text((TEXTS / "facts.txt").read_text("utf-8")[:3000], encoding="utf-8")
    return to_gguf(folder, place, types=("q4_k_m",), calibrate=[text], **asked(wanted), threads=2)


def asked(wanted: Wanted) -> dict[str, Any]:
    """The same as options of the functions people call."""
    return {
        "target_size": wanted.sizes,
        "target_kl": wanted.divergences,
        "menu": wanted.menu,
        "policy": wanted.policy,
    }


def formats(path: Path) -> dict[str, str]:
    found = {info.name: format_of_type(info.ggml_type) for info in read_header(path).tensors}
    return {name: format.name for name, format in found.items() if format is not None}


def test_files_are_as_large_as_allowed_and_never_larger(made: Conversion) -> None:
    sizes = {output.type: output for output in made.outputs}
    assert sizes.keys() == {"q4_K_M", "1.7M", "4bpw", "KL0.05"}
    assert 0.99 * SIZE <= sizes["1.7M"].path.stat().st_size <= SIZE
    assert 0.98 * BITS <= sizes["4bpw"].bits_per_weight <= BITS
    for name in ("1.7M", "4bpw", "KL0.05"):
        assert sizes[name].bytes == sizes[name].path.stat().st_size
        assert len(set(formats(sizes[name].path).values())) > 2
    choice = sizes["KL0.05"].choice
    assert choice is not None
    assert 0.8 * KL <= choice.predicted <= KL
    assert sizes["q4_K_M"].choice is None
    assert all(proof.right == "passed" for proof in made.proofs)


def test_more_bytes_are_predicted_and_measured_to_lose_less(made: Conversion) -> None:
    found = [
        (output.bytes, output.choice.predicted, proof.logits.figures.kl_mean)
        for output, proof in zip(made.outputs, made.proofs, strict=True)
        if output.choice is not None and proof.logits.figures is not None
    ]
    assert len(found) == 3
    found.sort()
    assert [each[1] for each in found] == sorted((each[1] for each in found), reverse=True)
    assert found[0][2] > found[-1][2]


def test_prediction_holds_on_other_text_of_the_kind(made: Conversion, folder: Path) -> None:
    """The other half of what the sample was trained on: never calibrated or chosen on."""
    chosen = next(output for output in made.outputs if output.type == "1.7M")
    assert chosen.choice is not None
    stories = (TEXTS / "stories.txt").read_text("utf-8")
    proof = verify(chosen.path, folder, texts=[stories], tokens=800, threads=2)
    assert proof.logits.figures is not None
    assert proof.logits.figures.kl_mean == pytest.approx(chosen.choice.predicted, rel=0.6)
    (note,) = [note for note in proof.notes if "were chosen to lose" in note]
    assert f"{chosen.choice.predicted:.3g} nats" in note
    assert f"{proof.logits.figures.kl_mean:.3g}" in note
    assert proof.logits.verdict in ("passed", "warned")


def test_policy_file_and_manifest_say_what_the_file_holds(made: Conversion) -> None:
    output = next(output for output in made.outputs if output.type == "1.7M")
    assert output.policy == output.path.with_suffix(".policy.toml")
    values = tomllib.loads(output.policy.read_text("utf-8"))
    stored = formats(output.path)
    assert {name: stored[name] for name in values["formats"]} == values["formats"]
    assert {name for name, format in stored.items() if format != "f32"} == values["formats"].keys()
    losses = sum(values["losses"][name][format] for name, format in values["formats"].items())
    assert losses == pytest.approx(values["predicted_kl"], rel=0.01)
    keys = read_header(output.path).metadata
    assert keys["kconv.chosen.target"] == "1.7M"
    assert keys["kconv.chosen.texts_sha256"] == values["measured"]["texts_sha256"]
    assert keys["kconv.chosen.predicted_kl"] == pytest.approx(values["predicted_kl"])
    assert keys["kconv.chosen.menu"] == "q2_K,q3_K,iq4_xs,q4_K,q5_K,q6_K,q8_0"
    assert values["measured"]["recipes"]
    assert values["measured"]["held_out_tokens"] > 0
    shown = describe(output.path)["formats_chosen"]
    assert "target 1.7M" in shown
    assert "predicted kl" in shown
    manifest = json.loads(output.manifest.read_text("utf-8"))
    assert manifest["choice"]["predicted_kl"] == pytest.approx(values["predicted_kl"], rel=1e-3)
    assert manifest["choice"]["measured"]["texts_sha256"] == values["measured"]["texts_sha256"]
    assert manifest["options"]["target_size"] == ["1.7M", "4bpw"]
    assert any("were chosen to lose" in note for note in manifest["proof"]["notes"])


def test_policy_serves_a_fine_tune_without_any_measurement(
    made: Conversion, folder: Path, tmp_path: Path
) -> None:
    output = next(output for output in made.outputs if output.type == "1.7M")
    stages: set[str] = set()
    again = to_gguf(
        shutil.copytree(folder, tmp_path / "tuned"),
        tmp_path / "out",
        types=(),
        **asked(Wanted(policy=str(output.policy))),
        verify=False,
        progress=lambda stage, done, total: stages.add(stage),
        threads=2,
    ).outputs[0]
    assert again.path.name == "tuned-sample-1.7M.gguf"
    assert formats(again.path) == formats(output.path)
    assert again.policy is None
    assert not {"probes", "reference"} & stages


def test_other_sizes_come_from_the_same_measurement(made: Conversion, folder: Path, tmp_path: Path) -> None:
    output = next(output for output in made.outputs if output.type == "1.7M")
    wanted = Wanted(sizes=("1.7M", "2M"), divergences=(0.02,), policy=str(output.policy))
    planned = plan(folder, tmp_path, options=Options((), chosen=wanted)).types
    assert [each.type for each in planned] == ["1.7M", "2M", "KL0.02"]
    assert all(each.bytes <= most for each, most in zip(planned, (SIZE, 2_000_000), strict=False))
    losses = [each.choice.predicted for each in planned if each.choice is not None]
    assert losses[0] > losses[1]
    assert losses[2] <= 0.02
    (one,) = to_gguf(
        folder,
        tmp_path,
        types=(),
        **asked(Wanted(("2M",), policy=str(output.policy))),
        verify=False,
        threads=2,
    ).outputs
    assert one.bytes == planned[1].bytes


@pytest.mark.parametrize("columns", [576, 64, 100, 256])
def test_rows_are_offered_what_they_can_have(columns: int) -> None:
    """SmolLM2's rows of 576 take no K type: what is offered instead is what recipes fall back to."""
    tensor = Tensor("blk.0.ffn_up.weight", (4, columns), DType.F32, random_rows(columns))
    known = importance_to_be([tensor])
    names = {
        wish: [each.name for each in offered(tensor, parse_menu(wish.split(",")), known)] for wish in MENUS
    }
    assert all(FORMATS[name].fits(columns) for each in names.values() for name in each)
    expected = {
        256: ["q2_K", "q3_K", "iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0"],
        100: ["f16"],
    }
    assert names[MENUS[0]] == expected.get(columns, ["q4_0", "iq4_nl", "q5_0", "q5_1", "q8_0"])
    assert [each.name for each in offered(tensor, parse_menu(["iq2_xxs", "q4_K"]), None)] == {
        256: ["q4_K"], 100: ["f16"]
    }.get(columns, ["iq4_nl", "q5_0"])  # fmt: skip
    errors = relative_errors(tensor, offered(tensor, parse_menu(MENUS[0].split(",")), known), known).of
    ranked = [
        errors[format] for format in sorted(errors, key=lambda each: each.block_bytes / each.block_size)
    ]
    assert all(later < earlier * 1.3 for earlier, later in itertools.pairwise(ranked))
    for format, error in errors.items():
        stored, rows = as_stored(tensor, format, known).read(0, 4), tensor.read(0, 4)
        assert ((stored - rows) ** 2).sum() / (rows**2).sum() == pytest.approx(error, rel=1e-5)


MENUS = ("q2_K,q3_K,iq4_xs,q4_K,q5_K,q6_K,q8_0", "q4_K", "q6_K,f16")


def random_rows(columns: int) -> Reader:
    rows = np.random.default_rng(7).standard_normal((4, columns)).astype(np.float32)
    return lambda start, stop: rows[start:stop]


REFUSED: dict[str, tuple[Wanted, type[KconvError], str]] = {
    "no size": (Wanted(("4.5 gallons",)), UsageError, "is not a size"),
    "nothing": (Wanted(("0G",)), UsageError, "is not a size"),
    "too small": (Wanted(("300K",)), InputError, "below the smallest file"),
    "too few bits": (Wanted(("1bpw",)), InputError, "bits per weight"),
    "no loss": (Wanted(divergences=(-1.0,)), UsageError, "not a positive number"),
    "odd menu": (Wanted(("2M",), menu=("q4_k_m",)), UsageError, "unknown format"),
    "float menu": (Wanted(("2M",), menu=("q4_K", "f32")), UsageError, "quantized format"),
    "menu alone": (Wanted(menu=("q4_K",), policy="x.toml"), UsageError, "--menu"),
    "no file": (Wanted(policy="missing.policy.toml"), InputError, "missing.policy.toml"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(folder: Path, tmp_path: Path, case: str) -> None:
    wanted, error, message = REFUSED[case]
    stages: list[str] = []
    text = [] if wanted.policy else [TEXTS / "facts.txt"]
    with pytest.raises(error, match=message):
        to_gguf(
            folder,
            tmp_path,
            types=(),
            calibrate=text,
            **asked(wanted),
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert "reference" not in stages
    assert list(tmp_path.iterdir()) == []


def test_proof_text_is_no_calibration_text(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "same.txt"
    text.write_text("\n".join(udhr("kor")), encoding="utf-8")
    with pytest.raises(InputError, match="the one the files are proven on"):
        to_gguf(folder, tmp_path / "out", types=(), calibrate=[text], **asked(Wanted(("2M",))), threads=2)


def test_target_without_text_says_what_to_pass(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs text"):
        to_gguf(folder, tmp_path, types=(), **asked(Wanted(("2M",))))
    with pytest.raises(UsageError, match="plan reads no weights"):
        plan(folder, options=Options((), calibrate=("a.txt",), chosen=Wanted(("2M",))))


BROKEN = {
    "gates": ("max_kl = 0.1\n", "no kconv_policy"),
    "newer": ("kconv_policy = 2\n", "kconv_policy is 2"),
    "no TOML": ("a = = b", "not a policy file"),
    "odd format": ('kconv_policy = 1\n[formats]\n"a.weight" = "q9"\n', "no format kconv writes"),
    "no formats": ("kconv_policy = 1\n", "names no tensor"),
    "odd loss": (
        'kconv_policy = 1\n[formats]\n"a" = "q4_K"\n[losses]\n"a" = { q4_K = "x" }\n',
        "expected a number of nats",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_policy_files_are_explained(tmp_path: Path, case: str) -> None:
    text, message = BROKEN[case]
    path = tmp_path / "x.policy.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_choice(path)


def test_policy_of_another_model_is_refused(made: Conversion, tmp_path: Path) -> None:
    other = write_sample("kogpt", tmp_path / "other")
    policy = next(output.policy for output in made.outputs if output.policy is not None)
    with pytest.raises(InputError, match="another model"):
        to_gguf(other, tmp_path / "out", types=(), **asked(Wanted(policy=str(policy))))


def test_policy_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    formats = {"blk.0.ffn_down.weight": FORMATS["q4_K"], 'a"b\\c': FORMATS["iq4_nl"]}
    losses = {"blk.0.ffn_down.weight": {"q4_K": 1e-9, "q8_0": 0.0, "iq3_s": float("inf"), "q2_K": 3.0}}
    choice = Choice("4.5G", "llama", formats, 12.0, losses, {"tokens": 5, "menu": ["q4_K"], "share": 1e-7})
    path = tmp_path / "x.policy.toml"
    path.write_text(choice.to_toml(), encoding="utf-8")
    assert read_choice(path) == choice


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {
        "4.5G": 4.5e9,
        "4.5GB": 4.5e9,
        "4.5GiB": 4.5 * 2**30,
        "900m": 9e8,
        "1234567": 1234567,
        "64 KiB": 65536,
    }
    assert {text: parse_size(text).value for text in sizes} == sizes
    assert all(parse_size(text).kind == "bytes" for text in sizes)
    assert (parse_size("4.25bpw").kind, parse_size("4.25 BPW").value) == ("bits", 4.25)
    assert Wanted(("4G", "4G"), (0.02, 0.02)).wishes() == Wanted(("4G",), (0.02,)).wishes()


def test_groups_are_kinds_by_bands_of_layers() -> None:
    names = [f"blk.{layer}.{kind}.weight" for layer in range(20) for kind in ("attn_q", "ffn_down")]
    groups = groups_of(["token_embd.weight", *names])
    assert groups[Group("token_embd")] == ("token_embd.weight",)
    bands = sorted((group.first, group.last) for group in groups if group.kind == "attn_q")
    assert bands == [(0, 1), (2, 4), (5, 6), (7, 9), (10, 11), (12, 14), (15, 16), (17, 19)]
    assert sorted(name for each in groups.values() for name in each) == sorted(["token_embd.weight", *names])
    stacks = groups_of(["enc.blk.0.ffn_up.weight", "dec.blk.0.ffn_up.weight"])
    assert [group.kind for group in stacks] == ["enc.ffn_up", "dec.ffn_up"]


def test_table_of_a_choice_is_no_wider_than_a_terminal() -> None:
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    names = [f"blk.{layer}.{kind}.weight" for layer in range(80) for kind in kinds]
    cycle = itertools.cycle([FORMATS["iq3_xxs"], FORMATS["iq4_xs"], FORMATS["iq4_xs"]])
    formats = {name: next(cycle) for name in ["token_embd.weight", *names, "output.weight"]}
    text = choice_text(Choice("40G", "llama", formats, 0.0123))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "70-79" in text
    assert "iq4_xs~" in text
    assert all(kind in text for kind in kinds)
    assert "0.0123 nats" in text


def test_a_drawing_joins_what_was_chosen(made: Conversion) -> None:
    types = [
        ComparedType(each.type, each.choice is None, each.bytes, 4.0, None, proof, None, each.choice)
        for each, proof in zip(made.outputs, made.proofs, strict=True)
    ]
    chart = str(size_chart(types))
    assert chart.count('<rect class="chosen"') == 4  # one in the legend
    assert chart.count('class="choices"') == 1
    assert 'class="variant"' not in chart


def test_a_gguf_is_quantized_after_a_policy(made: Conversion, folder: Path, tmp_path: Path) -> None:
    policy = next(output.policy for output in made.outputs if output.type == "1.7M")
    (whole,) = to_gguf(folder, tmp_path, types=("f32",), verify=False, threads=2).outputs
    assert policy is not None
    after = quantize(whole.path, tmp_path, types=(), **asked(Wanted(policy=str(policy)))).outputs[0]
    assert formats(after.path) == formats(policy.with_suffix("").with_suffix(".gguf"))
    wanted = Wanted(("1.8M",), policy=str(policy))
    (chosen,) = quantize(whole.path, tmp_path, types=(), **asked(wanted)).outputs
    assert 0.99 * 1_800_000 <= chosen.path.stat().st_size <= 1_800_000
    with pytest.raises(UsageError, match="needs text"):
        quantize(whole.path, tmp_path, types=(), **asked(Wanted(("1.8M",))))


def test_an_ended_run_goes_on_with_its_choice(folder: Path, tmp_path: Path) -> None:
    """What was measured and chosen lies in the journal, and is not measured again."""
    text = tmp_path / "part.txt"
    text.write_text((TEXTS / "facts.txt").read_text("utf-8")[:1500], encoding="utf-8")
    stages: list[str] = []

    def end(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage == "write" and done > total // 2:
            raise KeyboardInterrupt

    options = {"types": (), "calibrate": [text], "target_size": "1.7M", "verify": False, "threads": 1}
    with pytest.raises(KeyboardInterrupt):
        to_gguf(folder, tmp_path / "out", progress=end, **options)
    assert "probes" in stages
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["sample-1.7M.imatrix.gguf"]
    stages.clear()
    told: list[str] = []
    (output,) = to_gguf(
        folder,
        tmp_path / "out",
        progress=lambda stage, done, total: stages.append(stage),
        announce=told.append,
        resume=True,
        **options,
    ).outputs
    assert not {"probes", "reference"} & set(stages)
    assert any("chosen already" in each for each in told)
    assert output.bytes <= SIZE
    assert output.policy is not None
    assert output.policy.is_file()


def test_verdicts_are_told_by_the_target_and_with_the_prediction(
    made: Conversion, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files may be of one type; whether the loss is as predicted is said where the verdict is."""
    policy = next(output.policy for output in made.outputs if output.type == "1.7M")
    with shown_progress() as progress, Teller(progress, quiet=False) as observer:
        wanted = Wanted(("1.7M", "1.71M"), policy=str(policy))
        to_gguf(folder, tmp_path, types=(), **asked(wanted), threads=2, observer=observer)
    lines = capsys.readouterr().out.splitlines()
    first, second = (next(at for at, line in enumerate(lines) if line.startswith(begin))
                     for begin in ("1.7M: passed", "1.71M: passed"))  # fmt: skip
    told = " ".join(lines[first:second])
    assert "note: the formats were chosen to lose" in told
