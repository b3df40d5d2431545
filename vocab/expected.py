"""The vocabulary a finished file is held against: that of the checkpoint, put the way the file has it.

Nothing is measured here. Where several candidates are equally right (a byte-fallback BPE as SentencePiece
scores or as merges, a pre-tokenizer under one of its names) the manifest says which was written; a file
without one is held against the candidate nearest to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import InputError, UsageError
from ..core.gguf_file import GgufHeader
from ..core.input_files import quoted
from ..core.model import Model
from ..core.vocabulary import BPE, GEMMA4, SPM, Vocab
from .adapters import enabled_adapters
from .candidates import Candidate, candidates
from .context import AdapterContext, read_context
from .end_of_turn import goes_on_metadata
from .in_gguf import read_vocab
from .leading_space import LEADING_SPACE, with_space_in_template
from .normal_form import normalizer_metadata
from .parity import ON_SOME_TEXT
from .sampling import recommended_sampling, sampling_metadata
from .selection import adapted, embedding_rows
from .templates import NO_TEMPLATE, format_named
from .tokenizer import Source


def expected_model(
    model: Model,
    checkpoint: Checkpoint,
    source: Source,
    header: GgufHeader,
    manifest: Mapping[str, Any] | None,
) -> Model:
    """``model`` with the vocabulary and the keys of ours the file ``header`` belongs to should have.

    ``model`` comes from the family, ``manifest`` is the one beside the file, or None for files without.
    Raises VocabError where the tokenizer has no counterpart in llama.cpp or does not fit the rows, and
    InputError for a manifest with options kconv does not know.
    """
    rows = embedding_rows(model)
    actual, _ = read_vocab(header.metadata)
    candidate = _candidate(source, actual, header, manifest)
    context = read_context(checkpoint, rows=rows, chat_template=None)
    vocab = _with_options(candidate, context, actual, manifest)
    metadata = {**model.metadata, **sampling_metadata(recommended_sampling(context, vocab))}
    metadata.update(normalizer_metadata(source))
    metadata.update(goes_on_metadata(vocab))
    if _begins_with_space(source, vocab, manifest):
        metadata[LEADING_SPACE] = True
        vocab, _ = with_space_in_template(vocab)
    return replace(model, vocab=vocab, metadata=metadata)


def _candidate(
    source: Source, actual: Vocab, header: GgufHeader, manifest: Mapping[str, Any] | None
) -> Candidate:
    """The one the manifest names, else the one most like the file's."""
    able = list(candidates(source))
    named = _of_proof(manifest, "candidate")
    for candidate in able:
        if candidate.name == named:
            return candidate
    own = [candidate for candidate in able if candidate.vocab.model == _kind(actual)]
    if not own:
        return able[0]
    if source.kind == "byte-level bpe":  # they differ in nothing else; whether the name is right is measured
        return Candidate(f"byte-level BPE, {actual.pre}", replace(own[0].vocab, pre=actual.pre))
    return min(own, key=lambda candidate: _distance(candidate.vocab, actual, header))


def _kind(vocab: Vocab) -> str:
    """``gemma4`` as a tokenizer model is ``gpt2`` with the pre-tokenizer of that name."""
    return BPE if vocab.model == GEMMA4 else vocab.model


def _distance(vocab: Vocab, actual: Vocab, header: GgufHeader) -> tuple[bool, bool, int]:
    """A file that adds no leading space counts as meant so only if it says so."""
    spaced = header.metadata.get(LEADING_SPACE) is not True
    wrong_space = vocab.model == SPM and vocab.add_space_prefix != spaced
    return wrong_space, vocab.pre != actual.pre, _unlike(vocab.tokens, actual.tokens)


def _unlike(tokens: Sequence[str], others: Sequence[str]) -> int:
    return sum(one != other for one, other in zip(tokens, others, strict=False))


def _of_proof(manifest: Mapping[str, Any] | None, key: str) -> Any:
    """What the manifest says of the token parity at the conversion."""
    value: Any = manifest
    for name in ("proof", "tokens", "parity"):
        inner = value.get(name) if isinstance(value, Mapping) else None
        if name == "parity" and not isinstance(inner, Mapping):  # a conversion without a proof
            break
        value = inner
    return value.get(key) if isinstance(value, Mapping) else None


def _with_options(
    candidate: Candidate, context: AdapterContext, actual: Vocab, manifest: Mapping[str, Any] | None
) -> Vocab:
    """The candidate after the adapters, with the options of the conversion.

    A chat template that was read from a file is taken as it stands in the GGUF: the manifest has its name
    only, and no file is opened because a manifest names it.
    """
    options = manifest.get("options") if manifest is not None else None
    options = options if isinstance(options, Mapping) else {}
    context = replace(context, words_as_text=options.get("words_as_text") is True)
    disabled = options.get("disabled_adapters") or ()
    template = options.get("chat_template")
    if not isinstance(disabled, Sequence) or not all(isinstance(name, str) for name in disabled):
        raise _strange_option("disabled_adapters", disabled)
    if template is not None and not isinstance(template, str):
        raise _strange_option("chat_template", template)
    try:
        enabled = enabled_adapters(disabled)
    except UsageError as error:
        raise _strange_option("disabled_adapters", disabled) from error
    if template is not None:
        if template.lower() == NO_TEMPLATE or format_named(template) is not None:
            context = replace(context, chat_template=template)
        else:
            own = replace(candidate.vocab, chat_template=actual.chat_template)
            candidate = replace(candidate, vocab=own)
    return adapted(candidate, context, enabled)[0]


def _strange_option(name: str, value: object) -> InputError:
    return InputError(
        f"the manifest has {name} {quoted(value)}, which this version of kconv does not support",
        hint="use the version that made the file, or pass --ignore-manifest",
    )


def _begins_with_space(source: Source, vocab: Vocab, manifest: Mapping[str, Any] | None) -> bool:
    """Whether text has to begin with a space the tokenizer would add and this vocabulary does not."""
    verdict = _of_proof(manifest, "verdict")
    if verdict in ("exact", *ON_SOME_TEXT):
        return bool(verdict == "leading-space")
    return source.prefix is not None and not (vocab.model == SPM and vocab.add_space_prefix)
