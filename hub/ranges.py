"""Ranges of a file on the Hub over HTTP: asked for at its signed address, and held to what was asked for.

The Hub's ``resolve`` answers for every large file, Xet's included, with the address of a server that gives
ranges of it to whoever has the address, for about an hour. It is asked once a file (hub/transfer.py asks it
at each request, which would meet the Hub's limits with thousands of ranges), and again when the address has
run out. Each answer must be the range that was asked for, of a file of the length and ETag it had before;
what breaks off goes on where it broke off. The token goes to the Hub itself and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from ..core.errors import EnvironmentProblem
from .refusals import TEMPORARY, Temporary, retry_after, status_text
from .source import HubFile, HubSource
from .tries import again_or_raise

if TYPE_CHECKING:
    from httpx2 import Response

_CHUNK = 1 << 16
_RENEWALS = 3  # addresses in a row that are refused although they are new
_EXPIRED = (401, 403, 404, 410, 301, 302, 303, 307, 308)  # of an address that was good before


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

    @property
    def version(self) -> str:
        """What its keeper calls these contents, and no others of the same name."""
        ...

    def fetch(self, view: memoryview, start: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Fill ``view`` from byte ``start`` on.

        Raises EnvironmentProblem and HubRefusal where that cannot be had, and InterruptedError once
        ``stopped`` says yes.
        """
        ...


@dataclass(frozen=True)
class Address:
    """Where a file's bytes are to be had for now: ``url`` is as good as a password, and never shown."""

    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)


class HubRanges:
    """Ranges of a file of a repository at a commit."""

    def __init__(self, source: HubSource, file: HubFile) -> None:
        self._source, self._file = source, file
        self._lock = threading.Lock()
        self._address: Address | None = None
        self._served: str | None = None  # the ETag of the server that gives ranges, which is not the Hub's

    @property
    def name(self) -> str:
        """``org/name@commit: file``."""
        return f"{self._source.repository}@{self._source.commit[:12]}: {self._file.path}"

    @property
    def size(self) -> int:
        """In bytes, as the Hub lists it."""
        return self._file.size

    @property
    def version(self) -> str:
        """What the Hub calls its contents."""
        return self._file.etag

    def fetch(self, view: memoryview, start: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """See ``Ranges.fetch``."""
        done, failed, refused = 0, 0, 0
        while done < len(view):
            address, before = None, done
            try:
                address = self._located()
                with closing(self._asked(address, start + done, len(view) - done)) as chunks:
                    for chunk in chunks:
                        view[done : done + len(chunk)] = chunk
                        done += len(chunk)
                        if stopped():
                            raise InterruptedError(f"fetching {self.name} was stopped")
                if done < len(view):
                    raise Temporary("the connection ended early")
            except _Expired as error:
                refused = refused + 1 if done == before else 1
                self._forget(address)
                if refused >= _RENEWALS:
                    raise EnvironmentProblem(
                        f"{self.name} cannot be fetched: new addresses are refused, too ({error})",
                        hint="run it again later",
                    ) from None
            except Exception as error:
                failed = failed + 1 if done == before else 1
                again_or_raise(error, self._source.asked, self._file.path, failed, stopped=stopped)

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
        """Ask the Hub where the file is to be had. Raises what huggingface_hub raises."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self._source.repository, self._file.path, revision=self._source.commit)
        found = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if found.commit_hash not in (None, self._source.commit):
            raise self._other(f"the Hub answers with commit {found.commit_hash}")
        if found.size not in (None, self.size):
            raise self._other(f"it has {found.size} bytes, expected {self.size}")
        if found.etag not in (None, self._file.etag):
            raise self._other(f"it is called {found.etag}, expected {self._file.etag}")
        own = urlsplit(found.location)[:2] == urlsplit(url)[:2]
        return Address(found.location, build_hf_headers() if own else {})

    def _other(self, how: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.name} is not given as the Hub has listed it: {how}",
            hint="run it again; if it stays so, a proxy on the way or the Hub itself mixes up files: convert "
            "without --stream",
        )

    def _asked(self, address: Address, start: int, count: int) -> Generator[bytes]:
        """The bytes of one request, at most ``count``; fewer if the connection ends early."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        head = {**address.headers, "Range": f"bytes={start}-{start + count - 1}"}
        head |= {"Accept-Encoding": "identity"}
        if self._served is not None and not self._served.startswith("W/"):
            head["If-Range"] = self._served
        left, url = count, address.url
        with get_session().stream(
            "GET", url, headers=head, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as answer:
            self._check(answer, start, count)
            for chunk in answer.iter_raw(_CHUNK):
                if len(chunk) > left:
                    raise self._other(f"more than the {count} bytes came that were asked for")
                left -= len(chunk)
                yield chunk

    def _check(self, answer: Response, start: int, count: int) -> None:
        """Whether an answer is the range asked for, of the file it was before."""
        status, head = answer.status_code, answer.headers
        where = f"{urlsplit(str(answer.url)).hostname} answers {status_text(status)}"
        if status in _EXPIRED:
            raise _Expired(where)
        if status in TEMPORARY:
            raise Temporary(where, retry_after(head))
        if status == 200:
            why = ", or the file is another by now" if self._served else ""
            raise self._other(f"all of it came where a range was asked for; ranges are not served{why}")
        if status != 206:
            raise self._other(f"{where}, expected 206")
        expected = f"bytes {start}-{start + count - 1}/{self.size}"
        if head.get("Content-Range") != expected:
            raise self._other(f"the answer is {head.get('Content-Range')!r}, expected {expected!r}")
        if head.get("Content-Encoding", "identity") != "identity":
            raise self._other(f"the answer is encoded ({head['Content-Encoding']!r})")
        served = head.get("ETag")
        with self._lock:
            before, self._served = self._served, self._served or served
        if before is not None and served != before:
            raise self._other(f"its ETag was {before}, now it is {served}")


class _Expired(Exception):
    """The address is good no longer."""
