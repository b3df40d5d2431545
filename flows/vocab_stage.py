"""The stage that gives a model its proven vocabulary, and the keys that go with it."""

from __future__ import annotations

from dataclasses import replace

from ..converters.card import general_metadata, licence_notice
from ..converters.results import Options
from ..core.checkpoint import Checkpoint
from ..core.model import Model
from ..core.progress import Progress
from ..core.vocabulary import Vocab
from ..vocab.broken_template import left_out_metadata
from ..vocab.context import read_context
from ..vocab.end_of_turn import goes_on_metadata
from ..vocab.leading_space import LEADING_SPACE, with_space_in_template
from ..vocab.normal_form import normalizer_metadata
from ..vocab.parity import Parity
from ..vocab.sampling import Sampling, recommended_sampling, sampling_metadata
from ..vocab.selection import select_vocab
from ..vocab.sources import Source
from .observer import UNOBSERVED, Observer


def with_vocab(
    model: Model,
    checkpoint: Checkpoint,
    tokenizer: Source,
    options: Options,
    progress: Progress,
    observer: Observer = UNOBSERVED,
) -> tuple[Model, Parity, Sampling | None]:
    """The model with its proven vocabulary, and what the card says: licence, sampling.

    ``observer`` is told of the licence before the tokens are compared.
    """
    metadata = general_metadata(checkpoint)
    notice = licence_notice(metadata)
    model = replace(model, notes=(*model.notes, *([notice] if notice else [])))
    observer.noted(model.notes)
    model, parity = select_vocab(
        model,
        checkpoint,
        tokenizer,
        disabled_adapters=options.disabled_adapters,
        chat_template=options.chat_template,
        allow_mismatch=options.allow_tokenizer_mismatch,
        words_as_text=options.words_as_text,
        progress=progress,
    )
    observer.tokens(parity)
    observer.noted(model.notes)
    vocab = vocab_of(model)
    context = read_context(checkpoint, rows=vocab.size)
    sampling = recommended_sampling(context, vocab)
    metadata.update(sampling_metadata(sampling))
    metadata.update(normalizer_metadata(tokenizer))
    metadata.update(goes_on_metadata(vocab))
    if options.chat_template is None:
        metadata.update(left_out_metadata(tokenizer.chat_template, vocab))
    if parity.verdict == "leading-space":
        metadata[LEADING_SPACE] = True
        vocab, notes = with_space_in_template(vocab)
        model = replace(model, vocab=vocab, notes=(*model.notes, *notes))
        observer.noted(model.notes)
    return replace(model, metadata=metadata), parity, sampling


def vocab_of(model: Model) -> Vocab:
    """The vocabulary, of a model that has been through the vocabulary stage."""
    assert model.vocab is not None
    return model.vocab
