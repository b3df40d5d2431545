"""An OpenAI-compatible endpoint for one model: what requests mean. ``serving_app.py`` is what speaks HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import UsageError
from .conversation import Conversation, Turn

# OpenAI's names, and those llama-server and Ollama add, for sampling options.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repetition_penalty": "repeat_penalty",
    "seed": "seed",
}
_WHOLE = ("top_k", "seed")
_LIMITS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (1e-3, 1e3),
    "seed": (0, 2**31 - 1),
}
# What would change the answer and is not done; anything else unknown is ignored, as OpenAI's clients expect.
_NOT_DONE = ("tools", "functions", "logprobs", "response_format", "audio")
_MOST_STOPS = 16
_ROLES = ("system", "developer", "user", "assistant")
_SHOWN = 40  # characters of a value that is not what was expected


class Stopped(Exception):
    """Raised by ``show`` where nobody waits for the rest of the answer."""


@dataclass(frozen=True)
class Request:
    """One thing asked of the model.

    ``history`` are the turns before ``text``. ``chat`` is whether it goes through the file's template.
    ``tokens`` is the most the answer may have, -1 for all there is room for.
    """

    text: str
    history: tuple[dict[str, str], ...]
    chat: bool
    wishes: Mapping[str, float | None]
    tokens: int
    stops: tuple[str, ...]
    stream: bool
    usage_in_stream: bool


class ServedModel:
    """A loaded model that answers one request after another."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation, self._lock = conversation, threading.Lock()

    @property
    def name(self) -> str:
        """The model's name in the interface: the file's, without its ending."""
        path = self._conversation.loaded.path
        return path.name.removesuffix(".gguf")

    @property
    def context(self) -> int:
        """Size of the context, in tokens."""
        return self._conversation.context

    @property
    def has_template(self) -> bool:
        """Whether the file has a chat template."""
        return bool(self._conversation.loaded.metadata.get("tokenizer.chat_template"))

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt: the last message is its source then, without those before."""
        from ..converters.families import reads_with_encoder

        return reads_with_encoder(str(self._conversation.loaded.metadata.get("general.architecture", "")))

    def answer(self, request: Request, show: Callable[[str], None]) -> Turn:
        """Answer; ``show`` gets the text piece by piece and may raise Stopped. Requests wait for each other.

        Raises KconvError as ``generate`` does.
        """
        if request.chat and not self.has_template and not self.encoder_decoder:
            raise UsageError("this model has no chat template; /v1/completions continues plain text")
        with self._lock:
            show("")  # who has left while others were answered need not be
            chat = self._conversation
            chat.history = [] if self.encoder_decoder else [dict(turn) for turn in request.history]
            chat.chat = None if self.encoder_decoder else request.chat
            chat.system, chat.stops = None, request.stops
            chat.wishes = request.wishes
            chat.tokens = request.tokens
            return chat.ask(request.text, show)


def chat_request(body: Any) -> Request:
    """What POST /v1/chat/completions asks for. Raises UsageError."""
    messages = _object(body).get("messages")
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{_fault('messages', messages)}, expected a list of objects with role and content")
    turns = [_turn(number, message) for number, message in enumerate(messages)]
    if turns[-1]["role"] != "user":
        raise UsageError(f"the last message is of role {turns[-1]['role']!r}, expected user")
    return _request(body, turns[-1]["content"], tuple(turns[:-1]), chat=True)


def completion_request(body: Any) -> Request:
    """What POST /v1/completions asks for: plain text to be continued. Raises UsageError."""
    prompt = _object(body).get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UsageError(f"{_fault('prompt', prompt)}, expected one text")
    return _request(body, prompt, (), chat=False)


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise UsageError("the request is not a JSON object")
    return body


def _fault(name: str, value: Any) -> str:
    """What is wrong with a part of the request that is not what was expected."""
    if value is None:
        return f"{name} is missing"
    if value == []:
        return f"{name} is empty"
    text = json.dumps(value, ensure_ascii=False)
    return f"{name} is {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'}"


def _turn(number: int, message: Any) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise UsageError(f"{_fault(where, message)}, expected an object with role and content")
    if message.get("role") not in _ROLES:
        raise UsageError(
            f"{_fault(f'{where}.role', message.get('role'))}, expected system, user or assistant"
        )
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise UsageError(f"{where}: only text can be read, no images or sound")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise UsageError(f"{_fault(f'{where}.content', content)}, expected a text")
    role = "system" if message["role"] == "developer" else str(message["role"])
    return {"role": role, "content": content}


def _request(
    body: Mapping[str, Any], text: str, history: tuple[dict[str, str], ...], *, chat: bool
) -> Request:
    for name in _NOT_DONE:
        if body.get(name) not in (None, [], {}, False, {"type": "text"}):
            raise UsageError(f"{name} is not supported")
    if body.get("n") not in (None, 1):
        raise UsageError("n is not 1: one answer is made at a time")
    if body.get("stream") not in (None, True, False):
        raise UsageError(f"stream is {body['stream']!r}, expected true or false")
    options = body.get("stream_options")
    return Request(
        text,
        history,
        chat,
        {kept: _number(body, name, kept) for name, kept in _SAMPLING.items() if body.get(name) is not None},
        _tokens(body),
        _stops(body.get("stop")),
        body.get("stream") is True,
        isinstance(options, dict) and options.get("include_usage") is True,
    )


def _number(body: Mapping[str, Any], name: str, kept: str) -> float:
    value, (least, most) = body[name], _LIMITS[kept]
    kinds = int if kept in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}, expected a number from {least} to {most}")
    return value if kept in _WHOLE else float(value)


def _tokens(body: Mapping[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < -1 or value == 0:
            raise UsageError(f"{name} is {value!r}, expected a whole number above 0")
        return value
    return -1


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) for s in stops):
        raise UsageError(f"stop is neither a text nor a list of at most {_MOST_STOPS} texts")
    return tuple(stops)
