"""What people write for a repository of the Hub: ``org/name``, ``hf://…``, the address of its page.

What lies here comes first: ``org/name`` is the Hub's only where there is no file or folder of that name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ..core.errors import UsageError
from ..core.input_files import quoted

DEFAULT_HOST = "huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[^\s\x00-\x1f\\~^:?*\[]{1,200}")
_SPECIAL = re.compile(r"refs/[^/]+/[^/]+")
_FILES = (".gguf", ".safetensors", ".bin", ".onnx", ".json", ".txt", ".md", ".html", ".toml", ".zip", ".pt")
_OTHER_KINDS = {"datasets": "a dataset", "spaces": "a Space", "buckets": "a bucket", "kernels": "a kernel"}
_FORMS = "org/name, org/name@revision, hf://org/name or the address of a model's page"


@dataclass(frozen=True)
class HubName:
    """A repository of models, and a branch, tag, pull request (``refs/pr/1``) or commit of it.

    Without a ``revision`` the default branch, main, is meant.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def page(self) -> str:
        """The address of its page."""
        return f"{endpoint()}/{self.repository}"


def endpoint() -> str:
    """Where the Hub is, without a slash at the end: HF_ENDPOINT, as huggingface_hub reads it."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def parse_hub_name(text: object, revision: str | None = None) -> HubName | None:
    """What ``text`` names on the Hub; None where it names something here, or can be no repository's name.

    ``revision`` is one that was given apart from it (``--revision``). Only text is taken for a name: a Path
    is a path. Raises UsageError for addresses of anything but a model, and for two different revisions.
    """
    if not isinstance(text, str):
        return None
    if re.match(r"hf://", text, re.IGNORECASE):
        found = _of_uri(text)
    elif re.match(r"https?://", text, re.IGNORECASE):
        found = _of_address(text)
    elif os.path.lexists(text):
        return None
    else:
        repository, at, named = text.partition("@")
        if not is_repository(repository) or repository.lower().endswith(_FILES):
            return None
        found = HubName(repository, _checked(named, text) if at else None)
    if revision is None or revision == found.revision:
        return found
    if found.revision is not None:
        raise UsageError(
            f"{text} names the revision {quoted(found.revision)}, --revision {quoted(revision)}",
            hint="leave one of them out",
        )
    return HubName(found.repository, _checked(revision, f"--revision {revision}"))


def is_repository(text: str) -> bool:
    """Whether the Hub could have a repository of that name."""
    return bool(_REPOSITORY.fullmatch(text)) and "--" not in text and ".." not in text and len(text) <= 96


def _checked(revision: str, text: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.strip("/") != revision:
        raise UsageError(
            f"{quoted(text)}: {quoted(revision)} can be no revision; expected the name of a branch or tag, "
            "or a commit"
        )
    return revision


def _of_uri(text: str) -> HubName:
    """``hf://[models/]org/name[@revision]``, the form huggingface_hub has for it."""
    rest = text[len("hf://") :].strip("/")
    kind, _, after = rest.partition("/")
    if kind in _OTHER_KINDS:
        raise UsageError(f"{quoted(text)} is {_OTHER_KINDS[kind]}, expected a model: {_FORMS}")
    rest = after if kind == "models" else rest
    named, at, revision = rest.partition("@")
    named = named.strip("/")
    if not is_repository(named):
        raise UsageError(f"{quoted(text)} names no repository of the Hub; expected {_FORMS}")
    return HubName(named, _checked(unquote(revision), text) if at else None)


def _of_address(text: str) -> HubName:
    """The page of a model, of its files, of one of them, or of a commit."""
    address = urlsplit(text)
    own = urlsplit(endpoint())
    known = {(None, DEFAULT_HOST), (None, f"www.{DEFAULT_HOST}"), (None, "hf.co"), (own.port, own.hostname)}
    try:
        place = (address.port, (address.hostname or "").lower())
    except ValueError:  # no number
        place = (None, "")
    if place not in known:
        raise UsageError(
            f"{quoted(text)} is not a page of {DEFAULT_HOST}; expected {_FORMS}",
            hint="a mirror or a Hub of your own is named by HF_ENDPOINT",
        )
    organization, _, rest = address.path.strip("/").partition("/")
    if organization in _OTHER_KINDS:
        raise UsageError(f"{quoted(text)} is {_OTHER_KINDS[organization]}, expected a model: {_FORMS}")
    name, _, rest = rest.partition("/")
    if not is_repository(f"{organization}/{name}"):
        raise UsageError(f"{quoted(text)} is not the page of a model; expected {_FORMS}")
    view, _, rest = rest.partition("/")
    if view not in ("tree", "blob", "resolve", "raw", "commit", "commits") or not rest:
        return HubName(f"{organization}/{name}")
    special = _SPECIAL.match(rest)  # the site writes refs%2Fpr%2F1
    revision = special.group() if special else unquote(rest.partition("/")[0])
    below = rest[len(special.group()) :] if special else rest.partition("/")[2]
    if below.strip("/") and view == "tree":
        raise UsageError(
            f"{quoted(text)} is a folder in a repository, and kconv reads models that lie at its top",
            hint=f"download that folder: hf download {organization}/{name} --revision {revision} "
            f"--include '{below.strip('/')}/*' --local-dir {name}",
        )
    return HubName(f"{organization}/{name}", _checked(revision, text))
