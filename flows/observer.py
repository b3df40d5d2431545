"""What a flow tells as soon as it is known: flows never print, whoever called them may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever shows progress is there before anything heavy is imported
    from ..converters.results import CompanionFile, Output
    from ..core.model import Note
    from ..verify.proof import Part, Proof
    from ..vocab.parity import Parity


class Observer:
    """Told what becomes known while a flow runs, by the thread that called it; by itself it does nothing.

    Override what is of interest. An exception raised in one of these ends the flow like any other.
    """

    def opened(self, source: Path, arch: str, parameters: int, files: Sequence[Path] = ()) -> None:
        """The checkpoint in the folder ``source``, or the GGUF model in ``files``, and its weights."""

    def tokens(self, parity: Parity) -> None:
        """Whether the vocabulary that was chosen gives the checkpoint's token ids."""

    def noted(self, notes: Sequence[Note]) -> None:
        """All notes up to now; those of earlier calls are among them."""

    def writing(self, types: Sequence[str]) -> None:
        """The weights of files of these types are read and written next."""

    def made(self, outputs: Sequence[Output], companions: Sequence[CompanionFile]) -> None:
        """Files have their names."""

    def made_folder(self, folder: Path, files: Mapping[str, int]) -> None:
        """A folder has its name, with ``files`` (name and size in bytes) in it."""

    def proving(self, artifact: Path, type: str, number: int, files: int) -> None:
        """The proof of an artifact begins, ``number`` (from 1) of ``files``."""

    def part(self, name: str, part: Part) -> None:
        """What a part of that proof found (``tokens``)."""

    def proven(self, proof: Proof) -> None:
        """All of that proof."""


UNOBSERVED = Observer()
