"""What the manifest names is what was converted, whatever happens to the input meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem
from kconv.flows.convert import to_gguf
from kconv.flows.quantize import quantize


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "checkpoint")


@pytest.fixture
def checkpoint(sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample, tmp_path / "checkpoint"))


def once(stage: str, change: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A Progress that changes something when a stage is first told of."""
    seen: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        if name == stage and not seen:
            seen.append(name)
            change()

    return progress


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded(manifest: Path, part: str = "source") -> dict[str, str]:
    content = json.loads(manifest.read_text("utf-8"))[part]
    return {each["name"]: each["sha256"] for each in (content["files"] if part == "source" else content)}


def converted(checkpoint: Path, stage: str, change: Callable[[], None]) -> Path:
    output = checkpoint.parent / "out" / "x.gguf"
    to_gguf(checkpoint, output, types=["q8_0"], verify=False, progress=once(stage, change))
    return output


@pytest.mark.parametrize("stage", ["tokens", "write"])
def test_weights_that_are_replaced_are_still_those_that_were_opened(stage: str, checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    first = sha256(weights)
    data = bytearray(weights.read_bytes())
    data[-100:] = bytes(100)

    def replace() -> None:
        (checkpoint / "other").write_bytes(data)
        os.replace(checkpoint / "other", weights)

    output = converted(checkpoint, stage, replace)
    assert sha256(weights) != first
    assert recorded(Path(f"{output}.manifest.json"))["model.safetensors"] == first


def rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"        ")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swapped(path: Path) -> None:
    path.with_name("other").write_bytes(path.read_bytes())
    os.replace(path.with_name("other"), path)


CHANGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "weights rewritten": (rewritten, "model.safetensors", "was changed while it was read"),
    "weights cut": (cut, "model.safetensors", "it was longer when it was opened|was changed while"),
    "a side file rewritten": (rewritten, "tokenizer_config.json", "was changed while"),
    "a side file swapped": (swapped, "config.json", "was changed while the checkpoint"),
    "a side file removed": (Path.unlink, "merges.txt", "was removed while the checkpoint"),
    "one put there": (lambda path: path.write_text("{}"), "chat_template.json", "was put there while the"),
    "the folder removed": (lambda path: shutil.rmtree(path.parent), "config.json", "was removed while"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_source_that_changes_is_no_finding_and_leaves_nothing(case: str, checkpoint: Path) -> None:
    stage = "write" if "side file" in case else "tokens"
    change, name, words = CHANGES[case]
    with pytest.raises(EnvironmentProblem, match=words) as caught:
        converted(checkpoint, stage, lambda: change(checkpoint / name))
    assert str(checkpoint) in caught.value.message
    assert "run it again" in str(caught.value.hint)
    assert not (checkpoint.parent / "out").exists()


def test_a_gguf_that_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    source = converted(checkpoint, "", lambda: None)
    first, data = sha256(source), bytearray(source.read_bytes())
    data[-64:] = bytes(64)

    def replace() -> None:
        (tmp_path / "other").write_bytes(data)
        os.replace(tmp_path / "other", source)

    target = tmp_path / "q.gguf"
    more = {"allow_requantize": True, "progress": once("write", replace)}
    quantize(source, target, types=["q4_0"], **more)
    assert recorded(Path(f"{target}.manifest.json"), "made_from") == {source.name: first}


def test_an_output_folder_that_is_removed(checkpoint: Path) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        converted(checkpoint, "write", lambda: shutil.rmtree(checkpoint.parent / "out"))
    assert "out does not exist (any more); it is needed to write x.gguf to" in caught.value.message
