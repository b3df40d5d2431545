"""The checkpoint's tokenizer is read once a command, whatever that command does with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kconv.converters import to_gguf, to_onnx
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.flows.importance import gather
from kconv.flows.plan import plan
from kconv.vocab.tokenizer_process import Library, TokenizerProcess

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its only tokenizer is a tokenizer.json."""
    return write_sample("kogpt", tmp_path_factory.mktemp("checkpoint") / "kogpt")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that tokenizer processes were started for, in order."""
    started: list[str] = []
    begin = TokenizerProcess.__init__

    def noted(self: TokenizerProcess, library: Library, where: str) -> None:
        started.append(where)
        begin(self, library, where)

    monkeypatch.setattr(TokenizerProcess, "__init__", noted)
    return started


@pytest.mark.parametrize("scope", ["off", "quick", "full"])
@pytest.mark.parametrize("calibrated", [False, True], ids=["", "calibrated"])
def test_to_gguf(scope: str, calibrated: bool, checkpoint: Path, read: list[str], tmp_path: Path) -> None:
    texts = [TEXTS / "facts.txt"] if calibrated else []
    made = to_gguf(
        checkpoint,
        tmp_path,
        types=("q4_k_m", "q8_0"),
        calibrate=texts,
        verify=scope,  # type: ignore[arg-type]
        threads=2,
    )
    assert made.verdict == ("not run" if scope == "off" else "passed")
    assert len(read) == 1, read


def test_to_onnx(checkpoint: Path, read: list[str], tmp_path: Path) -> None:
    """The folder's own is another one, which is read as those read it who load the folder."""
    made = to_onnx(checkpoint, tmp_path / "onnx", threads=2)
    assert made.verdict == "passed"
    assert len(read) == 2, read
    assert read[1].startswith(str(made.path))


def test_importance(checkpoint: Path, read: list[str]) -> None:
    gather(checkpoint, {"facts.txt": (TEXTS / "facts.txt").read_text("utf-8")}, chunks=2, threads=2)
    assert len(read) == 1, read


def test_plan(checkpoint: Path, read: list[str]) -> None:
    plan(checkpoint, options=Options(types=("q4_k_m",)))
    assert len(read) == 1, read
