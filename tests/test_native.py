"""Which kernels encode: the processor's, those asked for, none where libggml differs or none was built."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled_material import shared_library
from kernel_material import kernel, libggml, mixture
from llama_material import random_llama

from kconv.core.tensor import DType
from kconv.quant import ggml, native, slabs
from kconv.quant.formats import FORMATS

ROOT = Path(__file__).parent.parent
TYPES = ("q8_0", "q4_0", "q4_K_M", "q3_K_M", "q2_K")
MAIN = "from kconv.cli.main import main; raise SystemExit(main())"

needs_kernels = pytest.mark.skipif(not native.available_sets(), reason="the kernels are not built")


def test_where_there_is_a_compiler_there_are_kernels() -> None:
    """Else other tests would be skipped, and a build older than the sources go unnoticed."""
    assert native.available_sets() or shutil.which("cc") is None


def kconv(
    *arguments: object, kernels: str = "", path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run kconv, of the folder ``path`` if given, with those kernels asked for."""
    environment = {**os.environ, "KCONV_KERNELS": kernels}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    words = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)


def converted(checkpoint: Path, out: Path, **how: Any) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The bytes of the files of all types, and their manifests."""
    done = kconv("to-gguf", checkpoint, "-q", ",".join(TYPES), "-o", out, "--no-verify", **how)
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_bytes() for path in sorted(out.glob("*.gguf"))}
    assert len(files) == len(TYPES)
    return files, [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*.json"))]


def models(**how: Any) -> dict[str, Any]:
    """What ``kconv models`` says of the kernels."""
    done = kconv("models", "--json", **how)
    assert done.returncode == 0, done.stderr
    kernels: dict[str, Any] = json.loads(done.stdout)["kernels"]
    return kernels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    return random_llama(folder, small_tokenizer, "bfloat16", hidden_size=256, intermediate_size=512)


@pytest.fixture(scope="module")
def by_libggml(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    files, manifests = converted(checkpoint, tmp_path_factory.mktemp("libggml"), kernels="libggml")
    assert {manifest["versions"]["kernels"] for manifest in manifests} == {"libggml"}
    return files


@pytest.mark.parametrize("name", native.available_sets())
def test_each_instruction_set_can_be_forced(
    name: str, checkpoint: Path, by_libggml: dict[str, bytes], tmp_path: Path
) -> None:
    files, manifests = converted(checkpoint, tmp_path, kernels=name)
    assert files == by_libggml
    assert {manifest["versions"]["kernels"] for manifest in manifests} == {"kconv"}
    assert not any(note["name"] == "kernel-differs" for made in manifests for note in made["notes"])
    shown = models(kernels=name)
    assert shown["name"] == name
    assert {"q8_0", "q4_K", "q4_K with importance", "q6_K"} <= set(shown["equal"])
    assert not shown["different"]


@needs_kernels
def test_the_widest_is_taken_and_others_are_refused() -> None:
    assert models()["name"] == native.available_sets()[-1]
    text = kconv("models").stdout
    assert f"Quantized by kconv's {native.available_sets()[-1]} kernels" in text
    refused = kconv("models", kernels="sse9")
    assert refused.returncode == 4
    assert refused.stderr.startswith("kconv: error: KCONV_KERNELS=sse9 is not known")
    assert "libggml" in refused.stderr


@pytest.fixture(scope="module")
def own_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with kconv in it, but no built kernels."""
    folder = tmp_path_factory.mktemp("copy")
    (folder / "kconv").mkdir()
    for room in ("core", "vocab", "converters", "reference", "runtimes", "verify", "flows", "report", "cli"):
        (folder / "kconv" / room).symlink_to(ROOT / room)
    ignored = shutil.ignore_patterns("_kernels.*", "__pycache__")
    shutil.copytree(ROOT / "quant", folder / "kconv" / "quant", ignore=ignored)
    return folder


def test_without_built_kernels_libggml_encodes(
    own_copy: Path, checkpoint: Path, by_libggml: dict[str, bytes], tmp_path: Path
) -> None:
    files, manifests = converted(checkpoint, tmp_path, path=own_copy)
    assert files == by_libggml
    assert {manifest["versions"]["kernels"] for manifest in manifests} == {"libggml"}
    shown = models(path=own_copy)
    assert shown["name"] == "libggml"
    assert "not built" in shown["why"]
    assert "KCONV_KERNELS=avx2 does not run here" in kconv("models", kernels="avx2", path=own_copy).stderr


