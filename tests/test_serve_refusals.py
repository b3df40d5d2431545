"""What ``kconv serve`` answers to clients that ask for what it has not: always JSON, always why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_serve import Server, served

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample

HELLO = {"messages": [{"role": "user", "content": "안녕"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model without a chat template."""
    folder = tmp_path_factory.mktemp("plain")
    write_sample("42dot", folder / "sample")
    done = to_gguf(folder / "sample", folder, types=["q8_0"], verify=False)
    with served(done.outputs[0].path) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/nope", None, 404, "there is no /v1/nope here"),
        ("POST", "/v1/embeddings", {}, 404, "there is no /v1/embeddings here"),
        ("GET", "/v1/models/other", None, 404, "there is no model 'other'"),
        ("GET", "/v1/chat/completions", None, 405, "/v1/chat/completions does not take GET"),
        ("POST", "/v1/chat/completions", HELLO, 400, "/v1/completions continues plain text"),
        ("POST", "/v1/completions", {"prompt": "a", "stream": "yes"}, 400, "expected true or false"),
    ],
)
def test_refusals_are_json_and_say_why(
    plain: Server, method: str, path: str, body: Any, status: int, said: str
) -> None:
    code, text = plain.ask(method, path, body)
    assert code == status
    assert said in json.loads(text)["error"]["message"]


def test_a_model_is_found_by_its_name(plain: Server) -> None:
    status, text = plain.ask("GET", "/v1/models/sample-Q8_0")
    assert (status, json.loads(text)["id"]) == (200, "sample-Q8_0")


def test_strangers_are_not_told_what_there_is(plain: Server) -> None:
    status, text = plain.ask("GET", "/v1/nope", Host="evil.example")
    assert status == 403
    assert "is not 'evil.example'" in json.loads(text)["error"]["message"]


def test_the_speed_is_the_models_and_not_the_networks(plain: Server) -> None:
    """A page that gets all tokens at once, since the machine was busy, cannot measure it."""
    asked = {"prompt": "서울", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    status, text = plain.ask("POST", "/v1/completions", asked)
    assert status == 200
    *_, end, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(end)["usage"]["completion_tokens"] <= 8
    assert json.loads(end)["timings"]["predicted_per_second"] > 0
