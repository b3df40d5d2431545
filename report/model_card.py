"""The model card of a release: a README.md for the Hub, in English, Korean or both.

The prose is in data/model_card.LANGUAGE.md.jinja; every value put into it is escaped unless it is Markdown
already, and the front matter is written by PyYAML, so nothing from a manifest or a header can break out.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ..converters.licences import hub_identifiers
from ..core.files import atomic_file
from ..core.language import LANGUAGES, speaking, template
from ..core.sizes import size_text
from ..flows.artifacts import Artifact
from ..flows.release import Release
from ..verify.cosine_gates import cosine_text
from .markdown import Markdown, block, code, escaped, link
from .names import loses, verdict_word
from .text import large, number, percent, with_error

BEGIN = re.compile(r"<!-- kconv card, front matter ([0-9a-f]{12}) -->")
END = "<!-- end of kconv card -->"
"""Around what kconv writes below the front matter: when it is written again, what stands outside is kept.

The beginning has the hash of the front matter, by which one can tell whether somebody changed that.
"""

_HUB = "https://huggingface.co/"
_USUAL_BITS = 4.9  # of q4_k_m, the type most people take
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One line of the table of files, as it is shown."""

    file: Markdown
    type: str
    size: Markdown
    bits: Markdown
    kl: Markdown
    same: Markdown
    perplexity: Markdown
    cosine: Markdown
    same_nearest: Markdown
    verdict: str


def model_card(
    release: Release,
    *,
    languages: Sequence[str] = LANGUAGES,
    repository: str | None = None,
    quantized_by: str | None = None,
) -> str:
    """The README.md: front matter, then the card in each of the languages.

    ``repository`` is where the files will be (``org/name``), for commands that fetch them from there; None
    where they are only here.
    """
    parts = []
    for language in languages:
        with speaking(language):
            parts.append(_body(release, language, repository, first=language == languages[0]))
    front = front_matter(release, quantized_by=quantized_by)
    begin = f"<!-- kconv card, front matter {_hash(front)} -->"
    return f"---\n{front}---\n{begin}\n\n" + "\n\n---\n\n".join(parts) + f"\n\n{END}\n"


