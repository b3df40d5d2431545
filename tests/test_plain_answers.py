"""What was answered beside the point: each with what is really wrong, in English and in Korean."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from proof_material import passed, proof_text
from terminal import record, screen

from kconv.cli.proof_text import proof_line
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import UsageError
from kconv.core.language import speaking
from kconv.flows.serving import chat_request, completion_request
from kconv.verify.proof import Finding, Proof, RuntimePart

pytestmark = pytest.mark.usefixtures("kconv_server")
KCONV = str(Path(sys.executable).parent / "kconv")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("plain") / "내 모델")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages is missing, expected a list of objects"),
        ([], "messages is empty, expected a list of objects"),
        ("x", 'messages is "x", expected a list of objects'),
        ("가" * 1000, f'messages is "{"가" * 39}…, expected'),
        ({"role": "user"}, 'messages is {"role": "user"}, expected a list'),
        (["hello"], 'messages[0] is "hello", expected an object with role and content'),
        ([{"content": "a"}], "messages[0].role is missing, expected system, user or assistant"),
        ([{"role": "tool", "content": "a"}], 'messages[0].role is "tool", expected'),
        ([{"role": ["user"], "content": "a"}], 'messages[0].role is ["user"], expected'),
        ([{"role": "user"}], "messages[0].content is missing, expected a text"),
        ([{"role": "user", "content": 3}], "messages[0].content is 3, expected a text"),
    ],
    ids=str,
)
def test_requests_are_told_what_is_wrong_with_them(messages: Any, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        chat_request({"messages": messages})
    assert refused.value.message.startswith(said)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "prompt is missing, expected one text"),
        ([], "prompt is empty, expected"),
        (["a", "b"], 'prompt is ["a", "b"], expected'),
    ],
)
def test_so_are_requests_for_plain_text(prompt: Any, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        completion_request({"prompt": prompt})
    assert refused.value.message.startswith(said)


def undecided() -> Proof:
    finding = Finding("llama.cpp", "the process was killed (signal 9, SIGKILL)", grave=False)
    return replace(passed(), runtime=RuntimePart(verdict="not decided", findings=(finding,)))


def test_a_verdict_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    proof = undecided()
    assert proof.verdict == proof.right == "not decided"
    assert proof_text(proof).splitlines()[-1].startswith("verdict: not decided (")
    assert proof_line(proof).startswith("Q4_0: not decided: runtime: the process was killed")
    assert "not decided: not" not in proof_text(proof) + proof_line(proof)
    with speaking("ko"):
        assert "미정: 미정" not in proof_line(proof)
    assert "passed: right" in proof_line(passed())


def test_a_missing_shell_is_asked_for_in_a_sentence() -> None:
    done = kconv("completion")
    assert done.returncode == 2
    assert "no shell given, expected one of bash, zsh, fish" in done.stderr
    assert "kconv completion bash" in done.stderr
    assert "\t" not in done.stderr
    korean = kconv("--lang", "ko", "completion")
    assert "bash, zsh, fish 가운데 하나여야 합니다" in korean.stderr
    assert "given" not in korean.stderr


@pytest.mark.parametrize("words", [[], ["-p", "서울"], ["--json"]], ids=str)
def test_a_checkpoint_is_to_be_converted_whether_or_not_there_is_a_prompt(
    checkpoint: Path, words: list[str]
) -> None:
    done = kconv("run", checkpoint, *words)
    assert done.returncode == 3
    assert "is a checkpoint, which has to be converted before it can be run" in done.stderr
    assert f"kconv to-gguf '{checkpoint}' -q q4_k_m, and then kconv run '내 모델-Q4_K_M.gguf'" in done.stderr


def test_a_folder_of_gguf_files_is_no_model(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a b.gguf").write_bytes(b"GGUF")
    done = kconv("run", tmp_path)
    assert done.returncode == 3
    assert f"for example '{tmp_path / 'a b.gguf'}'" in done.stderr
    assert "no prompt" not in done.stderr


def test_a_file_that_is_not_there_comes_before_the_prompt(tmp_path: Path) -> None:
    done = kconv("run", tmp_path / "nothing.gguf")
    assert done.returncode == 3
    assert "cannot read" in done.stderr


def test_in_a_terminal_errors_are_broken_between_words_and_commands_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "a-folder-with-a-long-name-so-that-the-line-is-longer-than-the-terminal"
    folder.mkdir()
    made = record([KCONV, "run", str(folder), "-p", "x"], columns=60)
    lines = screen(made.text, 60)
    assert made.code == 3
    assert any(line.rstrip().endswith("to-onnx made") for line in lines)
    words = " ".join(line.strip() for line in lines)
    assert "is a folder without ONNX files; expected a GGUF file or an ONNX folder" in words
    write_sample("42dot", folder / "model")
    made = record([KCONV, "run", str(folder / "model"), "-p", "x"], columns=60)
    assert f"kconv to-gguf {folder / 'model'} -q q4_k_m, and then" in made.text  # in one piece, to be copied


def test_doctors_values_stand_in_their_column() -> None:
    made = record([KCONV, "doctor"], columns=60)
    lines = screen(made.text, 60)
    at = next(number for number, line in enumerate(lines) if line.startswith("versions"))
    assert lines[at + 1].startswith(" " * 17)
    assert not lines[at + 1].startswith(" " * 18)


def test_one_answer_ends_with_its_speed_in_a_terminal(checkpoint: Path, tmp_path: Path) -> None:
    to_gguf(checkpoint, tmp_path / "m.gguf", types=["q8_0"], verify=False)
    made = record([KCONV, "run", str(tmp_path / "m.gguf"), "-p", "서울", "-n", "5"])
    last = screen(made.text, 80)[-2:]
    assert re.search(
        r"\[[\d.]+ tokens/s · 5 of at most 5 tokens · cut off \(-n allows more\)\]", "".join(last)
    )
    done = kconv("run", tmp_path / "m.gguf", "-p", "서울", "-n", "5")
    assert "tokens/s" not in done.stdout + done.stderr
