"""Sending files to a repository of the Hub: what is there already, what was sent, what went wrong.

huggingface_hub does the transfer, by Xet or by plain HTTP. Around it: one sentence for each refusal, never a
token in one, and the SHA-256 of what lies there afterwards.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import EnvironmentProblem, HubRefusal, InputError, KconvError, UsageError
from .evidence import git_digest
from .refusals import is_of_the_token

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "hf auth login"
_TOKENS = "https://huggingface.co/settings/tokens"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_INLINE = 8 << 20  # bytes up to which a file is read at once, so that what is sent is what was hashed
_PAUSES = (1.0, 4.0, 15.0)  # seconds before another try
_SMALL = 1 << 20

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Sending:
    """A file to be sent: its name there, its contents (a path, or bytes), its size and SHA-256."""

    name: str
    contents: Path | bytes
    size: int
    sha256: str


@dataclass(frozen=True)
class RemoteFile:
    """A file in the repository; large ones have a ``sha256``, small ones Git's id."""

    size: int
    sha256: str | None
    git: str


@dataclass(frozen=True)
class Place:
    """Where to send: repository and branch (or ``refs/pr/1``)."""

    repository: str
    revision: str = "main"


class Uploader:
    """One user's way to one repository; the token is huggingface_hub's own business.

    All methods raise KconvError: HubRefusal for login, rights and names, EnvironmentProblem for the network.
    """

    def __init__(self, place: Place) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils._validators import validate_repo_id

        self.place = place
        with explained(place):
            validate_repo_id(place.repository)
        if get_token() is None:
            raise HubRefusal(
                "uploading needs a Hugging Face token, and there is none here",
                hint=f"{LOGIN}, with a token that may write ({_TOKENS}); or set HF_TOKEN",
            )
        self._api: HfApi = HfApi(library_name="kconv")

    def user(self) -> str:
        """Who the token belongs to. Refuses one that may only read."""
        said = self._ask(self._api.whoami)
        token = said.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise HubRefusal(
                f"the token of {said['name']} may only read",
                hint=f"{LOGIN}, with one that may write ({_TOKENS})",
            )
        return str(said["name"])

    def state(self) -> bool | None:
        """Whether the repository is private; None where there is none."""
        try:
            return bool(self._ask(lambda: self._known().private))
        except _Missing:
            return None

    def _known(self) -> Any:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self._api.repo_info(self.place.repository)
        except RepositoryNotFoundError as error:
            raise _Missing(self.place.repository) from error

    def create(self, *, private: bool) -> None:
        """Make the repository."""
        self._ask(lambda: self._api.create_repo(self.place.repository, private=private, exist_ok=True))

    def check_rights(self) -> None:
        """Refuse where this user may not write."""
        self._ask(lambda: self._api.auth_check(self.place.repository, write=True))

    def files(self) -> dict[str, RemoteFile]:
        """What lies in the repository, by name; nothing in a new one."""
        return self._ask(self._listed)

    def _listed(self) -> dict[str, RemoteFile]:
        from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        place, found = self.place, {}
        try:
            for entry in self._api.list_repo_tree(place.repository, recursive=True, revision=place.revision):
                if isinstance(entry, RepoFile):
                    sha256 = None if entry.lfs is None else entry.lfs.sha256
                    found[entry.path] = RemoteFile(entry.size, sha256, entry.blob_id)
        except (RevisionNotFoundError, EntryNotFoundError):
            if place.revision != "main":
                raise
        return found

    def text(self, name: str) -> str:
        """A small text file of the repository."""
        with explained(self.place), tempfile.TemporaryDirectory(prefix="kconv-") as folder:
            path = self._api.hf_hub_download(
                self.place.repository, name, revision=self.place.revision, local_dir=folder
            )
            return Path(path).read_bytes()[: 16 * _SMALL].decode("utf-8", "replace")

    def send(self, files: Sequence[Sending], message: str, *, create_pr: bool = False) -> str | None:
        """Send files in one commit; those that are there are not sent again. The pull request's address.

        What fails in a way that passes is tried again, which sends what is missing (but the opening of a pull
        request, which would open a second). Raises InputError where a file changed under our hands.
        """
        return self._ask(lambda: self._commit(files, message, create_pr), once=create_pr)

    def _ask(self, call: Callable[[], _Answer], *, once: bool = False) -> _Answer:
        """What the Hub answers; asked again where it was busy or the connection failed."""
        for pause in () if once else _PAUSES:
            try:
                with explained(self.place):
                    return call()
            except Passing:
                time.sleep(pause)
        with explained(self.place):
            return call()

    def _commit(self, files: Sequence[Sending], message: str, create_pr: bool) -> str | None:
        from huggingface_hub import CommitOperationAdd

        operations = []
        for file in files:
            contents: Any = file.contents
            if isinstance(contents, Path) and file.size <= _INLINE:
                contents = contents.read_bytes()
            operations.append(CommitOperationAdd(file.name, contents))
        self._api.preupload_lfs_files(
            self.place.repository,
            operations,
            revision=self.place.revision,
            create_pr=create_pr,
            free_memory=False,
        )
        for file, operation in zip(files, operations, strict=True):
            if operation.upload_info.sha256.hex() != file.sha256:
                raise InputError(f"{file.name} was changed while it was sent", hint="run it again")
        made = self._api.create_commit(
            self.place.repository,
            operations,
            commit_message=message,
            revision=self.place.revision,
            create_pr=create_pr,
        )
        return made.pr_url

    def check(self, files: Sequence[Sending]) -> None:
        """Refuse to be content unless the files lie in the repository with the contents they should have."""
        there = self.files()
        for file in files:
            if not is_there(file, there):
                raise EnvironmentProblem(
                    f"{file.name} was sent, but {self.place.repository} does not have it as it was sent",
                    hint="run it again; if it stays so, look for a .gitignore in the repository",
                )


