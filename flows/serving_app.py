"""The HTTP side of ``kconv serve``: routes, streams of events, and who may ask.

A page somewhere on the web can send requests to a server on this machine's loopback. So the Host header must
name this server (a name a stranger's DNS points here does not), and an Origin, which browsers send along,
must be this server's own.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..core.errors import EnvironmentProblem, KconvError, UsageError
from .serving import Request, ServedModel, Stopped, chat_request, completion_request

if TYPE_CHECKING:
    from .conversation import Turn

_MOST_BYTES = 16 << 20  # of a request
_GONE = 499  # what nginx notes where whoever asked has left; nobody receives it
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_REASONS = {"end": "stop", "stop": "stop", "length": "length", "interrupted": "stop"}


def application(model: ServedModel, hosts: tuple[str, ...] = (), key: str | None = None) -> Starlette:
    """The application that serves ``model``.

    ``hosts`` are names by which the server may be called besides those of the loopback (without port).
    ``key``: clients must send it as a bearer token.
    """
    guard = _Guard((*_LOOPBACK, *(name.lower() for name in hosts)), key)

    def guarded(handler: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        async def answer(request: HttpRequest) -> Response:
            refused = guard.refusal(request)
            return refused or await handler(request)

        return answer

    async def page(request: HttpRequest) -> Response:
        text = files("kconv.flows").joinpath("data/chat.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def models(request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [_card(model)]})

    async def one_model(request: HttpRequest) -> Response:
        name = request.path_params["name"]
        known = name == model.name
        return (
            JSONResponse(_card(model)) if known else _error(404, f"there is no model {name!r}", "not_found")
        )

    async def unknown(request: HttpRequest, error: Exception) -> Response:
        path, method = request.url.path, request.method
        status = error.status_code if isinstance(error, HTTPException) else 404
        message = f"{path} does not take {method}" if status == 405 else f"there is no {path} here"
        return guard.refusal(request) or _error(status, message, "not_found")

    async def health(request: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def chat(request: HttpRequest) -> Response:
        return await _answered(model, request, chat_request, "chat.completion")

    async def completion(request: HttpRequest) -> Response:
        return await _answered(model, request, completion_request, "text_completion")

    return Starlette(
        routes=[
            Route("/", guarded(page)),
            Route("/health", guarded(health)),
            Route("/v1/models", guarded(models)),
            Route("/v1/models/{name:path}", guarded(one_model)),
            Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
            Route("/v1/completions", guarded(completion), methods=["POST"]),
        ],
        exception_handlers={404: unknown, 405: unknown},
    )


def _card(model: ServedModel) -> dict[str, Any]:
    """What clients are told of the model."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "kconv",
        "context": model.context,
        "chat": model.has_template,
        "single_turn": model.encoder_decoder,
    }


class _Guard:
    """Who may ask."""

    def __init__(self, hosts: tuple[str, ...], key: str | None) -> None:
        self._hosts, self._key = hosts, key

    def refusal(self, request: HttpRequest) -> Response | None:
        """The answer to one who may not, None for others."""
        host = request.headers.get("host", "")
        if _name(host) not in self._hosts:
            return _error(403, f"this server is not {host!r}", "forbidden")
        origin = request.headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            return _error(403, "pages of other origins may not ask this server", "forbidden")
        asks = request.url.path.startswith("/v1/")
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if asks and self._key is not None and not hmac.compare_digest(given, self._key.encode()):
            return _error(401, "the API key is missing or wrong", "invalid_api_key")
        return None


def _name(host: str) -> str:
    """A Host header without its port, in lower case."""
    name = host.lower()
    return name.rpartition(":")[0] if ":" in name and not name.endswith("]") else name


