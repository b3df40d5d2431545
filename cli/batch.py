"""``kconv batch``: many conversions from a list."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ProofError, UsageError
from .batch_file import JobsFile, read_jobs_file
from .console import emit_json, plural, say
from .options import PATH, json_option, read_size, scheduler_option, verbose_option

if TYPE_CHECKING:
    from ..flows.batch import Runner
    from ..flows.batch_board import Batch
    from ..flows.batch_downloads import Downloads
    from ..flows.batch_jobs import Step
    from ..flows.executor import Executor
    from .batch_text import Shown

EXAMPLES = """\b
A jobs file (paths are taken from its folder; keys are options of kconv to-gguf and to-onnx):
  [defaults]
  types = ["q8_0", "q4_k_m"]
  output = "dist"
\b
  [[jobs]]
  source = "./42dot_LLM-SFT-1.3B"
  chat-template = "42dot"
\b
  [[jobs]]
  source = "./KEByT5-base"
  formats = ["gguf", "onnx"]
  types.gguf = ["q8_0"]
  types.onnx = ["f32", "q4_0"]
\b
Examples:
  kconv batch jobs.toml --dry-run
  kconv batch jobs.toml --jobs 2 --disk 200G
  kconv batch jobs.toml --shard $SLURM_ARRAY_TASK_ID/8
  kconv batch jobs.toml --status --json
"""


def _shard(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value.strip())
    shard, shards = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard <= shards:
        raise click.BadParameter(f"{value!r}, expected i/n with i from 1 to n: 3/8", context, parameter)
    return shard, shards


@click.command("batch", short_help="Convert many checkpoints, as a list says.", epilog=EXAMPLES)
@click.argument("jobs_file", type=PATH, metavar="JOBS.TOML")
@click.option(
    "--jobs",
    "slots",
    type=click.IntRange(min=1, max=256),
    metavar="N",
    help="Conversions at once, each in a process of its own; they share the processors.  [default: 1]",
)
@click.option(
    "--disk",
    callback=read_size,
    metavar="SIZE",
    help="Most that outputs and downloads may take on the disk: 200G (powers of ten). What does not fit is "
    "not begun.",
)
@click.option(
    "--shard",
    callback=_shard,
    metavar="I/N",
    help="Do the Ith of N parts (1/N to N/N), for several machines or a SLURM array; each has a journal.",
)
@scheduler_option
@click.option("--keep-downloads", is_flag=True, help="Keep what was fetched from the Hub for this.")
@click.option("--dry-run", is_flag=True, help="Show what would be made, with sizes; write nothing.")
@click.option("--status", is_flag=True, help="Show how far all runs and shards are, by their journals.")
@click.option("--again", is_flag=True, help="Make everything again, also what is done.")
@click.option("--force", is_flag=True, help="Overwrite files that these jobs did not make.")
@click.option(
    "--options",
    "more",
    default="",
    metavar="TEXT",
    help="More options for all conversions, as on the command line of kconv to-gguf: '--threads 2 --pure'.",
)
@click.option(
    "--journal",
    type=PATH,
    metavar="FILE",
    help="Where to note what is done.  [default: beside JOBS.TOML, <name>.journal.jsonl]",
)
@json_option
@verbose_option
def command(
    jobs_file: Path,
    slots: int | None,
    disk: int | None,
    shard: tuple[int, int] | None,
    scheduler: str | None,
    keep_downloads: bool,
    dry_run: bool,
    status: bool,
    again: bool,
    force: bool,
    more: str,
    journal: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert the checkpoints that JOBS.TOML lists (- reads it from standard input).

    All types of a checkpoint are made from one read. First everything is planned: what is missing, its size,
    the space it takes. Small ones come first. What fails is named and the rest goes on; the exit code is
    then 1. Each output that is finished is noted in a journal: the same command again makes what is missing,
    failed, or made of other files, options or versions, and nothing else.
    """
    from ..flows.batch_downloads import Downloads, of_journal
    from ..flows.batch_jobs import shard_of
    from ..flows.batch_journal import Journal, journal_paths, latest, read_journals, shard_path

    if slots is not None and scheduler is not None:
        raise UsageError("--jobs and --scheduler cannot be combined", hint="each worker's threads are jobs")
    file = read_jobs_file(jobs_file)
    from .batch_steps import steps_of
    from .batch_text import Shown
    from .live import is_drawable
    from .progress import shown_progress

    steps = steps_of(file, more)
    place = _journal_place(jobs_file, journal)
    records = read_journals(journal_paths(place))
    if shard is not None:
        steps = shard_of(steps, *shard)
    if status:
        from ..flows.batch_board import status_of

        _tell(status_of(steps, latest(records)), file, as_json=as_json)
        return
    own = place if shard is None else shard_path(place, *shard)
    with contextlib.ExitStack() as stack:
        opened = None if dry_run else stack.enter_context(Journal(own))
        settings = {"disk": disk, "force": force, "again": again}
        downloads = Downloads(of_journal(records), keep=keep_downloads)
        several = scheduler is not None or (slots or 1) > 1
        line = stack.enter_context(shown_progress()) if is_drawable(sys.stderr) else None
        shown = Shown(verbose=verbose, several=several, quiet=dry_run, line=line)
        executor = stack.enter_context(_executor(slots or 1, scheduler, shown))
        runner = _runner(executor, steps, latest(records), downloads, settings, shown)
        try:
            runner.plan()
            if opened is None:
                downloads.discard()
            else:
                opened.append_start(jobs=str(jobs_file), shard=shard, outputs=len(runner.batch.outputs))
                runner.run(opened)
        except KeyboardInterrupt:
            stack.close()
            if not as_json:
                _tell_interrupted(runner.batch)
            raise
    _tell(runner.batch, file, as_json=as_json, dry_run=dry_run)


