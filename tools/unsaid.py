"""Texts in the code that nobody is told: patterns, file contents, codes, marks of SVG and HTML.

They are written in words, so the catalogue would ask for their translation. By files and, where a file has
others besides, by what these texts match.
"""

from __future__ import annotations

import re
from functools import cache

ALL = ""
"""Everything in those files."""

# file -> what its unsaid texts match
UNSAID = {
    r"converters/(known_classes|samples/korean_text)\.py|vocab/texts\.py|runtimes/compiler\.py": ALL,
    r"report/(charts|svg|text|heat_strip|position_charts|size_chart)\.py": ALL,
    # the card of a demo checkpoint is in English
    r"converters/samples/.*": r"demo checkpoint$|^Layout: |^# \{title\}|^Random weights in the shape",
    r"report/(html|model_card)\.py": r"^<",
    r"(package|converters|verify)/__init__\.py": r"^module \{name\} has no attribute",
    # by what a dead process has said it is known what it died of
    r"(core/children|vocab/probe)\.py": r"(?i:^(terminate called|panicked at|fatal (runtime )?error|"
    r"thread creation failed)$|allocat|^(out of|insufficient) memory$|^failed to map|"
    r"^resource temporarily|^can't start new thread)",
    r"flows/release\.py": r"^general\.architecture$",
    r"flows/upload\.py": r"^Upload .* with kconv$",  # what a commit is called
    r"cli/shortage\.py": r"^(can't allocate|cannot map|bad allocation|cannot create exec|thread creation|"
    r"resource temp|too many open|no space|file too large|kconv: error: |failed to|cannot alloc|can't start)|"
    r"^No space left",
    r"cli/models\.py": r"\\|^ but for| in transformers' form$|^Models, and|클래스",
    r"core/machine\.py": r"^model name$",
    r"core/leftovers\.py": r"^in use$",
    r"converters/card\.py": r"\\s",
    r"converters/refusals\.py": r"^\w+(For|Model)\w*( \w+)+$",
    r"quant/named_recipes\.py": r"^(the|all but) ",
    r"quant/policy_file\.py": r"^# |^\[losses\]|^predicted_kl",  # a file's own lines
    r"quant/parts\.py": r"^(token|attention|feed-forward) \w+$",
    r"vocab/(hf_tokenizer|sentencepiece_model|vocabulary_texts|spelled_bytes)\.py": r" (bpe|unigram)$",
    r"vocab/(generation_tags|end_of_turn)\.py": r"^if true$|^kconv \w+$",
    r"vocab/ollama\.py": r"^PARAMETER|^# |\{\{-",
    r"vocab/templates\.py": r"^호기심",
    r"vocab/sampling\.py": r"^prompt format$",
    r"runtimes/examination\.py": r"^what to do: $|-m pip install",
}


@cache
def unsaid(name: str) -> re.Pattern[str] | None:
    """What the unsaid texts of the file ``name`` match; ``ALL`` matches everything."""
    found = [texts for files, texts in UNSAID.items() if re.fullmatch(files, name)]
    return re.compile("|".join(f"(?:{each})" for each in found)) if found else None
