"""What is to be published: the files of one model, and what manifests and headers say of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.families import embeds_texts, reads_with_encoder
from ..converters.licences import Terms, terms_of
from ..core.errors import EnvironmentProblem, UsageError, VocabError
from ..core.foreign_values import number, object_of, objects_of, text_of, texts_of
from ..core.gguf_split import GgufModel, read_model
from ..core.progress import Progress, silent
from ..hub.names import is_repository, parse_hub_name
from ..vocab.sampling import sampling_in_metadata
from ..vocab.templates import SOME_DAY, render_chat
from .artifacts import ENCODER, Artifact, Facts, ReleaseFile, plain_file, read_artifact
from .hub_release import opened_on_the_hub

_HUB = "https://huggingface.co/"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_ALONG = (".manifest.json", ".Modelfile", "README.md")
_CHAT_LIMIT = 4000  # characters
_QUESTION = "서울의 명소를 알려줘."


@dataclass(frozen=True)
class Release:
    """Everything a model card is made of. None: not known.

    ``base`` is the repository of the checkpoint, ``commit`` its commit; ``chat`` a conversation in the
    model's format, None for a model that completes plain text; ``embeds`` says that it is an encoder, which
    writes none.
    """

    artifacts: tuple[Artifact, ...]
    name: str
    base: str | None
    commit: str | None
    licence: str | None
    licence_name: str | None
    licence_link: str | None
    languages: tuple[str, ...]
    architecture: str
    parameters: int | None
    encoder_decoder: bool
    embeds: bool
    chat: str | None
    sampling: Mapping[str, float | int]
    versions: Mapping[str, str]
    runtimes: tuple[str, ...]
    texts: tuple[str, ...]
    also: tuple[ReleaseFile, ...] = ()

    @property
    def terms(self) -> Terms:
        """What the licence says of passing the files on."""
        return terms_of(self.licence, self.licence_name, self.licence_link)

    @property
    def files(self) -> tuple[ReleaseFile, ...]:
        """Every file once, by name."""
        every = (file for artifact in self.artifacts for file in artifact.files)
        return tuple({file.name: file for file in (*every, *self.also)}.values())


@dataclass(frozen=True)
class Stated:
    """What the user says of the model, which counts more than what the files say."""

    base: str | None = None
    licence: str | None = None
    also: tuple[Path, ...] = ()


def read_release(
    paths: Sequence[str | Path],
    stated: Stated | None = None,
    *,
    fetch: bool = False,
    progress: Progress = silent,
) -> Release:
    """Look through GGUF files and ONNX folders that belong to one model.

    GGUF files of the Hub are named as ``parse_hub_name`` has them; their weights are downloaded only with
    ``fetch``. Raises UsageError where they make no release (two models, a name twice), InputError and
    GgufError for what cannot be read, HubRefusal, EnvironmentProblem.
    """
    stated = stated or Stated()
    if not paths:
        raise UsageError("no files given", hint="name GGUF files or ONNX folders")
    opened, elsewhere = _opened(paths, progress, fetch=fetch)
    alone = len(opened) == 1
    read = _without_companions([read_artifact(each, alone=alone, elsewhere=elsewhere) for each in opened])
    artifacts = tuple(artifact for artifact, _ in read)
    _refuse_two_models(artifacts)
    release = _release(artifacts, [facts for _, facts in read], stated)
    release = replace(release, also=tuple(plain_file(path, path.name) for path in stated.also))
    _refuse_same_names(release)
    return release


def joined(release: Release, others: Sequence[Artifact]) -> Release:
    """The release with further models of the same checkpoint."""
    artifacts = sorted((*release.artifacts, *others), key=lambda each: each.name)
    manifests = [artifact.manifest for artifact in artifacts if artifact.manifest]
    return replace(
        release,
        artifacts=tuple(artifacts),
        versions=_versions(manifests),
        runtimes=_all_of(manifests, "runtime"),
        texts=_all_of(manifests, "texts"),
    )


def _opened(
    paths: Sequence[str | Path], progress: Progress, *, fetch: bool
) -> tuple[list[Path | GgufModel], Mapping[Path, int]]:
    """Folders and models, each once, however many of its parts are named; and sizes of files not here.

    Manifests and the like are passed over, which ``dist/*`` names, too.
    """
    found: dict[Path, Path | GgufModel] = {}
    elsewhere: dict[Path, int] = {}
    for named in paths:
        path, name = Path(named), parse_hub_name(named)
        each: Path | GgufModel
        if name is not None:
            each, sizes = opened_on_the_hub(name, progress, fetch=fetch)
            elsewhere.update(sizes)
        elif path.name.endswith(_ALONG) and path.is_file():
            continue
        else:
            each = path if path.is_dir() else read_model(path)
        found.setdefault((each.paths[0] if isinstance(each, GgufModel) else each).absolute(), each)
    if not found:
        raise UsageError(
            "no GGUF files or ONNX folders among the files given",
            hint="manifests and Modelfiles go along with theirs",
        )
    return list(found.values()), elsewhere


def _without_companions(read: Sequence[tuple[Artifact, Facts]]) -> list[tuple[Artifact, Facts]]:
    """Without the files that belong to another one of these, as a front end does."""
    companions = {
        file.path.absolute()
        for artifact, _ in read
        for file in artifact.beside
        if file.path is not None and file.name in artifact.companions
    }
    return [
        (artifact, facts)
        for artifact, facts in read
        if artifact.weights[0].path is None or artifact.weights[0].path.absolute() not in companions
    ]


def _refuse_two_models(artifacts: Sequence[Artifact]) -> None:
    """Raise UsageError where manifests name different checkpoints."""
    named = [(artifact, weights) for artifact in artifacts if (weights := _source_weights(artifact))]
    for (one, before), (other, after) in itertools.combinations(named, 2):
        if _are_different(before, after):
            raise UsageError(
                f"{one.name or 'one'} and {other.name or 'another'} are made from different checkpoints",
                hint="publish one model at a time: a card describes one",
            )


def _source_weights(artifact: Artifact) -> list[Mapping[str, Any]]:
    files = objects_of(artifact.manifest.get("source", {}).get("files"))
    return [file for file in files if str(file.get("name")).endswith((".safetensors", ".bin", ".pt", ".pth"))]


def _are_different(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the files cannot be the same; of some a manifest may have the sum, another those of pieces."""
    kinds = ("sha256", "pieces")
    shared = [kind for kind in kinds if all(file.get(kind) for file in (*one, *other))]
    keys = shared or ["bytes"]
    for key in keys:
        before, after = (sorted(str(file.get(key)) for file in files) for files in (one, other))
        if before != after:
            return True
    named = {file.get("name"): file for file in other}
    pairs = [(file, named[file.get("name")]) for file in one if file.get("name") in named]
    return any(a.get(kind) and b.get(kind) and a[kind] != b[kind] for a, b in pairs for kind in kinds)


def _refuse_same_names(release: Release) -> None:
    seen: dict[str, ReleaseFile] = {}
    every = [file for artifact in release.artifacts for file in artifact.files]
    for file in (*every, *release.also):
        other = seen.setdefault(file.name.casefold(), file)
        if other.path is not None and file.path is not None and other.path.absolute() != file.path.absolute():
            raise UsageError(f"{other.path} and {file.path} would both be called {file.name}")
    if any(file.name.casefold() == "readme.md" for file in release.also):
        raise UsageError("README.md is the card that kconv writes", hint="leave out --also README.md")


def _release(artifacts: Sequence[Artifact], facts: Sequence[Facts], stated: Stated) -> Release:
    manifests = [artifact.manifest for artifact in artifacts if artifact.manifest]
    source: Mapping[str, Any] = next(
        (each["source"] for each in manifests if isinstance(each.get("source"), dict)), {}
    )
    header = next((each for each in facts if "general.architecture" in each), {})
    arch = next((text_of(each.get("architecture")) for each in manifests if "architecture" in each), None)
    arch = arch or text_of(header.get("general.architecture")) or "?"
    base = stated.base or _repository(source.get("repository")) or _of_url(header)
    commit = text_of(source.get("revision"))
    languages = source.get("languages", header.get("general.languages"))
    licence = stated.licence or text_of(source.get("license")) or text_of(header.get("general.license"))
    stated_anew = stated.licence is not None
    counts = (number(each.get("parameters")) for each in manifests)
    parameters = next((int(count) for count in counts if count), None)
    if parameters is None and artifacts[0].bits_per_weight:
        parameters = int(8 * artifacts[0].bytes / artifacts[0].bits_per_weight)
    name = text_of(header.get("general.name")) or text_of(source.get("name"))
    return Release(
        tuple(artifacts),
        (base or "").rpartition("/")[2] or name or artifacts[0].name or "model",
        base,
        commit if commit and _COMMIT.fullmatch(commit) else None,
        licence,
        None if stated_anew else _key(source, header, "license_name", "general.license.name"),
        None if stated_anew else _key(source, header, "license_link", "general.license.link"),
        tuple(dict.fromkeys(each for each in texts_of(languages) if _LANGUAGE.fullmatch(each))),
        arch,
        parameters,
        reads_with_encoder(arch) or any(each.get(ENCODER) is True for each in facts),
        embeds_texts(arch),
        _chat(facts),
        sampling_in_metadata(header),
        _versions(manifests),
        _all_of(manifests, "runtime"),
        _all_of(manifests, "texts"),
    )


def _key(source: Mapping[str, Any], header: Mapping[str, Any], key: str, gguf_key: str) -> str | None:
    return text_of(source.get(key)) or text_of(header.get(gguf_key))


def _chat(facts: Sequence[Mapping[str, Any]]) -> str | None:
    """A question in the model's format, with a place for the answer; empty where it cannot be shown."""
    keys = next((each for each in facts if isinstance(each.get("tokenizer.chat_template"), str)), None)
    if keys is None:
        return None
    begin, end = (_token(keys, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    messages = [{"role": "user", "content": _QUESTION}]
    try:
        shown = render_chat(
            keys["tokenizer.chat_template"], messages, bos_token=begin, eos_token=end, moment=SOME_DAY
        )
    except (VocabError, EnvironmentProblem):  # it fails or runs away: programs that use it will say so
        return ""
    return "".join(c for c in shown if c.isprintable() or c == "\n")[:_CHAT_LIMIT]


def _token(keys: Mapping[str, Any], key: str) -> str:
    tokens, at = keys.get("tokenizer.ggml.tokens"), keys.get(key)
    known = isinstance(tokens, (list, tuple)) and isinstance(at, int) and 0 <= at < len(tokens)
    return str(tokens[at]) if known and tokens is not None else ""


def _versions(manifests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Versions of what made and what proved the files; of one that differs between files all of them."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        proof = _provenance(manifest).get("versions")
        for versions in (manifest.get("versions"), proof):
            for name, version in object_of(versions).items():
                if (text := text_of(version)) and (key := text_of(name)):
                    found.setdefault(key, {})[text] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


def _all_of(manifests: Sequence[Mapping[str, Any]], key: str) -> tuple[str, ...]:
    """What the proofs say under a key of their provenance, each text once."""
    found = (text for manifest in manifests for text in texts_of(_provenance(manifest).get(key)))
    return tuple(dict.fromkeys(found))


def _provenance(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return object_of(object_of(manifest.get("proof")).get("provenance"))


def _repository(value: object) -> str | None:
    return value if isinstance(value, str) and is_repository(value) else None


def _of_url(header: Mapping[str, Any]) -> str | None:
    """The repository a GGUF says its checkpoint comes from."""
    url = header.get("general.source.repo_url")
    return _repository(url.removeprefix(_HUB).strip("/")) if isinstance(url, str) else None
