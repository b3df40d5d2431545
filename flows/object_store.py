"""Conversions whose files go into an object store: its parts are sent while they are made.

What is to be proven lies in TMPDIR meanwhile, since llama.cpp reads files; what is not is never on a disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..converters.journal import differences
from ..converters.results import CompanionFile, Options, Output
from ..core.claims import NAMES
from ..core.elsewhere import Elsewhere
from ..core.kept import Kept
from ..core.model import Note
from ..core.room import NoRoom
from ..core.scratch import scratch_folder
from ..hub.multipart import end_left_open, put_files, refuse_objects
from ..hub.object_names import ObjectPlace
from ..hub.object_store import ObjectPath
from ..hub.part_sender import PartSender
from ..hub.resumed_uploads import Content, Resumption
from ..hub.upload_notes import OpenUpload
from ..verify.proof import Part, Proof
from ..vocab.parity import Parity
from .convert import convert
from .observer import Observer
from .results import Conversion, Run
from .resume import CannotResume


def convert_to_store(
    source: str | Path | Elsewhere, place: ObjectPlace, options: Options, run: Run, *, modelfile: bool = False
) -> Conversion:
    """As ``convert``; ``place`` is that of a file where it ends in ``.gguf``, else what all keys begin with.

    The parts of an object are sent as soon as their ranges of the plan are finished. Files that are to be
    proven are kept in a temporary folder until they are; without a proof none lies on the disk. The objects
    appear as files do: all when they are whole, before the proof, whose result the manifests get afterwards.
    To resume is to go on with the uploads that a killed run has left open. Raises what ``convert`` raises,
    and HubRefusal, EnvironmentProblem for what the store refuses.
    """
    resumption = Resumption(_judge, run.announce) if run.resume else None
    if resumption is not None:
        resumption.find()
    end_left_open(run.announce, but=() if resumption is None else list(resumption.left.values()))
    one = place.name.endswith(".gguf")
    above = ObjectPlace(place.bucket, place.key.rpartition("/")[0]) if one else place
    with (
        scratch_folder("upload") as scratch,
        PartSender(above, keeps=options.verify != "off", resumption=resumption) as sender,
    ):
        folder = scratch / "files"
        folder.mkdir()

        def planned(paths: Sequence[Path]) -> None:
            if not run.force:
                ours = {} if resumption is None else resumption.completing
                refuse_objects([above / path.name for path in paths], ours)

        def made(paths: Sequence[Path]) -> None:
            sent = sender.finish(run.progress)
            beside = [each for each in _in_order(folder, above) if each[0] not in sender.paths]
            planned([*sender.paths, *(path for path, _ in beside)])  # whoever was there meanwhile, stays
            put_files(beside, run.progress, replacing=run.force, before=sent)
            sender.close()
            run.made([_there(path, above) for path in paths])

        told = _There(run.observer, above)
        here = replace(run, planned=planned, made=made, observer=told, outlet=sender, resume=False)
        with _for_the_proof():
            conversion = convert(
                source, folder / place.name if one else folder, options, here, modelfile=modelfile
            )
        if conversion.proofs:
            manifests = [output.manifest for output in conversion.outputs]
            put_files([(path, above / path.name) for path in manifests], replacing=True)
    outputs = tuple(_output_there(output, above) for output in conversion.outputs)
    companions = tuple(_companion_there(each, above) for each in conversion.companions)
    proofs = tuple(_proof_there(proof, above) for proof in conversion.proofs)
    return replace(conversion, outputs=outputs, companions=companions, proofs=proofs)


def _judge(left: OpenUpload, content: Content) -> None:
    """Raise CannotResume where an ended run was to put something else there."""
    kept = Kept(left.note, left.content or {}, {})
    if told := differences(kept, content["fingerprint"], content["sources"]):
        raise CannotResume(
            f"the upload of {left.place} that was ended cannot be resumed: {'; '.join(told)}",
            hint="leave out --resume to start from the beginning, which ends that upload",
        )


@contextlib.contextmanager
def _for_the_proof() -> Iterator[None]:
    """Say of a want of room in TMPDIR what that room is for."""
    try:
        yield
    except NoRoom as error:
        raise NoRoom(
            f"{error.message}: files are proven on a disk of this machine",
            hint="set TMPDIR to a larger disk, or pass --no-verify, which needs no room here",
        ) from error


class _There(Observer):
    """Tells another observer the same, of objects where the flow speaks of temporary files."""

    def __init__(self, told: Observer, above: ObjectPlace) -> None:
        self._told, self._above = told, above

    def opened(self, source: Path, arch: str, parameters: int, files: Sequence[Path] = ()) -> None:
        """The same."""
        self._told.opened(source, arch, parameters, files)

    def tokens(self, parity: Parity) -> None:
        """The same."""
        self._told.tokens(parity)

    def noted(self, notes: Sequence[Note]) -> None:
        """The same."""
        self._told.noted(notes)

    def writing(self, types: Sequence[str]) -> None:
        """The same."""
        self._told.writing(types)

    def part(self, name: str, part: Part) -> None:
        """The same."""
        self._told.part(name, part)

    def made(self, outputs: Sequence[Output], companions: Sequence[CompanionFile]) -> None:
        """Objects are there."""
        self._told.made(
            [_output_there(each, self._above) for each in outputs],
            [_companion_there(each, self._above) for each in companions],
        )

    def proving(self, artifact: Path, type: str, number: int, files: int) -> None:
        """The proof of an object begins, on the file it was."""
        self._told.proving(_there(artifact, self._above), type, number, files)

    def proven(self, proof: Proof) -> None:
        """All of that proof."""
        self._told.proven(_proof_there(proof, self._above))


def _in_order(folder: Path, above: ObjectPlace) -> list[tuple[Path, ObjectPlace]]:
    """All files of a folder with their places, manifests and Modelfiles behind what they speak of."""
    files = [path for path in folder.iterdir() if path.is_file() and not NAMES.fullmatch(path.name)]
    paths = sorted(files, key=lambda path: (path.suffix != ".gguf", path.name))
    return [(path, above / path.name) for path in paths]


def _there(path: Path, above: ObjectPlace) -> Path:
    return ObjectPath(str(above / path.name))


def _companion_there(companion: CompanionFile, above: ObjectPlace) -> CompanionFile:
    return replace(companion, path=_there(companion.path, above))


def _proof_there(proof: Proof, above: ObjectPlace) -> Proof:
    return replace(proof, artifact=_there(Path(proof.artifact), above))


def _output_there(output: Output, above: ObjectPlace) -> Output:
    return replace(
        output,
        path=_there(output.path, above),
        manifest=_there(output.manifest, above),
        modelfile=None if output.modelfile is None else _there(output.modelfile, above),
        parts=tuple(_there(part, above) for part in output.parts),
    )
