"""``to-gguf --target-size --calibrate``: ended among its probes, it goes on from there, to the same bytes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.samples import write_sample
from kconv.core.errors import OutputExists
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.flows.convert import to_gguf
from kconv.flows.kept_work import work_folder
from kconv.quant.choice_losses import as_stored
from kconv.quant.formats import FORMATS
from kconv.reference.divergences import Divergence
from kconv.reference.kept_probes import KeptProbes
from kconv.reference.probes import Probing
from kconv.reference.saved_pass import SparePass

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
ENVIRONMENT = {**os.environ, "KCONV_LANG": "en"}
CHANGES = {
    "42dot": (["blk.1.attn_q.weight"], ["token_embd.weight"], ["output.weight"], ["blk.0.ffn_down.weight"]),
    "qwen3-moe": (["blk.0.attn_q.weight"], ["blk.1.ffn_down_exps.weight", "blk.1.ffn_up_exps.weight"]),
    "kebyt5": (
        ["enc.blk.0.attn_q.weight"],
        ["dec.blk.1.ffn_up.weight"],
        ["enc.blk.1.ffn_up.weight"],
        ["dec.blk.0.attn_k.weight"],
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "sample")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text((TEXTS / "stories.txt").read_text("utf-8")[:12000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run makes that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    converted(checkpoint, text, folder)
    return made(folder)


def converted(checkpoint: Path, text: Path, folder: Path, **how: Any) -> list[str]:
    """Convert in this process; what was told."""
    told: list[str] = []
    to_gguf(
        checkpoint, folder / "made.gguf", types=(), calibrate=[text], target_size="1.7M", verify=False,
        threads=1, announce=told.append, **how,
    )  # fmt: skip
    return told


def made(folder: Path) -> dict[str, bytes]:
    """The files a run leaves; it leaves no others."""
    assert not work_folder(folder / "made.gguf").exists()
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".gguf", ".toml")}
    assert found.keys() == {"made.gguf", "made.imatrix.gguf", "made.policy.toml"}
    return found


def command(checkpoint: Path, text: Path, folder: Path) -> list[str]:
    words = [sys.executable, "-m", "kconv", "to-gguf", str(checkpoint), "-o", str(folder / "made.gguf")]
    return [*words, "--target-size", "1.7M", "--calibrate", str(text), "--no-verify", "--threads", "1"]


def struck(words: Sequence[str], when: Callable[[], bool], number: signal.Signals) -> tuple[int, str]:
    """Run a command and send it a signal as soon as something is the case; its exit code, what it said."""
    with subprocess.Popen(
        words, env=ENVIRONMENT, stdout=-3, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        try:
            end = time.monotonic() + 300
            while not when() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.001)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert when(), said
    return process.returncode, " ".join(said.split())


def lines(path: Path) -> int:
    """How many there are that say something."""
    return 0 if not path.is_file() else path.read_bytes().count(b"}\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_struck_at_every_stage_of_the_probes(
    number: signal.Signals, checkpoint: Path, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    words = command(checkpoint, text, tmp_path)
    kept = work_folder(tmp_path / "made.gguf") / "probes"
    errors, found = kept / "errors.jsonl", kept / "divergences.jsonl"
    passing = kept.glob

    def struck_when(when: Callable[[], bool], told: str) -> None:
        code, said = struck(words, when, number)
        if number == signal.SIGINT:
            assert code == 130, said
            assert f"what has been measured so far is kept in {kept.parent}" in said
        assert told in said
        words[-1:] = [words[-1]] if words[-1] == "--resume" else [words[-1], "--resume"]

    struck_when(lambda: lines(errors) >= 2, "probes of")
    struck_when(lambda: any(passing("pass-*/pass.json")), "tensors are known already")
    assert lines(found) == 0
    struck_when(lambda: lines(found) >= 2, "the probes go on behind layer")
    probed = lines(found)
    groups = 21  # and from there on mixes
    assert probed < groups
    struck_when(lambda: lines(found) > groups + 1, "mixes of formats have been probed already")
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mixes of formats have been probed already" in " ".join(done.stderr.split())
    assert made(tmp_path) == whole


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_interrupted_among_the_probes(
    part: float, checkpoint: Path, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """What the folder keeps is not measured again, and not used for other texts."""

    def end(stage: str, done: int, total: int) -> None:
        if stage == "probes" and done > part * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(checkpoint, text, tmp_path, progress=end)
    seen: dict[str, int] = {}

    def count(stage: str, done: int, total: int) -> None:
        seen[stage] = seen.get(stage, 0) + 1

    told = converted(checkpoint, text, tmp_path, progress=count, resume=True)
    assert any("tensors are known already" in each for each in told)
    assert any("go on behind layer" in each for each in told)
    assert not {"reference", "errors"} & seen.keys()
    assert made(tmp_path) == whole


def test_the_calibration_before_them_goes_on_by_layers(
    checkpoint: Path, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Also where importance data are all that is learned."""

    def end(stage: str, done: int, total: int) -> None:
        if stage == "reference" and done > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(checkpoint, text, tmp_path, progress=end)
    assert not (tmp_path / "made.imatrix.gguf").exists()
    told = converted(checkpoint, text, tmp_path, resume=True)
    assert any("layers have been measured already" in each for each in told)
    assert made(tmp_path) == whole


