"""A repository at one commit: resolved once, then all that is read comes from that commit.

The seam for whatever works from the Hub::

    source = resolve("org/name@branch")       # one request for the commit, one for the list of files
    source.repository, source.commit, source.files
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..core import progress as core_progress
from ..core.errors import EnvironmentProblem, HubRefusal, KconvError
from ..core.input_files import is_plain_name, quoted
from .cache import cached_commit, cached_files, read_tree, snapshot, write_ref, write_tree
from .names import COMMIT, HubName, endpoint, parse_hub_name
from .refusals import offline
from .tries import FEW, patiently

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its path there, its bytes, Git's id; of large ones SHA-256 and Xet's hash."""

    path: str
    size: int
    git: str
    sha256: str | None = None
    xet: str | None = None

    @property
    def etag(self) -> str:
        """What the Hub, and huggingface_hub's cache, call its contents."""
        return self.sha256 or self.git


@dataclass(frozen=True)
class HubSource:
    """The files of a repository at a commit.

    ``asked`` is what was asked for. ``listed`` is False where nobody could say which files there are: the Hub
    was not asked or did not answer, and its list is not in the cache; ``files`` are those in the cache then.
    ``unreached`` says why the Hub was not asked, or what it answered.
    """

    asked: HubName
    commit: str
    files: tuple[HubFile, ...]
    listed: bool = True
    unreached: KconvError | None = None

    @property
    def repository(self) -> str:
        """``org/name``."""
        return self.asked.repository

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}"

    def file(self, path: str) -> HubFile | None:
        """The file of that path."""
        return next((each for each in self.files if each.path == path), None)


def resolve(text: str | HubName) -> HubSource:
    """The repository that ``text`` names, at the commit its revision means now.

    Which file or type of it ``text`` names plays no part here. Asks the Hub twice, or once where the list of
    that commit's files is in the cache, or not at all for a commit whose list is. Where the Hub does not
    answer or refuses, what the cache has is taken, as huggingface_hub does. Raises HubRefusal (gated,
    private, missing, no such revision, not in the cache), UsageError, EnvironmentProblem (network).
    """
    name = text if isinstance(text, HubName) else parse_hub_name(text)
    if name is None:
        raise HubRefusal(f"{quoted(text)} names no repository of the Hub", hint="give it as hf://org/name")
    name = replace(name, file=None, type=None)
    commit, unreached = _commit(name)
    known = read_tree(name.repository, commit)
    if known is None and unreached is None:
        try:
            entries = _listing(HubName(name.repository, commit))
            known = {each["path"]: _entry(each) for each in entries}
            write_tree(name.repository, commit, known)
        except KconvError as error:
            unreached = error
    if known is not None:
        files = [_file(path, entry, name) for path, entry in known.items() if is_safe(path)]
        return HubSource(name, commit, tuple(files), unreached=unreached)
    assert unreached is not None
    if not snapshot(name.repository, commit).is_dir():
        raise unreached
    files = [_as_cached(*each) for each in cached_files(name.repository, commit)]
    return HubSource(name, commit, tuple(files), listed=False, unreached=unreached)


def _as_cached(path: str, size: int, etag: str) -> HubFile:
    """A file by what the cache calls its contents: SHA-256 of large ones, Git's id of others."""
    return HubFile(path, size, etag, etag if _SHA256.fullmatch(etag) else None)


