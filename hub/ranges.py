"""Ranges of a file on the Hub over HTTP: asked for at its signed address, and held to what was asked for.

The Hub's ``resolve`` answers for every large file, Xet's included, with the address of a server that gives
ranges of it to whoever has the address, for about an hour. It is asked once a file, and again when the
address has run out. Each answer must be the range that was asked for, of a file of the length and ETag it had
before; what breaks off goes on where it broke off. The token goes to the Hub itself and nowhere else.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from ..core.errors import EnvironmentProblem, KconvError

if TYPE_CHECKING:
    from httpx2 import Response

TRIES = 6
"""Requests in a row that may fail without a byte more, before the file is given up."""

_LONGEST_WAIT = 60.0  # seconds
_CHUNK = 1 << 16
_RENEWALS = 3  # addresses in a row that are refused although they are new
_EXPIRED = (401, 403, 404, 410, 301, 302, 303, 307, 308)  # of an address that was good before
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_AGAIN = "run it again; what lies on the Hub has not been changed by this"


class Ranges(Protocol):
    """A file elsewhere, any range of which can be had; used from several threads."""

    @property
    def name(self) -> str:
        """What messages call it; without anything secret."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def fetch(self, view: memoryview, start: int, stopped: Callable[[], bool]) -> None:
        """Fill ``view`` from byte ``start`` on.

        Raises EnvironmentProblem where that cannot be had, and InterruptedError once ``stopped`` says yes.
        """
        ...


@dataclass(frozen=True)
class Address:
    """Where a file's bytes are to be had for now: ``url`` is as good as a password, and never shown."""

    url: str
    headers: dict[str, str] = field(repr=False)

    def __repr__(self) -> str:
        return f"Address(on {urlsplit(self.url).hostname})"


