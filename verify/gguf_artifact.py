"""A GGUF file as something to prove, wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..converters.families import FRONT_ENDS
from ..converters.front_end import Embed, FrontEndFile, front_end_of
from ..converters.mapping import untransformed
from ..core.errors import ChildDied
from ..core.language import phrase
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..quant.importance import Importance, made_with_importance
from ..reference.magnitudes import Flow
from ..reference.model import Reference
from ..reference.reading import Reading
from ..runtimes.half_precision import HalfPrecision, flowing, halves_of_gguf
from ..runtimes.llama_reader import LlamaReader
from ..runtimes.reader import RuntimeFailure
from .chosen_codes import Chosen, chosen_of, derivable
from .cosine_gates import cosine_gate, refuse_other_limits
from .embeddings_part import EmbeddingsPart
from .front_end import embed_of, named_front_end, with_front_end_findings
from .gates import file_type, gate_for, mislabelled
from .gguf_diagnosis import with_diagnosis
from .gguf_encoder import check_encoder
from .inputs import Expected, Texts, VerifyOptions, compared_with
from .logits import Read, broken, compare, judged
from .measurements import Shares
from .metadata import check_metadata
from .proof import (
    Finding,
    Gate,
    LogitsPart,
    MetadataPart,
    RuntimePart,
    TensorError,
    TokensPart,
    WeightsPart,
)
from .provenance import changed_after_conversion, same_tools, same_vocabulary_tools
from .recomputed import Sample, check_runtime, shares_of
from .tokens import check_tokens
from .weights import check_weights

RUNTIME = phrase("llama.cpp on the CPU: f32 key/value cache, no flash attention, mapped, no repacked buffers")


@dataclass(frozen=True)
class GgufArtifact:
    """A GGUF file, with the manifest beside it, if there is one and it counts; see prove.Artifact.

    ``front_end_path`` is the file of a GBST model's front end; None: the one beside its body.
    """

    file: GgufFile
    manifest: Mapping[str, Any] | None = None
    front_end_path: Path | None = None

    @property
    def path(self) -> Path:
        """The file; of a model in parts the first."""
        return self.file.path

    @property
    def type(self) -> str:
        """The type whose gate it is held to."""
        return file_type(self.file.header)

    def passes(self, expected: Expected, options: VerifyOptions) -> int:
        """Through the checkpoint, in fp32. Raises what an impossible gate or a missing front end raises."""
        refuse_other_limits(expected.family, options)
        gate = self._gate(expected, options)
        _ = self._front_end  # a missing one is told before anything is read
        return 1 + _shows_share(expected, gate, options)

    @cached_property
    def _front_end(self) -> FrontEndFile | None:
        """Found and read once. Raises what ``front_end_of`` raises."""
        return front_end_of(FRONT_ENDS, self.path, self.file.header.metadata, self.front_end_path)

    def _gate(self, expected: Expected, options: VerifyOptions) -> Gate:
        return gate_for(self.type, gelu=expected.family.gelu, overrides=options.gates)

    def tokens(self, expected: Expected, texts: Sequence[str]) -> TokensPart:
        """The vocabulary in llama.cpp; a mismatch the conversion was allowed only warns."""
        manifest = self.manifest
        return check_tokens(
            self.path,
            self.file.header,
            expected.source,
            expected.vocab,
            texts,
            strict=same_vocabulary_tools(manifest),
            allow_mismatch=manifest is not None
            and manifest["options"].get("allow_tokenizer_mismatch") is True,
        )

    def metadata(self, expected: Expected, options: VerifyOptions) -> MetadataPart:
        """The keys llama.cpp reads, and which front end they name."""
        header = self.file.header
        part = check_metadata(header, expected.model)
        return with_front_end_findings(part, header, self._front_end, expected.family, expected.checkpoint)

    def weights(self, expected: Expected, options: VerifyOptions) -> WeightsPart:
        """Every tensor; of a file made with importance data nobody has here, what they may have changed."""
        strict = same_tools(self.manifest)
        importance = derivable(self.path, self.manifest) if strict else None
        if importance is not None:
            return weights_of(self.file, expected, options, strict=True, importance=importance)
        strict = strict and not made_with_importance(self.file.header.metadata)
        chosen = chosen_of(self.file.header, self.manifest)
        return weights_of(self.file, expected, options, strict=strict, chosen=chosen)

    def computed(
        self,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        tensors: Sequence[TensorError],
        options: VerifyOptions,
    ) -> tuple[RuntimePart, LogitsPart | EmbeddingsPart]:
        """What llama.cpp computes, and its logits or, of an encoder, embeddings."""
        if not expected.family.encoder_only:
            return self.predicted(expected, read, windows, tensors, options)
        gate = cosine_gate(self.type, gelu=expected.family.gelu, least=options.min_cosine)
        shows = gate.nmse is not None and options.gelu_share
        return check_encoder(
            self.file,
            gate,
            expected,
            read,
            windows,
            options,
            positions=self._recomputed_positions,
            same_gelu=_as_llama_cpp(expected, options) if shows else None,
        )

    def predicted(
        self,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        tensors: Sequence[TensorError],
        options: VerifyOptions,
    ) -> tuple[RuntimePart, LogitsPart]:
        """What llama.cpp computes; where the logits fail, or as ``options`` say, the diagnosis too.

        The checkpoint is read once llama.cpp has loaded the file, so that a refused file is reported at once.
        """
        runtime = RuntimePart("not run")
        try:
            front = embed_of(self._front_end, expected.family)
            options.progress("starting the runtime", 0, 0)
            with self._reader(front, options.threads) as reader:
                runtime, sample = self._runtime(reader, expected, windows[0], options)
                part = self._logits(reader, sample, expected, read, windows, options)
                wrong = "failed" in (runtime.verdict, part.verdict) or any(
                    tensor.state == "differs" for tensor in tensors
                )
                if wrong if options.diagnose is None else options.diagnose:
                    part = with_diagnosis(part, self.file, expected, reader, windows, tensors, options)
                return runtime, part
        except (RuntimeFailure, ChildDied) as failure:
            part = broken(failure)
            return (runtime if runtime.positions else RuntimePart(part.verdict)), part

    def _reader(self, front: Embed | None, threads: int) -> LlamaReader:
        return LlamaReader(self.path, threads=threads, front=front)

    def _logits(
        self,
        reader: LlamaReader,
        sample: Sample | None,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        options: VerifyOptions,
    ) -> LogitsPart:
        """Its logits against the checkpoint's; of those at ``sample``, what their difference consists of."""
        gate = self._gate(expected, options)
        shares: list[Shares] = []

        def seen(reading: Reading) -> None:
            if sample is not None:
                shares.append(shares_of(sample, reading))

        shows = _shows_share(expected, gate, options)
        alike = _as_llama_cpp(expected, options) if shows else None
        if options.measure is not None and alike is None and self._front_end is None:
            measure = options.measure(self.path, read, windows, seen)
        else:
            measure = compare(read, reader, windows, options.progress, same_gelu=alike, seen=seen)
        departure = expected.family.departure
        part = judged(measure, gate, windows, expected.source, options.max_kl, departure)
        return replace(part, shares=shares[0] if shares else None)

    def _runtime(
        self, reader: LlamaReader, expected: Expected, window: Window, options: VerifyOptions
    ) -> tuple[RuntimePart, Sample | None]:
        return check_runtime(self.file, expected, reader, window, options, self._recomputed_positions)

    @property
    def _recomputed_positions(self) -> int | None:
        return None

    def halves(self, expected: Expected, flows: Mapping[str, Flow]) -> HalfPrecision | None:
        """What its F16 matrices are multiplied by."""
        modules = halves_of_gguf(self.file.header, expected.family, expected.checkpoint)
        return flowing(modules, flows, out=False)

    def provenance(
        self, expected: Expected, windows: Sequence[Window], texts: Texts, options: VerifyOptions
    ) -> dict[str, Any]:
        """What was compared and with what."""
        front = self._front_end
        return {
            "artifact": {"file": self.path.name, "bytes": self.file.header.size},
            **({} if front is None else {"front_end": named_front_end(front)}),
            **compared_with(expected, windows, texts, RUNTIME, ()),
        }

    def changed(self, digests: Mapping[str, str]) -> tuple[Finding, ...]:
        """Remarks on a file that is not what it, or its manifest, says it is."""
        remark = mislabelled(self.file.header)
        changes = () if self.manifest is None else changed_after_conversion(self.file.header, self.manifest)
        return (*((remark,) if remark else ()), *changes)


