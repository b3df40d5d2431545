"""The table of damages: whatever a converter may get wrong, ``kconv verify`` catches and names it.

Every damage is done to files of seven types, made by kconv from a trained model, and each file is judged
through the command line. The part a damage belongs to must fail by itself, and the cause must be words a
person understands.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from damage_material import DAMAGES

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.converters.samples.korean_text import korean_text
from kconv.core.windows import Window
from kconv.reference.model import Reading
from kconv.verify.inputs import Expected, VerifyOptions, read_reference

TYPES = ("f32", "q8_0", "q4_0")
MORE = ("f16", "q4_K_M", "iq4_xs", "iq2_m")
EVERY = (*TYPES, *(pytest.param(type_, marks=pytest.mark.long) for type_ in MORE))

# What the cause must say, and for which types the runtime part alone would have told. It computes with the
# file's own weights, so wrong weights are not its matter: with two layers swapped both sides swap them.
CAUSES: dict[str, tuple[str, frozenset[str]]] = {
    "q and k not permuted": ("heads", frozenset()),
    "two layers swapped": ("layers 0 and 1 are swapped", frozenset()),
    "a tensor scaled by 1.01": ("is scaled by 1.0", frozenset()),
    "a row zeroed": ("row 17", frozenset()),
    "embedding rows shifted by one": ("row 40", frozenset()),
    "an embedding row taken from its neighbour": ("row 40", frozenset()),
    "an embedding row rolled": ("row 40", frozenset()),
    "the last shard's tensors zeroed": ("zero", frozenset()),
    "a token's text changed": ("damaged", frozenset()),
    "two tokens swapped": ("token", frozenset()),
    "wrong eos id": ("eos", frozenset()),
    "BOS wrongly added": ("BOS", frozenset()),
    "wrong rope theta": ("rope", frozenset(TYPES)),
    "wrong norm epsilon": ("epsilon", frozenset(TYPES)),
    "wrong head split": ("head", frozenset(TYPES)),
    "rope scaling added": ("scaling", frozenset(TYPES)),
    "a norm's weights replaced by ones": ("all ones", frozenset()),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model."""
    return write_sample("42dot", tmp_path_factory.mktemp("checkpoint") / "demo")


@pytest.fixture(scope="module")
def good(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good file of each type, with its manifest."""
    folder = tmp_path_factory.mktemp("good")
    text = folder / "text.txt"
    text.write_text("\n".join(itertools.islice(korean_text(), 200)), encoding="utf-8")
    made = to_gguf(checkpoint, folder, types=(*TYPES, *MORE[:-1]), verify=False)
    coarse = to_gguf(checkpoint, folder, types=MORE[-1:], calibrate=[text], verify=False)
    return {output.type: output.path for output in (*made.outputs, *coarse.outputs)}


@pytest.fixture(scope="module")
def readings() -> dict[tuple[Window, ...], Reading]:
    """What the checkpoint says, by what it was asked."""
    return {}


@pytest.fixture(autouse=True)
def _the_checkpoint_is_read_once(
    readings: dict[tuple[Window, ...], Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same for all these files; reading it is what takes time."""

    def once(subject: Expected, how: VerifyOptions, windows: Sequence[Window]) -> Reading:
        if tuple(windows) not in readings:
            readings[tuple(windows)] = read_reference(subject, how, windows)
        return readings[tuple(windows)]

    monkeypatch.setattr("kconv.verify.prove.read_reference", once)


def verified(path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of ``kconv verify``."""
    code = main(["verify", str(path), "--against", str(checkpoint), "--tokens", "64", "--json"])
    proof: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, proof


def test_the_table_is_whole() -> None:
    assert set(CAUSES) == set(DAMAGES)


@pytest.mark.parametrize("type_", EVERY)
def test_good_files_pass(
    type_: str, good: dict[str, Path], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, proof = verified(good[type_], checkpoint, capsys)
    assert code == 0
    parts = {name: proof[name]["verdict"] for name in ("tokens", "metadata", "weights", "runtime", "logits")}
    loose = type_ == "iq2_m"  # its weights are not encoded anew, which is said
    assert proof["verdict"] == ("warned" if loose else "passed"), proof["cause"]
    assert {name for name, verdict in parts.items() if verdict != "passed"} == (
        {"weights"} if loose else set()
    )


@pytest.mark.parametrize("type_", EVERY)
@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_caught(
    name: str,
    type_: str,
    good: dict[str, Path],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage = DAMAGES[name]
    path = damage.make(good[type_], tmp_path / good[type_].name)
    shutil.copy(f"{good[type_]}.manifest.json", f"{path}.manifest.json")
    code, proof = verified(path, checkpoint, capsys)
    word, tells = CAUSES[name]
    assert (code, proof["verdict"]) == (1, "failed")
    assert proof[damage.part]["verdict"] == "failed"
    assert word in proof["cause"]
    assert proof["right"] == "failed"
    if type_ in tells:
        assert proof["runtime"]["verdict"] == "failed"


@pytest.mark.parametrize("name", DAMAGES)
def test_and_in_a_file_without_a_manifest(
    name: str,
    good: dict[str, Path],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage = DAMAGES[name]
    path = damage.make(good["q4_0"], tmp_path / "elsewhere.gguf")
    code, proof = verified(path, checkpoint, capsys)
    assert code == 1
    assert proof[damage.part]["verdict"] == "failed"


def test_the_checkpoint_was_asked_for_the_same_windows(
    readings: dict[tuple[Window, ...], Reading],
    good: dict[str, Path],
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verified(good["q8_0"], checkpoint, capsys)
    assert len(readings) == 1
