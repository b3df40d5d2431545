"""From proven files to a repository of the Hub: reasons not to, plan, sending, and whether it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..converters.targets import FOLDER_MANIFEST
from ..core.errors import InputError, UsageError
from ..core.foreign_values import objects_of
from ..core.input_files import file_sha256
from ..core.progress import Progress, silent
from ..hub.names import endpoint, is_repository
from ..hub.upload import Place, RemoteFile, Sending, Uploader, is_there
from .artifacts import README, Artifact, ReleaseFile, remote_artifact
from .release import Release, joined

_CARDS = 64  # manifests of a repository that are read for its card

Announce = Callable[[str], None]
Card = Callable[[Release, str], str]
"""Makes the card of a release; the second is who made the files."""
Merge = Callable[[str, str], "str | None"]
"""Puts a card into a README.md that is there; None where that is somebody else's."""


@dataclass(frozen=True)
class Wishes:
    """How to send; ``replace`` allows to replace files that differ, ``replace_card`` a README.md."""

    place: Place
    public: bool = False
    create_pr: bool = False
    message: str | None = None
    replace: bool = False
    replace_card: bool = False


@dataclass(frozen=True)
class Upload:
    """What was done: names of files sent and of those that were there, and where to look at it."""

    repository: str
    url: str
    private: bool | None
    sent: tuple[str, ...]
    there: tuple[str, ...]
    bytes_sent: int
    card: str
    card_kept: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**vars(self), "sent": list(self.sent), "there": list(self.there)}


def check_name(name: str) -> None:
    """Raise UsageError for a name no repository can have."""
    if not is_repository(name):
        raise UsageError(f"{name} is not the name of a repository", hint="write it as org/name-GGUF")


def hashed(release: Release, progress: Progress = silent) -> dict[str, str]:
    """The SHA-256 of every file, by the name it will have; read now, whatever receipts say of earlier."""
    files = [file for file in release.files if file.path is not None]
    total, done, digests = sum(file.bytes for file in files), 0, {}

    def count(stage: str, read: int, size: int) -> None:
        progress(stage, done + read, total)

    for file in files:
        assert file.path is not None
        digests[file.name] = file_sha256(file.path, count)
        done += file.bytes
    return digests


def objections(release: Release, digests: Mapping[str, str]) -> list[str]:
    """Reasons not to publish, each a sentence; ``--force`` overrules them all."""
    found = []
    for artifact in release.artifacts:
        shown = artifact.name or artifact.place
        verdict = artifact.evidence.verdict
        if verdict in (None, "not run"):
            found.append(f"{shown} has no proof")
        elif not artifact.evidence.proven:
            found.append(f"{shown}: its proof {'failed' if verdict == 'failed' else 'was not decided'}")
        found += _changed(artifact, digests)
    terms = release.terms
    if terms.distribution == "no":
        found.append(f"licence {release.licence_name or release.licence}: {terms.sentences['en']}")
    elif terms.distribution == "none":
        found.append(f"no licence is known: {terms.sentences['en']}")
    return found


def _changed(artifact: Artifact, digests: Mapping[str, str]) -> Iterator[str]:
    """Files that are not those of the manifest, or of which that cannot be told."""
    if not artifact.manifest:
        return
    output = artifact.manifest["output"]
    written = output["bytes"]
    if artifact.kind == "ONNX" and not artifact.name:  # at the top a card of all that is sent takes its place
        cards = [each.get("bytes") for each in objects_of(output.get("files")) if each.get("name") == README]
        written -= sum(size for size in cards if type(size) is int)
    if artifact.bytes != written:
        size = f"{artifact.bytes:,} bytes, its manifest says {written:,}"
        yield f"{artifact.name or artifact.place} was changed after it was made: it has {size}"
        return
    for file in artifact.files:
        if file.sha256 is not None and digests[file.name] != file.sha256.lower():
            yield f"{file.name} was changed after it was made: its manifest has another SHA-256"
    unknown = [file.name for file in artifact.weights if file.sha256 is None]
    if unknown and artifact.evidence.proven:
        yield (
            f"{unknown[0]}: its manifest has no SHA-256 of it, so nobody can tell whether this is the file "
            "that was proven"
        )


def refuse(objections: Sequence[str]) -> None:
    """Raise InputError if there are any."""
    if objections:
        raise InputError(
            "not uploaded: " + "; ".join(objections),
            hint="convert with the proof (kconv to-gguf, to-onnx), state the licence with --license, or pass "
            "--force if you know better",
        )


def plan(release: Release, digests: Mapping[str, str]) -> list[list[Sending]]:
    """What goes together into one commit: each model with what belongs to it, then the other files."""
    groups = [artifact.files for artifact in release.artifacts] + [release.also]
    taken: set[str] = set()
    planned = []
    for group in groups:
        sendings = [_sending(file, digests) for file in group if file.path and file.name not in taken]
        taken |= {each.name for each in sendings}
        if sendings:
            planned.append(sendings)
    return planned


