"""The one tree of errors.

KconvError
├── ProofError            1  the result is not what the checkpoint says
│   └── TokenMismatch        no vocabulary gives the checkpoint's token ids
├── UsageError            2  the call makes no sense
├── InputError            3  what was given is refused
│   ├── CheckpointError      files of a checkpoint: missing, truncated, contradictory, hostile
│   ├── UnsupportedModel     an architecture kconv has no family for
│   ├── MappingError         tensors that do not fit the family; lists every gap at once
│   ├── VocabError           a tokenizer that cannot be read or does not fit the rows
│   ├── NonFiniteError       a weight that is NaN or infinite
│   ├── GgufError            a GGUF file that cannot be read
│   ├── EmbedsOnly           an encoder, which writes no text, was to generate some
│   ├── HubRefusal           what the Hub does not give: gated, private, missing, not in the cache
│   └── OutputExists         the target is there already
│       └── AlreadyFinished     … made by this very call, which was to go on with it
└── EnvironmentProblem    4  disk, memory, permission, network
    ├── WeightsElsewhere     weights are to be read of which only the header was fetched
    └── ChildDied            a process of kconv's was killed, crashed or gave no answer

Libraries raise; only ``kconv.cli`` prints and exits, with ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from .language import phrase

MORE_MEMORY = "close other programs, raise the limit (ulimit -v), or use a machine with more memory"
"""What to do where memory runs out."""


class KconvError(Exception):
    """Root of all errors kconv raises on purpose.

    ``message`` says what is wrong, where, and what was expected; ``hint`` says what to do about it.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  what to do: {self.hint}"


class ProofError(KconvError):
    """The result differs from what the checkpoint says."""

    exit_code = 1


class TokenMismatch(ProofError):
    """No candidate vocabulary gives the token ids of the checkpoint's own tokenizer."""


class UsageError(KconvError):
    """The call makes no sense."""

    exit_code = 2


class InputError(KconvError):
    """What was given is refused."""


class CheckpointError(InputError):
    """A checkpoint's files are missing, truncated, contradictory or hostile."""


class UnsupportedModel(InputError):
    """An architecture kconv has no family for."""


class MappingError(InputError):
    """The checkpoint's tensors do not fit its family."""


class VocabError(InputError):
    """A tokenizer that cannot be read, or does not fit the model's rows."""


class NonFiniteError(InputError):
    """A weight is NaN or infinite."""


class GgufError(InputError):
    """A GGUF file that cannot be read."""


class HubRefusal(InputError):
    """What the Hub does not give: a gated, private or missing repository, a revision or file there is not.

    Also what is not in its cache here while it must not be asked (HF_HUB_OFFLINE).
    """


class EmbedsOnly(InputError):
    """An encoder, which embeds texts and writes none, was to generate some."""


class OutputExists(InputError):
    """The target is there already and ``force`` was not given."""


class AlreadyFinished(OutputExists):
    """What ``resume`` was to go on with is finished: ``paths`` are there as this call would make them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        told = phrase("{names}: finished already by this command; nothing was written")
        super().__init__(told.of(names=", ".join(map(str, paths))))
        self.paths = tuple(paths)


class EnvironmentProblem(KconvError):
    """Disk, memory, permission or network."""

    exit_code = 4


class DamagedOnTheWay(EnvironmentProblem):
    """Bytes from elsewhere are not what they were or should be, so nothing made of them can be relied on."""


class WeightsElsewhere(EnvironmentProblem):
    """Weights of a checkpoint on the Hub are to be read, and only headers were fetched, as for a plan."""


def no_temporary_folder(error: OSError) -> EnvironmentProblem:
    """What to raise where TMPDIR takes no file."""
    return EnvironmentProblem(
        f"no folder for temporary files: {error.strerror or error}",
        hint="free some space there, or set TMPDIR to another folder",
    )


class ChildDied(EnvironmentProblem):
    """A process that kconv started was killed, crashed, gave no answer or could not start.

    It is never a verdict on what the process was given. ``signal`` is the one that ended the process, None
    where none did or where it is known to stand for a want of memory.
    """

    def __init__(self, message: str, *, hint: str | None = None, signal: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signal = signal
