"""Strangers' tokenizers that hang, panic or fill the memory are refused; a killed child is no finding."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import vocab_material as material

from kconv.core.errors import CheckpointError, ChildDied, VocabError
from kconv.vocab import exam, tokenizer_process
from kconv.vocab.sources import read_source
from kconv.vocab.tokenizer import Source
from kconv.vocab.tokenizer_process import TextsRefused, TokenizerProcess

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TWENTY = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 20}


def split(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [step, BYTE_LEVEL]}}


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama3")
    material.llama3_like(folder)
    return folder


def edited(llama3: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the tokenizer with other parts."""
    for file in llama3.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**spec, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (split("(a+)+$"), r"the pattern '\(a\+\)\+\$' of its pre-tokenizer"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xxxx"}}, "normalizer"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [TWENTY] * 6}},
            "MiB of memory.*of its normalizer",
        ),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}}, "its normalizer"),
        (split("("), "of its pre-tokenizer"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
            "rejected by the tokenizers library",
        ),
        ({"post_processor": {"type": "TemplateProcessing"}}, "rejected by the tokenizers library"),
    ],
)
def test_what_the_library_cannot_take_is_refused(
    llama3: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_process, "MEMORY", 1 << 28)
    with pytest.raises(VocabError, match=says) as caught:
        exam.exam(read_source(material.checkpoint(edited(llama3, tmp_path, **changes))))
    assert caught.value.exit_code == 3
    assert "tokenizer.json" in caught.value.message
    assert len(str(caught.value)) < 1500
    assert capfd.readouterr().err == ""


def test_exponential_patterns_run_into_the_limit_of_time(
    llama3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_process, "SECONDS", 0.5)
    monkeypatch.setattr(tokenizer_process, "A_TEXTS_MEGABYTE", (0.0, 1 << 30))
    monkeypatch.setattr(tokenizer_process, "_TRYING", 0.5)
    with pytest.raises(VocabError, match=r"s of processor time.*pattern .* of its pre-tokenizer"):
        exam.exam(read_source(material.checkpoint(edited(llama3, tmp_path, **split(r"(.{0,3}){11}(?<=§)")))))


