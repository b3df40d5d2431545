"""Files made by kconv and by llama.cpp's converter, and what the proof's parts say of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cpp_material import fetched_converter

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.recorded import read_manifest
from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header
from kconv.core.model import Model
from kconv.core.reading import open_checkpoint
from kconv.verify.metadata import check_metadata
from kconv.verify.proof import Finding, MetadataPart, TokensPart
from kconv.verify.provenance import same_vocabulary_tools
from kconv.verify.tokens import check_tokens
from kconv.vocab.expected import expected_model
from kconv.vocab.sources import read_source
from kconv.vocab.tokenizer import Source

SAMPLES = ("42dot", "eagle", "llama-3-ko")


@dataclass(frozen=True)
class Made:
    """A checkpoint and the file kconv made of it, with its manifest beside it."""

    checkpoint: Path
    file: Path

    def source(self) -> Source:
        """The checkpoint's tokenizer."""
        return read_source(open_checkpoint(self.checkpoint))

    def expected(self, file: Path | None = None, *, of_manifest: bool = True) -> Model:
        """What ``file`` is held against, with the manifest of the file kconv made or without one."""
        checkpoint = open_checkpoint(self.checkpoint)
        model = build(family_for(checkpoint.config), checkpoint)
        manifest = read_manifest(self.file) if of_manifest else None
        return expected_model(
            model, checkpoint, read_source(checkpoint), read_header(file or self.file), manifest
        )

    def metadata(self, file: Path, *, of_manifest: bool = True) -> MetadataPart:
        """The metadata part for ``file``."""
        return check_metadata(read_header(file), self.expected(file, of_manifest=of_manifest))

    def tokens(
        self, file: Path, texts: Sequence[str] = (), *, of_manifest: bool = True, **options: Any
    ) -> TokensPart:
        """The tokens part for ``file``."""
        if of_manifest:
            options.setdefault("strict", same_vocabulary_tools(read_manifest(self.file)))
        vocab = self.expected(file, of_manifest=of_manifest).vocab
        assert vocab is not None
        return check_tokens(file, read_header(file), self.source(), vocab, texts, **options)


def made_of(checkpoint: Path, folder: Path, type_: str = "f16") -> Made:
    """Convert a checkpoint."""
    file = folder / f"{checkpoint.name}.gguf"
    to_gguf(checkpoint, file, types=(type_,), verify=False)
    return Made(checkpoint, file)


def sample(name: str, folder: Path) -> Made:
    """One of the checkpoints ``kconv demo-checkpoint`` writes, converted."""
    write_sample(name, folder / name)
    return made_of(folder / name, folder)


def graves(part: MetadataPart | TokensPart) -> list[Finding]:
    """The grave findings of a part."""
    return [finding for finding in part.findings if finding.grave]


def only(part: MetadataPart | TokensPart, where: str) -> Finding:
    """The one finding at ``where``."""
    matching = [finding for finding in part.findings if finding.where == where]
    assert len(matching) == 1, part.findings
    return matching[0]


# llama.cpp's converter knows pre-tokenizers by a hash of what they do to a text; samples are told the name.
_CONVERTER = """
import json, os, runpy, sys
script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
from conversion.base import TextModel
for source, target, outtype, pre in json.loads(sys.argv[2]):
    TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv = [script, source, "--outfile", target, "--outtype", outtype]
    runpy.run_path(script, run_name="__main__")
"""


def converted_by_llama_cpp(jobs: Sequence[tuple[Path, Path, str]]) -> None:
    """Run llama.cpp's converter on each ``(checkpoint, target, name of the pre-tokenizer)``, or skip."""
    script = fetched_converter()
    described = json.dumps([[str(source), str(target), "f16", pre] for source, target, pre in jobs])
    result = subprocess.run(
        [sys.executable, "-c", _CONVERTER, str(script), described],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        check=False,
    )
    assert result.returncode == 0, f"llama.cpp's converter failed:\n{result.stderr[-3000:]}"
