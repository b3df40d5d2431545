"""kconv plan: its bytes are those a conversion writes, for every type and family."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from command_material import kconv
from gbst_material import random_gbswt5
from gptj_material import byte_level_tokenizer, random_gptj
from hub_server import hub_file
from llama_material import random_llama
from t5_material import random_byt5

from kconv.converters import to_gguf
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.core.errors import CheckpointError, InputError, UsageError
from kconv.core.gguf_file import read_header
from kconv.flows.plan import Plan, plan
from kconv.quant.policy import POLICIES

ROOT = Path(__file__).resolve().parent.parent
KCONV = [str(Path(sys.executable).parent / "kconv")]
pytestmark = pytest.mark.usefixtures("kconv_server")


def llama(folder: Path, tokenizer: Path) -> Path:
    return random_llama(
        folder,
        tokenizer,
        "bfloat16",
        hidden_size=256,
        intermediate_size=256,
        num_key_value_heads=1,
        num_hidden_layers=1,
    )


def tied_llama(folder: Path, tokenizer: Path) -> Path:
    """Rows of 160: no whole blocks of 256, some of 32."""
    return random_llama(folder, tokenizer, hidden_size=160, tie_word_embeddings=True)


def gptj(folder: Path, tokenizer: Path) -> Path:
    random_gptj(folder, dtype="float16", n_embd=256, n_inner=256, n_layer=1)
    byte_level_tokenizer(folder)
    return folder


def byt5(folder: Path, tokenizer: Path) -> Path:
    return random_byt5(folder, d_ff=3968 // 32, tie_word_embeddings=True)


def gbst(folder: Path, tokenizer: Path) -> Path:
    return random_gbswt5(folder)


FAMILIES: dict[str, Callable[[Path, Path], Path]] = {
    make.__name__: make for make in (llama, tied_llama, gptj, byt5, gbst)
}


def imatrix(path: Path, folder: Path) -> Path:
    """An imatrix of llama.cpp's for a checkpoint, written by gguf-py from the names in a file of it."""
    generator = np.random.default_rng(0)
    made = to_gguf(folder, path.parent / "f32.gguf", types=["f32"], verify=False).outputs[0].path
    writer = gguf.GGUFWriter(str(path), "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["/home/somebody/korean.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for info in read_header(made).tensors:
        if len(info.shape) == 2 and "rel_b" not in info.name and info.name != "token_embd.weight":
            sums = generator.uniform(0.5, 2, (1, info.shape[1])).astype(np.float32)
            writer.add_tensor(f"{info.name}.in_sum2", sums)
            writer.add_tensor(f"{info.name}.counts", np.full((1, 1), 3.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path
) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "model", small_tokenizer)


def check(planned: Plan, folder: Path, out: Path, options: dict[str, Any]) -> None:
    """The plan against what is written: sizes, formats, bits per weight, fallbacks, files beside."""
    types = [each.type for each in planned.types]
    made = to_gguf(folder, out, types=types, verify=False, **options)
    for each, output in zip(planned.types, made.outputs, strict=True):
        assert (each.type, each.bytes) == (output.type, output.path.stat().st_size)
        assert (each.formats, each.bits_per_weight) == (output.formats, output.bits_per_weight)
        tensors = {info.name: info.ggml_type for info in read_header(output.path).tensors}
        numbers = {value.name.lower(): int(value) for value in gguf.GGMLQuantizationType}
        assert all(tensors[name] == numbers[given.lower()] for name, _, given in each.fallbacks)
    assert [(each.path.name, each.bytes) for each in planned.companions] == [
        (each.path.name, each.path.stat().st_size) for each in made.companions
    ]


def test_every_type_without_importance_data(folder: Path, tmp_path: Path) -> None:
    planned = plan(folder, tmp_path)
    assert {each.type for each in (*planned.types, *planned.refused)} == set(POLICIES)
    without = tuple(each.type for each in planned.types if not each.needs_imatrix)
    check(plan(folder, tmp_path, options=Options(without)), folder, tmp_path, {})


@pytest.mark.parametrize("folder", ["llama", "byt5"], indirect=True)
def test_every_type_with_importance_data(folder: Path, tmp_path: Path) -> None:
    file = str(imatrix(tmp_path / "some.gguf", folder))
    planned = plan(folder, tmp_path, options=Options(tuple(POLICIES), imatrix=file))
    assert not any(each.needs_imatrix for each in planned.types)
    check(planned, folder, tmp_path / "out", {"imatrix": file})


@pytest.mark.parametrize("folder", ["tied_llama", "gbst"], indirect=True)
def test_calibrating(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "한국어 글.txt"
    text.write_text("한국의 수도는 서울이다. 모든 인간은 태어날 때부터 자유롭다.\n" * 40, "utf-8")
    planned = plan(folder, tmp_path, options=Options(("q4_k_m", "q3_k_s"), calibrate=(str(text),)))
    check(planned, folder, tmp_path, {"calibrate": [text]})


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"tensor_types": ("ffn_down=q8_0", "attn_[qk]=q5_1"), "output_type": "q5_0"},
        {"embedding_type": "q8_0", "chat_template": "42dot"},
    ],
)
def test_options_change_the_plan_as_they_change_the_files(
    options: dict[str, Any], tmp_path: Path, small_tokenizer: Path
) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    planned = plan(folder, tmp_path, options=Options(("q4_k_m", "f16", "auto"), **options))
    check(planned, folder, tmp_path, options)