def write_card(text: str, path: Path, *, force: bool = False) -> None:
    """Write the card, whole or not at all. Raises OutputExists unless ``force``, and EnvironmentProblem."""
    with atomic_file(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def merged_card(existing: str, card: str) -> str | None:
    """The card put into a README.md that is there already; None where it is somebody else's text.

    What kconv wrote earlier, between its marks, is replaced, and so is an empty body (a repository made on
    the website has one). Front matter that somebody chose or changed stays and is completed.
    """
    import yaml  # type: ignore[import-untyped, unused-ignore]

    matter = _FRONT_MATTER.match(existing)
    body = existing[matter.end() :] if matter else existing
    begin, end = BEGIN.search(body), body.rfind(END)
    if body.strip() and not (begin and begin.end() <= end):
        return None
    ours_matter = _FRONT_MATTER.match(card)
    assert ours_matter is not None  # written above
    front, ours_body = ours_matter[1], card[ours_matter.end() :]
    if matter and not (begin and begin[1] == _hash(matter[1])):
        try:
            theirs = yaml.safe_load(matter[1])
        except yaml.YAMLError:
            return None
        front = _yaml(_completed(theirs, yaml.safe_load(front))) if isinstance(theirs, dict) else front
    before, after = (body[: begin.start()], body[end + len(END) :].strip("\n")) if begin else ("", "")
    return f"---\n{front}---\n{before}{ours_body}{after}{chr(10) if after else ''}"


def _completed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Their front matter with the keys it lacks, and the tags of both."""
    tags = [*_list(theirs.get("tags")), *_list(ours.get("tags"))]
    return {**ours, **theirs, "tags": list(dict.fromkeys(map(str, tags)))}


def _hash(front: str) -> str:
    return hashlib.sha256(front.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def front_matter(release: Release, *, quantized_by: str | None = None) -> str:
    """The YAML between the lines of hyphens, as the Hub reads it."""
    kinds = [each for each in ("GGUF", "ONNX") if any(a.kind == each for a in release.artifacts)]
    keys: dict[str, Any] = {}
    if release.base is not None:
        keys |= {"base_model": release.base, "base_model_relation": "quantized"}
    keys |= _licence(release)
    if release.languages:
        keys["language"] = list(release.languages)
    chat = ["conversational"] if release.chat is not None else []
    llama_cpp = ["llama.cpp"] if "GGUF" in kinds else []
    keys |= {
        "library_name": kinds[0].lower(),
        "pipeline_tag": "feature-extraction" if release.embeds else "text-generation",
        "tags": [*(kind.lower() for kind in kinds), *llama_cpp, "kconv", *chat],
    }
    if quantized_by:
        keys["quantized_by"] = quantized_by
    return _yaml(keys)


def _licence(release: Release) -> dict[str, str]:
    """``license`` and, of those the Hub has no identifier for, ``license_name`` and ``license_link``."""
    if release.licence is None or release.terms.distribution == "none":
        return {}
    identifier = release.licence.lower()
    if identifier in hub_identifiers():
        return {"license": identifier}
    named = release.licence_name or release.licence
    name = re.sub(r"[^a-z0-9.]+", "-", named.lower()).strip("-.") or "other"
    linked = release.licence_link or ""
    if not re.fullmatch(r"https?://\S+", linked):
        base = f"{_HUB}{release.base}" if release.base else None
        file = f"{base}/blob/main/{linked}" if base and re.fullmatch(r"[\w.-]+", linked) else base
        linked = file or release.terms.source or ""
    return {"license": "other", "license_name": name, **({"license_link": linked} if linked else {})}


def _yaml(keys: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(keys), allow_unicode=True, sort_keys=False, width=1000))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _body(release: Release, language: str, repository: str | None, *, first: bool) -> str:
    artifacts = sorted(release.artifacts, key=lambda each: (each.kind, each.bits_per_weight or 0, each.name))
    kinds = {each.kind for each in artifacts}
    gguf = [each for each in artifacts if each.kind == "GGUF"]
    text = _template(language).render(
        release=release,
        first=first,
        title=release.name,
        kinds=[each for each in ("GGUF", "ONNX") if each in kinds],
        rows=[_row(each) for each in artifacts],
        unproven=[each for each in artifacts if not each.evidence.proven],
        gguf=_example(gguf),
        onnx=_example([each for each in artifacts if each.kind == "ONNX"]),
        with_modelfile=next((each for each in gguf if each.modelfile), None),
        companions=sorted({name for each in artifacts for name in each.companions}),
        importance=any(isinstance(each.manifest.get("importance"), dict) for each in artifacts),
        weights=None if release.parameters is None else large(release.parameters),
        base=None if release.base is None else link(release.base, _HUB + release.base),
        commit=None
        if not (release.base and release.commit)
        else link(release.commit[:12], f"{_HUB}{release.base}/tree/{release.commit}"),
        terms=release.terms.sentences[language],
        licence=release.licence_name or release.licence,
        repository=repository,
        tag=_tag,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _template(language: str) -> jinja2.Template:
    source = (resources.files(__package__) / "data" / f"model_card.{language}.md.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        finalize=escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # finalize escapes, for Markdown
    )
    environment.filters.update(code=code, block=block, said=template, sh=shlex.quote)
    environment.globals.update(link=link, lines=_lines)
    return environment.from_string(source)


def _lines(language: str, *lines: str) -> Markdown:
    """A block of code of those lines that are not empty."""
    return block("\n".join(line for line in lines if line), language)


def _row(artifact: Artifact) -> Row:
    evidence = artifact.evidence
    kl = evidence.kl_mean
    grade = evidence.grade if evidence.grade in ("nothing", "little", "some", "much") else None
    said = verdict_word(evidence.verdict) if evidence.verdict is not None else "–"  # type: ignore[arg-type]
    return Row(
        code(artifact.name if artifact.kind == "GGUF" else f"{artifact.name or '.'}/", cell=True),
        artifact.label if artifact.kind == "GGUF" else f"ONNX {artifact.label}",
        Markdown(size_text(artifact.bytes).replace(" ", "\u00a0")),
        _figure(artifact.bits_per_weight, "{:.2f}".format),
        _figure(kl, lambda value: with_error(value, evidence.kl_error or 0)),
        _figure(evidence.same_top1, lambda value: percent(value, 1)),
        _figure(evidence.perplexity_ratio, lambda value: f"× {number(value, 4)}"),
        _figure(evidence.cosine, cosine_text),
        _figure(evidence.same_nearest, lambda value: percent(value, 1)),
        f"{said}; {loses(grade)}" if evidence.proven and grade else said,
    )


def _figure(value: float | None, shown: Callable[[float], str]) -> Markdown:
    """A number as it is shown; hard spaces stay."""
    return Markdown("–" if value is None else shown(value))


def _example(artifacts: Sequence[Artifact]) -> Artifact | None:
    """The one commands are shown for: proven, and of about the usual size."""
    chosen = [each for each in artifacts if each.evidence.proven] or artifacts
    return min(chosen, key=lambda each: abs((each.bits_per_weight or 99) - _USUAL_BITS), default=None)


def _tag(artifact: Artifact) -> str:
    """What names a file in ``org/name:TAG``: its type where the file's name has it, else the name."""
    plain_type = re.fullmatch(r"[A-Z0-9_]+", artifact.label) and artifact.label in artifact.name.upper()
    return artifact.label if plain_type else artifact.name
