"""``kconv run FILE`` without a prompt: turns of a conversation, held against answers made from nothing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_material import kconv

from kconv.cli.chat import converse
from kconv.converters import to_gguf, to_onnx
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError, UsageError
from kconv.flows.conversation import Conversation, open_conversation
from kconv.flows.generate import generate
from kconv.runtimes.llama import LlamaRuntime
from kconv.vocab.templates import render_chat

pytestmark = pytest.mark.usefixtures("kconv_server")
FIRST, SECOND = "안녕", "이야기를 해 줘"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    path = checkpoint.parent / "chat.gguf"
    to_gguf(checkpoint, path, types=["f32"], chat_template="42dot", verify="off")
    return path


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def either(request: pytest.FixtureRequest, checkpoint: Path, model: Path) -> Path:
    if request.param == "gguf":
        return model
    folder = checkpoint.parent / "chat-onnx"
    to_onnx(checkpoint, folder, type="f32", chat_template="42dot", verify="off")
    return folder


@pytest.fixture
def chat(either: Path) -> Iterator[Conversation]:
    with open_conversation(either, greedy=True, tokens=16, threads=1) as conversation:
        yield conversation


def test_every_turn_answers_as_the_whole_conversation_read_at_once(chat: Conversation, either: Path) -> None:
    shown: list[str] = []
    first = chat.ask(FIRST, shown.append)
    assert "".join(shown) == first.text
    second = chat.ask(SECOND)
    turns = [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": SECOND},
    ]
    template = str(chat.loaded.metadata["tokenizer.chat_template"])
    bos, eos = (chat.loaded.metadata[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos"))
    names = chat.loaded.metadata["tokenizer.ggml.tokens"]
    whole = render_chat(template, turns, bos_token=names[bos], eos_token=names[eos])
    alone = generate(either, whole, chat=False, greedy=True, tokens=16, threads=1)
    assert second.text.strip() == alone.text.split("<human>")[0].strip()
    assert second.prompt_tokens == len(alone.prompt_ids)
    assert [turn["role"] for turn in chat.history] == ["user", "assistant"] * 2


def test_an_answer_may_be_made_again_and_the_conversation_begun_anew(chat: Conversation) -> None:
    with pytest.raises(UsageError, match="no answer yet"):
        chat.regenerate()
    first = chat.ask(FIRST)
    chat.ask(SECOND)
    chat.regenerate()
    assert len(chat.history) == 4
    chat.history.clear()
    assert chat.ask(FIRST).text == first.text


def test_what_does_not_fit_leaves_the_conversation_as_it_was(chat: Conversation) -> None:
    chat.ask(FIRST)
    before = list(chat.history)
    with pytest.raises(InputError, match="the context has room for"):
        chat.ask("가나다라 " * 20_000)
    assert chat.history == before
    assert chat.ask(SECOND).tokens


def test_an_interrupt_ends_the_answer_and_the_process_goes_on(model: Path) -> None:
    with open_conversation(model, greedy=True, threads=1) as chat:
        assert isinstance(chat.runtime, LlamaRuntime)
        whole = chat.ask(FIRST).text
        chat.history.clear()
        child = chat.runtime._child
        assert child is not None
        pieces: list[str] = []

        def stop(text: str) -> None:
            pieces.append(text)
            if len("".join(pieces)) > 3:
                raise KeyboardInterrupt

        turn = chat.ask(FIRST, stop)
        assert turn.stop_reason == "interrupted"
        assert whole.startswith(turn.text)
        assert chat.history[-1]["content"] == turn.text
        chat.history.clear()
        assert chat.ask(FIRST).text == whole  # and nothing of the answer that was stopped is left
        assert chat.runtime._child is child


def test_the_prompt_may_be_a_word_or_standard_input(model: Path) -> None:
    how = ["-n", "8", "--greedy", "--threads", "1"]
    by_option = kconv("run", model, "-p", FIRST, *how).stdout
    assert kconv("run", model, FIRST, *how).stdout == by_option
    assert kconv("run", model, *how, input=FIRST + "\n").stdout == by_option
    both = kconv("run", model, FIRST, "-p", SECOND)
    assert both.returncode == 2
    assert "cannot be combined" in both.stderr


def test_slips_in_a_conversation(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path is no command; nothing is overwritten; a model without chats takes no system prompt."""
    there = tmp_path / "there.json"
    there.write_text("mine")
    lines = iter(["/system 시인", "/etc/hosts 는 무엇인가", f"/save {there}", "/system\nfoo"])

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    with open_conversation(model, chat=False, greedy=True, tokens=2, threads=1) as conversation:
        converse(conversation, read)
    told = capsys.readouterr().err
    assert told.count("no chat format") == 2
    assert "of 512 tokens" in told
    assert "there is no command" not in told
    assert "choose another name" in told
    assert there.read_text() == "mine"


def test_a_conversation_in_a_terminal(model: Path, tmp_path: Path) -> None:
    """A real terminal: two turns, an unknown command, what is saved, and Ctrl-D."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path)}
    words = [str(Path(sys.executable).parent / "kconv"), "run", str(model), "--greedy", "-n", "8"]
    process = subprocess.Popen(
        words, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=tmp_path
    )
    os.close(follower)
    seen = ""

    def until(sign: str) -> None:
        nonlocal seen
        begun = time.monotonic()
        while sign not in seen:
            assert time.monotonic() - begun < 100, seen
            seen += os.read(leader, 4096).decode("utf-8", "replace")
        seen = seen.partition(sign)[2]

    steps = [
        (f"{FIRST}\r", "tokens"),
        ("/bogus\r", "there is no command /bogus"),
        ("/save chat.json\r", "written"),
        ("/system 너는 시인이다\r", "begun anew"),
    ]
    try:
        until("\x1b[?2004h")  # the prompt
        for text, sign in steps:
            os.write(leader, text.encode())
            until(sign)
            until("\x1b[?2004h")
        os.write(leader, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    saved = (tmp_path / "chat.json").read_text(encoding="utf-8")
    assert FIRST in saved
    assert "assistant" in saved
