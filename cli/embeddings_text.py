"""An encoder's embeddings in a proof on a terminal: the figures, and the texts that differ most."""

from __future__ import annotations

from ..core.language import _
from ..report.similarity_words import read_words, similarity_rows
from ..verify.cosine_gates import cosine_text
from ..verify.embeddings_part import EmbeddingsPart
from .console import printable, table

_WORST = 3
_TEXT = 60
_NOTHING = 1e-6  # of a cosine; what differs by less is arithmetic


def embeddings_figures(part: EmbeddingsPart) -> str:
    """The figures and the gate, side by side."""
    if part.figures is None or not part.figures.texts:
        return ""
    rows = [
        (f"  {name}", value, gate) for name, value, gate, _meaning in similarity_rows(part.figures, part.gate)
    ]
    rows = [tuple(_plain(cell) for cell in row) for row in rows]  # type: ignore[misc]
    header = ("  " + _("figure"), _("this file"), _("gate"))
    lines = [_plain(read_words(part.figures)), table(rows, header=header, right=(1,))]
    if part.gate is not None:
        lines.append("  " + printable(_("the gate: {source}", source=part.gate.source)))
    return "\n".join(lines)


def worst_texts(part: EmbeddingsPart) -> str:
    """The texts whose embeddings differ most."""
    shown = [text for text in part.worst[:_WORST] if not text.cosine > 1 - _NOTHING]  # NaN is shown
    if not shown:
        return ""
    lines = [_("Where file and checkpoint disagree most")]
    for text in shown:
        start = printable(text.text)[:_TEXT]
        lines.append(f"  {cosine_text(text.cosine)}  {start}{'…' if len(text.text) > _TEXT else ''}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return text.replace("\xa0", " ")