def test_importance_data_in_the_way_are_told_at_once(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "made.imatrix.gguf").write_bytes(b"another's")
    stages: list[str] = []
    with pytest.raises(OutputExists, match="already exists"):
        converted(checkpoint, text, tmp_path, progress=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"opening"}
    assert (tmp_path / "made.imatrix.gguf").read_bytes() == b"another's"


def test_what_was_found_on_another_text_is_not_taken_up(
    checkpoint: Path, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    def end(stage: str, done: int, total: int) -> None:
        if stage == "probes" and done > 0.5 * total:
            raise KeyboardInterrupt

    other = tmp_path / "texts" / text.name
    other.parent.mkdir()
    other.write_text((TEXTS / "facts.txt").read_text("utf-8")[:12000], encoding="utf-8")
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        converted(checkpoint, other, folder, progress=end)
    told = converted(checkpoint, text, folder, resume=True)
    assert not any("resumed" in each for each in told)
    assert made(folder) == whole


@pytest.mark.parametrize("sample", CHANGES)
def test_divergences_are_the_same_bits_wherever_a_run_was_ended(sample: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_sample(sample, tmp_path / "sample"))
    family = family_for(checkpoint.config)
    tensors = {tensor.name: tensor for tensor in build(family, checkpoint).tensors}
    source = (5, 9, 30, 7, 1) if family.encoder_decoder else ()
    windows = [
        Window(0, tuple(3 + at % 300 for at in range(length)), source=source) for length in (12, 1100, 1000)
    ]
    changes = [
        {name: as_stored(tensors[name], FORMATS["q4_0"], None) for name in names} for names in CHANGES[sample]
    ]
    keys = [repr(names) for names in CHANGES[sample]]

    def measured(kept: KeptProbes | None, most: int) -> list[Divergence]:
        """Ended at that step."""

        def progress(stage: str, done: int, total: int) -> None:
            if most <= done < total:
                raise KeyboardInterrupt

        return Probing(checkpoint, family, tensors, threads=1).divergences(
            changes, windows, progress, kept, keys
        )

    want = measured(None, 1 << 30)
    told: list[str] = []
    for most in (2, 5, 8):
        folder = tmp_path / str(most)
        with contextlib.suppress(KeyboardInterrupt):
            measured(KeptProbes(folder, told.append), most)
        found = measured(KeptProbes(folder, told.append), 1 << 30)
        for one, other in zip(found, want, strict=True):
            assert np.array_equal(one.positions, other.positions)
            assert (one.mean, one.error) == (other.mean, other.error)
        assert not list(folder.glob("pass-*"))
    assert any("go on behind layer" in each for each in told)


def test_states_that_find_no_room_cost_what_is_kept_and_not_the_run(
    checkpoint: Path, text: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Files of that size are refused, as by a full disk: what leaves a layer on all ways, nothing else."""
    words = command(checkpoint, text, tmp_path)
    limit = 3 << 20
    assert max(map(len, whole.values())) < limit
    done = subprocess.run(
        words, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "from here on layers are not kept for --resume" in said
    assert "larger than the file system or limit allows" in said
    assert made(tmp_path) == whole


def test_no_more_than_a_bound_is_kept(
    checkpoint: Path, text: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SparePass, "MOST", 3 << 20)
    told = converted(checkpoint, text, tmp_path)
    assert any("are needed for a layer" in each for each in told)
    assert made(tmp_path) == whole
