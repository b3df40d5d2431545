"""An ONNX folder as something to prove: logits at once, token by token and in padded batches."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.family import AnyFamily
from ..converters.recorded import RecordedFile
from ..core.checkpoint import Checkpoint
from ..core.errors import ChildDied, MappingError
from ..core.model import Model
from ..core.windows import Window
from ..runtimes.candidate import CandidateFailure
from ..runtimes.onnx_candidate import OnnxCandidate, stepped
from ..runtimes.onnx_folder import OnnxFolder
from ..vocab.context import read_context
from ..vocab.own_vocabulary import own_vocabulary
from ..vocab.settle import EMBEDDING
from ..vocab.tokenizer import Source
from .comparison import How, Subject, compared_with
from .gates import gate_for, judge
from .logits import Read, broken, compare, judged
from .measurements import Figures
from .onnx_parts import check_folder_settings, check_folder_tokens
from .onnx_weights import check_folder_weights
from .proof import Finding, Gate, LogitsPart, MetadataPart, TensorError, TokensPart, WeightsPart, verdict_of
from .provenance import changed_files

RUNTIME = "onnxruntime on the CPU: windows at once, token by token through the cache, and in padded batches"
_BEFORE_STEPS = "token by token, through the cache: "
_BEFORE_BATCHES = "in a padded batch: "


def expected_of_folder(checkpoint: Checkpoint, family: AnyFamily, model: Model, source: Source) -> Subject:
    """What an ONNX folder is held against: its vocabulary, which is the checkpoint's, too.

    ``source`` is the checkpoint's tokenizer; ``model`` has no vocabulary yet. Raises MappingError for a model
    without an embedding, VocabError for more tokens than rows.
    """
    try:
        rows = model.tensor(EMBEDDING).rows
    except KeyError as error:
        raise MappingError(f"the model has no tensor {EMBEDDING}") from error
    vocab, _ = own_vocabulary(source, read_context(checkpoint, rows=rows))
    return Subject(checkpoint, family, replace(model, vocab=vocab), source)


@dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX folder, with the files its manifest names, if it has one that counts; see prove.Artifact."""

    folder: OnnxFolder
    written: tuple[RecordedFile, ...] = ()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def type(self) -> str:
        """The type whose gate it is held to."""
        return self.folder.type

    def passes(self, expected: Subject, how: How) -> int:
        """Through the checkpoint, in fp32. Raises UsageError for an impossible gate."""
        self._gate(how)
        return 2

    def _gate(self, how: How) -> Gate:
        return gate_for(self.type, overrides=how.gates)

    def tokens(self, expected: Subject, texts: Sequence[str]) -> TokensPart:
        """The folder's tokenizer as those who load the folder read it."""
        return check_folder_tokens(self.folder, expected.checkpoint, expected.source, texts)

    def metadata(self, expected: Subject, how: How) -> MetadataPart:
        """config.json and generation_config.json."""
        return check_folder_settings(self.folder, expected.checkpoint, expected.model)

    def weights(self, expected: Subject, how: How) -> WeightsPart:
        """What the folder has under names of the checkpoint."""
        return check_folder_weights(
            self.folder,
            expected.checkpoint,
            expected.family,
            threads=how.threads,
            progress=how.progress,
        )

    def logits(
        self,
        expected: Subject,
        read: Read,
        windows: Sequence[Window],
        tensors: Sequence[TensorError],
        how: How,
    ) -> LogitsPart:
        """The logits of whole windows, and of the beginnings of some, held to the gate in three ways.

        A cache that is wrong shows only where tokens are read one by one, a mask that is only in padded
        batches.
        """
        gate, few = self._gate(how), stepped(windows)
        once = functools.cache(read)  # both of the other ways take the same few windows
        try:
            with OnnxCandidate(self.folder, threads=how.threads) as candidate:
                part = judged(compare(read, candidate, windows, how.progress), gate, windows, expected.source)
                stepwise, slow = _otherwise(candidate.token_by_token(), once, few, gate, how, _BEFORE_STEPS)
                padded, wide = _otherwise(candidate.in_batches(), once, few, gate, how, _BEFORE_BATCHES)
        except (CandidateFailure, ChildDied) as failure:
            return broken(failure, "onnxruntime")
        findings = (*part.findings, *slow, *wide)
        return replace(
            part, verdict=verdict_of(findings), findings=findings, stepwise=stepwise, padded=padded
        )

    def provenance(
        self, expected: Subject, windows: Sequence[Window], texts: Sequence[str] | None, how: How
    ) -> dict[str, Any]:
        """What was compared and with what."""
        return {
            "artifact": {"file": self.path.name, "bytes": self.folder.bytes},
            **compared_with(expected, windows, texts, RUNTIME, ("onnxruntime",)),
        }

    def changed(self, digests: Mapping[str, str]) -> tuple[Finding, ...]:
        """Remarks on files that are not as the manifest says."""
        return changed_files(self.path, self.written, digests)


def _otherwise(
    candidate: OnnxCandidate, read: Read, windows: Sequence[Window], gate: Gate, how: How, before: str
) -> tuple[Figures | None, list[Finding]]:
    """The figures of another way of reading, if it can be done at all, and findings that say which way."""
    try:
        figures = compare(read, candidate, windows, how.progress).figures()
    except CandidateFailure as failure:
        return None, [Finding("onnxruntime", f"{before}{failure}")]
    return figures, [replace(each, message=before + each.message) for each in judge(figures, gate)]
