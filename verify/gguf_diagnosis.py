"""The layer at which a GGUF goes wrong, added to the logits part of its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import ChildDied
from ..core.language import phrase
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..runtimes.reader import RuntimeFailure, WindowReader
from .diagnosis import diagnose
from .inputs import Expected, VerifyOptions
from .proof import Finding, LogitsPart, TensorError, undecided


def with_diagnosis(
    part: LogitsPart,
    file: GgufFile,
    expected: Expected,
    reader: WindowReader,
    windows: Sequence[Window],
    tensors: Sequence[TensorError],
    options: VerifyOptions,
) -> LogitsPart:
    """The part with a diagnosis of the window in which the models disagree most.

    What was measured stays; a finding says so where the diagnosis could not be made.
    """
    window = windows[part.worst[0].window] if part.worst else windows[0]
    try:
        diagnosis = diagnose(
            expected.checkpoint,
            expected.family,
            file,
            reader,
            window,
            tensors,
            threads=options.threads,
            progress=options.progress,
        )
    except RuntimeFailure as failure:
        missing = Finding("diagnosis", phrase("no diagnosis: {failure}").of(failure=failure), grave=False)
    except ChildDied as death:
        missing = replace(undecided(death, "diagnosis"), message=f"no diagnosis: {death.message}")
    else:
        return replace(part, diagnosis=diagnosis)
    return replace(part, findings=(*part.findings, missing))