@pytest.mark.parametrize("damage", [lambda data: data[:40] + b"\xff" * 8 + data[48:], lambda data: data[:-9]])
def test_damaged_sentencepiece_models_end_in_one_error_or_are_read(
    tmp_path: Path, damage: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    material.sentencepiece_like(tmp_path)
    model = tmp_path / "tokenizer.model"
    model.write_bytes(damage(model.read_bytes()))
    with pytest.raises((VocabError, CheckpointError)):
        read_source(material.checkpoint(tmp_path)).encode("안녕", True)
    assert capfd.readouterr().err == ""


def tokenizer_children() -> set[psutil.Process]:
    """The children of this process that run a tokenizer."""
    return {c for c in psutil.Process().children() if "kconv.vocab.tokenizer_child" in c.cmdline()}


@pytest.fixture
def tokenizer_child() -> Callable[[], psutil.Process]:
    """The one child that runs the tokenizer of this test, not one that an earlier test still holds."""
    gc.collect()
    before = tokenizer_children()

    def only_child() -> psutil.Process:
        (child,) = tokenizer_children() - before
        return child

    return only_child


@pytest.mark.parametrize("make", [material.llama3_like, material.eagle_like, material.sentencepiece_like])
def test_a_killed_process_is_replaced_and_goes_on(
    tmp_path: Path, make: Callable[[Path], int], tokenizer_child: Callable[[], psutil.Process]
) -> None:
    make(tmp_path)
    source = read_source(material.checkpoint(tmp_path))
    texts = ["안녕하세요 <|eot_id|> </s>", " a  b\n", ""]
    before = [source.encode_batch(texts, parse) for parse in (True, False)]
    tokenizer_child().kill()
    assert [source.encode_batch(texts, parse) for parse in (True, False)] == before
    if source.encode_pieces is not None:
        tokenizer_child().kill()
        assert len(source.encode_pieces(["a"], False)) == 1


def test_one_that_is_killed_again_and_again_says_nothing_of_the_tokenizer(
    llama3: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_child: Callable[[], psutil.Process]
) -> None:
    source = read_source(material.checkpoint(llama3))
    start = TokenizerProcess._start

    def killed(self: TokenizerProcess) -> Any:
        child = start(self)
        os.kill(child.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(TokenizerProcess, "_start", killed)
    tokenizer_child().kill()
    with pytest.raises(ChildDied, match="signal 9") as caught:
        source.encode("a", True)
    assert caught.value.exit_code == 4


def test_the_process_ends_with_the_tokenizer(
    llama3: Path, tokenizer_child: Callable[[], psutil.Process]
) -> None:
    source: Source | None = read_source(material.checkpoint(llama3))
    assert source is not None
    child = tokenizer_child()
    descriptors = psutil.Process().num_fds()
    source = None
    gc.collect()
    assert not child.is_running()
    assert psutil.Process().num_fds() < descriptors


def test_the_parent_loads_neither_library(llama3: Path, tmp_path: Path) -> None:
    material.sentencepiece_like(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from kconv.core.checkpoint import Checkpoint\nfrom kconv.vocab.sources import read_source\n"
        "for folder in sys.argv[2:]:\n"
        "    read_source(Checkpoint(Path(folder), {}, {}, ())).encode('a', True)\n"
        "print({'tokenizers', 'sentencepiece'} & set(sys.modules))\n"
    )
    arguments = [str(Path(__file__).parent), str(llama3), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_ctrl_c_ends_it_at_once(llama3: Path, tmp_path: Path) -> None:
    folder = edited(llama3, tmp_path, **split(r"(.{0,3}){11}(?<=§)"))
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from kconv.core.checkpoint import Checkpoint\nfrom kconv.vocab.sources import read_source\n"
        "source = read_source(Checkpoint(Path(sys.argv[1]), {}, {}, ()))\nprint('read', flush=True)\n"
        "source.encode_batch(['a long text ' * 99] * 99, True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "read\n"
        (child,) = psutil.Process(run.pid).children()
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        _, output = run.communicate(timeout=20)
    assert "KeyboardInterrupt" in output
    assert not child.is_running()


def unigram(folder: Path, unknown: int | None) -> Source:
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz .,?!", *map(chr, range(0xAC00, 0xD7A4))]
    model = {"type": "Unigram", "unk_id": unknown, "vocab": [[piece, -9.0] for piece in pieces]}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    spec = {"added_tokens": [], "normalizer": None, "pre_tokenizer": space, "decoder": space, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return read_source(material.checkpoint(folder))


def test_a_unigram_model_without_an_unknown_token_works_on_what_it_can_read(tmp_path: Path) -> None:
    source = unigram(tmp_path, None)
    with pytest.raises(TextsRefused, match="no token ids for 1 of 3 texts, the first being '漢字'") as caught:
        source.encode_batch(["하나", "漢字", "b"], True)
    assert caught.value.indices == (1,)
    answers = exam.reference_ids(source, ["하나", "漢字", "b"], True)
    assert {text: list(ids) for text, ids in answers.items()} == {
        text: source.encode(text, True) for text in ("하나", "b")
    }
    assert source.encode_lines(["하나", "漢字", "b"]) == source.encode("하나 b", False)
    questions = exam.exam(source)
    assert questions.left_out > 100
    assert len(questions.texts) > 500
    (tmp_path / "other").mkdir()
    other = unigram(tmp_path / "other", 0)
    assert exam.exam(other).left_out == 0
    assert other.encode_batch(questions.texts, True) == source.encode_batch(questions.texts, True)


def test_long_texts_and_many(llama3: Path) -> None:
    """Requests are cut in parts; the ids are those of the library in one go."""
    from tokenizers import Tokenizer

    source = read_source(material.checkpoint(llama3))
    texts = [f"{number} 번째 글\n" for number in range(1100)] + ["긴 글 " * 30_000, "", "\ud7ff끝"]
    own = Tokenizer.from_file(str(llama3 / "tokenizer.json"))
    right = [each.ids for each in own.encode_batch(texts, add_special_tokens=False)]
    assert [list(ids) for ids in source.encode_batch(texts, True)] == right
