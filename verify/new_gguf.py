"""A GGUF file that the conversion which asks has just made, as something to prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..converters.front_end import Embed
from ..core.language import phrase
from ..quant.importance import Importance
from ..runtimes.early_reader import EarlyReader
from ..runtimes.llama_reader import LlamaReader
from ..vocab.parity import Parity
from .gguf_artifact import GgufArtifact, weights_of
from .inputs import Expected, VerifyOptions
from .proof import Finding, TokensPart, WeightsPart
from .recomputed import QUICK
from .tokens import check_tokens, tokens_part


@dataclass(frozen=True)
class NewGgufArtifact(GgufArtifact):
    """A GGUF file the conversion that asks has just made, with the ``parity`` and ``importance`` it knows,
    and the reader that has begun ``early``.

    ``quick`` takes the tokens as they were measured before and leaves the weights out, which this process has
    just encoded; ``full`` does again all that is done with a file that was found somewhere.
    """

    parity: Parity = field(kw_only=True)
    scope: Literal["quick", "full"] = "quick"
    importance: Importance | None = None
    early: EarlyReader | None = None

    def _reader(self, front: Embed | None, threads: int) -> LlamaReader:
        if self.early is None or front is not None:
            return super()._reader(front, threads)
        return self.early

    def tokens(self, expected: Expected, texts: Sequence[str]) -> TokensPart:
        """As measured before, or measured again; either way a mismatch was allowed, so it only warns."""
        allowed = self.parity.verdict == "mismatch"
        if self.scope == "quick":
            differing = self.parity.texts - self.parity.exact
            message = phrase("token ids differ in {differing} of {texts} texts, as allowed").of(
                differing=differing, texts=self.parity.texts
            )
            findings = [Finding("tokenizer", message, grave=False)] if allowed else []
            return tokens_part(self.parity, expected.source, findings)
        part = check_tokens(
            self.path,
            self.file.header,
            expected.source,
            expected.vocab,
            texts,
            strict=True,
            allow_mismatch=allowed,
        )
        if part.parity is None:
            return part
        # the manifest names the vocabulary, not the file
        return replace(part, parity=replace(part.parity, candidate=self.parity.candidate))

    def weights(self, expected: Expected, options: VerifyOptions) -> WeightsPart:
        """Every tensor, to the byte, or none."""
        if self.scope == "quick":
            return WeightsPart("not run")
        return weights_of(self.file, expected, options, strict=True, importance=self.importance)

    @property
    def _recomputed_positions(self) -> int | None:
        return QUICK if self.scope == "quick" else None

    def changed(self, digests: Mapping[str, str]) -> tuple[Finding, ...]:
        """Nothing: the file is as it was written a moment ago."""
        return ()
