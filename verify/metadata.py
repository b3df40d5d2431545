"""The metadata part: every key llama.cpp reads, against those the family derives from the checkpoint."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..core.gguf_file import ALIGNMENT, GgufHeader
from ..core.input_files import quoted
from ..core.language import phrase
from ..core.model import Model
from ..runtimes.llama_keys import REQUIRED, UNREAD, Key, Required, Values, keys_of, rope_scaling
from ..vocab.in_gguf import read_vocab
from ..vocab.leading_space import LEADING_SPACE
from ..vocab.normal_form import NORMALIZER
from .proof import Finding, MetadataPart, verdict_of
from .tokenizer_keys import check_tokenizer_keys

_TYPES = {
    "whole": phrase("a whole number"),
    "real": phrase("a real number"),
    "flag": phrase("true or false"),
    "text": phrase("a text"),
    "list": phrase("a list"),
}
_SCALING = {"rope.scaling.type": str, "rope.scaling.factor": float, "rope.scale_linear": float}
_SAMPLING = "general.sampling."


def check_metadata(header: GgufHeader, expected: Model) -> MetadataPart:
    """Compare all keys llama.cpp reads; what a file leaves out counts as what llama.cpp takes then.

    ``expected`` has its vocabulary (``vocab.expected.expected_model``). Real numbers are compared as float32.
    Wrong types, missing keys and values out of range are findings; nothing in a header raises.
    """
    assert expected.vocab is not None
    arch = expected.arch
    file, right = _own(header.metadata, arch), _own(expected.hparams, arch)
    vocab, _ = read_vocab(header.metadata)
    file["tokens"], right["tokens"] = vocab.size, expected.vocab.size
    findings = list(_general(header, expected))
    count = 2
    for key in _table(right, expected.left_out):
        finding = _compared(key, file, right, arch)
        findings += [finding] if finding else []
        count += 1
    findings += _rope_scaling(file, right, arch)
    findings += _unread(file, right, arch)
    findings += _of_tokenizer(header.metadata, expected.hparams)
    tokenizer, more = check_tokenizer_keys(header.metadata, expected.vocab)
    findings += [*tokenizer, *_recommended(header.metadata, expected.metadata)]
    findings.sort(key=lambda finding: not finding.grave)
    return MetadataPart(verdict_of(tuple(findings)), count + 1 + more, tuple(findings))


def _own(values: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The architecture's keys, without its name in front."""
    start = arch + "."
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def _table(right: Values, left_out: Values) -> Iterator[Key]:
    """The architecture's keys, and whatever else the family writes."""
    known = keys_of(right)
    for key in known:
        if key.name == "pooling_type" and right.get("attention.causal") is False:
            key = replace(key, harm=phrase("texts get other embeddings"), grave=True)
        if key.name == "attention.causal" and right.get(key.name) is False:
            harm = phrase("where llama_decode reads, as in llama-server, tokens do not see those behind them")
            key = replace(key, harm=harm)
        yield replace(key, default=left_out[key.name]) if key.name in left_out else key
    kinds = {bool: "flag", int: "whole", float: "real", str: "text", tuple: "list"}
    for name, value in right.items():
        if name not in {key.name for key in known} and name not in ("tokens", *_SCALING):
            kind = kinds.get(type(value))
            if kind is not None:
                default = left_out.get(name, REQUIRED)
                yield Key(name, kind, default, phrase("the checkpoint makes it another"))  # type: ignore[arg-type]


