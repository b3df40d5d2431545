"""An ONNX folder as something to prove: logits at once, token by token and in padded batches."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.family import AnyFamily
from ..converters.recorded import RecordedFile, read_manifest
from ..core.checkpoint import Checkpoint
from ..core.errors import ChildDied, MappingError
from ..core.language import Phrase, phrase
from ..core.model import Model
from ..core.windows import Window
from ..reference.magnitudes import Flow
from ..reference.reading import Reading
from ..runtimes.half_precision import HalfPrecision, flowing, halves_of_folder
from ..runtimes.llama_requests import first_context
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_reader import OnnxReader, stepped
from ..runtimes.reader import RuntimeFailure
from ..vocab.context import read_context
from ..vocab.own_vocabulary import own_vocabulary
from ..vocab.selection import EMBEDDING
from ..vocab.tokenizer import Source
from .cosine_gates import refuse_other_limits
from .embeddings_part import EmbeddingsPart
from .gates import gate_for, judge
from .inputs import Expected, Texts, VerifyOptions, compared_with
from .logits import Read, broken, compare, judged
from .measurements import Figures, Shares
from .onnx_codes import codes_of_folder
from .onnx_encoder import check_encoder_folder
from .onnx_graphs import is_own
from .onnx_parts import check_folder_settings, check_folder_tokens
from .onnx_recomputed import check_folder_runtime
from .onnx_weights import check_folder_weights
from .proof import (
    Finding,
    Gate,
    LogitsPart,
    MetadataPart,
    RuntimePart,
    TensorError,
    TokensPart,
    WeightsPart,
    verdict_of,
)
from .provenance import changed_files
from .recomputed import shares_of

RUNTIME = phrase(
    "onnxruntime on the CPU: windows at once, token by token through the cache, and in padded batches"
)
_OTHER_WAY = 3.0  # times the loss
_BEFORE_STEPS = phrase("token by token, through the cache: {finding}")
_BEFORE_BATCHES = phrase("in a padded batch: {finding}")


def expected_of_folder(checkpoint: Checkpoint, family: AnyFamily, model: Model, source: Source) -> Expected:
    """What an ONNX folder is held against: its vocabulary, which is the checkpoint's, too.

    ``source`` is the checkpoint's tokenizer; ``model`` has no vocabulary yet. Raises MappingError for a model
    without an embedding, VocabError for more tokens than rows.
    """
    try:
        rows = model.tensor(EMBEDDING).rows
    except KeyError as error:
        raise MappingError(f"the model has no tensor {EMBEDDING}") from error
    vocab, _ = own_vocabulary(source, read_context(checkpoint, rows=rows))
    return Expected(checkpoint, family, replace(model, vocab=vocab), source)


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

    def passes(self, expected: Expected, options: VerifyOptions) -> int:
        """Through the checkpoint, in fp32. Raises UsageError for an impossible gate."""
        refuse_other_limits(expected.family, options)
        self._gate(options)
        return 1 if expected.family.encoder_only else 2

    def _gate(self, options: VerifyOptions) -> Gate:
        return gate_for(self.type, overrides=options.gates)

    def tokens(self, expected: Expected, texts: Sequence[str]) -> TokensPart:
        """The folder's tokenizer as those who load the folder read it."""
        return check_folder_tokens(self.folder, expected.checkpoint, expected.source, texts)

    def metadata(self, expected: Expected, options: VerifyOptions) -> MetadataPart:
        """config.json and generation_config.json."""
        return check_folder_settings(self.folder, expected.checkpoint, expected.model, expected.family)

    def weights(self, expected: Expected, options: VerifyOptions) -> WeightsPart:
        """What the folder has under names of the checkpoint."""
        manifest = read_manifest(self.path) if is_own(self.folder) else None
        return check_folder_weights(
            self.folder,
            expected.checkpoint,
            expected.family,
            threads=options.threads,
            progress=options.progress,
            codes=codes_of_folder(self.path, manifest, expected.family, expected.checkpoint, expected.model),
        )

    def computed(
        self,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        tensors: Sequence[TensorError],
        options: VerifyOptions,
    ) -> tuple[RuntimePart, LogitsPart | EmbeddingsPart]:
        """What onnxruntime computes, and its logits or, of an encoder, embeddings."""
        if not expected.family.encoder_only:
            return self._predicted(expected, read, windows, options)
        return check_encoder_folder(self.folder, expected, read, windows, options)

    def _predicted(
        self,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        options: VerifyOptions,
    ) -> tuple[RuntimePart, LogitsPart]:
        """What onnxruntime computes, the logits of whole windows, and those of the beginnings of some.

        A wrong cache shows only where tokens are read one by one, a wrong mask only in padded batches: there
        a loss beyond three times that of reading at once fails, whatever the gate. Where the computation
        could not be checked, three times the gate fails as well.
        """
        few, runtime = stepped(windows), RuntimePart("not run")
        once = functools.cache(read)  # all other ways take the same few windows
        shares: list[Shares] = []
        try:
            options.progress("starting the runtime", 0, 0)
            runtime, sample = check_folder_runtime(self.folder, expected, windows[0], options)
            if runtime.positions or runtime.findings:
                options.part("runtime", runtime)

            def seen(reading: Reading) -> None:
                if sample is not None:
                    shares.append(shares_of(sample, reading))

            gate = self._gate(options)
            if runtime.verdict == "not compared":
                gate = gate_for(self.type, overrides=options.gates, recomputed=False)
            with OnnxReader(self.folder, threads=options.threads) as reader:
                model = expected.model
                reader.check(windows, first_context({"general.architecture": model.arch, **model.hparams}))
                measure = compare(read, reader, windows, options.progress, seen=seen)
                part = judged(measure, gate, windows, expected.source, options.max_kl)
                usual = compare(once, reader, few, options.progress).figures()
                close = _as_at_once(gate, usual)
                stepwise, slow = _otherwise(reader.token_by_token(), once, few, close, options, _BEFORE_STEPS)
                padded, wide = _otherwise(reader.in_batches(), once, few, close, options, _BEFORE_BATCHES)
        except (RuntimeFailure, ChildDied) as failure:
            part = broken(failure, "onnxruntime")
            return (runtime if runtime.positions or runtime.findings else RuntimePart(part.verdict)), part
        findings = (*part.findings, *slow, *wide)
        part = replace(
            part,
            verdict=verdict_of(findings),
            findings=findings,
            stepwise=stepwise,
            padded=padded,
            shares=shares[0] if shares else None,
        )
        return runtime, part

    def halves(self, expected: Expected, flows: Mapping[str, Flow]) -> HalfPrecision | None:
        """What flows into and out of what it computes in FLOAT16."""
        return flowing(halves_of_folder(self.folder, expected.family, expected.checkpoint), flows, out=True)

    def provenance(
        self, expected: Expected, windows: Sequence[Window], texts: Texts, options: VerifyOptions
    ) -> dict[str, Any]:
        """What was compared and with what."""
        return {
            "artifact": {"file": self.path.name, "bytes": self.folder.bytes},
            **compared_with(expected, windows, texts, RUNTIME, ("onnxruntime",)),
        }

    def changed(self, digests: Mapping[str, str]) -> tuple[Finding, ...]:
        """Remarks on files that are not as the manifest says."""
        return changed_files(self.path, self.written, digests)


def _as_at_once(gate: Gate, usual: Figures) -> Gate:
    """For the other ways to read the same windows, of which ``usual`` are the figures when read at once."""
    if gate.measure == "nmse":
        return gate
    most = _OTHER_WAY * max(gate.warns, usual.kl_mean)
    return replace(gate, warns=most, fails=most)


def _otherwise(
    reader: OnnxReader,
    read: Read,
    windows: Sequence[Window],
    gate: Gate,
    options: VerifyOptions,
    before: Phrase,
) -> tuple[Figures | None, list[Finding]]:
    """The figures of another way of reading, if it can be done at all, and findings that say which way."""
    try:
        figures = compare(read, reader, windows, options.progress).figures()
    except RuntimeFailure as failure:
        return None, [Finding("onnxruntime", before.of(finding=str(failure)))]
    return figures, [replace(each, message=before.of(finding=each.message)) for each in judge(figures, gate)]