def _journal_place(jobs_file: Path, journal: Path | None) -> Path:
    if journal is not None:
        return journal if journal.suffix else journal.with_name(f"{journal.name}.jsonl")
    if str(jobs_file) == "-":
        raise UsageError("jobs from standard input need --journal", hint="--journal dist/batch.jsonl")
    return jobs_file.with_suffix(".journal.jsonl")


def _executor(slots: int, scheduler: str | None, shown: Shown) -> contextlib.AbstractContextManager[Executor]:
    """The processes of this machine, or Dask's workers."""
    if scheduler is not None:
        from ..flows.dask_executor import DaskExecutor

        return DaskExecutor(scheduler, losses=10)
    from ..core.cores import available_cores
    from ..flows.executor import LocalExecutor

    threads = max(1, available_cores() // slots) if slots > 1 else None
    return LocalExecutor(slots, threads=threads, progress=shown.progress)


def _runner(
    executor: Executor,
    steps: Sequence[Step],
    records: Mapping[str, Any],
    downloads: Downloads,
    settings: Mapping[str, Any],
    shown: Shown,
) -> Runner:
    from ..flows.batch import Runner, Settings
    from ..flows.batch_board import Batch
    from .errors import explain

    return Runner(Batch(steps), executor, records, downloads, Settings(explain, **settings), shown)


def _tell(batch: Batch, file: JobsFile, *, as_json: bool, dry_run: bool = False) -> None:
    """The table or the object, and the exit code."""
    from .batch_text import as_plain, failures, plan_text, summary

    if as_json:
        emit_json({"jobs_file": file.name, **as_plain(batch)})
    elif dry_run:
        say("\n".join([plan_text(batch), *failures(batch)]))
    else:
        say(summary(batch))
    if any(output.error is not None for output in batch.outputs.values()):
        raise click.exceptions.Exit(ProofError.exit_code)


def _tell_interrupted(batch: Batch) -> None:
    done = sum(output.finished for output in batch.outputs.values())
    with contextlib.suppress(OSError):
        say(
            f"interrupted: {done:,} of {plural(len(batch.outputs), 'output')} done; the same command goes on "
            "from there",
            err=True,
        )