def is_there(file: Sending, there: Mapping[str, RemoteFile]) -> bool:
    """Whether a file with these contents lies in the repository under this name."""
    other = there.get(file.name)
    if other is None or other.size != file.size:
        return False
    return other.sha256 == file.sha256 if other.sha256 is not None else other.git == _git_id(file)


def _git_id(file: Sending) -> str:
    digest = git_digest(file.size)
    if isinstance(file.contents, bytes):
        digest.update(file.contents)
    else:
        with file.contents.open("rb") as opened:
            while part := opened.read(_SMALL):
                digest.update(part)
    return digest.hexdigest()


class _Missing(EnvironmentProblem):
    """There is no such repository."""


class Passing(EnvironmentProblem):
    """A fault that may be gone at the next try: the network, a busy server."""


def without_tokens(text: str) -> str:
    """The text with every token in it blotted out."""
    from huggingface_hub import get_token

    with contextlib.suppress(Exception):  # a token file that cannot be read: then nothing has sent it either
        token = get_token()
        if token:
            text = text.replace(token, "hf_***")
    return _TOKEN.sub("hf_***", text)


@contextlib.contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence without a token, and what to do."""
    try:
        yield
    except (KconvError, KeyboardInterrupt):
        raise
    except Exception as error:
        known = _explanation(error, place)
        if known is None:
            raise
        # The library's messages name headers in places; a chain that holds a token is not kept.
        chain, each = [], error
        while each is not None:
            chain.append(str(each))
            each = each.__cause__ or each.__context__  # type: ignore[assignment]
        clean = all(text == without_tokens(text) for text in chain)
        raise known from (error if clean else None)


def _explanation(error: Exception, place: Place) -> KconvError | None:
    from huggingface_hub import errors

    root: BaseException = error
    while isinstance(root, RuntimeError) and root.__cause__ is not None:  # "Error while uploading 'NAME'"
        root = root.__cause__
    if isinstance(root, errors.OfflineModeIsEnabled):
        return HubRefusal(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded", hint="unset it, or use --dry-run"
        )
    if isinstance(root, errors.HFValidationError):
        return UsageError(
            f"{place.repository} is not the name of a repository", hint="write it as org/name-GGUF"
        )
    if isinstance(root, errors.HfHubHTTPError):
        return _refusal(root, place)
    if isinstance(root, errors.LocalTokenNotFoundError):
        return HubRefusal("there is no Hugging Face token here", hint=LOGIN)
    if is_of_the_token(root):
        return HubRefusal("the token here has characters that no token has", hint=f"{LOGIN} ({_TOKENS})")
    if isinstance(root, (ValueError, TypeError, KeyError)):  # the sign-in page of a network, say
        return Passing(
            "the answer is not one of a Hub", hint="check the network and HF_ENDPOINT, and run it again"
        )
    if isinstance(root, (OSError, RuntimeError)) or type(root).__module__.startswith("httpx"):
        said = without_tokens(" ".join(str(root).split()))[:300]
        return Passing(
            f"the connection to the Hub failed: {said or type(root).__name__}",
            hint="run it again: what is there is not sent again",
        )
    return None


def _refusal(error: Any, place: Place) -> KconvError:
    """What an answer of the Hub means for the one who uploads."""
    from huggingface_hub import errors

    status = error.response.status_code
    said = without_tokens(" ".join(str(error.server_message or "").split()))[:200]
    tail = f" ({said})" if said else ""
    if status == 401:
        return HubRefusal(f"the Hub does not accept the token{tail}", hint=f"{LOGIN} ({_TOKENS})")
    if status == 403:
        return HubRefusal(
            f"the token may not write to {place.repository}{tail}",
            hint=f"check the name, or {LOGIN} with a token that may write there ({_TOKENS}); others' "
            "repositories take a pull request: --create-pr",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubRefusal(
            f"{place.repository} has no revision {place.revision}", hint="make the branch first"
        )
    if status == 404:
        return HubRefusal(f"the Hub has no repository {place.repository}{tail}", hint="check its name")
    if status in (408, 429) or status >= 500:
        return Passing(
            f"the Hub is busy or in trouble: {status}{tail}",
            hint="run it again: what is there is not sent again",
        )
    return EnvironmentProblem(
        f"the Hub refused the upload to {place.repository}: {status}{tail}", hint="see its message"
    )
