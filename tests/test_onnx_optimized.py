"""``to-onnx --optimize``: the blocks of an optimized GGUF, less lost, and a proof that knows both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_onnx_same_weights import in_gguf, in_onnx

from kconv.converters.families import family_for
from kconv.converters.intake import open_model
from kconv.converters.mapping import build
from kconv.converters.onnx.formats import choose_onnx_formats
from kconv.converters.onnx.graphs import graphs_of
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError, OutputExists, UsageError
from kconv.core.reading import open_checkpoint
from kconv.flows.convert import to_gguf
from kconv.flows.full_statistics import collecting
from kconv.flows.importance import gather
from kconv.flows.kept_work import work_folder
from kconv.flows.to_onnx import to_onnx
from kconv.runtimes.onnx_folder import open_onnx
from kconv.verify.onnx_codes import FolderCodes, codes_of_folder
from kconv.verify.onnx_weights import check_folder_weights
from kconv.vocab.texts import udhr

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
KCONV = str(Path(sys.executable).parent / "kconv")
ENVIRONMENT = {**os.environ, "KCONV_LANG": "en"}


def statistics_of(folder: Path, path: Path) -> Path:
    texts = {"stories.txt": (TEXTS / "stories.txt").read_text("utf-8")[:16000]}
    with collecting(path) as collected:
        activations, arch = gather(folder, texts, chunks=20, window=256, threads=2, collected=collected)
        collected.write(path, activations, arch=arch, texts=texts, force=True)
    return path


@pytest.mark.parametrize("sample", ["42dot", "qwen3-moe"])
def test_blocks_are_those_of_the_gguf(sample: str, tmp_path: Path) -> None:
    folder = write_sample(sample, tmp_path / "sample")
    statistics = statistics_of(folder, tmp_path / "s.gguf")
    given = {"imatrix": statistics, "optimize": True, "threads": 2}
    made = to_onnx(folder, tmp_path / "onnx", type="q4_0", **given)  # type: ignore[arg-type]
    assert made.proof is not None
    assert made.proof.verdict in ("passed", "warned"), made.proof
    assert any(note.name in ("optimized", "not-optimized") for note in made.notes)
    (output,) = to_gguf(folder, tmp_path / "x.gguf", types=("q4_0",), verify=False, **given).outputs  # type: ignore[arg-type]
    (plain,) = to_gguf(folder, tmp_path / "y.gguf", types=("q4_0",), verify=False).outputs
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    formats = choose_onnx_formats(family, checkpoint, build(family, checkpoint), "q4_0").formats
    actual = in_onnx(tmp_path / "onnx", graphs_of(family, checkpoint, formats))
    right, before = in_gguf(checkpoint, output.path), in_gguf(checkpoint, plain.path)
    shared = [name for name in actual if name in right and actual[name][0].ggml_type == right[name][0]]
    quantized = [name for name in shared if actual[name][0].name == "q4_0"]
    assert len(quantized) > 10
    for name in shared:
        assert np.array_equal(actual[name][1], right[name][1]), name
    if sample == "42dot":
        assert any(not np.array_equal(actual[name][1], before[name][1]) for name in quantized)
    manifest = json.loads((tmp_path / "onnx" / "kconv.manifest.json").read_text("utf-8"))
    assert manifest["importance"]["file"] == "s.gguf"
    assert manifest["importance"]["optimized"]["matrices"]


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and an optimized folder of it beside its statistics."""
    place = tmp_path_factory.mktemp("optimized")
    folder = write_sample("42dot", place / "sample")
    statistics = statistics_of(folder, place / "s.gguf")
    to_onnx(folder, place / "onnx", type="q8_0", imatrix=statistics, optimize=True, verify="off", threads=2)
    to_onnx(folder, place / "four", type="q4_0", imatrix=statistics, optimize=True, verify="off", threads=2)
    return folder, place