def _place(origin: str) -> str | None:
    """Name and port in an Origin header, in lower case; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def _answered(
    model: ServedModel, http: HttpRequest, parse: Callable[[Any], Request], kind: str
) -> Response:
    body = bytearray()
    try:
        async for part in http.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return _error(413, f"the request is larger than {_MOST_BYTES >> 20} MiB", "too_large")
    except ClientDisconnect:
        return Response(status_code=_GONE)
    try:
        request = parse(json.loads(body))
    except (ValueError, RecursionError):
        return _error(400, "the request is not JSON", "invalid_request_error")
    except UsageError as error:
        return _error(400, error.message, "invalid_request_error")
    answer = _Answer(model, request, kind)
    if request.stream:
        return StreamingResponse(answer.events(), media_type="text/event-stream")
    try:
        turn = await answer.whole(http)
    except KconvError as error:
        return _error(*_status(error))
    return JSONResponse(answer.content(turn)) if turn is not None else Response(status_code=_GONE)


class _Answer:
    """One answer on its way, from the thread that makes it to whoever asked."""

    def __init__(self, model: ServedModel, request: Request, kind: str) -> None:
        self._model, self._request, self._kind = model, request, kind
        self._head = {
            "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model.name,
        }
        self._gone = False

    async def whole(self, http: HttpRequest) -> Turn | None:
        """The answer, None where whoever asked has gone meanwhile."""
        work = asyncio.create_task(run_in_threadpool(self._model.answer, self._request, self._shown))
        while not work.done():
            await asyncio.wait([work], timeout=0.5)
            self._gone = self._gone or await http.is_disconnected()
        try:
            return work.result()
        except Stopped:
            return None

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events, ``[DONE]`` at the end."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def show(text: str) -> None:
            self._shown(text)
            if text:
                loop.call_soon_threadsafe(pieces.put_nowait, text)

        def work() -> Turn | None:
            try:
                return self._model.answer(self._request, show)
            except Stopped:
                return None
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, None)

        task = asyncio.create_task(run_in_threadpool(work))
        try:
            if self._kind == "chat.completion":
                yield self._event({"role": "assistant", "content": ""})
            while (text := await pieces.get()) is not None:
                yield self._event({"content": text})
            try:
                turn = await task
            except KconvError as error:
                _, message, kind = _status(error)
                yield _line({"error": {"message": message, "type": kind}})
                return
            if turn is None:
                return
            yield self._event({}, _REASONS[turn.stop_reason])
            if self._request.usage_in_stream:
                speed = {"predicted_per_second": turn.rate}  # as llama-server tells it
                end = {"choices": [], "usage": _usage(turn), "timings": speed}
                yield _line({**self._head, "object": self._object(), **end})
            yield "data: [DONE]\n\n"
        finally:
            self._gone = True

    def _shown(self, text: str) -> None:
        if self._gone:
            raise Stopped

    def _object(self) -> str:
        return "chat.completion.chunk" if self._kind == "chat.completion" else self._kind

    def _event(self, delta: dict[str, str], reason: str | None = None) -> str:
        said = {"delta": delta} if self._kind == "chat.completion" else {"text": delta.get("content", "")}
        choice = {"index": 0, **said, "finish_reason": reason}
        return _line({**self._head, "object": self._object(), "choices": [choice]})

    def content(self, turn: Turn) -> dict[str, Any]:
        """The whole answer as one object."""
        chat = self._kind == "chat.completion"
        said = {"message": {"role": "assistant", "content": turn.text}} if chat else {"text": turn.text}
        choice = {"index": 0, **said, "finish_reason": _REASONS[turn.stop_reason]}
        return {**self._head, "object": self._kind, "choices": [choice], "usage": _usage(turn)}


def _usage(turn: Turn) -> dict[str, int]:
    total = turn.prompt_tokens + turn.tokens
    return {"prompt_tokens": turn.prompt_tokens, "completion_tokens": turn.tokens, "total_tokens": total}


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _status(error: KconvError) -> tuple[int, str, str]:
    """HTTP status, message and type of an error."""
    if isinstance(error, EnvironmentProblem):
        return 503, error.message, "server_error"
    return 400, error.message, "invalid_request_error"


def _error(status: int, message: str, kind: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind}}, status_code=status)
