"""``kconv upload``: proven files to a repository of the Hub."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.language import spoken
from .card_options import card_options, languages, say_unknown_base, stated
from .console import emit_json, plural, say, size_text, table
from .options import json_option, verbose_option
from .sources import SOURCE

if TYPE_CHECKING:
    from ..flows.release import Release
    from ..flows.upload import Upload

EXAMPLES = """\b
Examples:
  kconv upload dist/42dot_LLM-SFT-1.3B-Q4_0.gguf tester/42dot_LLM-SFT-1.3B-GGUF --dry-run
  kconv upload dist/*.gguf tester/42dot_LLM-SFT-1.3B-GGUF --base-model 42dot/42dot_LLM-SFT-1.3B
  kconv upload dist/*.gguf 42dot-onnx tester/42dot_LLM-SFT-1.3B-GGUF --public --also LICENSE
  kconv upload other/42dot-GGUF:Q4_0 tester/42dot_LLM-SFT-1.3B-GGUF
  kconv upload dist/*.gguf other/42dot-GGUF --create-pr --message "Proven by kconv"
"""


@click.command(
    "upload", short_help="Send proven files to the Hugging Face Hub, with a model card.", epilog=EXAMPLES
)
@click.argument("files", type=SOURCE, nargs=-1, required=True)
@click.argument("repository", metavar="ORG/NAME")
@click.option("--dry-run", is_flag=True, help="Show the card and what would be sent; send nothing.")
@click.option("--public", is_flag=True, help="Make a new repository public.  [default: private]")
@click.option("--revision", metavar="NAME", help="Branch, or refs/pr/1 of a pull request.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of writing to the branch.")
@click.option("--message", metavar="TEXT", help="Message of the commits.")
@click.option("--replace", "replace_files", is_flag=True, help="Replace files that are there and differ.")
@click.option("--replace-card", is_flag=True, help="Replace a README.md that kconv did not write.")
@card_options
@click.option(
    "--force",
    is_flag=True,
    help="Upload although the proof failed or is missing, files were changed, or the licence forbids it.",
)
@json_option
@verbose_option
def command(
    files: tuple[str | Path, ...],
    repository: str,
    dry_run: bool,
    public: bool,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    replace_files: bool,
    replace_card: bool,
    lang: str,
    force: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Send FILES, GGUF files and ONNX folders of one model, to the repository ORG/NAME of the Hub.

    Manifests, companion files and Modelfiles beside them go along, and a model card made from the
    manifests, which also lists what is there already. A new repository is private. Run again after an
    interruption, it sends what is missing. Refused, unless --force: files without a proof or with a failed
    one, files that are no longer as their manifest says, licences that forbid it. GGUF files of the Hub
    (hf://org/name/x.gguf, org/name:Q4_K_M) are downloaded first. Log in with `hf auth login`.
    """
    from ..core.errors import UsageError
    from ..hub.names import is_repository
    from .progress import shown_progress

    if Path(repository).exists() and not Path(files[0]).exists() and is_repository(str(files[0])):
        words = [repository, *map(str, files[1:]), str(files[0])]
        raise UsageError(
            f"{repository} is a file, expected the name of a repository",
            hint=f"kconv upload {shlex.join(words)}",
        )
    if create_pr and revision is not None:
        raise UsageError("--create-pr and --revision cannot be combined", hint="leave one of them out")
    with shown_progress() as progress:
        from ..flows.release import read_release
        from ..flows.upload import check_name, hashed, objections, refuse

        check_name(repository)
        release = read_release(files, stated(options), fetch=True, progress=progress)
        say_unknown_base(release)
        digests = hashed(release, progress)
    against = objections(release, digests)
    for each in against if force else ():
        say(f"kconv: forced: {each}", err=True)
    if release.terms.distribution in ("conditions", "unknown"):
        name = release.licence_name or release.licence
        say(
            f"kconv: licence {name}: {release.terms.sentences[spoken()]} {release.terms.source or ''}",
            err=True,
        )
    chosen = languages(lang)
    if dry_run:
        _show(release, digests, repository, chosen, [] if force else against, as_json=as_json)
    if not force:
        refuse(against)
    if not dry_run:
        from ..flows.upload import Wishes
        from ..hub.upload import Place

        place = Place(repository, revision or "main")
        wishes = Wishes(place, public, create_pr, message, replace_files, replace_card)
        _print(_upload(release, digests, wishes, chosen, quiet=as_json), as_json=as_json)


def _upload(
    release: Release, digests: dict[str, str], wishes: Any, chosen: tuple[str, ...], *, quiet: bool
) -> Upload:
    from ..flows.upload import upload
    from ..report.model_card import merged_card, model_card

    if quiet or not sys.stderr.isatty():  # before huggingface_hub is imported, which reads it
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def card(whole: Release, user: str) -> str:
        return model_card(whole, languages=chosen, repository=wishes.place.repository, quantized_by=user)

    return upload(release, digests, wishes, card, merged_card, lambda text: say(f"kconv: {text}", err=True))


def _show(
    release: Release,
    digests: dict[str, str],
    repository: str,
    chosen: tuple[str, ...],
    against: list[str],
    *,
    as_json: bool,
) -> None:
    """What would be sent."""
    from ..flows.artifacts import README
    from ..flows.upload import plan, sizes
    from ..report.model_card import model_card
    from .progress import shown_progress

    with shown_progress():
        maker = repository.partition("/")[0]
        text = model_card(release, languages=chosen, repository=repository, quantized_by=maker)
    rows = [*sizes(plan(release, digests)), (README, len(text.encode()))]
    if as_json:
        listed = [{"name": name, "bytes": size} for name, size in rows]
        emit_json({"repository": repository, "files": listed, "refused": against, "card": text})
        return
    click.echo(text)
    say(table([(name, size_text(size)) for name, size in rows], header=("file", "size"), right=(1,)))
    total = size_text(sum(size for _, size in rows))
    say(f"\n{plural(len(rows), 'file')}, {total}, would be sent to {repository} (nothing was sent)")


def _print(done: Upload, *, as_json: bool) -> None:
    if as_json:
        emit_json(done.to_json())
        return
    if done.card_kept:
        say(
            "kconv: the README.md there was kept; kconv card shows ours, --replace-card replaces it", err=True
        )
    sent = plural(len(done.sent), "file")
    say(f"{done.url}: {sent} sent ({size_text(done.bytes_sent)}), {len(done.there)} there already")
