"""``kconv card``: the model card of files, from their manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .card_options import card_options, languages, say_unknown_base, stated
from .console import emit_json, plural, say, size_text
from .options import PATH, force_option, json_option, verbose_option
from .sources import SOURCE

EXAMPLES = """\b
Examples:
  kconv card dist/42dot_LLM-SFT-1.3B-Q4_0.gguf dist/42dot_LLM-SFT-1.3B-Q8_0.gguf -o dist/README.md
  kconv card dist/*.gguf 42dot-onnx --repo tester/42dot_LLM-SFT-1.3B-GGUF --lang ko
  kconv card hf://tester/42dot-GGUF/42dot-Q4_0.gguf tester/42dot-GGUF:Q8_0
  kconv card dist/*.gguf --base-model 42dot/42dot_LLM-SFT-1.3B --license cc-by-nc-4.0 -o README.md
"""


@click.command("card", short_help="Write the model card (README.md) of files.", epilog=EXAMPLES)
@click.argument("files", type=SOURCE, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write to a file.  [default: print it]")
@click.option(
    "--repo",
    metavar="ORG/NAME",
    help="Repository the files will be in, for commands that fetch them from there.",
)
@click.option("--quantized-by", metavar="NAME", help="Who made the files.  [default: ORG of --repo]")
@card_options
@force_option
@json_option
@verbose_option
def command(
    files: tuple[str | Path, ...],
    output: Path | None,
    repo: str | None,
    quantized_by: str | None,
    lang: str,
    force: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Write the model card of FILES, which are GGUF files and ONNX folders of one model.

    It is made from the manifests beside them: the original and its commit, every file with its size, bits per
    weight, loss and verdict ("not proven" where there is no proof), how to run them in llama.cpp, Ollama, LM
    Studio and onnxruntime, chat format, licence, versions. `kconv upload` writes it by itself. Of GGUF files
    on the Hub (hf://org/name/x.gguf, org/name:Q4_K_M) headers and manifests are fetched, no weights.
    """
    from ..core.errors import UsageError
    from ..hub.names import is_repository
    from .progress import shown_progress

    if repo is not None and not is_repository(repo):
        raise UsageError(f"--repo {repo} is not the name of a repository", hint="write it as org/name")
    with shown_progress():
        from ..flows.folder_card import record_card
        from ..flows.release import read_release
        from ..report.model_card import model_card, write_card

        release = read_release(files, stated(options))
        say_unknown_base(release)
        maker = quantized_by or (repo or "").partition("/")[0] or None
        text = model_card(release, languages=languages(lang), repository=repo, quantized_by=maker)
        if output is not None:
            write_card(text, output, force=force)
            record_card(output)
    if as_json:
        path = None if output is None else str(output)
        unproven = [each.name for each in release.artifacts if not each.evidence.proven]
        emit_json({"path": path, "card": text, "unproven": unproven, "license": release.licence})
    elif output is None:
        click.echo(text, nl=False)
    else:
        made = plural(len(release.artifacts), "file")
        say(f"{output}: model card of {made}, {size_text(len(text.encode()))}")
