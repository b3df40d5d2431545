"""The figures of an encoder's embeddings part, in words and as rows of a table."""

from __future__ import annotations

from ..core.language import Phrase, _, ngettext, phrase, translated
from ..verify.cosine_gates import cosine_text
from ..verify.embeddings_part import CosineGate, EmbeddingsPart, Similarity
from .text import number, percent

_POOLINGS = {
    "mean": phrase("mean of the hidden states"),
    "cls": phrase("hidden state of the first token"),
    "last": phrase("hidden state of the last token"),
    "none": phrase("hidden states; nothing says how they are pooled"),
}


def similarity_line(part: EmbeddingsPart) -> str:
    """``cosine 0.99946, least 0.9990, gate 0.999``: what most people want to know."""
    figures, gate = part.figures, part.gate
    if figures is None:
        return _("The runtime gave no embeddings to compare.")
    if not figures.texts or gate is None:
        return _("Embeddings could not be compared for any text.")
    line = _(
        "cosine {mean}, least {least}, gate {gate}",
        mean=cosine_text(figures.cosine_mean),
        least=cosine_text(figures.cosine_least),
        gate=cosine_text(gate.least),
    )
    if part.padded is not None:
        line += _("; padded {value}", value=cosine_text(part.padded))
    if gate.nmse is not None:
        line += _("; NMSE {value}, gate {gate}", value=number(figures.nmse), gate=f"{gate.nmse:g}")
    left = figures.nmse_same_gelu
    return line if left is None else line + _("; {left} with llama.cpp's GELU in fp32", left=number(left))


def pooling_words(figures: Similarity) -> str:
    """How a text's embedding is made."""
    return translated(_POOLINGS.get(figures.pooling, phrase("none")))


def read_words(figures: Similarity) -> str:
    """``Embeddings of 22 texts, 1,650 tokens (mean of the hidden states)``."""
    return _(
        "Embeddings of {texts}, {tokens} ({pooling})",
        texts=ngettext("{count} text", "{count} texts", figures.texts),
        tokens=ngettext("{count} token", "{count} tokens", figures.positions),
        pooling=pooling_words(figures),
    )


def similarity_rows(figures: Similarity, gate: CosineGate | None) -> list[tuple[str, str, str, str]]:
    """Name, value, gate and meaning of each figure."""
    at_least = "" if gate is None else _("at least {limit}", limit=cosine_text(gate.least))
    at_most = "" if gate is None or gate.nmse is None else _("at most {limit}", limit=f"{gate.nmse:g}")
    rows: list[tuple[Phrase, str, str, Phrase]] = [
        (phrase("Cosine of embeddings, mean"), cosine_text(figures.cosine_mean), at_least,
         phrase("file against checkpoint, text by text; 1 is equal")),
        (phrase("Cosine of embeddings, least"), cosine_text(figures.cosine_least), "",
         phrase("the text that differs most")),
        (phrase("Same nearest text"), percent(figures.same_nearest, 1), "",
         phrase("texts whose most similar other text is the same in both")),
        (phrase("Cosine of hidden states, mean"), cosine_text(figures.states_mean), "",
         phrase("the same at single tokens")),
        (phrase("Cosine of hidden states, least"), cosine_text(figures.states_least), "",
         phrase("the token that differs most")),
        (phrase("Hidden states, NMSE"), number(figures.nmse), at_most,
         phrase("squared difference over the checkpoint's variance")),
    ]  # fmt: skip
    if figures.nmse_same_gelu is not None:
        meaning = phrase(
            "the same when llama.cpp's 16-bit GELU table is computed in fp32: what is left is not due to the "
            "table"
        )
        rows.append((phrase("Hidden states, NMSE, same GELU"), number(figures.nmse_same_gelu), "", meaning))
    return [(translated(name), value, limit, translated(meaning)) for name, value, limit, meaning in rows]
