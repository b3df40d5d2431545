"""A front end in the proof: which file a body needs, and whether it is the checkpoint's.

The measured side computes with what that file holds, as ``kconv run`` does. Everything in it is float32, so
its fingerprint says of every weight and setting whether it is the checkpoint's.
"""

from __future__ import annotations

from typing import Any

from ..converters.family import AnyFamily
from ..converters.front_end import FINGERPRINT_KEY, KIND_KEY, Embed, FrontEndFile
from ..core.checkpoint import Checkpoint
from ..core.gguf_file import GgufHeader
from ..core.input_files import file_sha256, quoted
from ..core.language import phrase
from ..runtimes.reader import RuntimeFailure
from .proof import Finding, MetadataPart, verdict_of


def tokens_a_position(family: AnyFamily, checkpoint: Checkpoint) -> int:
    """How many tokens of a source make one position of the encoder: 1 without a front end.

    Raises CheckpointError, UnsupportedModel.
    """
    return 1 if family.front_end is None else family.front_end.factor(checkpoint)


def embed_of(front: FrontEndFile | None, family: AnyFamily) -> Embed | None:
    """What the front end ``found`` for a body makes of a text; None for models without one.

    Raises RuntimeFailure where the body does not say which it needs.
    """
    if front is not None:
        return front.embed
    if family.front_end is not None:
        raise RuntimeFailure(
            f"the file does not name its front end ({KIND_KEY}), without which it cannot be used"
        )
    return None


def named_front_end(front: FrontEndFile) -> dict[str, Any]:
    """Which file the front end was read from, for the provenance."""
    size = front.path.stat().st_size
    digest = file_sha256(front.path)
    return {"file": front.path.name, "bytes": size, "sha256": digest, "fingerprint": front.fingerprint}


def with_front_end_findings(
    part: MetadataPart,
    header: GgufHeader,
    front: FrontEndFile | None,
    family: AnyFamily,
    checkpoint: Checkpoint,
) -> MetadataPart:
    """The metadata part and, of a model with a front end, whether the one ``found`` is the checkpoint's."""
    named = header.metadata.get(FINGERPRINT_KEY)
    if family.front_end is None and front is None:
        return part
    wanted = None if family.front_end is None else family.front_end.fingerprint(checkpoint)
    findings = part.findings
    if front is None or front.fingerprint != wanted:
        findings = (_finding(named, wanted), *findings)
    return MetadataPart(verdict_of(findings), part.keys + 1, findings)


def _finding(name: object, wanted: str | None) -> Finding:
    if wanted is None:
        message = phrase("the file requires a front end before its encoder, but the checkpoint has none")
    elif name is None:
        message = phrase(
            "the file does not name its front end, so programs cannot know that text must pass through one"
        )
    else:
        message = phrase(
            "the front end is not the checkpoint's: its weights or settings differ, so the encoder's "
            "input is not what it was trained on"
        )
    return Finding(
        FINGERPRINT_KEY,
        message,
        wanted or phrase("missing"),
        phrase("missing") if name is None else quoted(name),
    )
