"""The bytes of a file on the Hub over plain HTTP, from any offset, each answer held to what was asked for.

Every request begins at the Hub, which answers with an address that is good for a while: so it is always a new
one. The token goes to the Hub and to nowhere that it redirects to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from .refusals import Temporary, retry_after, status_text
from .source import HubFile, HubSource
from .tries import again_or_raise

if TYPE_CHECKING:
    from httpx2 import Response

_WORTH_IT = 64 << 10
"""Bytes a try must bring not to have been in vain: a server may give a few and fall silent, for ever."""
_REDIRECTS = 5


def pieces(
    source: HubSource,
    file: HubFile,
    start: int = 0,
    stop: int | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[bytes]:
    """The bytes from ``start`` to ``stop`` (the end) in order, as they come; what breaks off goes on.

    Contents are not checked. Raises HubRefusal, EnvironmentProblem; InterruptedError once ``stopped`` says
    yes.
    """
    stop = file.size if stop is None else stop
    failed = 0
    while start < stop:
        begun = start
        try:
            for piece in _answer(source, file, start, stop):
                if stopped():
                    raise InterruptedError(f"fetching {file.path} was stopped")
                yield piece
                start += len(piece)
            if start < stop:
                raise Temporary(f"{file.path} ended after {start:,} of {file.size:,} bytes")
        except GeneratorExit:
            raise
        except Exception as error:
            failed = 1 if start - begun >= _WORTH_IT else failed + 1
            again_or_raise(error, source.asked, file.path, failed, stopped=stopped)


def _answer(source: HubSource, file: HubFile, start: int, stop: int) -> Iterator[bytes]:
    """What one request gives, at most what was asked for."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hub = hf_hub_url(source.repository, file.path, revision=source.commit)
    own = build_hf_headers()
    whole = (start, stop) == (0, file.size)
    for _ in range(_REDIRECTS):
        at_home = _origin(url) == _origin(hub)
        headers = {key: text for key, text in own.items() if at_home or key.lower() != "authorization"}
        headers["Accept-Encoding"] = "identity"
        if not whole:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as answer:
            if answer.has_redirect_location:
                url = urljoin(url, answer.headers["Location"])
                continue
            if answer.status_code >= 400 and at_home:
                answer.read()
                hf_raise_for_status(answer)
            skipped = start - _first_byte(answer, file, start, stop)
            left = stop - start
            for piece in answer.iter_bytes():
                wanted = piece[skipped:][:left]
                skipped -= min(skipped, len(piece))
                left -= len(wanted)
                if wanted:
                    yield wanted
                if not left:
                    return
        return
    raise Temporary("it redirects again and again")


def _first_byte(answer: Response, file: HubFile, start: int, stop: int) -> int:
    """Where in the file an answer begins. Raises Temporary for one that is not what was asked for."""
    code, head = answer.status_code, answer.headers
    where = urlsplit(str(answer.url)).hostname
    if code == 206:
        if head.get("Content-Range") == f"bytes {start}-{stop - 1}/{file.size}":
            return start
        raise Temporary(f"{where} sends another range of {file.path} than was asked for")
    if code == 200:  # all of it, asked for or not
        told = head.get("Content-Length")
        if told is not None and "Content-Encoding" not in head and told != str(file.size):
            raise Temporary(f"{where} has {told} bytes for {file.path}, which has {file.size}")
        return 0
    raise Temporary(f"{where} answers {status_text(code)}", retry_after(head))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
