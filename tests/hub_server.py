"""A Hugging Face Hub on this machine: folders as repositories, over HTTP, with every fault the real one has.

::

    with Hub() as hub:
        hub.add("org/name", folder)
        hub.fail("GET /cdn/", "cut")              # the next request of that kind breaks off
        environment = hub.environment(home)       # for kconv, huggingface_hub or hf in another process
        ...
        hub.requests                              # what was asked, in order

What it knows is what huggingface_hub and kconv ask for reading: a repository and its revisions, its tree,
HEAD and GET of files, large ones on another host name behind a signed address that expires, Xet from a store
in a folder (``Hub.offer_xet``). Who adds routes (tests/hub_uploads.py) calls ``Hub.route``, ``Hub.keep`` and
``Repository.commit``. Standard library only; ``offer_xet`` alone needs hf_xet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_a_token_that_must_never_be_seen"
"""The token of the one user there is."""
USER = "tester"
LARGE_KINDS = (".safetensors", ".bin", ".gguf", ".onnx", ".onnx_data", ".model", ".pt", ".h5", ".msgpack")
LARGE = 10 << 20  # bytes from which on any file is a large one


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: where its bytes lie here, and what the Hub says of it."""

    path: Path
    size: int
    sha256: str
    git: str
    large: bool

    @property
    def etag(self) -> str:
        """What the Hub calls its contents, and huggingface_hub's cache the blob."""
        return self.sha256 if self.large else self.git


def hub_file(path: Path, name: str) -> HubFile:
    """What the Hub would make of a file: Git's id for small ones, SHA-256 for large ones."""
    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    large = name.endswith(LARGE_KINDS) or len(data) >= LARGE
    return HubFile(path, len(data), hashlib.sha256(data).hexdigest(), git, large)