def _commit(name: HubName) -> tuple[str, KconvError | None]:
    """The commit of a revision, and why the Hub did not say it, where it is the cache that does."""
    from huggingface_hub import HfApi, constants

    kept = cached_commit(name)
    if constants.HF_HUB_OFFLINE:
        if kept is None:
            raise offline(name)
        return kept, offline(name)
    if name.revision is not None and COMMIT.fullmatch(name.revision):
        return name.revision, None
    usable = kept is not None and snapshot(name.repository, kept).is_dir()

    def ask() -> str:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        found = HfApi().model_info(name.repository, revision=name.revision, timeout=timeout).sha
        if not isinstance(found, str) or not COMMIT.fullmatch(found):
            raise ValueError("no commit")
        return found

    try:
        # without a network the answer should not take long: perhaps a path was meant
        commit = patiently(ask, name, tries=FEW if usable else None, unreached=FEW)
    except (EnvironmentProblem, HubRefusal) as error:
        if kept is None or not usable or _is_no_revision(error):
            raise
        core_progress.on_remark(f"{error.message}; the commit in the cache is taken: {kept}")
        return kept, error
    write_ref(name, commit)
    return commit, None


def _is_no_revision(error: KconvError) -> bool:
    """Whether the Hub has answered that the revision is gone, which no cache can help."""
    from huggingface_hub import errors

    return isinstance(error.__cause__, errors.RevisionNotFoundError)


def _listing(name: HubName) -> Iterator[dict[str, Any]]:
    """The files of a commit, as the Hub lists them: a page of a thousand, and where the next one is.

    huggingface_hub's own function asks again by itself, with waits that would add up with ours.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        build_hf_headers,
        fix_hf_endpoint_in_url,
        get_session,
        hf_raise_for_status,
    )

    address: str | None = (
        f"{endpoint()}/api/models/{name.repository}/tree/{name.revision}?recursive=true&expand=false"
    )

    def ask() -> tuple[list[dict[str, Any]], str | None]:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        answer = get_session().get(str(address), headers=build_hf_headers(), timeout=timeout)
        hf_raise_for_status(answer)
        page = [dict(each) for each in answer.json()]
        for each in page:
            each["path"].encode()  # not text: not a list of files
        return page, answer.links.get("next", {}).get("url")

    seen = set()
    while address is not None:
        if address in seen:
            raise EnvironmentProblem(
                f"the list of files of {name} goes on at a page it has been at", hint="try again later"
            )
        seen.add(address)
        page, following = patiently(ask, name, "the list of files")
        yield from (each for each in page if each.get("type") == "file")
        address = None if following is None else fix_hf_endpoint_in_url(following, endpoint())
        if address is not None and not address.startswith(f"{endpoint()}/"):  # the token would go along
            raise EnvironmentProblem(
                f"the list of files of {name} goes on at another host than {endpoint()}",
                hint="see whether HF_ENDPOINT names a Hub",
            )


def _entry(found: dict[str, Any]) -> dict[str, Any]:
    """An entry of the list, as huggingface_hub keeps it in its cache (``trees/COMMIT.json``)."""
    entry = {"size": found.get("size"), "blob_id": found.get("oid")}
    lfs = found.get("lfs")
    if isinstance(lfs, dict):
        entry |= {"lfs_sha256": lfs.get("oid"), "lfs_size": lfs.get("size")}
    if found.get("xetHash") is not None:
        entry["xet_hash"] = found["xetHash"]
    return entry


def _file(path: str, entry: dict[str, Any], name: HubName) -> HubFile:
    """A file from its entry, whose names are going to be file names here. Raises HubRefusal."""
    sha256, git, xet = entry.get("lfs_sha256"), entry.get("blob_id"), entry.get("xet_hash")
    size = entry.get("lfs_size") if sha256 is not None else entry.get("size")
    hashes = [(COMMIT, git), (_SHA256, sha256 or "0" * 64), (_SHA256, xet or "0" * 64)]
    good = all(isinstance(each, str) and kind.fullmatch(each) for kind, each in hashes)
    if not good or type(size) is not int or size < 0:
        raise HubRefusal(
            f"the list of files of {name} describes {quoted(path)} as {quoted(entry)}, expected its size and "
            "the hashes of its contents"
        )
    return HubFile(path, size, str(git), sha256, xet)


def is_safe(path: str) -> bool:
    """Whether a path can only lead into the folder it is put in."""
    return all(is_plain_name(part) for part in path.split("/"))
