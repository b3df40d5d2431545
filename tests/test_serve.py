"""``kconv serve``: a real server process, asked over HTTP as OpenAI's clients do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kconv.cli import serve
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import UsageError
from kconv.flows.generate import generate
from kconv.flows.serving import chat_request, completion_request

KCONV = str(Path(sys.executable).parent / "kconv")
KEY = "s3cret-key"

# kconv, with a second for each token that is streamed: the sample answers at once.
SLOW = """
import sys, time
from kconv.flows.serving import ServedModel
answer = ServedModel.answer
def slowly(self, request, show):
    def shown(text):
        time.sleep(request.stream)
        show(text)
    return answer(self, request, shown)
ServedModel.answer = slowly
from kconv.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    model: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and text of an answer; ``Host`` and ``Origin`` may be given as headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = None if body is None else json.dumps(body) if not isinstance(body, str) else body
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8")
        finally:
            connection.close()

    def object(self, path: str, body: Any, **headers: str) -> Any:
        status, text = self.ask("POST", path, body, **headers)
        assert status == 200, text
        return json.loads(text)


@contextlib.contextmanager
def served(
    model: Path, *options: str, key: str | None = None, command: Sequence[str] = (KCONV,)
) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if name != "KCONV_API_KEY"}
    environment |= {"KCONV_API_KEY": key} if key else {}
    words = [*command, "serve", str(model), "--port", "0", "--json", "--threads", "1", *options]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            text += line
        told = json.loads(text)
        yield Server(process, int(told["url"].rpartition(":")[2]), told["model"])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    to_gguf(
        write_sample("42dot", folder / "model"),
        folder / "chat.gguf",
        types=["f32"],
        chat_template="42dot",
        verify="off",
    )
    return folder / "chat.gguf"


@pytest.fixture(scope="module")
def server(chat_model: Path) -> Iterator[Server]:
    with served(chat_model) as running:
        yield running


QUESTION = {"messages": [{"role": "user", "content": "안녕"}], "temperature": 0, "repeat_penalty": 1}


def test_a_chat_answers_as_kconv_run(server: Server, chat_model: Path) -> None:
    answer = server.object("/v1/chat/completions", {**QUESTION, "max_tokens": 16})
    alone = generate(chat_model, "안녕", greedy=True, tokens=16, threads=1)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": alone.text}
    assert answer["usage"]["prompt_tokens"] == len(alone.prompt_ids)
    assert answer["usage"]["completion_tokens"] == len(alone.ids)
    assert answer["model"] == server.model == "chat"


def test_a_stream_is_the_same_in_pieces(server: Server) -> None:
    whole = server.object("/v1/chat/completions", {**QUESTION, "max_tokens": 16})
    body = {**QUESTION, "max_tokens": 16, "stream": True, "stream_options": {"include_usage": True}}
    status, text = server.ask("POST", "/v1/chat/completions", body)
    assert status == 200
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 3
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[-1]["usage"] == whole["usage"]


def test_plain_text_is_continued(server: Server, chat_model: Path) -> None:
    body = {"prompt": "옛날에", "max_tokens": 8, "temperature": 0, "repeat_penalty": 1}
    answer = server.object("/v1/completions", body)
    alone = generate(chat_model, "옛날에", chat=False, greedy=True, tokens=8, threads=1)
    assert answer["choices"][0]["text"] == alone.text
    assert answer["object"] == "text_completion"