def _of_tokenizer(file: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys of the tokenizer's that follow from config.json: how many kinds of segments there are."""
    for key, wanted in right.items():
        if key.startswith("tokenizer.") and file.get(key) != wanted:
            message = phrase(
                "{key} is {value} in the file, but {wanted} in the checkpoint: llama.cpp refuses the file"
            )
            shown = phrase("missing") if key not in file else _shown(file[key])
            message = message.of(key=key, value=shown, wanted=_shown(wanted))
            yield Finding(key, message, _shown(wanted), shown)


def _general(header: GgufHeader, expected: Model) -> Iterator[Finding]:
    arch = header.metadata.get("general.architecture")
    if arch != expected.arch:
        message = phrase(
            "the architecture is {found} in the file, but {expected} for the checkpoint: llama.cpp "
            "computes another model"
        ).of(found=quoted(arch), expected=quoted(expected.arch))
        yield Finding("general.architecture", message, expected.arch, quoted(arch))
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment % ALIGNMENT:
        message = phrase("tensors are aligned to {alignment} bytes; llama.cpp expects {usual}").of(
            alignment=quoted(alignment), usual=ALIGNMENT
        )
        yield Finding("general.alignment", message, str(ALIGNMENT), quoted(alignment), grave=False)


def _compared(key: Key, file: Values, right: Values, arch: str) -> Finding | None:
    """What is wrong with one key, if anything is."""
    where = f"{arch}.{key.name}"
    wanted = _value(key, right)
    value = file.get(key.name)
    if value is None:
        if isinstance(key.default, Required):
            message = phrase("{name} is missing in the file (should be {wanted}): llama.cpp refuses it").of(
                name=key.name, wanted=_shown(wanted)
            )
            return Finding(where, message, _shown(wanted), "missing")
        value = _value(key, file)
        if _equal(value, wanted):
            return None
        message = phrase(
            "{name} is missing in the file, so llama.cpp uses {value}; in the checkpoint it is "
            "{wanted}: {harm}"
        ).of(name=key.name, value=_shown(value), wanted=_shown(wanted), harm=key.harm)
        return Finding(
            where,
            message,
            _shown(wanted),
            phrase("missing (so {value})").of(value=_shown(value)),
            grave=key.grave,
        )
    plain = _one(value, file) if key.layers else value
    if not _fits(key, plain):
        message = phrase("{name} is {value}, but llama.cpp expects {TYPES}").of(
            name=key.name, value=quoted(value), TYPES=_TYPES[key.kind]
        )
        return Finding(where, message, _shown(wanted), quoted(value))
    if _equal(plain, wanted):
        return None
    message = phrase("{name} is {plain} in the file, but {wanted} in the checkpoint: {harm}").of(
        name=key.name, plain=_shown(plain), wanted=_shown(wanted), harm=key.harm
    )
    return Finding(where, message, _shown(wanted), _shown(plain), grave=key.grave)


def _value(key: Key, values: Values) -> Any:
    value = values.get(key.name)
    if value is not None or isinstance(key.default, Required):
        return value
    return key.default(values) if callable(key.default) else key.default


def _one(value: Any, values: Values) -> Any:
    """The one value of a list that has the same for each layer."""
    if isinstance(value, tuple) and value and len(value) == values.get("block_count"):
        return value[0] if all(item == value[0] for item in value) else value
    return value


def _fits(key: Key, value: Any) -> bool:
    if key.kind == "whole":
        return type(value) is int and 0 <= value < 1 << 32
    return type(value) is {"real": float, "flag": bool, "text": str, "list": tuple}[key.kind]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return type(one) is type(other) and _single(one) == _single(other)
    return bool(one == other)


def _single(value: float) -> float:
    """Rounded to float32, without numpy's warning for what is beyond it."""
    return ctypes.c_float(value).value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        text = f"{_single(value):.7g}"
        return text if _single(float(text)) == _single(value) else f"{_single(value):.9g}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else quoted(value)


def _rope_scaling(file: Values, right: Values, arch: str) -> Iterator[Finding]:
    """The scaling of positions, by what its keys amount to together."""
    for name, kind in _SCALING.items():
        if name in file and type(file[name]) is not kind:
            wants = _TYPES["text" if kind is str else "real"]
            message = phrase("{name} is {file}, but llama.cpp expects {wants}").of(
                name=name, file=quoted(file[name]), wants=wants
            )
            yield Finding(f"{arch}.{name}", message, wants, quoted(file[name]))
            return
    wanted, actual = rope_scaling(right), rope_scaling(file)
    if actual[0] == wanted[0] and _equal(actual[1], wanted[1]):
        return
    scaling = file.get("rope.scaling.type", "linear")
    name = "rope.scaling.factor" if scaling in (wanted[0], "linear") else "rope.scaling.type"
    stated, meant = (
        phrase("none")
        if kind == "none"
        else phrase("{kind} by {factor}").of(kind=quoted(kind)[1:-1], factor=_shown(factor))
        for kind, factor in (actual, wanted)
    )
    message = phrase(
        "the scaling of positions is {stated} in the file, but {meant} in the checkpoint: the model"
        " was not trained with this scaling, and answers become incoherent"
    ).of(stated=stated, meant=meant)
    yield Finding(f"{arch}.{name}", message, meant, stated)


def _unread(file: Values, right: Values, arch: str) -> Iterator[Finding]:
    for name, neutral in UNREAD.items():
        value = file.get(name)
        if value is None or name in right or any(_equal(value, one) for one in neutral):
            continue
        message = phrase(
            "{name} is {value} in the file, but not set in the checkpoint; llama.cpp does not read it "
            "for {arch}, other programs may"
        ).of(name=name, value=_shown(value), arch=arch)
        yield Finding(f"{arch}.{name}", message, phrase("missing"), _shown(value), grave=False)


def _recommended(file: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Finding]:
    """Recommendations to programs: sampling that differs from the checkpoint's, a needless space."""
    for key, value in file.items():
        if key.startswith(_SAMPLING) and not _alike(value, right.get(key)):
            name, wanted = key.removeprefix("general."), right.get(key)
            text = phrase("nothing") if wanted is None else _shown(wanted)
            message = phrase("the file recommends {name} {value}, but the checkpoint {text}").of(
                name=name, value=_shown(value), text=text
            )
            yield Finding(key, message, text, _shown(value), grave=False)
    form, wanted = file.get(NORMALIZER), right.get(NORMALIZER)
    if form is not None and form != wanted:
        right_form = phrase("missing") if wanted is None else str(wanted)
        message = phrase("{key} is {value}, for which kconv run normalizes prompts; should be {right}").of(
            key=NORMALIZER, value=quoted(form), right=right_form
        )
        yield Finding(NORMALIZER, message, right_form, quoted(form), grave=False)
    if file.get(LEADING_SPACE) is True and right.get(LEADING_SPACE) is not True:
        message = phrase("the file requires text to begin with a space; this tokenizer does not need it")
        yield Finding(LEADING_SPACE, message, phrase("missing"), "true", grave=False)


def _alike(one: Any, other: Any) -> bool:
    """Equal as float32, whichever of the two numbers is written as a whole one."""
    numbers = all(isinstance(value, int | float) for value in (one, other))
    return _equal(float(one), float(other)) if numbers else bool(one == other)
