"""GBST-KEByT5 whole: one conversion to two files, the proof of both, and `kconv run` with them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_material import kconv, kconv_here
from gbst_material import CONFIG, random_gbswt5, random_model
from t5_material import byte_ids

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.families.gbst import front_end_file
from kconv.converters.families.gbst.front_end_file import read_front_end, write_front_end
from kconv.converters.families.gbst.settings import EMBEDDING, SCORE
from kconv.converters.families.gbst.tensors import FINGERPRINT_KEY, KIND_KEY, front_end_model
from kconv.core.errors import GgufError, NonFiniteError, OutputExists, UsageError
from kconv.core.gguf_file import read_header, write_header
from kconv.core.reading import open_checkpoint
from kconv.flows.results import Conversion
from kconv.report.html import report_html
from kconv.verify import verify

KCONV = [str(Path(sys.executable).parent / "kconv")]
pytestmark = pytest.mark.usefixtures("kconv_server")
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gbswt5(tmp_path_factory.mktemp("gbst") / "model")


@pytest.fixture(scope="module")
def made(folder: Path) -> Conversion:
    return to_gguf(folder, folder.parent / "out", types=["f32", "q8_0"], verify="quick", threads=1)


@pytest.fixture(scope="module")
def body(made: Conversion) -> Path:
    """The f32 body, its front end beside it."""
    return made.outputs[0].path


@pytest.fixture(scope="module")
def other_front_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The front end of a checkpoint with other settings."""
    place = tmp_path_factory.mktemp("other")
    other = random_gbswt5(place / "model", score_consensus_attn=False)
    write_front_end(place / "gbst-other.gguf", front_end_model(open_checkpoint(other)))
    return place / "gbst-other.gguf"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = kconv_here if arguments[0] == "verify" else kconv  # the proof takes torch
    return command(*arguments, "--threads", "1")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


def with_keys(source: Path, target: Path, keys: dict[str, Any]) -> Path:
    """A copy of a GGUF with other keys; None takes one away."""
    header = read_header(source)
    metadata = {key: value for key, value in {**header.metadata, **keys}.items() if value is not None}
    arch = metadata.pop("general.architecture")
    tensors = [replace(info, offset=0) for info in sorted(header.tensors, key=lambda info: info.offset)]
    start = write_header(target, arch, metadata, tensors)
    with target.open("r+b") as copy:
        copy.seek(start)
        copy.write(source.read_bytes()[header.data_offset :])
    return target


# The conversion


def test_one_conversion_writes_all_bodies_and_one_front_end(made: Conversion) -> None:
    names = {path.name for path in made.outputs[0].path.parent.iterdir()}
    bodies = {"model-F32.gguf", "model-Q8_0.gguf"}
    assert names == {"gbst-model.gguf", *bodies, *(f"{name}.manifest.json" for name in bodies)}
    (beside,) = made.companions
    front_end = read_front_end(beside.path)
    assert beside.bytes == beside.path.stat().st_size
    assert beside.sha256 == hashlib.sha256(beside.path.read_bytes()).hexdigest()
    assert beside.weights == sum(np.prod(shape) for shape in front_end.front_end.settings.shapes().values())
    assert not beside.kept
    for output in made.outputs:
        metadata = read_header(output.path).metadata
        assert metadata[KIND_KEY] == "gbst"
        assert metadata[FINGERPRINT_KEY] == front_end.fingerprint
        (companion,) = json.loads(output.manifest.read_text("utf-8"))["companions"]
        assert (companion["file"], companion["sha256"]) == ("gbst-model.gguf", beside.sha256)
        assert companion["keys"][FINGERPRINT_KEY] == front_end.fingerprint
    (companion,) = made.to_json()["companions"]
    assert companion["path"] == str(beside.path)
    assert companion["architecture"] == "gbst"


def test_the_proof_of_a_conversion_passes(made: Conversion) -> None:
    proof: Any = made.proofs[0]
    assert made.verdict == "passed"
    assert proof.metadata.verdict == "passed"
    assert proof.logits.figures.nmse < 1e-4  # measured: 2e-8
    assert proof.logits.figures.same_top1 == 1


