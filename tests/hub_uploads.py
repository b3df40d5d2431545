"""The writing side of the Hub on this machine (tests/hub_server.py): repositories made, files sent, commits.

::

    with Hub() as hub:
        uploads = Uploads(hub, tmp_path / "received")
        environment = hub.environment(home, TOKEN, HF_HUB_DISABLE_XET="1")     # or uploads.offer_xet(...)
        hub.fail("PUT /lfs/", "cut", after=1000, times=1)                      # as for reading

An unmodified huggingface_hub sends to it: whoami, auth-check, repos/create, validate-yaml, preupload, LFS
batches with PUTs in one or several parts, Xet write tokens for a store in a folder, commits, pull requests.
Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_server import USER, Answer, Hub, HubFile, Repository, hub_file


@dataclass
class Uploads:
    """What was sent, and what the caller may do.

    Files of more than ``part`` bytes come in parts of that size. ``role`` is that of the token, ``writable``
    the namespaces it may write to, ``ignored`` what a .gitignore would leave out. ``put`` counts the bytes
    that came in for each SHA-256; ``claims`` are files whose contents went by Xet: the Hub learns of them
    from its store, here the test says which they are.
    """

    hub: Hub
    folder: Path
    part: int = 1 << 20
    role: str = "write"
    writable: frozenset[str] = frozenset({USER})
    ignored: frozenset[str] = frozenset()
    put: dict[str, int] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    claims: dict[str, Path] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    xet_store: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name, revision = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>.+)"
        for pattern, route in (
            (r"GET /api/whoami-v2", self.who_am_i),
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", self.validate),
            (rf"GET /api/models/{name}/auth-check(?P<write>/write)?", self.check),
            (rf"POST /api/models/{name}/preupload/{revision}", self.preupload),
            (rf"POST /{name}\.git/info/lfs/objects/batch", self.batch),
            (r"PUT /lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", self.receive),
            (r"POST /lfs/(?P<oid>[0-9a-f]{64})/(?P<what>complete|verify)", self.finish),
            (rf"GET /api/models/{name}/xet-write-token/{revision}", self.xet_token),
            (rf"POST /api/models/{name}/commit/{revision}", self.commit),
        ):
            self.hub.route(pattern, partial(route))

    def offer_xet(self, store: Path) -> None:
        """Have files sent by Xet, to a store in this folder."""
        store.mkdir(parents=True, exist_ok=True)
        self.xet_store = f"local://{store.absolute()}"

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The contents of a repository."""
        repository = self.hub.repositories[name]
        commit = repository.commits[repository.refs[revision]]
        return {path: file.path.read_bytes() for path, file in commit.items()}

    def who_am_i(self, answer: Answer, _: re.Match[str]) -> None:
        """``GET api/whoami-v2``."""
        if not answer.known:
            return answer.refuse(401, "", "Invalid username or password.")
        token = {"displayName": "test", "role": self.role}
        said = {"type": "user", "id": "0" * 24, "name": USER, "fullname": USER, "orgs": []}
        answer.reply_json({**said, "auth": {"type": "access_token", "accessToken": token}})

    def may_write(self, answer: Answer, name: str) -> bool:
        """Whether the caller may write there; else it is told so."""
        if not answer.known:
            answer.refuse(401, "", "Invalid username or password.")
        elif self.role == "read" or name.partition("/")[0] not in self.writable:
            answer.refuse(403, "", f"Forbidden: you don't have the right to write to {name}")
        else:
            return True
        return False

    def create(self, answer: Answer, _: re.Match[str]) -> None:
        """``POST api/repos/create``."""
        asked = json.loads(answer.body())
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if not self.may_write(answer, name):
            return
        if name in self.hub.repositories:
            return answer.refuse(409, "", "You already created this model repo")
        repository = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        attributes = self.folder / ".gitattributes"
        attributes.write_text("*.gguf filter=lfs diff=lfs merge=lfs -text\n")
        repository.commit({".gitattributes": hub_file(attributes, ".gitattributes")})
        self.hub.repositories[name] = repository
        answer.reply_json({"url": f"{self.hub.url}/{name}", "name": name, "id": "0" * 24})

    def validate(self, answer: Answer, _: re.Match[str]) -> None:
        """``POST api/validate-yaml``: the Hub's rules for the keys a card of kconv's has."""
        import yaml

        content = json.loads(answer.body())["content"]
        matter = re.match(r"---\n(.*?)^---$", content, re.DOTALL | re.MULTILINE)
        keys = yaml.safe_load(matter[1]) if matter else {}
        bad = [
            key
            for key, rule in (
                ("license_name", r"[a-z0-9.-]+"),
                ("base_model", r"[\w.-]+/[\w.-]+"),
                ("base_model_relation", r"quantized"),
            )
            if key in keys and not re.fullmatch(rule, str(keys[key]))
        ]
        if bad:
            errors = [{"message": f'"{key}" is not valid'} for key in bad]
            return answer.reply_json({"errors": errors, "warnings": []}, code=400)
        answer.reply_json({"errors": [], "warnings": []})

    def check(self, answer: Answer, found: re.Match[str]) -> None:
        """``GET api/models/ID/auth-check[/write]``."""
        if answer.repository(found["name"], None, files=False) is None:
            return
        if not found["write"] or self.may_write(answer, found["name"]):
            answer.reply_json({})

    def preupload(self, answer: Answer, found: re.Match[str]) -> None:
        """``POST api/models/ID/preupload/REV``: which files are large, and what is there of that name."""
        asked = json.loads(answer.body())["files"]
        had = answer.repository(found["name"], found["revision"], files=True)
        if had is None:
            return
        there = had[0].commits[had[1]]
        said = []
        for file in asked:
            path = file["path"]
            large = path.endswith((".gguf", ".onnx", ".onnx_data")) or file["size"] >= 10 << 20
            old = there.get(path)
            oid = None if old is None else old.sha256 if old.large else old.git
            mode = "lfs" if large else "regular"
            said.append({"path": path, "uploadMode": mode, "shouldIgnore": path in self.ignored, "oid": oid})
        answer.reply_json({"files": said})

    def batch(self, answer: Answer, found: re.Match[str]) -> None:
        """``POST ID.git/info/lfs/objects/batch``: where to put what is not there yet."""
        asked, objects = json.loads(answer.body()), []
        if not answer.known:
            return answer.refuse(401, "", "Invalid username or password.")
        for each in asked["objects"]:
            oid, size, said = each["oid"], each["size"], dict(each)
            if oid not in self.hub.blobs:
                upload: dict[str, Any] = {"href": f"{self.hub.cdn}/lfs/{oid}"}
                if size > self.part:
                    count = -(-size // self.part)
                    places = {
                        f"{number:05d}": f"{self.hub.cdn}/lfs/{oid}/{number}"
                        for number in range(1, count + 1)
                    }
                    upload = {
                        "href": f"{self.hub.url}/lfs/{oid}/complete",
                        "header": {"chunk_size": str(self.part), **places},
                    }
                verify = {"href": f"{self.hub.url}/lfs/{oid}/verify"}
                said["actions"] = {"upload": upload, "verify": verify}
            objects.append(said)
        answer.reply_json({"transfer": "basic", "objects": objects})

    def receive(self, answer: Answer, found: re.Match[str]) -> None:
        """``PUT``: the bytes of a file, or of a part of it."""
        fault, oid = answer.fault, found["oid"]
        if fault is not None and fault.kind == "cut":
            self.put[oid] = self.put.get(oid, 0) + len(answer.rfile.read(fault.details["after"]))
            return answer.hang_up()
        data = _body(answer)
        self.put[oid] = self.put.get(oid, 0) + len(data)
        if found["part"]:
            self.parts.setdefault(oid, {})[int(found["part"])] = data
            return answer.reply(200, b"", {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
        self._store(answer, oid, data)

    def finish(self, answer: Answer, found: re.Match[str]) -> None:
        """``POST``: all parts are there; or: is the file there?"""
        answer.body()
        oid = found["oid"]
        if found["what"] == "verify":
            return answer.reply_json({}) if oid in self.hub.blobs else answer.refuse(404, "", "missing")
        parts = self.parts.pop(oid)
        self._store(answer, oid, b"".join(parts[number] for number in sorted(parts)))

    def _store(self, answer: Answer, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return answer.refuse(400, "", "the contents do not have this SHA-256")
        path = self.folder / oid
        path.write_bytes(data)
        self.hub.keep([hub_file(path, "x.gguf")])
        answer.reply_json({})

    def xet_token(self, answer: Answer, found: re.Match[str]) -> None:
        """``GET api/models/ID/xet-write-token/REV``."""
        if not answer.known:
            return answer.refuse(401, "", "Invalid username or password.")
        until = int(time.time()) + 3600
        said = {"casUrl": self.xet_store, "exp": until, "accessToken": "xet"}
        head = {"X-Xet-Cas-Url": self.xet_store, "X-Xet-Access-Token": "xet"}
        answer.reply_json(said, {**head, "X-Xet-Token-Expiration": until})

    def commit(self, answer: Answer, found: re.Match[str]) -> None:
        """``POST api/models/ID/commit/REV``: NDJSON, a header and an operation a line."""
        lines = [json.loads(line) for line in answer.body().splitlines() if line.strip()]
        name, revision = found["name"], found["revision"]
        opens = "create_pr" in parse_qs(urlsplit(answer.path).query)
        had = answer.repository(name, revision, files=True)
        if had is None or not (opens or revision.startswith("refs/pr/") or self.may_write(answer, name)):
            return
        repository, base = had
        files = dict(repository.commits[base])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self._small(files, value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                blob = self._blob(value["oid"])
                if blob is None:
                    return answer.refuse(
                        400, "", f"LFS pointer to a file that does not exist: {value['path']}"
                    )
                files[value["path"]] = blob
        target = (
            f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in repository.refs)}" if opens else revision
        )
        oid = repository.commit(files, target)
        self.commits.append({"repository": name, "revision": target, "summary": lines[0]["value"]["summary"]})
        said = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
        if opens:
            said["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{target.rpartition('/')[2]}"
        answer.reply_json(said)

    def _small(self, files: dict[str, HubFile], path: str, data: bytes) -> None:
        place = self.folder / hashlib.sha256(data).hexdigest()
        place.write_bytes(data)
        files[path] = hub_file(place, path)

    def _blob(self, oid: str) -> HubFile | None:
        claimed = self.claims.get(oid)
        if oid not in self.hub.blobs and claimed is not None:
            self.hub.keep([hub_file(claimed, "x.gguf")])
        return self.hub.blobs.get(oid)


def _body(answer: Answer) -> bytes:
    """What came with the request, of a known length or in chunks."""
    if answer.headers.get("Transfer-Encoding") != "chunked":
        return answer.body()
    data = b""
    while size := int(answer.rfile.readline().split(b";")[0], 16):
        data += answer.rfile.read(size)
        answer.rfile.readline()
    answer.rfile.readline()
    return data