TABLE = """
#include "kernels.h"
#include "lanes.h"
#include "q8_0.h"
#include "widen.h"
static const struct kernel NAME(table)[] = {{8, 32, 34, NAME(encode_q8_0), NAME(encode_q8_0), 0}};
const struct kernels NAME(kconv_kernels) = {NAME(table), 1, NAME(from_f32), NAME(from_f16), NAME(from_bf16)};
"""


TABLE_OF_A_GRID = """
#include "kernels.h"
#include "lanes.h"
#include "iq2_iq3.h"
#include "widen.h"
static const struct kernel NAME(table)[] = {{21, 256, 110, NAME(encode_iq3_s), NAME(encode_iq3_s), 0}};
const struct kernels NAME(kconv_kernels) = {NAME(table), 1, NAME(from_f32), NAME(from_f16), NAME(from_bf16)};
"""


def altered(
    own_copy: Path, folder: Path, right: str, wrong: str, file: str = "q8_0.h", table: str = TABLE
) -> Path:
    """A copy for PYTHONPATH with kernels for one format, built with ``wrong`` instead of ``right``."""
    copy = folder / "copy"
    shutil.copytree(own_copy, copy, symlinks=True)
    sources = copy / "kconv" / "quant" / "kernels"
    (sources / "table.h").write_text(table, "utf-8")
    text = (sources / file).read_text("utf-8")
    assert text.count(right) == 1
    (sources / file).write_text(text.replace(right, wrong), "utf-8")
    options = ("-std=gnu11", "-ffp-contract=off", "-lm")
    shared_library(sources.parent / "_kernels.so", list(sources.glob("*.c")), *options)
    return copy


def test_kernels_of_another_version_are_not_used(own_copy: Path, tmp_path: Path) -> None:
    copy = altered(own_copy, tmp_path, "return 4; }", "return 0; }", "module.c")
    shown = models(path=copy)
    assert shown["name"] == "libggml"
    assert "not for this system and version" in shown["why"]


def test_a_proof_does_not_rest_on_kernels(
    own_copy: Path, checkpoint: Path, by_libggml: dict[str, bytes], tmp_path: Path
) -> None:
    """A kernel that is wrong only for the few blocks with weights above 0.58, 4.8 standard deviations."""
    wrong = "127.0f * choose(less(floats(0.58f), largest), floats(1.01f), floats(1));"
    copy = altered(own_copy, tmp_path, "127.0f;", wrong)
    done = kconv("to-gguf", checkpoint, "-q", "q8_0", "-o", tmp_path, "--no-verify", path=copy)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.gguf")
    assert path.read_bytes() != by_libggml[path.name]
    (manifest,) = tmp_path.glob("*.json")
    assert "kernel-differs" not in manifest.read_text("utf-8")
    options = ("--tokens", 16, "--no-diagnose", "--json")
    proof = kconv("verify", path, "--against", checkpoint, *options, path=copy)
    assert proof.returncode == 1, proof.stderr
    assert json.loads(proof.stdout)["weights"]["verdict"] == "failed"


LARGE = """
import json
import numpy as np
from kconv.core.tensor import DType, Tensor
from kconv.quant.encoders import Encoder
from kconv.quant.formats import Q8_0
from kconv.quant.second_look import SecondLook
from kconv.quant.slabs import Scratch
pieces, rng = [np.empty((256, 4096), np.float32)] * 96, np.random.default_rng(15)
tensor = Tensor("large", (96 * 256, 4096), DType.F32, lambda start, stop: None)
look = SecondLook([(Q8_0, tensor.elements)], None, exact=True)
scratch, wrong, found, accused = Scratch(), 0, 0, 0
for at, source in enumerate(pieces):
    rng.standard_normal(dtype=np.float32, out=source)
    encoders = [Encoder((Q8_0,), kernels=each) for each in ("chosen", "none")]
    ours, right = (each.encode(source, DType.F32, Scratch()).data[0] for each in encoders)
    def unlike(stored):
        (part,) = look.encode(tensor, Q8_0, source, stored, scratch, 256 * at)
        return int((part.encoded != part.stored).reshape(-1, Q8_0.block_bytes).any(axis=1).sum())
    wrong += int((ours != right).reshape(-1, Q8_0.block_bytes).any(axis=1).sum())
    found, accused = found + unlike(ours), accused + unlike(right)
print(json.dumps([wrong, found, accused]))
"""