@pytest.mark.parametrize("name", ["onnx", "four"])
@pytest.mark.parametrize("known", [True, False], ids=["statistics beside it", "statistics gone"])
@pytest.mark.parametrize("harm", ["none", "random", "shifted"])
def test_proof_derives_codes_or_bounds_them(
    optimized: tuple[Path, Path], name: str, known: bool, harm: str
) -> None:
    folder, place = optimized
    checkpoint, family = open_model(folder)
    path = place / name
    manifest = json.loads((path / "kconv.manifest.json").read_text("utf-8"))
    codes = codes_of_folder(path, manifest, family, checkpoint, build(family, checkpoint))
    assert codes is not None
    assert codes.importance is not None
    if not known:
        codes = FolderCodes(None)
    opened = open_onnx(path)
    weights = next(iter(path.rglob("*.onnx_data")))
    before = weights.read_bytes()
    try:
        if harm != "none":
            harmed = bytearray(before)
            part = next(
                part
                for file in opened.models
                for key, part in file.external.items()
                if key.endswith("mlp.down_proj.weight.blocks")
            )
            assert part.offset is not None
            data = np.frombuffer(before, np.uint8, part.nbytes, part.offset)
            if harm == "random":
                changed = np.random.default_rng(1).integers(0, 256, data.size).astype(np.uint8)
            else:
                changed = np.roll(data, 16)
            harmed[part.offset : part.offset + part.nbytes] = changed.tobytes()
            weights.write_bytes(bytes(harmed))
        found = check_folder_weights(open_onnx(path), checkpoint, family, threads=2, codes=codes)
    finally:
        weights.write_bytes(before)
    states = {tensor.state for tensor in found.tensors}
    if harm != "none":
        assert found.verdict == "failed"
        (wrong,) = (tensor.name for tensor in found.tensors if tensor.state == "differs")
        assert wrong.endswith("mlp.down_proj.weight")
        return
    assert found.verdict == "passed", found.findings
    assert states == ({"identical"} if known else {"identical", "within"})


