"""What a conversion tells, printed as it becomes known: header, tokens, notes, files, verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from ..core.language import _
from ..flows.observer import Observer
from .console import (
    OUTPUT_HEADER,
    count_text,
    output_row,
    print_parts,
    say,
    say_notes,
    size_text,
    source_text,
    table,
)
from .progress import Shown, announce, naming_finished_files, shown_progress

if TYPE_CHECKING:
    from ..converters.results import CompanionFile, Output
    from ..core.model import Note
    from ..verify.proof import Part, Proof
    from ..vocab.parity import Parity


class _Printer(Observer):
    """Prints on standard output, nothing where that is for one JSON object (``quiet``).

    Where standard output cannot be written to any more, the work in its ``with`` block goes on, and the error
    is raised behind it.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._failure is not None:
            raise self._failure

    def _print(self, tell: Callable[[], None]) -> None:
        if self._quiet or self._failure is not None:
            return
        try:
            tell()
        except OSError as error:  # no reason to lose hours of work
            self._failure = error


class Teller(_Printer):
    """Prints what becomes known of a conversion.

    ``shown`` is the progress, which says of which file it is. ``tokens`` and ``files`` say whether those are
    worth a line.
    """

    def __init__(self, shown: Shown, *, quiet: bool, tokens: bool = True, files: bool = True) -> None:
        super().__init__(quiet=quiet)
        self._shown = shown
        self._tells_tokens, self._tells_files = tokens, files
        self._sources: Sequence[Path] = ()
        self._notes: set[Note] = set()
        self._remarks: set[str] = set()
        self._labels: dict[Path, str] = {}

    def opened(self, source: Path, arch: str, parameters: int, files: Sequence[Path] = ()) -> None:
        """The first line."""
        self._sources = files
        inside = f" in {len(files)} parts" if len(files) > 1 else ""
        told = {"source": source_text(source), "arch": arch, "weights": count_text(parameters)}
        self._print(lambda: say(_("{source}: {arch}, {weights} weights{inside}", **told, inside=inside)))

    def tokens(self, parity: Parity) -> None:
        """A line."""
        if self._tells_tokens:
            self._print(lambda: say(_("tokens: {text}", text=parity_text(parity))))

    def noted(self, notes: Sequence[Note]) -> None:
        """A line for each that was not told before."""
        fresh = [note for note in dict.fromkeys(notes) if note not in self._notes]
        self._notes.update(fresh)
        self._print(lambda: say_notes(fresh))

    def writing(self, types: Sequence[str]) -> None:
        """Of which files the progress is."""
        self._shown.label = types[0] if len(types) == 1 else _("{count} files", count=len(types))

    def made(self, outputs: Sequence[Output], companions: Sequence[CompanionFile]) -> None:
        """A table."""
        self._shown.label = ""
        # Files whose formats were chosen are called as asked for (3M): of one type there may be several.
        self._labels.update((each.path, each.type) for each in outputs if each.choice is not None)
        rows = [output_row(output) for output in outputs]
        rows += [(str(each.path), each.arch, size_text(each.bytes), "32.00", "f32") for each in companions]

        def tell() -> None:
            from .choice_text import print_choices

            say(f"\n{table(rows, header=OUTPUT_HEADER, right=(2, 3))}\n", wrap=False)
            print_parts(outputs, self._sources)
            print_choices(outputs)

        if self._tells_files:
            self._print(tell)

    def made_folder(self, folder: Path, files: Mapping[str, int]) -> None:
        """A table of what is in it."""
        self._shown.label = ""
        rows = [(name, size_text(size)) for name, size in files.items()]
        self._print(lambda: say(f"\n{table(rows, header=('file', 'size'), right=(1,))}\n", wrap=False))

    def proving(self, artifact: Path, type: str, number: int, files: int) -> None:
        """Of which file the progress is from now on."""
        type = self._labels.get(artifact, type)
        self._shown.label = type
        if files > 1:
            self._shown.label = _("{type}, {number} of {files}", type=type, number=number, files=files)

    def proven(self, proof: Proof) -> None:
        """A line, and the remarks that were not made of a file before."""
        from .proof_text import proof_line

        self._shown.label = ""
        fresh = [remark for remark in dict.fromkeys(proof.notes) if remark not in self._remarks]
        self._remarks.update(fresh)

        def tell() -> None:
            click.echo(proof_line(proof, self._labels.get(Path(proof.artifact))))
            for remark in fresh:
                say(_("note: {note}", note=remark))

        self._print(tell)


@contextlib.contextmanager
def telling(what: str, checkpoint: str | Path, *, quiet: bool) -> Iterator[dict[str, Any]]:
    """The arguments by which a conversion is told as it runs.

    An exception after its files are finished says that ``what``, ``the files are``, complete.
    """
    with (
        shown_progress() as progress,
        Teller(progress, quiet=quiet) as observer,
        naming_finished_files(what, checkpoint) as made,
    ):
        yield {"progress": progress, "announce": announce, "made": made, "observer": observer}


class ProofTeller(_Printer):
    """Prints what is proven against what, and a line for each part of the proof."""

    def opened(self, source: Path, arch: str, parameters: int, files: Sequence[Path] = ()) -> None:
        """Told when the artifact's type is known, too."""
        self._against = source, arch, parameters

    def proving(self, artifact: Path, type: str, number: int, files: int) -> None:
        """Two lines."""
        from .proof_text import proof_head

        self._print(lambda: click.echo(f"{proof_head(artifact, type, *self._against)}\n"))

    def part(self, name: str, part: Part) -> None:
        """A line."""
        from .proof_text import part_text

        self._print(lambda: click.echo(part_text(name, part)))


def parity_text(parity: Parity) -> str:
    """How many of the texts give the checkpoint's own token ids, and what of the others."""
    equal = f"{parity.exact:,} of {parity.texts:,} texts give the checkpoint's own token ids"
    remark = {
        "exact": "",
        "leading-space": ", all of them when given with a leading space (see the note)",
        "extra-spaces": ", all of them apart from extra spaces (see the note)",
        "nfc": f", all {parity.texts - parity.not_nfc:,} in Unicode form NFC among them (see the warning)",
        "sentencepiece": ", all others SentencePiece's own (see the warning)",
        "in-vocabulary": ", all of them in characters the vocabulary has (see the warning)",
        "plain-letters": ", all of them without marks and cased letters beyond ASCII (see the warning)",
        "ordinary-words": ", all of them but for odd words (see the note)",
    }.get(parity.verdict, ": THE TOKENS DIFFER, written anyway as requested")
    known = {"equal": equal, "remark": remark, "candidate": str(parity.candidate)}
    return _("{equal}{remark} (vocabulary: {candidate})", **known)
