"""The proof as one page: an HTML file without scripts, network or foreign fonts, for browsers and paper.

Everything in it that comes from files is escaped by the template (data/report.html.jinja), made visible by
``report/text.py`` and cut to a length, so the page is safe to open and bounded in size. Equal proofs give
equal bytes, in the same language.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..core.errors import UsageError
from ..core.files import atomic_file
from ..core.language import ngettext, spoken, template, translated
from ..verify.cosine_gates import cosine_text
from ..verify.proof import Proof, TensorError, Verdict, worst
from ..vocab.decoding import byte_symbols
from ..vocab.parity import Difference
from . import charts, facts, figure_words, names, plain_figures, position_charts, similarity_words
from . import text as report_text
from . import words as report_words
from .heat_strip import heat_strip
from .published import Published, published

_MOST_ROWS, _MOST_WORST, _MOST_TENSORS = 100, 24, 1500
_PIECES_BEFORE, _PIECES = 8, 32


@dataclass(frozen=True)
class Pieces:
    """Tokens around the first difference: (text, id, whether it is where they part)."""

    total: int
    left_out: int
    pieces: tuple[tuple[str, int | None, bool], ...]
    more: int


@dataclass(frozen=True)
class DifferenceView:
    """A text that is read differently, cut to where the two part."""

    text: str
    parse_special: bool
    add_special: bool
    expected: Pieces
    got: Pieces


@dataclass(frozen=True)
class View:
    """A proof and all that is drawn or worked out from it; charts are None where there is nothing to show."""

    proof: Proof
    rows: Sequence[figure_words.FigureRow]
    percentiles: Sequence[tuple[str, str]]
    published: Published
    gate_chart: Markup | None
    kl_chart: Markup | None
    dp_chart: Markup | None
    heat_strip: Markup | None
    layer_chart: Markup | None
    different: Sequence[TensorError]
    difference: DifferenceView | None
    command: str


def write_report(proofs: Sequence[Proof], path: Path, *, force: bool = False) -> None:
    """Write ``proofs`` (one or more, say F32, Q8_0 and Q4_0 of one checkpoint) as the HTML file ``path``.

    Raises UsageError for no proofs, OutputExists where ``path`` is there already and ``force`` is not given,
    EnvironmentProblem where it cannot be written; nothing half-written is left.
    """
    with atomic_file(path, force=force) as temporary:
        temporary.write_bytes(report_html(proofs).encode("utf-8", "backslashreplace"))


def report_html(proofs: Sequence[Proof]) -> str:
    """The page as text. Raises UsageError for no proofs."""
    if not proofs:
        raise UsageError("a report needs at least one proof")
    overall = worst([proof.verdict for proof in proofs])
    heading = proofs[0].artifact.name if len(proofs) == 1 else _common_name(proofs)
    return environment().get_template("report.html.jinja").render(
        views=[_view(proof) for proof in proofs],
        title=f"{names.verdict_word(overall)}: {heading} (kconv verify)",
        heading=heading,
        overall=overall,
        summary=names.counted_files(Counter(proof.verdict for proof in proofs)),
        language=spoken(),
        css=style(),
        most_rows=_MOST_ROWS,
        most_worst=_MOST_WORST,
        most_tensors=_MOST_TENSORS,
    )  # fmt: skip


def _common_name(proofs: Sequence[Proof]) -> str:
    sources = {proof.checkpoint.name or str(proof.checkpoint) for proof in proofs}
    if len(sources) > 1:
        return ngettext("{count} file", "{count} files", len(proofs))
    return ngettext(
        "{count} file made from {checkpoint}",
        "{count} files made from {checkpoint}",
        len(proofs),
        checkpoint=sources.pop(),
    )


def _view(proof: Proof) -> View:
    logits, tensors = proof.logits, proof.weights.tensors
    figures, gate, positions = logits.figures, logits.gate, logits.positions
    known = published(gate)
    marked = [(each.window, each.position, each.kl) for each in logits.worst[:_MOST_WORST]]
    gate_chart = None
    if figures is not None and figures.positions and gate is not None:
        value, name = figure_words.gate_value(figures, gate), figure_words.gate_name(gate)
        gate_chart = charts.gate_chart(value, gate, known.of(gate.measure), name)
    diagnosis = logits.diagnosis
    return View(
        proof=proof,
        rows=[] if figures is None else figure_words.figure_rows(figures, gate),
        percentiles=[] if figures is None else figure_words.percentile_rows(figures),
        published=known,
        gate_chart=gate_chart,
        kl_chart=position_charts.kl_by_position(positions, marked, gate) if positions.kl else None,
        dp_chart=position_charts.dp_histogram(positions.dp, figures) if positions.dp and figures else None,
        heat_strip=heat_strip(tensors) if tensors else None,
        layer_chart=charts.layer_chart(diagnosis) if diagnosis and diagnosis.layers else None,
        different=_farthest([tensor for tensor in tensors if tensor.state == "differs"]),
        difference=_difference(proof),
        command=_command(proof),
    )


def _command(proof: Proof) -> str:
    """The command line that gives this proof again; FILE stands for each text, whose name is not known."""
    options = proof.provenance.get("options", {})
    words = ["kconv", "verify", str(proof.artifact), "--against", str(proof.checkpoint)]
    words += ["--text", "FILE"] * options.get("texts", 0)
    for name in ("tokens", "window", "front_end", "max_kl", "min_cosine"):
        given = options.get(name)
        words += [f"--{name.replace('_', '-')}", str(given)] if given is not None else []
    for gate in options.get("gates", ()):
        words += ["--gate", gate]
    if options.get("diagnose") is not None:
        words.append("--diagnose" if options["diagnose"] else "--no-diagnose")
    return shlex.join([*words, *(["--ignore-manifest"] if options.get("ignore_manifest") else [])])


def _farthest(tensors: Sequence[TensorError]) -> list[TensorError]:
    return sorted(tensors, key=lambda tensor: tensor.error / max(tensor.own_error, 1e-6), reverse=True)


def _difference(proof: Proof) -> DifferenceView | None:
    parity = proof.tokens.parity
    difference = None if parity is None else parity.difference
    if difference is None:
        return None
    alike = _alike(difference)
    expected, got = difference.expected_pieces, difference.got_pieces
    if _byte_level(difference):
        expected, got = (tuple(_spelled(piece) for piece in pieces) for pieces in (expected, got))
    return DifferenceView(
        difference.text,
        difference.parse_special,
        difference.add_special,
        _cut(expected, difference.expected, alike),
        _cut(got, difference.got, alike),
    )


def _byte_level(difference: Difference) -> bool:
    """Whether the pieces are written in GPT-2's symbols for bytes: then they spell the text."""
    spelled = b"".join(_bytes(piece) for piece in difference.expected_pieces).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", difference.text.strip()) in unicodedata.normalize("NFC", spelled)