def test_another_type_later_keeps_the_front_end(folder: Path, tmp_path: Path) -> None:
    to_gguf(folder, tmp_path, types=["f32"], verify=False)
    front = tmp_path / "gbst-model.gguf"
    before = front.stat()
    again = to_gguf(folder, tmp_path, types=["f16"], verify=False)
    assert again.companions[0].kept
    assert again.companions[0].bytes == before.st_size
    assert front.stat().st_ino == before.st_ino
    forced = to_gguf(folder, tmp_path, types=["f16"], verify=False, force=True)
    assert not forced.companions[0].kept
    assert front.stat().st_ino != before.st_ino


@pytest.mark.parametrize("damage", ["other", "cut", "folder"])
def test_what_is_in_the_front_ends_place_is_refused(
    folder: Path, tmp_path: Path, made: Conversion, other_front_end: Path, damage: str
) -> None:
    place = tmp_path / "gbst-model.gguf"
    if damage == "other":
        shutil.copy(other_front_end, place)
    elif damage == "cut":
        place.write_bytes(made.companions[0].path.read_bytes()[:-40])  # of which 28 are padding
    else:
        place.mkdir()
    words = (
        "is a folder|already exists" if damage == "folder" else "already exists and does not belong to this"
    )
    with pytest.raises(OutputExists, match=rf"gbst-model\.gguf ({words})"):
        to_gguf(folder, tmp_path, types=["f32"], verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["gbst-model.gguf"]
    if damage != "folder":
        to_gguf(folder, tmp_path, types=["f32"], verify=False, force=True)
        assert place.read_bytes() == made.companions[0].path.read_bytes()


def test_the_front_end_stands_beside_a_named_file(folder: Path, tmp_path: Path) -> None:
    to_gguf(folder, tmp_path / "deep" / "name.gguf", types=["f32"], verify=False)
    names = {path.name for path in (tmp_path / "deep").iterdir()}
    assert names == {"name.gguf", "name.gguf.manifest.json", "gbst-model.gguf"}
    with pytest.raises(UsageError, match=r"gbst-model\.gguf"):
        to_gguf(folder, tmp_path / "gbst-model.gguf", types=["f32"], verify=False)


@pytest.mark.parametrize("allow_nan", [False, True])
def test_a_front_end_that_is_not_finite_leaves_nothing(tmp_path: Path, allow_nan: bool) -> None:
    def spoil(state: dict[str, Any]) -> None:
        state[SCORE + "weight"][0, 3] = float("nan")

    folder = rewrite(random_gbswt5(tmp_path / "model"), spoil)
    with pytest.raises(NonFiniteError, match="cand_scoring"):
        to_gguf(folder, tmp_path / "out", types=["f32"], verify=False, allow_nan=allow_nan)
    assert not (tmp_path / "out").exists()


def test_people_are_told_of_the_front_end(folder: Path, tmp_path: Path) -> None:
    done = run("to-gguf", folder, "-o", tmp_path, "-q", "f32", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "gbst-model.gguf belongs to these files" in done.stdout
    output = json.loads(run("to-gguf", folder, "-o", tmp_path, "-q", "f16", "--no-verify", "--json").stdout)
    assert output["companions"][0]["kept"] is True


# The proof


def test_verify_holds_both_files_against_the_checkpoint(
    folder: Path, body: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(path: Path) -> Any:
        opened.append(path)
        return read_front_end(path)

    monkeypatch.setattr(front_end_file, "read_front_end", counted)
    proof = verify(body, folder, tokens=150, diagnose=True, threads=1)
    assert proof.verdict == "passed", proof.cause
    assert opened == [body.parent / "gbst-model.gguf"]  # once for all parts of the proof
    assert proof.weights.verdict == proof.metadata.verdict == "passed"
    assert proof.logits.figures is not None
    assert proof.logits.figures.nmse < 1e-4
    diagnosis = proof.logits.diagnosis
    assert diagnosis is not None
    assert len(diagnosis.layers) == CONFIG["num_layers"] + CONFIG["num_decoder_layers"]
    assert diagnosis.logits_weights == 0
    assert diagnosis.logits_same_gelu is not None
    assert diagnosis.logits_same_gelu < diagnosis.logits_runtime
    front = body.parent / "gbst-model.gguf"
    assert proof.provenance["front_end"] == {
        "file": front.name,
        "bytes": front.stat().st_size,
        "sha256": hashlib.sha256(front.read_bytes()).hexdigest(),
        "fingerprint": read_front_end(front).fingerprint,
    }
    assert proof.provenance["front_end"]["sha256"] in report_html([proof])


def test_inspect_says_what_each_of_the_two_files_is(body: Path, capsys: pytest.CaptureFixture[str]) -> None:
    front = body.parent / "gbst-model.gguf"
    named = read_front_end(front).fingerprint[:16]
    assert main(["inspect", str(front)]) == 0
    out = capsys.readouterr().out
    assert "front end of a GBST model: turns bytes into the encoder's input" in out
    assert f"fingerprint {named}…" in out
    assert main(["inspect", str(body)]) == 0
    assert (
        f"body of a GBST model: needs its front end, the gbst-….gguf of fingerprint {named}…"
    ) in capsys.readouterr().out


def test_the_encoder_of_a_quantized_body_reads_the_exact_embedding(tmp_path: Path) -> None:
    """Also where the checkpoint's only embedding has the front end's name."""
    drop = ("shared.weight", "decoder.embed_tokens.weight")
    folder = random_gbswt5(tmp_path / "one", drop=drop)
    assert EMBEDDING in open_checkpoint(folder).tensors
    output = to_gguf(folder, tmp_path, types=["q8_0"], verify=False).outputs[0]
    proof = verify(output.path, folder, tokens=100, diagnose=True, threads=1)
    assert proof.verdict == "passed", proof.cause
    diagnosis = proof.logits.diagnosis
    assert diagnosis is not None
    assert all(0 < layer.weights < 1e-3 for layer in diagnosis.layers)


def test_the_reference_is_the_whole_model_whatever_goes_together(folder: Path) -> None:
    import torch

    from kconv.converters.families.gbst import GBSWT5
    from kconv.core.windows import Window
    from kconv.reference.model import Reference

    texts = [KOREAN, "a", ""]
    decoder = (0, 258, 240, 187, 188, 257)
    windows = [Window(i, decoder[: 6 - i], source=tuple(byte_ids(text))) for i, text in enumerate(texts)]
    reading = Reference(open_checkpoint(folder), GBSWT5, threads=1).read(windows, layers_of=windows[0])
    whole = random_model(CONFIG)
    for i, window in enumerate(windows):
        with torch.no_grad():
            right = whole(
                input_ids=torch.tensor([window.source]),
                attention_mask=torch.ones(1, len(window.source), dtype=torch.long),
                decoder_input_ids=torch.tensor([window.ids]),
            ).logits[0]
        actual = reading.logits(i, 0, len(window.ids))
        np.testing.assert_allclose(actual, right.numpy(), atol=1e-4, rtol=1e-4)
    assert [len(layer) for layer in reading.layers] == [-(-len(windows[0].source) // 3)] * 3 + [6] * 2


def test_a_front_end_of_another_model_fails_the_proof(
    folder: Path, body: Path, other_front_end: Path, tmp_path: Path
) -> None:
    """Body and front end name each other, but the checkpoint's front end is another."""
    shutil.copy(other_front_end, tmp_path)
    keys = {FINGERPRINT_KEY: read_front_end(other_front_end).fingerprint}
    proof = verify(
        with_keys(body, tmp_path / "body.gguf", keys), folder, tokens=60, threads=1, diagnose=False
    )
    assert proof.verdict == proof.metadata.verdict == proof.logits.verdict == "failed"
    assert proof.weights.verdict == "passed"
    assert proof.metadata.findings[0].where == FINGERPRINT_KEY
    assert "not the checkpoint's" in str(proof.cause)


def test_a_body_that_does_not_name_its_front_end_fails_the_proof(
    folder: Path, body: Path, tmp_path: Path
) -> None:
    keys = {KIND_KEY: None, FINGERPRINT_KEY: None}
    proof = verify(with_keys(body, tmp_path / "body.gguf", keys), folder, tokens=60, threads=1)
    assert proof.metadata.verdict == proof.logits.verdict == "failed"
    assert "does not name its front end" in proof.metadata.findings[0].message


def test_verify_refuses_a_missing_front_end(folder: Path, body: Path, tmp_path: Path) -> None:
    shutil.copy(body, tmp_path)
    announced: list[str] = []
    with pytest.raises(GgufError, match="needs its front end"):
        verify(tmp_path / body.name, folder, tokens=60, threads=1, announce=announced.append)
    assert announced == []  # nothing has been begun
    done = run("verify", tmp_path / body.name, "--against", folder, "--tokens", 60)
    assert done.returncode == 3
    assert "needs its front end" in done.stderr
    chosen = ("--front-end", body.with_name("gbst-model.gguf"))
    done = run("verify", tmp_path / body.name, "--against", folder, "--tokens", 60, *chosen)
    assert done.returncode == 0, done.stderr


# Running


def test_greedy_text_equals_that_of_transformers(body: Path) -> None:
    import torch

    whole = random_model(CONFIG)
    for prompt in (KOREAN, "a", ""):
        done = run("run", body, "-p", prompt, "-n", 128, "--greedy", "--kv-type", "f32", "--json")
        assert done.returncode == 0, done.stderr
        output = json.loads(done.stdout)
        ids = byte_ids(prompt)
        assert output["prompt_ids"] == ids
        with torch.no_grad():
            right = whole.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=128,
                do_sample=False,
                num_beams=1,
            )
        assert output["ids"] == right[0].tolist()[1:]
        assert len(set(output["ids"])) > 5


def test_masks_go_through_the_front_end(body: Path) -> None:
    done = run("run", body, "--fill", "한국의 수도는 <extra_id_0>이다.", "-n", 8, "--json")
    assert done.returncode == 0, done.stderr
    assert 258 in json.loads(done.stdout)["prompt_ids"]


# A process's own peak: the kernel counts its parent's with it, which is small here.
WATCHED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_a_long_text_runs_in_little_memory(body: Path) -> None:
    text = "대한민국 만세 " * 340
    words = [*KCONV, "run", str(body), "-p", "-", "-n", "2", "--ctx", "8192", "--json", "--threads", "1"]
    watched = [sys.executable, "-c", WATCHED, *words]
    done = subprocess.run(watched, input=text, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["prompt_ids"]) == 6801
    assert int(done.stderr.rpartition("peak ")[2]) < 2 << 20  # KiB; measured: 0.5 GiB


def test_run_takes_a_front_end_from_elsewhere(
    body: Path, made: Conversion, other_front_end: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(body, tmp_path)
    done = run("run", alone, "-p", "a", "-n", 4)
    assert done.returncode == 3
    assert "needs its front end" in done.stderr
    assert "what to do" in done.stderr
    chosen = run("run", alone, "-p", "a", "-n", 4, "--front-end", made.companions[0].path)
    assert chosen.returncode == 0, chosen.stderr
    assert chosen.stdout == run("run", body, "-p", "a", "-n", 4).stdout
    shutil.copy(other_front_end, tmp_path)
    beside = run("run", alone, "-p", "a")
    assert beside.returncode == 3
    assert "gbst-other.gguf belongs to another model" in beside.stderr
    wrong = run("run", alone, "-p", "a", "--front-end", other_front_end)
    assert wrong.returncode == 3
    assert "front end of another model" in wrong.stderr
    turned = run("run", made.companions[0].path, "-p", "a")
    assert turned.returncode == 3
    assert "front end" in turned.stderr


def test_a_model_without_a_front_end_takes_none(body: Path, made: Conversion, tmp_path: Path) -> None:
    plain = with_keys(body, tmp_path / "plain.gguf", {KIND_KEY: None, FINGERPRINT_KEY: None})
    done = run("run", plain, "-p", "a", "--front-end", made.companions[0].path)
    assert done.returncode == 3
    assert "does not need a front end" in done.stderr
