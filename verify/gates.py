"""Which gate a file is held to, and what its figures say beside it.

A file warns above the gate of its type (quant/gate_table.py), since its loss is more than large models have.
It fails above a limit somebody gave for this run, and f32, which loses nothing, above its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..core.errors import UsageError
from ..core.gguf_file import GgufHeader
from ..core.language import phrase, phrases
from ..quant.formats import format_of_type
from ..quant.gate_table import FILE_TYPES, GATES, MIXTURES, Row
from .measurements import Figures, NotFinite
from .proof import LIMIT, Finding, Gate

_UNSEEN = 3.0  # times the gate
_GELU_NMSE = 1e-4
_TIE = 6 * math.sqrt(2)  # times the RMS difference: six standard deviations of what two logits differ by
_GELU = phrase("llama.cpp computes GELU through a table of 16-bit numbers")

MEASURES = {
    "kl_mean": phrase("mean KL divergence"),
    "nmse": phrase("normalized squared error of the logits"),
}
_NAMES = {name.lower(): name for name in (*GATES, *MIXTURES)}

_LAYER = re.compile(r"(^|\.)blk\.\d+\.")
_SHARE = 1 / 3


def gate_for(
    type_name: str, *, gelu: bool = False, overrides: Mapping[str, float] = {}, recomputed: bool = True
) -> Gate:
    """The gate of a type, a format (``q4_K``) or a mixture (``q4_K_M``), case ignored.

    ``gelu`` is for families with that activation. ``overrides`` gives other limits by type, a mixture's name
    before its format's, or under an empty name for whatever the type; above such a limit the file fails.
    Where the runtime is not ``recomputed``, as in ONNX, only the logits show a wrong graph: there a file also
    fails above three times the gate. Raises UsageError for unknown types and limits that are no positive
    numbers.
    """
    own = {known_type(name) if name else "": positive(value, name) for name, value in overrides.items()}
    name = known_type(type_name)
    row = GATES[MIXTURES.get(name, name)]
    published = _published(row, name)
    for key in (name, MIXTURES.get(name, name), ""):
        if key in own:
            return _gate(name, row, own[key], phrase("given for this run"), published, fails=True)
    if row.measure == "nmse" and gelu:
        return _gate(name, row, _GELU_NMSE, _GELU, published, fails=True)
    gate = _gate(name, row, row.limit, row.source, published, fails=row.measure == "nmse")
    # to twelve digits: 0.45, not 0.44999999999999996
    most = float(f"{_UNSEEN * row.limit:.12g}")
    return gate if recomputed or gate.fails is not None else replace(gate, fails=most)


def _gate(
    name: str, row: Row, limit: float, source: str, published: Mapping[str, float | str], *, fails: bool
) -> Gate:
    return Gate(name, row.measure, limit, limit if fails else None, source, published)


def _published(row: Row, name: str) -> dict[str, float | str]:
    """Figures by their names in ``proof.Figures`` and whose they are; those of the very type come first."""
    return {
        f"{figure} of {each.whose}": value
        for each in sorted(row.published, key=lambda each: each.type != name)
        for figure, value in each.figures.items()
    }


def published_figure(gate: Gate, figure: str) -> tuple[str, float] | None:
    """Whose figure of that name stands beside the gate, and the figure; None where nobody published one."""
    for name, value in gate.published.items():
        if name.startswith(f"{figure} of ") and isinstance(value, float):
            return name.removeprefix(f"{figure} of "), value
    return None


def known_type(name: str) -> str:
    """The type in the spelling of the table, case ignored. Raises UsageError for one it does not hold."""
    known = _NAMES.get(name.strip().lower())
    if known is None:
        raise UsageError(f"there is no gate for the type {name!r}", hint=f"types are {', '.join(GATES)}")
    return known


def parse_gates(texts: Sequence[str]) -> dict[str, float]:
    """Limits from ``TYPE=VALUE`` or ``VALUE`` (of the file's own type, under an empty name).

    Raises UsageError for unknown types, values that are no positive numbers, and a type named twice.
    """
    gates: dict[str, float] = {}
    for text in texts:
        before, equals, after = text.rpartition("=")
        name = known_type(before) if equals else ""
        try:
            value = float(after)
        except ValueError:
            value = math.nan
        if name in gates:
            raise UsageError(f"two gates for {name or 'the type of the file'}", hint="give each type once")
        gates[name] = positive(value, text)
    return gates


def positive(value: float, text: str) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise UsageError(
            f"invalid gate {text if math.isnan(value) else str(value)!r}: expected a positive number",
            hint="for example 0.2, or q4_0=0.2 for one type",
        )
    return float(value)


def judge(figures: Figures, gate: Gate, max_kl: float | None = None) -> tuple[Finding, ...]:
    """What the gate says of the figures: nothing, a warning or a failure; logits that are NaN always fail.

    ``max_kl`` is the mean divergence above which any type fails.
    """
    findings = [_not_finite(figures.not_finite)] if figures.not_finite else []
    if not figures.positions:
        if not findings:
            findings.append(Finding("logits", phrase("no position was measured, so nothing was proven")))
        return tuple(findings)
    if max_kl is not None and not figures.kl_mean <= max_kl:
        limit, digits = _digits(max_kl), _digits(figures.kl_mean, max_kl)
        message = phrase("mean KL divergence {digits} is above the limit of {limit} given for this run").of(
            digits=digits, limit=limit
        )
        findings.append(Finding(LIMIT, message, phrase("at most {limit}").of(limit=limit), digits))
    value = getattr(figures, gate.measure)
    failed = gate.fails is not None and value > gate.fails
    if failed or value > gate.warns:
        findings.append(_beyond(value, gate, failed=failed))
    elif gate.measure == "nmse" and figures.other_top1_lead > _TIE * figures.logit_rms:
        findings.append(_no_tie(figures))
    return tuple(findings)


def _no_tie(figures: Figures) -> Finding:
    """Rounding swaps two tokens that are about equally likely, and no others."""
    lead, rms, limit = figures.other_top1_lead, figures.logit_rms, _TIE * figures.logit_rms
    count = phrases("{count} position", "{count} positions", figures.other_top1)
    message = phrase(
        "another token comes first at {count}, not only in ties: the checkpoint's choice was ahead "
        "by up to {lead} logits, {times:.0f} times the RMS difference of all logits"
    ).of(count=count, lead=_digits(lead, limit), times=lead / rms)
    return Finding(
        "logits", message, phrase("at most {limit}").of(limit=_digits(limit)), _digits(lead, limit)
    )


def _beyond(value: float, gate: Gate, *, failed: bool) -> Finding:
    name = MEASURES[gate.measure]
    limit = gate.fails if failed and gate.fails is not None else gate.warns
    digits = _digits(value, limit)
    message = phrase("{name} {digits} is above the gate of {limit} for {type}")
    if failed:
        message = phrase("{name} {digits} is above the limit of {limit} for {type}")
    message = message.of(name=name, digits=digits, limit=_digits(limit), type=gate.type)
    published = published_figure(gate, "kl_mean")
    if published is not None:
        message = phrase("{message}; published {whose}: {value}").of(
            message=message, whose=published[0], value=_digits(published[1])
        )
    given = failed and gate.measure == "kl_mean" and gate.fails == gate.warns
    return Finding(
        LIMIT if given else "logits",
        message,
        phrase("at most {limit}").of(limit=_digits(limit)),
        digits,
        failed,
    )


def _not_finite(counted: NotFinite) -> Finding:
    whose = {
        (True, True): phrase("of the checkpoint and of the file"),
        (True, False): phrase("of the checkpoint itself"),
        (False, True): phrase("of the file"),
    }[counted.checkpoint, counted.file]
    where = phrase("window {window}, position {position}")
    where = where.of(window=counted.window + 1, position=counted.position + 1)
    places = phrases("{count} position", "{count} positions", counted.positions)
    return Finding(
        where,
        phrase("logits {whose} are NaN or infinite at {places}, first at {where}").of(
            whose=whose, places=places, where=where
        ),
        phrase("numbers"),
        phrase("NaN or infinite"),
    )


def _digits(value: float, other: float | None = None) -> str:
    """Three digits, or as many as it takes to differ from ``other``."""
    texts = [f"{value:.{digits}g}".replace("e-0", "e-") for digits in range(3, 18)]
    return next((text for text in texts if other is None or text != _digits(other)), texts[-1])


def file_type(header: GgufHeader) -> str:
    """The type a file is to be held to: what it says of itself, or what it holds, whichever is tighter.

    What it says (general.file_type) names a mixture of llama.cpp's (``q4_K_M``) and stands if its format is
    the one held. What it holds is judged by the matrices of the layers, since embedding and output are often
    kept finer and in a small model outweigh the rest: the coarsest formats that together make up a third.
    Only a file of nothing else is f32, which may lose nothing: one coarser matrix, such as a head, loses.
    """
    declared, stored = _declared(header), _layer_format(header)
    name = stored or declared or "f32"
    if declared is not None and stored is not None:
        same = MIXTURES.get(declared, declared) == stored
        name = declared if same or _limit_of(declared) < _limit_of(stored) else stored
    exact = GATES[MIXTURES.get(name, name)].measure == "nmse"
    return (_layer_format(header, lossy=True) or name) if exact else name


def mislabelled(header: GgufHeader) -> Finding | None:
    """A remark where a file holds weights far finer or coarser than it says; None where the two fit.

    Far is a gate twice as tight or as loose: llama.cpp's own mixtures and the formats it falls back to for
    rows that are not whole blocks stay within that, but for rows no block fits, which it keeps in f16.
    """
    declared, stored = _declared(header), _layer_format(header)
    if declared is None or stored is None:
        return None
    limit, actual = _limit_of(declared), _limit_of(stored)
    if limit[0] == actual[0] and max(limit[1], actual[1]) < 2 * min(limit[1], actual[1]):
        return None
    message = phrase(
        "the file is labelled {declared}, but the weights of its layers are {stored}; the gate of "
        "{type} is applied"
    ).of(declared=declared, stored=stored, type=file_type(header))
    return Finding("general.file_type", message, declared, stored, grave=False)


def _declared(header: GgufHeader) -> str | None:
    number = header.metadata.get("general.file_type")
    return FILE_TYPES.get(number) if isinstance(number, int) and not isinstance(number, bool) else None


def _limit_of(name: str) -> tuple[bool, float]:
    """By which types sort from tight to loose; NMSE limits are tighter than any divergence."""
    row = GATES[MIXTURES.get(name, name)]
    return row.measure != "nmse", row.limit


def _layer_format(header: GgufHeader, *, lossy: bool = False) -> str | None:
    """The format the layers' weights are in; of all matrices where there are no layers.

    ``lossy``: of those alone that are in a format that loses something.
    """
    layers: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for info in header.tensors:
        format = format_of_type(info.ggml_type)
        name = format.name if format is not None else ""
        matrix = sum(length > 1 for length in info.shape) > 1 and not info.name.endswith("_norm.weight")
        if matrix and name in GATES and not (lossy and GATES[name].measure == "nmse"):
            (layers if _LAYER.search(info.name) else others)[name] += math.prod(info.shape)
    weights = layers or others
    coarsest = sorted(weights, key=lambda name: (_limit_of(name), weights[name]), reverse=True)
    reached, total = 0, weights.total()
    for name in coarsest:
        reached += weights[name]
        if reached >= total * _SHARE:
            return name
    return None