@dataclass
class Repository:
    """``gated``: False, "asked" (nobody has access yet) or "granted" (to TOKEN).

    Private ones exist for TOKEN alone. ``commits`` are the files of each commit by their names, ``refs`` the
    commit of each branch or tag.
    """

    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: str | bool = False
    private: bool = False
    disabled: bool = False

    def commit(self, files: Mapping[str, HubFile], ref: str = "main", name: str | None = None) -> str:
        """Put a commit of these files at the tip of a branch; its name is made of their contents."""
        listing = "".join(f"{name}{files[name].sha256}" for name in sorted(files))
        name = name or hashlib.sha1(f"{len(self.commits)}{listing}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name

    def find(self, revision: str | None) -> str | None:
        """The commit of a branch, a tag or (the beginning of) a commit."""
        named = self.refs.get(revision or "main")
        if named is not None or not revision:
            return named
        return next((each for each in self.commits if len(revision) >= 7 and each.startswith(revision)), None)


@dataclass(frozen=True)
class Request:
    """One request as it came: ``host`` without its port, ``path`` unquoted and without its query."""

    method: str
    path: str
    host: str
    headers: Mapping[str, str]

    @property
    def line(self) -> str:
        """What faults are matched with."""
        return f"{self.method} {self.path}"

    @property
    def range(self) -> str | None:
        """The Range asked for."""
        return self.headers.get("range")


@dataclass
class Fault:
    """What goes wrong, with which requests, after how many and how often; see ``Hub.fail``."""

    pattern: re.Pattern[str]
    kind: str
    skip: int
    times: int
    details: Mapping[str, Any]


Route = Callable[["Answer", re.Match[str]], None]


class Hub(ThreadingHTTPServer):
    """The server; it runs in threads of this process until it is closed."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, lifetime: float = 3600) -> None:
        """``lifetime``: seconds after which the signed address of a large file is refused with 403."""
        super().__init__(("127.0.0.1", 0), Answer)
        self.lifetime = lifetime
        self.ahead = 0.0  # seconds by which the clock is, as if they had gone by
        self.page = 1000  # entries of a list that come at once
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, HubFile] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.routes: list[tuple[re.Pattern[str], Route]] = []
        self.xet_store: str | None = None
        self.xet_hashes: dict[str, str] = {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"
        for pattern, route in _ROUTES:
            self.route(pattern, route)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""

    def route(self, pattern: str, route: Route) -> None:
        """Answer requests whose "METHOD path" is this; routes added later come first."""
        self.routes.insert(0, (re.compile(pattern), route))

    def add(
        self,
        name: str,
        folder: Path,
        *,
        refs: Iterable[str] = ("main",),
        gated: str | bool = False,
        private: bool = False,
        disabled: bool = False,
    ) -> str:
        """Make the files of a folder a repository, or one more commit of it; returns the commit."""
        known = self.repositories.get(name) or Repository()
        known.gated, known.private, known.disabled = gated, private, disabled
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        files = {each: hub_file(path, each) for each, path in zip(names, paths, strict=True)}
        self.keep(files.values())
        first, *others = refs
        commit = known.commit(files, first)
        known.refs.update(dict.fromkeys(others, commit))
        self.repositories[name] = known
        return commit

    def keep(self, files: Iterable[HubFile]) -> None:
        """Make contents known to the CDN."""
        self.blobs.update({each.sha256: each for each in files})

    def offer_xet(self, store: Path) -> None:
        """Offer all large files there are now by Xet, too, from a store in this folder."""
        import hf_xet

        store.mkdir(parents=True, exist_ok=True)
        self.xet_store = f"local://{store.absolute()}"
        large = [each for each in self.blobs.values() if each.large]
        with hf_xet.XetSession().new_upload_commit(endpoint=self.xet_store) as commit:
            sent = {each.sha256: commit.start_upload_file(str(each.path)) for each in large}
        self.xet_hashes = {sha256: upload.result().xet_info.hash for sha256, upload in sent.items()}

    def fail(self, pattern: str, kind: str, *, skip: int = 0, times: int = 1_000_000, **details: Any) -> None:
        """Let requests whose "METHOD path" holds ``pattern`` go wrong, after ``skip`` good ones.

        ``status`` (code, headers, body): that answer. ``drop``: the connection ends without one. ``slow``
        (seconds): it waits first. ``page``: a sign-in page with 200, as hotels do. Of contents: ``cut``
        (after: bytes) ends the connection in the middle, ``short`` sends less than there is and says so,
        ``corrupt`` (at: offset in the file, default its last byte) flips a bit, ``norange`` sends all with
        200, ``shifted`` sends a range that was not asked for, ``trickle`` (seconds) waits before each
        64 KiB, ``stall`` (after: bytes, seconds) sends nothing more for that long.
        """
        self.faults.append(Fault(re.compile(pattern), kind, skip, times, details))

    def heal(self) -> None:
        """From here on nothing goes wrong, and what was asked is forgotten."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()

    def fault_of(self, request: Request) -> Fault | None:
        """Note a request, and the fault that hits it."""
        with self.lock:
            self.requests.append(request)
            hit = None
            for fault in self.faults:
                if fault.pattern.search(request.line):
                    if fault.skip > 0:
                        fault.skip -= 1
                    elif hit is None and fault.times > 0:
                        fault.times -= 1
                        hit = fault
            return hit

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD path" holds ``pattern``."""
        with self.lock:
            return [each for each in self.requests if re.search(pattern, each.line)]

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Variables that send huggingface_hub here, with a home of its own."""
        switches = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK")
        said = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home.absolute()),
            "no_proxy": "*",
            "HF_TOKEN": token or "",
        }
        times = {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2", "no_proxy": "*"}
        return {**said, **times, **dict.fromkeys(switches, "1"), **more}

    def sign(self, sha256: str) -> str:
        """The address at which the CDN gives contents away, for a while."""
        until = time.time() + self.ahead + self.lifetime
        return (
            f"{self.cdn}/cdn/{sha256}?Expires={until:.3f}&Signature={self.signature(sha256, f'{until:.3f}')}"
        )

    def signature(self, sha256: str, until: str) -> str:
        """What only the server can add to an address."""
        return hashlib.sha256(f"{id(self)} {sha256} {until}".encode()).hexdigest()[:32]


class Answer(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Hub
    fault: Fault | None = None

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def answer(self) -> None:
        """Find the fault or the route of a request."""
        path = unquote(urlsplit(self.path).path)
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        request = Request(
            self.command, path, host, {key.lower(): value for key, value in self.headers.items()}
        )
        fault = self.fault = self.server.fault_of(request)
        if fault is not None and fault.kind == "slow":
            time.sleep(fault.details["seconds"])
        if fault is not None and fault.kind == "drop":
            self.hang_up()
        elif fault is not None and fault.kind == "status":
            body = fault.details.get("body", b"")
            self.reply(fault.details["code"], body, fault.details.get("headers", {}))
        elif fault is not None and fault.kind == "page":
            page = b"<!DOCTYPE html><html><title>Welcome</title>Please sign in to use this network.</html>"
            self.reply(200, page, {"Content-Type": "text/html"})
        else:
            for pattern, route in self.server.routes:
                if found := pattern.fullmatch(request.line):
                    return route(self, found)
            self.refuse(404, "", "Not found")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def body(self) -> bytes:
        """What came with the request."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, code: int, content: bytes, headers: Mapping[str, object]) -> None:
        """Send a whole answer; of a HEAD its head."""
        self.begin(code, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, code: int, size: int, headers: Mapping[str, object]) -> None:
        """Send the head of an answer."""
        self.send_response(code)
        for key, value in {**headers, "Content-Length": size}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def reply_json(self, value: object, headers: Mapping[str, object] | None = None, code: int = 200) -> None:
        """Send a value as JSON."""
        self.reply(code, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, code: int, kind: str, message: str) -> None:
        """Send an error as the Hub words it."""
        head = {"X-Error-Message": message, **({"X-Error-Code": kind} if kind else {})}
        self.reply_json({"error": message}, head, code)

    def hang_up(self) -> None:
        """End the connection, whatever was announced."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
        self.connection.close()

    @property
    def known(self) -> bool:
        """Whether the caller has shown the token."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str, revision: str | None, *, files: bool) -> tuple[Repository, str] | None:
        """The repository and the commit, if this caller may have them; else the Hub's refusal is sent.

        Facts about a gated repository are for all, its ``files`` are not.
        """
        found = self.server.repositories.get(name)
        if self.headers.get("Authorization") and not self.known:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif found is None or (found.private and not self.known):
            missing = "Repository not found" if self.known else "Invalid username or password."
            self.refuse(404 if self.known else 401, "RepoNotFound", missing)
        elif found.disabled:
            self.refuse(403, "", "Access to this resource is disabled.")
        elif found.gated and files and not (self.known and found.gated == "granted"):
            restricted = f"Access to model {name} is restricted."
            self.refuse(403 if self.known else 401, "GatedRepo", restricted)
        elif (commit := found.find(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return found, commit
        return None

    def describe(self, found: re.Match[str]) -> None:
        """``GET api/models/ID[/revision/REV]``."""
        name = found["name"]
        if (had := self.repository(name, found["revision"], files=False)) is None:
            return
        repository, commit = had
        gated = "manual" if repository.gated else False
        facts = {"_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "private": repository.private}
        facts |= {"gated": gated, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        self.reply_json({**facts, "siblings": siblings, "createdAt": "2024-01-01T00:00:00.000Z"})

    def refs(self, found: re.Match[str]) -> None:
        """``GET api/models/ID/refs``."""
        if had := self.repository(found["name"], None, files=False):
            branches = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit}
                for ref, commit in had[0].refs.items()
                if not ref.startswith("refs/")
            ]
            self.reply_json({"branches": branches, "tags": [], "converts": []})

    def tree(self, found: re.Match[str]) -> None:
        """``GET api/models/ID/tree/REV``; the folders come along, as on the Hub."""
        if (had := self.repository(found["name"], found["revision"], files=True)) is None:
            return
        files, listed = had[0].commits[had[1]], []
        for folder in sorted({each.rpartition("/")[0] for each in files} - {""}):
            listed.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
        for path, file in files.items():
            entry: dict[str, Any] = {"type": "file", "oid": file.git, "size": file.size, "path": path}
            if file.large:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
                if file.sha256 in self.server.xet_hashes:
                    entry["xetHash"] = self.server.xet_hashes[file.sha256]
            listed.append(entry)
        query, page = parse_qs(urlsplit(self.path).query), self.server.page
        begin = int(query.get("cursor", ["0"])[0])
        more = (
            f"{self.server.url}{urlsplit(self.path).path}?recursive=true&expand=false&cursor={begin + page}"
        )
        head = {"Link": f'<{more}>; rel="next"'} if len(listed) > begin + page else {}
        self.reply_json(listed[begin : begin + page], head)

    def resolve(self, found: re.Match[str]) -> None:
        """``ID/resolve/REV/FILE``: small files are elsewhere on this host, large ones on the CDN."""
        if (had := self.repository(found["name"], found["revision"], files=True)) is None:
            return
        hub, (repository, commit) = self.server, had
        head: dict[str, object] = {"X-Repo-Commit": commit}
        file = repository.commits[commit].get(found["path"])
        if file is None:
            return self.reply(404, b"", {**head, "X-Error-Code": "EntryNotFound"})
        if not file.large:
            place = f"/api/resolve-cache/models/{found['name']}/{commit}/{quote(found['path'])}"
            head |= {"ETag": f'"{file.git}"', "X-Linked-Size": file.size, "Location": place}
            return self.reply(307, b"", head)
        head |= {
            "X-Linked-Size": file.size,
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": hub.sign(file.sha256),
        }
        if file.sha256 in hub.xet_hashes:
            refresh = f"{hub.url}/api/models/{found['name']}/xet-read-token/{commit}"
            head |= {"X-Xet-Hash": hub.xet_hashes[file.sha256], "X-Xet-Refresh-Route": refresh}
        self.reply(302, b"", head)

    def small_file(self, found: re.Match[str]) -> None:
        """Where ``resolve`` sends those who want a small file."""
        if had := self.repository(found["name"], found["revision"], files=True):
            file = had[0].commits[had[1]][found["path"]]
            self.send_contents(file, {"X-Repo-Commit": had[1], "ETag": f'"{file.git}"'})

    def cdn_file(self, found: re.Match[str]) -> None:
        """Contents for whoever has their signed address, as long as it lasts."""
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        file, until = self.server.blobs.get(found["sha256"]), asked.get("Expires", "0")
        signed = asked.get("Signature") == self.server.signature(found["sha256"], until)
        if file is None or not signed or float(until) < time.time() + self.server.ahead:
            return self.reply(403, b"<Error><Code>AccessDenied</Code></Error>", {})
        self.send_contents(file, {"ETag": f'"{file.sha256}"'})

    def xet_token(self, found: re.Match[str]) -> None:
        """``GET api/models/ID/xet-read-token/REV``: the store, and a token for it."""
        if self.server.xet_store and self.repository(found["name"], found["revision"], files=True):
            until = int(time.time()) + 3600
            said = {"casUrl": self.server.xet_store, "exp": until, "accessToken": "xet"}
            head = {"X-Xet-Cas-Url": self.server.xet_store, "X-Xet-Access-Token": "xet"}
            self.reply_json(said, {**head, "X-Xet-Token-Expiration": until})

    def who_am_i(self, _: re.Match[str]) -> None:
        """``GET api/whoami-v2``."""
        if not self.known:
            return self.refuse(401, "", "Invalid username or password.")
        self.reply_json({"type": "user", "id": "0" * 24, "name": USER, "fullname": USER, "orgs": []})

    def send_contents(self, file: HubFile, headers: dict[str, object]) -> None:
        """A file or the range of it that was asked for, with what goes wrong with contents."""
        kind, details = ("", {}) if self.fault is None else (self.fault.kind, self.fault.details)
        first, last, code = 0, file.size - 1, 200
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted and kind != "norange":
            if wanted[1]:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            else:
                first = max(file.size - int(wanted[2]), 0)
            if first > last:
                return self.reply(416, b"", {"Content-Range": f"bytes */{file.size}"})
            if kind == "shifted":
                first, last = max(first - 1, 0), max(last - 1, 0)
            headers["Content-Range"], code = f"bytes {first}-{last}/{file.size}", 206
        with file.path.open("rb") as opened:
            opened.seek(first)
            data = bytearray(opened.read(last + 1 - first))
        at = details.get("at", file.size - 1) - first
        if kind == "corrupt" and 0 <= at < len(data):
            data[at] ^= 1
        if kind == "short":
            del data[-7:]
        self.begin(code, len(data), headers)
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):  # the caller may have hung up
            if kind == "cut":
                self.wfile.write(data[: details.get("after", len(data) // 3)])
                return self.hang_up()
            if kind == "stall":
                self.wfile.write(data[: details["after"]])
                time.sleep(details["seconds"])
                return self.hang_up()
            for begin in range(0, len(data), 1 << 16):
                if kind == "trickle":
                    time.sleep(details["seconds"])
                self.wfile.write(data[begin : begin + (1 << 16)])
            return
        self.close_connection = True


_NAME = r"(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"
_ROUTES: tuple[tuple[str, Route], ...] = (
    (rf"GET /api/models/{_NAME}(?:/revision/(?P<revision>.+))?", Answer.describe),
    (rf"GET /api/models/{_NAME}/refs", Answer.refs),
    (rf"GET /api/models/{_NAME}/tree/(?P<revision>.+)", Answer.tree),
    (rf"GET /api/models/{_NAME}/xet-read-token/(?P<revision>.+)", Answer.xet_token),
    (rf"(?:GET|HEAD) /api/resolve-cache/models/{_NAME}/{_REVISION}/(?P<path>.+)", Answer.small_file),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/{_REVISION}/(?P<path>.+)", Answer.resolve),
    (r"(?:GET|HEAD) /cdn/(?P<sha256>[0-9a-f]{64})", Answer.cdn_file),
    (r"GET /api/whoami-v2", Answer.who_am_i),
)
