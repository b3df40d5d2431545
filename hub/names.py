"""What people write for a repository of the Hub: ``org/name``, ``hf://…``, the address of its page.

What lies here comes first: ``org/name`` is the Hub's only where there is no file or folder of that name. A
GGUF of a repository is named by its path there (``org/name/x.gguf``, ``hf://org/name@main/Q4_K_M/x.gguf``),
by the address of its page or of its download, or by its type, as llama.cpp and Ollama have it
(``org/name:Q4_K_M``, ``hf.co/org/name:Q4_K_M``).
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit

from ..core.errors import InputError, UsageError
from ..core.input_files import is_plain_name, quoted

DEFAULT_HOST = "huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[^\s\x00-\x1f\\~^:?*\[]{1,200}")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SPECIAL = re.compile(r"refs/[^/]+/[^/]+")
_FILES = (".gguf", ".safetensors", ".bin", ".onnx", ".json", ".txt", ".md", ".html", ".toml", ".zip", ".pt")
_OTHER_KINDS = {"datasets": "a dataset", "spaces": "a Space", "buckets": "a bucket", "kernels": "a kernel"}
_FORMS = "org/name, org/name@revision, hf://org/name or the address of a model's page"
_GGUF = ".gguf"
_HOSTS = (DEFAULT_HOST, f"www.{DEFAULT_HOST}", "hf.co")


@dataclass(frozen=True)
class HubName:
    """A repository of models, and a branch, tag, pull request (``refs/pr/1``) or commit of it.

    Without a ``revision`` the default branch, main, is meant. ``file`` is the path of a GGUF there, ``type``
    what one is to be of (``Q4_K_M``); at most one of them is named.
    """

    repository: str
    revision: str | None = None
    file: str | None = None
    type: str | None = None

    def __str__(self) -> str:
        revision = self.revision
        if revision is not None and self.file is not None and not _SPECIAL.fullmatch(revision):
            revision = quote(revision, safe="")  # the path begins behind the first slash
        named = self.repository if revision is None else f"{self.repository}@{revision}"
        if self.type is not None:
            return f"{named}:{self.type}"
        return named if self.file is None else f"{named}/{self.file}"

    @property
    def means_gguf(self) -> bool:
        """Whether it can only be a GGUF of the repository."""
        return self.file is not None or self.type is not None

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
    elif text.lower().startswith(tuple(f"{host}/" for host in _HOSTS)):  # as Ollama writes it
        found = _of_address(f"https://{text}")
    else:
        name = _of_words(text)
        if name is None:
            return None
        found = name
    if revision is None or revision == found.revision:
        return found
    if found.revision is not None:
        raise UsageError(
            f"{text} names the revision {quoted(found.revision)}, --revision {quoted(revision)}",
            hint="leave one of them out",
        )
    return replace(found, revision=_checked(revision, f"--revision {revision}"))


def parse_checkpoint_name(text: object) -> HubName | None:
    """The same where a checkpoint is needed. Raises InputError for a GGUF file of a repository."""
    name = parse_hub_name(text)
    if name is not None and name.means_gguf:
        file = shlex.quote(f"hf://{name}")
        raise InputError(
            f"hf://{name} is a GGUF file, expected a checkpoint: org/name, or a folder with config.json and "
            "weights",
            hint=f"to make other types of the file: kconv quantize {file} -q q4_k_m; all else needs the "
            "checkpoint it was made from",
        )
    return name


def _of_words(text: str) -> HubName | None:
    """``org/name[@revision][:type]``, or with the path of a GGUF where no folder ``org`` is here."""
    if text.lower().endswith(_GGUF):
        found = _with_file(text)
        if found is not None and os.path.lexists(text.partition("/")[0]):  # rather a file that is missing
            return None
        return found
    named, type_name = _without_type(text)
    repository, at, revision = named.partition("@")
    if not is_repository(repository) or repository.lower().endswith(_FILES):
        return None
    return HubName(repository, _checked(revision, text) if at else None, type=_type(type_name, text))


def _without_type(text: str) -> tuple[str, str | None]:
    """What stands before and behind the colon; a revision can have none."""
    named, colon, type_name = text.partition(":")
    return named, type_name if colon else None


def _type(name: str | None, text: str) -> str | None:
    if name is not None and not _TYPE.fullmatch(name):
        raise UsageError(
            f"{quoted(text)}: {quoted(name)} can be no type of a GGUF; expected one like org/name:Q4_K_M"
        )
    return name


def _with_file(text: str) -> HubName | None:
    """``org/name[@revision]/path.gguf``; a slash in the revision is ``%2F``, but for ``refs/pr/1``."""
    named, at, rest = text.partition("@")
    revision: str | None = None
    if at and is_repository(named):
        revision, file = _revision_and_path(rest)
        _checked(revision, text)
    else:
        organization, _, rest = text.partition("/")
        name, _, file = rest.partition("/")
        named = f"{organization}/{name}"
    if not is_repository(named) or not all(map(is_plain_name, file.split("/"))):
        return None
    return HubName(named, revision, file)


def _revision_and_path(rest: str) -> tuple[str, str]:
    """A revision, as addresses have it, and the path behind it."""
    special = _SPECIAL.match(rest)  # the site writes refs%2Fpr%2F1
    if special:
        return special.group(), rest[len(special.group()) :].strip("/")
    revision, _, path = rest.partition("/")
    return unquote(revision), path


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
    """``hf://[models/]org/name[@revision]``, the form huggingface_hub has for it, and perhaps ``:type``."""
    rest = text[len("hf://") :].strip("/")
    kind, _, after = rest.partition("/")
    if kind in _OTHER_KINDS:
        raise UsageError(f"{quoted(text)} is {_OTHER_KINDS[kind]}, expected a model: {_FORMS}")
    rest = after if kind == "models" else rest
    if rest.lower().endswith(_GGUF) and (whole := _with_file(rest)) is not None:
        return whole
    rest, type_name = _without_type(rest)
    named, at, revision = rest.partition("@")
    named = named.strip("/")
    if not is_repository(named):
        raise UsageError(f"{quoted(text)} names no repository of the Hub; expected {_FORMS}")
    revision = unquote(revision)
    return HubName(named, _checked(revision, text) if at else None, type=_type(type_name, text))