def _sending(file: ReleaseFile, digests: Mapping[str, str]) -> Sending:
    assert file.path is not None
    return Sending(file.name, file.path, file.bytes, digests[file.name])


def upload(
    release: Release,
    digests: Mapping[str, str],
    wishes: Wishes,
    card: Card,
    merge: Merge,
    announce: Announce = lambda text: None,
) -> Upload:
    """Send the files, each model in a commit of its own, and the card last; run again, it goes on.

    A new repository is private unless asked otherwise. ``digests`` are those of ``hashed``. Raises InputError
    where a file of that name with other contents is there (``Wishes.replace``), HubRefusal for login and
    rights, EnvironmentProblem for the network.
    """
    hub = Uploader(wishes.place)
    user, private = hub.user(), hub.state()
    if private is None:
        announce(f"new {'public' if wishes.public else 'private'} repository {wishes.place.repository}")
        hub.create(private=not wishes.public)
        private = not wishes.public
    else:
        if not (wishes.create_pr or wishes.place.revision.startswith("refs/pr/")):
            hub.check_rights()
        announce(f"{wishes.place.repository} is there and {'private' if private else 'public'}; it stays so")
    there = hub.files()
    batches = plan(release, digests)
    _refuse_others(batches, there, wishes)
    text, kept = _card(hub, release, there, wishes, card(_with_others(hub, release, there), user), merge)
    if not kept:
        data = text.encode("utf-8", "backslashreplace")
        batches.append([Sending(README, data, len(data), hashlib.sha256(data).hexdigest())])
    sent, pull_request = _send_all(hub, batches, there, wishes, announce)
    names = [file.name for batch in batches for file in batch]
    done = [file.name for file in sent]
    url = f"{endpoint()}/{wishes.place.repository}"
    return Upload(
        wishes.place.repository,
        pull_request or url,
        private,
        tuple(done),
        tuple(name for name in names if name not in done),
        sum(file.size for file in sent),
        text,
        kept,
    )


def _send_all(
    hub: Uploader,
    batches: Sequence[Sequence[Sending]],
    there: Mapping[str, RemoteFile],
    wishes: Wishes,
    announce: Announce,
) -> tuple[list[Sending], str | None]:
    """Send what is missing, and look whether it has arrived; a pull request's address, if any."""
    missing = [[file for file in batch if not is_there(file, there)] for batch in batches]
    for batch in batches:
        for file in batch:
            if is_there(file, there):
                announce(f"there already: {file.name}")
    pull_request, sent = None, []
    waiting = [batch for batch in missing if batch]
    for number, batch in enumerate(waiting):
        largest = max(batch, key=lambda file: file.size).name
        total = sum(file.size for file in batch)
        announce(f"sending {number + 1} of {len(waiting)}: {largest}, {total:,} bytes in all")
        opens = wishes.create_pr and pull_request is None
        made = hub.send(batch, wishes.message or f"Upload {largest} with kconv", create_pr=opens)
        if opens and made is not None:
            pull_request = made
            hub.place = replace(hub.place, revision=f"refs/pr/{made.rstrip('/').rpartition('/')[2]}")
            announce(f"pull request {made}; if this is interrupted: --revision {hub.place.revision}")
        hub.check(batch)
        sent += batch
    return sent, pull_request


def _refuse_others(
    batches: Sequence[Sequence[Sending]], there: Mapping[str, RemoteFile], wishes: Wishes
) -> None:
    others = [
        file.name for batch in batches for file in batch if file.name in there and not is_there(file, there)
    ]
    if others and not wishes.replace:
        raise InputError(
            f"{wishes.place.repository} has other files of these names: {', '.join(others[:8])}",
            hint="--replace puts these in their place (the old ones stay in the history)",
        )


def _with_others(hub: Uploader, release: Release, there: Mapping[str, RemoteFile]) -> Release:
    """The release with the models that lie in the repository already, from their manifests."""
    own = {file.name for file in release.files}
    others: list[Artifact] = []
    for name in list(there):
        if (
            name not in own
            and name.endswith((".gguf.manifest.json", FOLDER_MANIFEST))
            and len(others) < _CARDS
        ):
            try:
                manifest = json.loads(hub.text(name))
            except (ValueError, RecursionError):
                continue
            made = remote_artifact(name, manifest, there) if isinstance(manifest, dict) else None
            others += [made] if made is not None else []
    return joined(release, others)


def _card(
    hub: Uploader,
    release: Release,
    there: Mapping[str, RemoteFile],
    wishes: Wishes,
    card: str,
    merge: Merge,
) -> tuple[str, bool]:
    """The README.md to send; True where the one that is there is kept."""
    if README not in there or wishes.replace_card:
        return card, False
    existing = hub.text(README)
    merged = merge(existing, card)
    return (existing, True) if merged is None else (merged, False)


def sizes(batches: Sequence[Sequence[Sending]]) -> list[tuple[str, int]]:
    """Names and sizes of what would be sent, for a dry run."""
    return [(file.name, file.size) for batch in batches for file in batch]