def weights_of(
    file: GgufFile,
    expected: Expected,
    options: VerifyOptions,
    *,
    strict: bool,
    importance: Importance | None = None,
    chosen: Chosen | None = None,
) -> WeightsPart:
    """Every tensor of ``file`` against the model expected; see ``check_weights``."""
    return check_weights(
        file,
        expected.model,
        strict=strict,
        importance=importance,
        chosen=chosen,
        originals=untransformed(expected.family, expected.checkpoint),
        threads=options.threads,
        progress=options.progress,
    )


def _shows_share(expected: Expected, gate: Gate, options: VerifyOptions) -> bool:
    """Whether to measure, for that gate, how much comes from what llama.cpp computes otherwise."""
    departs = expected.family.departure is not None or (options.gelu_share and expected.family.gelu)
    return departs and gate.measure == "nmse"


def _as_llama_cpp(expected: Expected, options: VerifyOptions) -> Read | None:
    """Reads the checkpoint as llama.cpp computes; None for a model of a family with GELUs that has none."""
    family = expected.family
    reference = Reference(
        expected.checkpoint, family, as_llama_cpp=True, llama_cpps_gelu=family.gelu, threads=options.threads
    )
    departs = reference.gelus or family.departure is not None
    return partial(reference.read, progress=options.progress) if departs else None