def _of_address(text: str) -> HubName:
    """The page of a model, of its files, of one of them, or of a commit."""
    address = urlsplit(text)
    own = urlsplit(endpoint())
    known = {*((None, host) for host in _HOSTS), (own.port, own.hostname)}
    try:
        place = (address.port, (address.hostname or "").lower())
    except ValueError:  # no number
        place = (None, "")
    if place not in known:
        raise UsageError(
            f"{quoted(text)} is not a page of {DEFAULT_HOST}; expected {_FORMS}",
            hint="a mirror or a Hub of your own is named by HF_ENDPOINT",
        )
    path = address.path.strip("/")
    if place == (own.port, own.hostname):  # a mirror may lie below a path
        path = path.removeprefix(own.path.strip("/")).strip("/")
    organization, _, rest = path.partition("/")
    if organization in _OTHER_KINDS:
        raise UsageError(f"{quoted(text)} is {_OTHER_KINDS[organization]}, expected a model: {_FORMS}")
    name, _, rest = rest.partition("/")
    name, type_name = _without_type(name)
    if not is_repository(f"{organization}/{name}"):
        raise UsageError(f"{quoted(text)} is not the page of a model; expected {_FORMS}")
    if type_name is not None:
        return HubName(f"{organization}/{name}", type=_type(type_name, text))
    view, _, rest = rest.partition("/")
    if view not in ("tree", "blob", "resolve", "raw", "commit", "commits") or not rest:
        return HubName(f"{organization}/{name}")
    revision, below = _revision_and_path(rest)
    below = unquote(below)
    if below.lower().endswith(_GGUF) and all(map(is_plain_name, below.split("/"))):
        return HubName(f"{organization}/{name}", _checked(revision, text), below)
    if below.strip("/") and view == "tree":
        raise UsageError(
            f"{quoted(text)} is a folder in a repository, and kconv reads models that lie at its top",
            hint=f"download that folder: hf download {organization}/{name} --revision {revision} "
            f"--include '{below.strip('/')}/*' --local-dir {name}",
        )
    return HubName(f"{organization}/{name}", _checked(revision, text))