@dataclass
class HubRanges:
    """Ranges of one large or small file of a repository at a commit.

    ``size`` in bytes and ``etag`` (SHA-256 of large files, Git's id of others) are the Hub's own list's.
    ``token`` and ``endpoint`` are huggingface_hub's: None for the user's own, and for HF_ENDPOINT.
    """

    repository: str
    commit: str
    path: str
    size: int
    etag: str | None = None
    token: str | bool | None = None
    endpoint: str | None = None
    requests: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._address: Address | None = None
        self._served: str | None = None  # the ETag of the server that gives ranges, which is not the Hub's

    @property
    def name(self) -> str:
        """``org/name@commit: file``."""
        return f"{self.repository}@{self.commit[:12]}: {self.path}"

    def fetch(self, view: memoryview, start: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """See ``Ranges.fetch``."""
        done, failed, refused = 0, 0, 0
        while done < len(view):
            reason, wait = "the connection ended early", None
            address, got = None, 0
            try:
                address = self._located()
                with closing(self._asked(address, start + done, len(view) - done)) as chunks:
                    for chunk in chunks:
                        view[done : done + len(chunk)] = chunk
                        done, got = done + len(chunk), got + len(chunk)
                        if stopped():
                            raise InterruptedError(f"fetching {self.name} was stopped")
                if got and done == len(view):
                    return
            except _Expired as error:
                refused, reason = refused + 1, str(error)
                self._forget(address)
                if refused < _RENEWALS:
                    continue
                raise self._gave_up(f"its address is refused although it is new ({error})") from None
            except _Temporary as error:
                reason, wait = str(error), error.wait
            refused, failed = 0, 0 if got else failed + 1
            if failed >= TRIES:
                raise self._gave_up(reason)
            _pause(failed, wait, stopped)

    def _gave_up(self, reason: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.name} cannot be fetched: {reason}", hint=f"check the network, and {_AGAIN}"
        )

    def _forget(self, address: Address | None) -> None:
        with self._lock:
            if self._address is address:
                self._address = None

    def _located(self) -> Address:
        """The address, asked for where there is none; one thread asks, the others wait for it."""
        with self._lock:
            if self._address is None:
                self._address = self._locate()
            return self._address

    def _locate(self) -> Address:
        """Ask the Hub. Raises EnvironmentProblem where it says no, _Temporary where it may say yes later."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented

        url = hf_hub_url(self.repository, self.path, revision=self.commit, endpoint=self.endpoint)
        with _explained(self):
            self.requests += 1
            found = get_hf_file_metadata(
                url, token=self.token, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self.endpoint
            )
        if found.commit_hash not in (None, self.commit):
            raise self._other(f"the Hub answers with commit {found.commit_hash}")
        if found.size not in (None, self.size):
            raise self._other(f"it has {found.size} bytes, expected {self.size}")
        if self.etag is not None and found.etag not in (None, self.etag):
            raise self._other(f"it is called {found.etag}, expected {self.etag}")
        own = urlsplit(found.location)[:2] == urlsplit(url)[:2]
        return Address(found.location, build_hf_headers(token=self.token) if own else {})

    def _other(self, how: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.name} is not the file that the Hub has listed: {how}",
            hint="run it again; if it stays so, a proxy on the way or the Hub itself mixes up files",
        )

    def _asked(self, address: Address, start: int, count: int) -> Generator[bytes]:
        """The bytes of one request, at most ``count``; fewer if the connection ends early."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # documented

        head = {**address.headers, "Range": f"bytes={start}-{start + count - 1}"}
        head |= {"Accept-Encoding": "identity"}
        if self._served is not None and not self._served.startswith("W/"):
            head["If-Range"] = self._served
        left = count
        with _explained(self):
            self.requests += 1
            with get_session().stream(
                "GET",
                address.url,
                headers=head,
                follow_redirects=False,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            ) as answer:
                self._check(answer, start, count)
                for chunk in answer.iter_raw(_CHUNK):
                    if len(chunk) > left:
                        raise self._other(
                            f"more than the {count} bytes from {start} that were asked for came"
                        )
                    left -= len(chunk)
                    yield chunk

    def _check(self, answer: Response, start: int, count: int) -> None:
        """Whether an answer is the range asked for, of the file it was before."""
        status, head = answer.status_code, answer.headers
        if status in _EXPIRED:
            raise _Expired(f"{urlsplit(str(answer.url)).hostname} answered {status}")
        if status in _TEMPORARY:
            raise _Temporary(f"{urlsplit(str(answer.url)).hostname} answered {status}", _retry_after(answer))
        if status == 200:
            changed = ", or the file is another by now" if self._served else ""
            raise self._other(
                f"all of it came in place of the range asked for: no ranges are served{changed}"
            )
        if status != 206:
            raise self._other(
                f"{urlsplit(str(answer.url)).hostname} answered {status} where 206 was expected"
            )
        expected = f"bytes {start}-{start + count - 1}/{self.size}"
        if head.get("Content-Range") != expected:
            raise self._other(f"the answer holds {head.get('Content-Range')!r}, expected {expected!r}")
        if head.get("Content-Encoding", "identity") != "identity":
            raise self._other(f"the answer is encoded as {head['Content-Encoding']!r}")
        served = head.get("ETag")
        with self._lock:
            before, self._served = self._served, self._served or served
        if before is not None and served != before:
            raise self._other(f"its ETag was {before}, now it is {served}")


class _Temporary(Exception):
    """What may go better at the next try, ``wait`` seconds from now if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Expired(Exception):
    """The address is good no longer."""


def _retry_after(answer: Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _pause(failed: int, wait: float | None, stopped: Callable[[], bool]) -> None:
    """Wait before the next try: as the server says, else longer each time. Raises InterruptedError."""
    seconds = wait if wait is not None else 0.25 * 2 ** max(failed - 1, 0) * random.uniform(0.75, 1.25)
    until = time.monotonic() + min(seconds, _LONGEST_WAIT)
    while (left := until - time.monotonic()) > 0:
        if stopped():
            raise InterruptedError("fetching was stopped")
        time.sleep(min(left, 0.1))


@contextmanager
def _explained(file: HubRanges) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into _Temporary or EnvironmentProblem.

    Their texts may hold addresses, so none of them goes on.
    """
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except (KconvError, _Temporary, _Expired):
        raise
    except errors.OfflineModeIsEnabled as error:
        raise EnvironmentProblem(
            f"{file.name} cannot be fetched: HF_HUB_OFFLINE is set",
            hint="unset it, or convert without --stream",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _TEMPORARY:
            raise _Temporary(f"the Hub answered {status}", _retry_after(error.response)) from None
        raise EnvironmentProblem(
            f"{file.name} cannot be fetched: the Hub answered {status}",
            hint="check that you still have access to the repository (hf auth whoami)",
        ) from None
    except httpx2.TimeoutException:
        raise _Temporary("the server gave no answer in time") from None
    except (httpx2.TransportError, httpx2.StreamError) as error:
        raise _Temporary(f"the connection failed ({type(error).__name__})") from None
