"""Arguments in the order other tools have them: ``IN OUT TYPE``, a type or a folder without its option."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ..core.errors import UsageError

_THREADS = 3  # llama-quantize's fourth argument


@dataclass(frozen=True)
class Given:
    """The words behind a command: what is no option; options with their values, as they were typed."""

    others: tuple[str, ...]
    options: tuple[str, ...]

    def has(self, *names: str) -> bool:
        """Whether one of these options was given."""
        return any(word.partition("=")[0] in names for word in self.options)


def arguments_of(command: click.Command, words: Sequence[str]) -> Given:
    """The words behind ``command``, told apart."""
    valued = {
        name
        for each in command.params
        if isinstance(each, click.Option) and not each.is_flag
        for name in (*each.opts, *each.secondary_opts)
    }
    others: list[str] = []
    options: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            others.append(word)
            continue
        options.append(word)
        if word in valued and left and not left[0].startswith("--"):
            options.append(left.pop(0))
    return Given(tuple(others), tuple(options))


def in_order(name: str, given: Given) -> UsageError | None:
    """The answer where the arguments of the command ``name`` are in another tool's order, else None."""
    handler = _HANDLERS.get(name)
    return handler(name, given) if handler is not None and len(given.others) >= 1 else None


def _conversion(name: str, given: Given) -> UsageError | None:
    """``to-gguf``, ``to-onnx``, ``plan``, ``compare``: types and the output are options."""
    source, types, rest = _told_apart(given.others)
    if source is None or len(rest) > 1 or not (types or rest):
        return None
    if rest and (name in ("plan", "compare") or rest[0] == source or _has_output(given)):
        return None
    extra = given.others[1] if given.others[0] == source else given.others[0]
    told = f"kconv {name} takes one checkpoint, and {extra!r} is another argument"
    return UsageError(told, hint=_call(name, source, given, output=rest, types=types))


def _quantize(name: str, given: Given) -> UsageError | None:
    """llama-quantize's ``IN.gguf [OUT.gguf] TYPE [THREADS]``, whose type may be a number."""
    others = list(given.others)
    source, types, rest = _told_apart(others[:_THREADS])
    if source is None or len(others) > _THREADS + 1 or len(others) < 2:
        return None
    numbers = [word for word in rest if word.isdecimal()]
    rest = [word for word in rest if not word.isdecimal()]
    named = types or [found for found in map(_numbered, numbers) if found is not None]
    if len(rest) > 1 or not (named or rest) or (rest and _has_output(given)):
        return None
    if not named and not given.has("-q", "--type"):
        named = ["TYPE"]
    told = "kconv quantize takes one file; the output and the type are options, unlike llama-quantize's"
    command = "to-gguf" if (Path(source) / "config.json").is_file() else name
    return UsageError(told, hint=_call(command, source, given, output=rest, types=named))


def _verify(name: str, given: Given) -> UsageError | None:
    """``verify FILE CHECKPOINT``, in either order."""
    if len(given.others) != 2 or given.has("--against"):
        return None
    file, checkpoint = given.others
    if _is_checkpoint(file) and not _is_checkpoint(checkpoint):
        file, checkpoint = checkpoint, file
    words = ["kconv", name, file, "--against", checkpoint, *given.options]
    return _lacking("'--against'", words)


def _imatrix(name: str, given: Given) -> UsageError | None:
    """``imatrix CHECKPOINT TEXT``."""
    if len(given.others) != 2 or given.has("--text"):
        return None
    source, text = given.others
    words = ["kconv", name, source, "--text", text, *given.options]
    return _lacking("'--text'", words)


def _lacking(param_hint: str, words: Sequence[str]) -> UsageError:
    return UsageError(f"Missing option {param_hint}.", hint=shlex.join(words))


def _upload(name: str, given: Given) -> UsageError | None:
    """Without the repository."""
    if len(given.others) != 1 or not Path(given.others[0]).exists():
        return None
    return UsageError(
        "kconv upload takes files and, last, the repository they are sent to",
        hint=f"kconv upload {shlex.quote(given.others[0])} ORG/NAME",
    )


_HANDLERS: Mapping[str, Callable[[str, Given], UsageError | None]] = {
    "to-gguf": _conversion,
    "to-onnx": _conversion,
    "plan": _conversion,
    "compare": _conversion,
    "quantize": _quantize,
    "verify": _verify,
    "imatrix": _imatrix,
    "upload": _upload,
}


def _has_output(given: Given) -> bool:
    return given.has("--output") or any(word[:2] == "-o" for word in given.options)


def _told_apart(others: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """The source, types as they are written or called here, and the rest."""
    source: str | None = None
    types: list[str] = []
    rest: list[str] = []
    for word in others:
        named = [None] if Path(word).exists() else [_type(each.strip()) for each in word.split(",")]
        known = [each for each in named if each is not None]
        if len(known) == len(named):
            types += known
        elif source is None:
            source = word
        else:
            rest.append(word)
    return source, types, rest


def _call(name: str, source: str, given: Given, *, output: Sequence[str], types: Sequence[str]) -> str:
    """The command as it was probably meant."""
    words = ["kconv", name, source]
    words += ["-o", output[0]] if output else []
    words += ["-q", ",".join(types)] if types else []
    return shlex.join([*words, *_without_language(given.options)])


def _without_language(options: Sequence[str]) -> list[str]:
    """They are as they were typed, but for --lang, which need not be said again."""
    left = list(options)
    if "--lang" in left:
        at = left.index("--lang")
        del left[at : at + 2]
    return left


def _type(word: str) -> str | None:
    """The type that ``word`` names, or nearly; None for anything else."""
    from ..quant.formats import suggested
    from ..quant.policy import POLICIES, parse_policy

    if word.lower() in ("copy", "auto"):
        return word
    if word.isdecimal() or "." in word or "/" in word:
        return None
    try:
        parse_policy(word)
    except UsageError:
        near = suggested(word, list(POLICIES))
        return near[0] if near and word[:1].lower() in "qifbmt" else None
    return word


def _numbered(word: str) -> str | None:
    """The type of that number, which llama-quantize takes, too."""
    from ..quant.policy import POLICIES

    return next((policy.name for policy in POLICIES.values() if str(policy.file_type) == word), None)


def _is_checkpoint(word: str) -> bool:
    path = Path(word)
    return (path / "config.json").is_file() and not any(path.glob("*.onnx"))