def test_a_kernel_wrong_once_in_100000_blocks_is_found_in_a_sample(own_copy: Path, tmp_path: Path) -> None:
    """In all instruction sets alike, in 3 million blocks; and it never accuses a file that is right."""
    wrong = "127.0f * choose(less(floats(5.11f), largest), floats(1.01f), floats(1));"
    copy = altered(own_copy, tmp_path, "127.0f;", wrong)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    words = [sys.executable, "-c", LARGE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    blocks, found, accused = json.loads(done.stdout)
    assert 10 < blocks < 60
    assert 1 <= found < blocks / 2  # 22 % of the blocks were drawn
    assert accused == 0


ON_A_GRID = """
import json
import numpy as np
from kconv.core.tensor import DType, Tensor
from kconv.quant.encoders import Encoder
from kconv.quant.formats import FORMATS
from kconv.quant.second_look import SecondLook
from kconv.quant.slabs import Scratch
format, rng = FORMATS["iq3_s"], np.random.default_rng(15)
pieces = rng.standard_normal((4, 256, 1024), np.float32)
pieces[1:, ::4, 5] = 6.5  # the first is what the kernel is trusted for
tensor = Tensor("large", (4 * 256, 1024), DType.F32, lambda start, stop: None)
look = SecondLook([(format, 4 * 690_000 * 256)], None, exact=True)
wrong, found, accused = 0, 0, 0
for at, source in enumerate(pieces):
    encoders = [Encoder((format,), kernels=each) for each in ("chosen", "none")]
    ours, right = (each.encode(source, DType.F32, Scratch()).data[0] for each in encoders)
    def unlike(stored):
        (part,) = look.encode(tensor, format, source, stored, Scratch(), 256 * at)
        return int((part.encoded != part.stored).reshape(256, -1).any(axis=1).sum())
    wrong += int((ours != right).reshape(256, -1).any(axis=1).sum())
    found, accused = found + unlike(ours), accused + unlike(right)
print(json.dumps([wrong, found, accused]))
"""


@pytest.mark.skipif(native.other() not in native.SETS[1:], reason="there is no second instruction set here")
def test_a_wrong_kernel_of_a_grid_is_found_in_a_sample_too(own_copy: Path, tmp_path: Path) -> None:
    """Of which a quarter of the rows is drawn; rows that only the kernels call wrong libggml acquits."""
    right = "0.25f * spread + square : square;"
    wrong = "0.25f * spread + square : choose(less(floats(6.0f), w->x[i]), floats(0), square);"
    copy = altered(own_copy, tmp_path, right, wrong, "iq2_iq3.h", TABLE_OF_A_GRID)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    words = [sys.executable, "-c", ON_A_GRID]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows, found, accused = json.loads(done.stdout)
    assert 150 < rows <= 192
    assert rows / 8 < found < rows / 2
    assert accused == 0


def test_a_wrong_kernel_is_not_used(
    own_copy: Path, checkpoint: Path, by_libggml: dict[str, bytes], tmp_path: Path
) -> None:
    copy = altered(own_copy, tmp_path, "127.0f", "127.01f")
    shown = models(path=copy)
    assert shown["equal"] == []
    assert shown["different"] == ["q8_0", "q8_0 with importance"]
    files, manifests = converted(checkpoint, tmp_path / "out", path=copy)
    assert files == by_libggml
    notes = [note for made in manifests for note in made["notes"] if note["name"] == "kernel-differs"]
    assert notes
    assert notes[0]["warning"]
    assert notes[0]["message"].startswith("libggml encoded q8_0: ")


@needs_kernels
def test_what_is_not_finite_is_left_to_libggml() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        rows[2, 17] = value
        out = np.empty(FORMATS["q8_0"].tensor_bytes(rows.shape), np.uint8)
        chunk = ggml.library().ggml_quantize_chunk
        assert not native.encode(FORMATS["q8_0"], rows, out, None, chunk, finite=False)
        ggml.encode(FORMATS["q8_0"], rows, out)
        np.testing.assert_array_equal(out, libggml(FORMATS["q8_0"], rows))


@needs_kernels
def test_first_uses_from_several_threads_agree() -> None:
    native._checks.clear()
    rows = mixture(np.random.default_rng(1), 64, 2048)
    names = ("q8_0", "q4_0", "q6_K", "q3_K") * 4
    made: dict[int, ggml.Bytes] = {}

    def work(number: int) -> None:
        out = np.empty(FORMATS[names[number]].tensor_bytes(rows.shape), np.uint8)
        ggml.encode(FORMATS[names[number]], rows, out)
        made[number] = out

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, name in enumerate(names):
        np.testing.assert_array_equal(made[number], libggml(FORMATS[name], rows))
    assert native._checks.keys() == {(native.chosen().name, name, False) for name in names}
    assert min(native._checks.values()) >= 512


@needs_kernels
def test_small_tensors_are_compared_until_there_were_enough() -> None:
    native._checks.clear()
    key, format = (native.chosen().name, "q6_K", True), FORMATS["q6_K"]
    seen = []
    for count in (3, 200, 400, 5):
        rows = mixture(np.random.default_rng(count), count, 256)
        out = np.empty(format.tensor_bytes(rows.shape), np.uint8)
        ggml.encode(format, rows, out, np.ones(256, np.float32))
        seen.append(native._checks[key])
    assert seen == [3, 203, 603, 603]


@needs_kernels
def test_rows_with_undefined_conversions_go_to_libggml_one_by_one() -> None:
    """Blocks whose inverse scale is infinite: rows with one are handed over, their neighbours are not."""
    asked = []

    @ctypes.CFUNCTYPE(
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    )
    def chunk(kind: int, source: int, out: int, start: int, rows: int, columns: int, weights: int) -> int:
        asked.append((kind, (source - data.ctypes.data) // data.strides[0], rows, columns))
        return 0

    data = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    data[3, 32:] = 1e-42
    data[5] = 0
    for name in ("q8_0", "q4_0"):
        out = np.empty(FORMATS[name].tensor_bytes(data.shape), np.uint8)
        native.run(native.available_sets()[-1], FORMATS[name], data, out, None, chunk)
    assert asked == [(8, 3, 1, 64), (2, 3, 1, 64)]


@pytest.mark.parametrize("name", native.available_sets())
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=lambda dtype: dtype.value)
def test_widening_is_exact_and_finds_the_largest(
    name: str, dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "chosen", lambda: native.Chosen(name, ""))
    rng = np.random.default_rng(2)
    every = np.arange(1 << 16, dtype=np.uint16)
    bits = every if dtype is not DType.F32 else rng.integers(0, 1 << 32, 1 << 16, np.uint32)
    signless = np.bitwise_and(bits, 0x7FFF if dtype is not DType.F32 else 0x7FFFFFFF)
    for limit in (slabs._INFINITY[dtype], slabs._INFINITY[dtype] // 3):  # all that are finite, and fewer
        source = rng.permutation(bits[signless < limit]).view(dtype.storage)
        for some in (source, source[:77], source[:1]):
            expected = np.empty(some.size, np.float32)
            ggml.to_float32(some, dtype, expected)
            out = np.empty(some.size, np.float32)
            largest = slabs._widen(some, dtype, out)
            np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))
            assert np.uint32(largest).view(np.float32) == np.abs(expected).max()
            assert largest == slabs._largest_bits(some, dtype) == slabs._widen(some, dtype, None)
    for special in (np.inf, -np.inf, np.nan):
        spoiled = np.zeros(1000, np.float32)
        spoiled[-2] = special
        halves = spoiled.astype(np.float16).view(np.uint16)
        stored = {DType.F32: spoiled, DType.F16: halves, DType.BF16: spoiled.view(np.uint32) >> 16}[dtype]
        source = stored.astype(np.uint16).view(dtype.storage) if dtype is not DType.F32 else stored
        assert (slabs._widen(source, dtype, None) > native.INFINITY) == bool(np.isnan(special))
        assert not slabs.all_finite(source, dtype)


@needs_kernels
def test_kernels_are_many_times_faster() -> None:
    """Far below what bench/kernels.py measures on a quiet machine: that they are in use at all."""
    import time

    rows = np.random.default_rng(0).standard_normal((64, 4096), np.float32)
    seconds = dict.fromkeys((libggml, kernel), np.inf)
    for _ in range(3):
        for way in seconds:
            begun = time.process_time()
            made = (
                libggml(FORMATS["q4_K"], rows)
                if way is libggml
                else kernel(native.available_sets()[-1], FORMATS["q4_K"], rows)
            )
            seconds[way] = min(seconds[way], time.process_time() - begun)
            assert made.size
    assert seconds[kernel] * 2 < seconds[libggml]