def test_what_cannot_be_chosen_by_is_refused(optimized: tuple[Path, Path], tmp_path: Path) -> None:
    folder, place = optimized
    statistics = place / "s.gguf"
    with pytest.raises(UsageError, match="go together"):
        to_onnx(folder, tmp_path / "o", type="q4_0", imatrix=statistics)
    with pytest.raises(UsageError, match="f16 has none"):
        to_onnx(folder, tmp_path / "o", type="f16", imatrix=statistics, optimize=True)
    text = TEXTS / "stories.txt"
    with pytest.raises(UsageError, match="go together"):
        to_onnx(folder, tmp_path / "o", type="q4_0", calibrate=[text])
    with pytest.raises(UsageError, match="cannot be combined"):
        to_onnx(folder, tmp_path / "o", type="q4_0", calibrate=[text], imatrix=statistics, optimize=True)
    with pytest.raises(UsageError, match="f32 has none"):
        to_onnx(folder, tmp_path / "o", type="f32", calibrate=[text], optimize=True)
    proof = tmp_path / "proof.txt"
    proof.write_text("\n".join((*udhr("kor"), *udhr("eng"))), encoding="utf-8")
    with pytest.raises(InputError, match="proven on"):
        to_onnx(folder, tmp_path / "o", type="q4_0", calibrate=[proof], optimize=True)
    assert not list(tmp_path.glob("*-statistics.gguf"))
    other = write_sample("kogpt", tmp_path / "other")
    with pytest.raises(InputError, match="another model"):
        to_onnx(other, tmp_path / "o", type="q4_0", imatrix=statistics, optimize=True, verify="off")
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A checkpoint, a text, and a folder made with it in one step, beside what was learned."""
    place = tmp_path_factory.mktemp("calibrated")
    folder, text = write_sample("42dot", place / "sample"), place / "stories.txt"
    text.write_text((TEXTS / "stories.txt").read_text("utf-8")[:16000], encoding="utf-8")
    words = [KCONV, "to-onnx", str(folder), "-o", str(place / "one"), "-q", "q4_0", "--threads", "1"]
    words += ["--calibrate", str(text), "--optimize"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert not work_folder(place / "one").exists()
    return folder, text, place


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, and the card, which quotes it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    left_out = ("kconv.manifest.json", "README.md")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in left_out}


def test_one_step_makes_what_two_make(calibrated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, text, place = calibrated
    statistics = tmp_path / "sample-statistics.gguf"
    for words in (
        ["imatrix", str(folder), "--full", "--text", str(text), "-o", str(statistics)],
        ["to-onnx", str(folder), "-q", "q4_0", "-o", str(tmp_path / "two"), "--imatrix", str(statistics)],
    ):
        more = ["--optimize"] if words[0] == "to-onnx" else []
        done = subprocess.run(
            [KCONV, *words, *more, "--threads", "1"], capture_output=True, text=True, check=False,
            env=ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (place / "sample-statistics.gguf").read_bytes() == statistics.read_bytes()
    assert contents(place / "one") == contents(tmp_path / "two")
    one, two = (
        json.loads((path / "kconv.manifest.json").read_text("utf-8"))
        for path in (place / "one", tmp_path / "two")
    )
    assert one["importance"] == two["importance"]
    assert one["proof"]["logits"] == two["proof"]["logits"]  # the rest names the folder
    assert one["options"]["calibrate"] == ["stories.txt"]
    assert one["options"]["optimize"] is True


def test_an_ended_calibration_goes_on(calibrated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Behind the last layer that was measured, and behind the last matrix whose codes are known."""
    folder, text, place = calibrated
    given = {"type": "q4_0", "calibrate": [text], "optimize": True, "threads": 1, "verify": False}
    told: list[str] = []
    for stage, share in (("reference", 0.7), ("optimize", 0.5)):

        def end(now: str, done: int, total: int, stage: str = stage, share: float = share) -> None:
            if now == stage and done > share * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            to_onnx(folder, tmp_path / "one", progress=end, resume=bool(told), announce=told.append, **given)  # type: ignore[arg-type]
        assert work_folder(tmp_path / "one").is_dir()
        assert not (tmp_path / "one").exists()
        told.append("begun")
    to_onnx(folder, tmp_path / "one", resume=True, announce=told.append, **given)  # type: ignore[arg-type]
    assert any("layers have been measured already" in each for each in told)
    assert any("matrices are chosen is known already" in each for each in told)
    assert contents(tmp_path / "one") == contents(place / "one")
    assert not work_folder(tmp_path / "one").exists()


def test_statistics_in_the_way_are_told_at_once(calibrated: tuple[Path, Path, Path]) -> None:
    folder, text, place = calibrated
    stages: list[str] = []
    with pytest.raises(OutputExists, match="already exists"):
        to_onnx(
            folder, place / "another", type="q4_0", calibrate=[text], optimize=True,
            progress=lambda stage, done, total: stages.append(stage),
        )  # fmt: skip
    assert set(stages) <= {"opening"}


def test_a_batch_learns_once_for_all_types(calibrated: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, text, place = calibrated
    jobs = tmp_path / "jobs.toml"
    jobs.write_text(
        f'[[jobs]]\nsource = "{folder}"\nformats = "onnx"\ntypes = ["q4_0", "q8_0"]\n'
        f'calibrate = ["{text}"]\noptimize = true\nno-verify = true\noutput = "out"\nthreads = 1\n',
        encoding="utf-8",
    )
    words = [KCONV, "batch", str(jobs), "--journal", str(tmp_path / "journal")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr + done.stdout
    out = tmp_path / "out"
    assert len(list(out.glob("*-statistics.gguf"))) == 1
    assert contents(out / "sample-Q4_0-ONNX") == contents(place / "one")
    assert (out / "sample-Q8_0-ONNX" / "kconv.manifest.json").is_file()