def _bytes(piece: str) -> bytes:
    symbols = byte_symbols()
    known = all(character in symbols for character in piece)
    return bytes(symbols[character] for character in piece) if known else piece.encode("utf-8", "replace")


def _spelled(piece: str) -> str:
    return _bytes(piece).decode("utf-8", "backslashreplace")


def _alike(difference: Difference) -> int:
    """How many ids are the same from the beginning."""
    pairs = zip(difference.expected, difference.got, strict=False)
    same = next((at for at, (left, right) in enumerate(pairs) if left != right), None)
    return min(len(difference.expected), len(difference.got)) if same is None else same


def _cut(pieces: Sequence[str], ids: Sequence[int], alike: int) -> Pieces:
    begin = max(alike - _PIECES_BEFORE, 0)
    shown = tuple(
        (pieces[at], ids[at] if at < len(ids) else None, at == alike)
        for at in range(begin, min(begin + _PIECES, len(pieces)))
    )
    return Pieces(len(ids), begin, shown, max(len(pieces) - begin - _PIECES, 0))


def _scalar(value: Any) -> Markup:
    """A value of the provenance: numbers with separators, all else as visible text."""
    if isinstance(value, bool) or value is None:
        return Markup('<span class="faint">–</span>') if value is None else Markup(str(value).lower())
    if isinstance(value, int):
        return Markup('<span class="limit">{}</span>').format(report_text.count(value))
    shown = report_text.number(value) if isinstance(value, float) else translated(str(value))
    return report_text.visible(shown, 500)


def _tone(verdict: Verdict) -> str:
    """The CSS class of a verdict."""
    return "skipped" if verdict in ("not run", "not compared", "not decided") else verdict


def _items(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(value.items())


def environment() -> jinja2.Environment:
    """The templates of data/, with what they need to show numbers and foreign text."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_data),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions: tuple[Callable[..., Any], ...] = (
        *(report_text.number, report_text.percent, report_text.count, report_text.weights),
        *(report_text.seconds, report_text.plain, report_text.visible, report_text.with_error),
        *(charts.sign, charts.bar),
        *(report_words.headline, report_words.use, plain_figures.in_plain_figures, report_words.part_line),
        *(report_text.sentence, report_words.cause, report_words.rightness, report_words.loss_short),
        *(report_words.measured_loss, report_words.shares_words, figure_words.gate_words),
        *(names.part_title, names.verdict_word, names.right_words, names.state_word),
        *(similarity_words.read_words, similarity_words.similarity_rows, cosine_text),
        *(facts.excluded, facts.provenance_name, facts.windows, facts.date, facts.machine),
        translated,
    )
    made.filters |= {function.__name__: function for function in functions}
    made.filters |= {"scalar": _scalar, "tone": _tone, "items": _items}
    made.globals |= {"_": _markup, "ngettext": ngettext, "mark": _mark, "identifier": _identifier}
    return made


def _markup(text: str, /, **values: Any) -> Markup:
    """A message of a template: it may hold markup, its values are escaped."""
    values = {name: translated(value) if isinstance(value, str) else value for name, value in values.items()}
    return Markup(template(text)).format(**values) if values else Markup(template(text))


def _mark(sign: str) -> Markup:
    return Markup('<span class="mark">{}</span>').format(sign)


def _identifier(token: int) -> Markup:
    return Markup('<span class="id">{}</span>').format(token)


def style() -> Markup:
    """The style sheet of every page."""
    return Markup(_data("report.css"))


def _data(name: str) -> str:
    return (resources.files(__package__) / "data" / name).read_text(encoding="utf-8")
