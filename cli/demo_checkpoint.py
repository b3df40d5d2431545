"""``kconv demo-checkpoint``: a small checkpoint to try things on."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .console import emit_json, say, size_text
from .options import PATH, force_option, json_option, verbose_option

EXAMPLES = """\b
Examples:
  kconv demo-checkpoint 42dot ./tiny-42dot
  kconv to-gguf ./tiny-42dot -q q8_0
  kconv demo-checkpoint kebyt5 ./tiny-kebyt5
"""


@click.command(
    "demo-checkpoint", short_help=("Write a small checkpoint for trying things out."), epilog=EXAMPLES
)
@click.argument("family")
@click.argument("folder", type=PATH, metavar="DIR")
@force_option
@json_option
@verbose_option
def command(family: str, folder: Path, force: bool, as_json: bool, verbose: bool) -> None:
    """Write a small checkpoint of FAMILY as the Hugging Face folder DIR.

    Nothing is downloaded. `kconv models` lists the families. A folder with any other content is never
    overwritten.
    """
    from .progress import shown_progress

    with shown_progress():
        from ..converters.samples import SAMPLES, write_sample

        # Names are those of the table, in whatever case the user writes them.
        name = next((known for known in SAMPLES if known.lower() == family.lower()), family)
        place = write_sample(name, folder, force=force)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    sizes = {path.relative_to(place).as_posix(): path.stat().st_size for path in files}
    if as_json:
        emit_json({"family": name, "folder": str(place), "files": sizes})
        return
    say(f"{folder}: a small {name} checkpoint, {len(sizes)} files, {size_text(sum(sizes.values()))}")
    say(f"\nTo convert it:\n  kconv to-gguf {shlex.quote(str(folder))} -q q8_0")