@pytest.mark.parametrize("size", ["100K", "1M"])
def test_a_model_in_several_files(size: str, tmp_path: Path, small_tokenizer: Path) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    wanted = Options(("f16", "q4_0"), split_max_size=size)
    planned = plan(folder, tmp_path, options=wanted)
    made = to_gguf(folder, tmp_path, types=wanted.types, verify=False, split_max_size=size)
    for each, output in zip(planned.types, made.outputs, strict=True):
        files = output.parts or (output.path,)
        assert (each.path, each.parts) == (output.path, len(files))
        assert each.bytes == output.bytes == sum(path.stat().st_size for path in files)
    assert planned.types[0].parts > 1


def test_variants_of_a_recipe(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    wanted = ("q4_k_m", "Q4_K_M:pure", "q4_K_M:output=q8_0:embedding=q5_0", "q4_0:attn_[qv]=f16")
    planned = plan(folder, tmp_path, options=Options(wanted))
    check(planned, folder, tmp_path, {})
    assert [(each.type, each.path.name) for each in planned.types] == [
        ("q4_K_M", "model-Q4_K_M.gguf"),
        ("q4_K_M:pure", "model-Q4_K_M-pure.gguf"),
        ("q4_K_M:output=q8_0:embedding=q5_0", "model-Q4_K_M-output-q8_0-embedding-q5_0.gguf"),
        ("q4_0:attn_[qv]=f16", "model-Q4_0-attn_-qv-f16.gguf"),
    ]
    assert len({each.bytes for each in planned.types}) == len(wanted)
    pure = plan(folder, tmp_path, options=Options(("q4_K_M",), pure=True)).types[0]
    assert planned.types[1].bytes == pure.bytes
    for wrong in ("q4_0:pur", "q4_0:output=q9", "q4_0:nowhere=q8_0"):
        with pytest.raises(UsageError):
            plan(folder, tmp_path, options=Options((wrong,)))


def test_nothing_is_written_and_existing_files_do_not_matter(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    before = sorted(tmp_path.rglob("*"))
    first = plan(folder, tmp_path / "new" / "folder", options=Options(("q8_0",)))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "model-Q8_0.gguf").touch()
    again = plan(folder, tmp_path, options=Options(("q8_0",)))
    assert again.types[0].bytes == first.types[0].bytes


def test_weights_are_not_read(tmp_path: Path, small_tokenizer: Path) -> None:
    """A checkpoint of holes, with the sizes of 42dot's: planned as fast as a small one."""
    import struct

    folder = llama(tmp_path / "model", small_tokenizer)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    expected = plan(folder, options=Options(("q4_k_m",))).types
    path.write_bytes(data[: 8 + length])
    with path.open("r+b") as file:
        file.truncate(len(data))
    assert plan(folder, options=Options(("q4_k_m",))).types == expected


def test_a_snapshot_in_the_hubs_cache(tmp_path: Path, small_tokenizer: Path) -> None:
    source = llama(tmp_path / "model", small_tokenizer)
    cache = tmp_path / "models--42dot--42dot_LLM-SFT-1.3B"
    snapshot = cache / "snapshots" / ("0123456789abcdef" * 3)[:40]
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in sorted(source.iterdir()):
        blob = cache / "blobs" / hub_file(path, path.name).etag
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    planned = plan(snapshot, tmp_path, options=Options(("q4_0",)))
    assert planned.types[0].path.name == "42dot_LLM-SFT-1.3B-Q4_0.gguf"
    check(planned, snapshot, tmp_path, {})
    with pytest.raises(CheckpointError, match="all revisions") as refused:
        plan(cache)
    assert str(snapshot) in str(refused.value.hint)


def test_types_that_need_importance_data_and_types_llama_cpp_cannot_make(
    tmp_path: Path, small_tokenizer: Path
) -> None:
    planned = plan(llama(tmp_path / "model", small_tokenizer))
    needing = {each.type for each in planned.types if each.needs_imatrix}
    assert {"iq2_xxs", "iq2_xs", "iq1_s", "iq1_m", "q2_K_S"} <= needing
    assert not needing & {"q4_K_M", "q2_K", "iq4_xs", "q8_0", "f16"}
    narrow = plan(tied_llama(tmp_path / "narrow", small_tokenizer))
    assert {each.type for each in narrow.refused} == {"q1_0"}
    fallen = {each.type: each.fallbacks for each in narrow.types}
    assert ("blk.0.attn_q.weight", "q4_K", "q5_0") in fallen["q4_K_M"]
    assert not fallen["q8_0"]


def test_unknown_types_and_patterns_that_match_nothing(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    with pytest.raises(UsageError, match="unknown type 'q4_k_n'"):
        plan(folder, options=Options(("q4_k_n",)))
    with pytest.raises(UsageError, match="matches no matrix"):
        plan(folder, options=Options(("q4_0",), tensor_types=("attn_z=q8_0",)))


def test_an_imatrix_of_another_model_is_refused(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    other = imatrix(tmp_path / "other.gguf", tied_llama(tmp_path / "other", small_tokenizer))
    with pytest.raises(InputError, match="another model"):
        plan(folder, options=Options(("q4_0", "q4_k_m"), imatrix=str(other)))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return kconv(*arguments)


def test_the_command(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    done = run("plan", folder, "--json", "-o", tmp_path)
    output = json.loads(done.stdout)
    assert done.returncode == 0
    assert {each["type"] for each in output["types"]} == set(POLICIES)
    sizes = [each["bytes"] for each in output["types"]]
    assert sizes == sorted(sizes)
    by_type = {each["type"]: each for each in output["types"]}
    assert by_type["q4_K_M"]["expected_kl"] == {
        "low": 0.012686,
        "high": 0.031273,
        "published": ["Llama-2-7B q4_K_M", "Llama-3-8B with importance data q4_K_M", "Llama-3-8B q4_K_M"],
    }
    assert {name for name, each in by_type.items() if each["lossless"]} == {"bf16", "f32"}
    assert output["disk"]["folder"] == str(tmp_path)
    assert output["disk"]["needed_bytes"] == sum(each["bytes"] for each in output["types"])
    text = run("plan", folder, "-q", "q4_0,iq2_xs").stdout
    assert f"{by_type['q4_0']['bytes']:,}" in text
    assert "needs importance data" in text
    assert "no-experts" not in text
    assert "warning (no-experts)" in run("plan", folder, "-q", "mxfp4_moe,q4_0").stdout
    pure = json.loads(run("plan", folder, "-q", "q4_0", "--pure", "--json").stdout)
    assert pure["types"][0]["expected_kl"] is None  # nobody has measured that
    assert run("plan", folder, "-q", "q4_x").returncode == 2
    assert run("plan", tmp_path / "nowhere").returncode == 3


def test_memory_is_what_a_conversion_takes(tmp_path: Path) -> None:
    """Private memory of kconv and its child, as bench/memory.py samples it, in MiB."""
    spec = importlib.util.spec_from_file_location("memory", ROOT / "bench" / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    memory = importlib.util.module_from_spec(spec)
    sys.modules["memory"] = memory  # dataclasses look there
    spec.loader.exec_module(memory)
    folder = write_sample("42dot", tmp_path / "model")
    words = [*KCONV, "to-gguf", str(folder), "-q", "q4_k_m", "-o", str(tmp_path), "--threads", "2"]
    expected = plan(folder, options=Options(("q4_K_M",)), threads=2)
    for more, rule in ((["--no-verify"], expected.memory), (["--force"], expected.proof_memory)):
        taken = memory.measure([*words, *more])
        assert taken.code == 0
        assert 0.5 * rule < taken.peak_private < 1.15 * rule, (taken.peak_private >> 20, rule >> 20)


def test_a_disk_without_room_is_told(
    tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llama(tmp_path / "model", small_tokenizer)
    sizes = [each.bytes for each in plan(folder, options=Options(("q4_0", "f32"))).types]
    content = plan(folder, Path("/proc"), options=Options(("q4_0", "f32"))).to_json()
    assert content["disk"]["free_bytes"] == 0  # a file system without room
    assert [each["fits_on_disk"] for each in content["types"]] == [False, False]
    assert all(size > 0 for size in sizes)