def test_the_list_of_models_the_page_and_health(server: Server) -> None:
    assert json.loads(server.ask("GET", "/v1/models")[1])["data"][0]["id"] == "chat"
    status, page = server.ask("GET", "/")
    assert status == 200
    assert "<title>" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from anywhere
    assert server.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_pages_from_elsewhere_are_refused(server: Server, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/")):
        status, text = server.ask(method, path, QUESTION if method == "POST" else None, **headers)
        assert status == 403, text
        assert "안녕" not in text


def test_its_own_page_may_ask(server: Server) -> None:
    origin = {"Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}"}
    assert server.ask("GET", "/v1/models", **origin)[0] == 200


def test_bad_requests_are_told_why(server: Server) -> None:
    for body in (
        "not json",
        {"messages": []},
        {**QUESTION, "temperature": "hot"},
        {**QUESTION, "tools": [{}]},
    ):
        status, text = server.ask("POST", "/v1/chat/completions", body)
        assert status == 400
        assert json.loads(text)["error"]["message"]
    long = {"messages": [{"role": "user", "content": "가나다라 " * 20_000}]}
    status, text = server.ask("POST", "/v1/chat/completions", long)
    assert status == 400
    assert "the context has room for" in json.loads(text)["error"]["message"]
    assert server.object("/v1/chat/completions", {**QUESTION, "max_tokens": 4})["usage"]


def test_who_hangs_up_frees_the_model(server: Server, chat_model: Path) -> None:
    """The answer would take minutes; the next one comes soon after the first one's connection ends."""
    text = {"prompt": "옛날에", "temperature": 0, "repeat_penalty": 1}
    assert server.object("/v1/completions", text)["usage"]["completion_tokens"] > 120
    body = json.dumps({**text, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with served(chat_model, command=(sys.executable, "-c", SLOW)) as slow:
        with socket.create_connection(("127.0.0.1", slow.port), timeout=60) as connection:
            connection.sendall(head.encode() + body)
            connection.recv(4096)
        begun = time.monotonic()
        assert slow.object("/v1/chat/completions", {**QUESTION, "max_tokens": 2})["usage"]
        assert time.monotonic() - begun < 60


def test_odd_requests_get_an_answer_and_leave_no_traceback(chat_model: Path) -> None:
    """Nesting without end, an Origin that is no address, and those who leave in the middle."""
    body = json.dumps({"prompt": "가", "stream": True, "temperature": 2.0}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with served(chat_model) as running:
        assert running.ask("POST", "/v1/completions", "[" * 200_000)[0] == 400
        assert running.ask("GET", "/v1/models", Origin="http://[")[0] == 403
        for sent in (head % 1000 + b"{", head % len(body) + body):
            with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
                connection.sendall(sent)
                if sent.endswith(body):
                    connection.recv(4096)
        assert running.ask("POST", "/v1/completions", {"prompt": "가", "max_tokens": 1})[0] == 200
        running.process.send_signal(signal.SIGINT)
        assert "Traceback" not in running.process.communicate(timeout=60)[1]


def test_a_key_is_demanded_where_it_is_set(chat_model: Path) -> None:
    with served(chat_model, key=KEY) as running:
        assert running.ask("GET", "/v1/models")[0] == 401
        assert running.ask("GET", "/v1/models", Authorization="Bearer wrong")[0] == 401
        assert running.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}")[0] == 200
        assert running.ask("GET", "/")[0] == 200  # the page, which asks for the key
    done = subprocess.run(
        [KCONV, "serve", str(chat_model), "--host", "0.0.0.0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "KCONV_API_KEY" in done.stderr


def test_a_gbst_model_is_served_and_ctrl_c_is_the_usual_end(tmp_path: Path) -> None:
    to_gguf(write_sample("gbst-kebyt5", tmp_path / "gbst"), tmp_path, types=["f32"], verify="off")
    body = next(
        path for path in tmp_path.glob("*.gguf") if path.name != "gbst-gbst.gguf" and "F32" in path.name
    )
    with served(body) as running:
        asked = {"messages": [{"role": "user", "content": "한국의 수도는"}], "max_tokens": 12}
        answer = running.object("/v1/chat/completions", asked)
        alone = generate(body, "한국의 수도는", tokens=12, threads=1)
        assert answer["choices"][0]["message"]["content"] == alone.text
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0


def test_a_port_that_is_taken(chat_model: Path) -> None:
    """Also by a server that is still loading its model."""
    with serve._listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [KCONV, "serve", str(chat_model), "--port", port], capture_output=True, text=True, check=False
        )
    assert done.returncode == 4
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr


def test_requests_in_openais_words() -> None:
    parts = [{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]
    messages = [{"role": "developer", "content": "짧게"}, {"role": "user", "content": parts}]
    request = chat_request({"messages": messages, "max_completion_tokens": 5, "stop": "끝", "seed": 1})
    assert (request.text, request.tokens, request.stops) == ("가나", 5, ("끝",))
    assert request.history == ({"role": "system", "content": "짧게"},)
    for body in (
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": messages, "n": 2},
        {"messages": messages, "max_tokens": True},
        {"messages": messages, "stop": ["a"] * 17},
        {"messages": messages, "top_k": 1.5},
        [],
    ):
        with pytest.raises(UsageError):
            chat_request(body)
    with pytest.raises(UsageError):
        completion_request({"prompt": ["a", "b"]})
