"""A comparison of types as one HTML page, of the same kind as the report on a proof."""

from __future__ import annotations

from pathlib import Path

from ..core.files import atomic_file
from ..core.language import ngettext, spoken
from ..flows.compare import Comparison
from .html import environment, style
from .size_chart import size_chart


def write_comparison(comparison: Comparison, path: Path, *, force: bool = False) -> None:
    """Write the page. Raises OutputExists unless ``force``, and EnvironmentProblem."""
    with atomic_file(path, force=force) as temporary:
        temporary.write_bytes(comparison_html(comparison).encode("utf-8", "backslashreplace"))


def comparison_html(comparison: Comparison) -> str:
    """The page as text."""
    name = comparison.source.resolve().name
    heading = ngettext(
        "{count} type of {checkpoint}",
        "{count} types of {checkpoint}",
        len(comparison.types),
        checkpoint=name,
    )
    return environment().get_template("comparison.html.jinja").render(
        comparison=comparison,
        chart=size_chart(comparison.types),
        title=f"{heading} (kconv compare)",
        heading=heading,
        circumstances=comparison.types[0].proof.circumstances,
        language=spoken(),
        css=style(),
    )  # fmt: skip
