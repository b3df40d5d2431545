"""Finding and reading the tokenizer a checkpoint brings along."""

from __future__ import annotations

from dataclasses import replace

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from .extra_tokens import within_rows
from .token_settings import TokenSettings, read_token_settings
from .tokenizer import Description, Source

__all__ = ["Description", "Source", "read_source"]


def read_source(checkpoint: Checkpoint, tokenizer_class: str = "", rows: int | None = None) -> Source:
    """The checkpoint's own tokenizer, which is the truth all candidates are measured against.

    ByT5's has no file of its own; else tokenizer.json wins, unless it is a copy of the SentencePiece unigram
    model beside it; without it vocab.json with merges.txt; without those a SentencePiece model. That is read
    as ``tokenizer_class`` does where no file names a class (``converters.tokenizer`` knows each family's).
    With ``rows`` added tokens with ids from there on are left out, which a note names.
    Raises CheckpointError or VocabError where there is none or what there is cannot be read.
    """
    settings = read_token_settings(checkpoint)
    settings = replace(settings, tokenizer_class=settings.tokenizer_class or tokenizer_class)
    from .byte_vocabulary import is_byte_tokenizer, read_byte_vocabulary

    fitting = settings if rows is None else within_rows(settings, rows)
    if is_byte_tokenizer(checkpoint):
        return read_byte_vocabulary(checkpoint, fitting)
    if checkpoint.has("tokenizer.json"):
        from .hf_tokenizer import read_tokenizer_json

        read = read_tokenizer_json(checkpoint, settings, rows)
        return _by_sentencepiece(checkpoint, read, fitting) if read.charsmap else read
    if checkpoint.has("vocab.json"):
        from .hf_tokenizer import read_vocab_and_merges

        return read_vocab_and_merges(checkpoint, fitting)
    if checkpoint.has("vocab.txt"):
        from .hf_tokenizer import read_vocab_txt

        return read_vocab_txt(checkpoint, fitting)
    from .sentencepiece_model import MODEL_FILES, read_sentencepiece

    for name in MODEL_FILES:
        if checkpoint.has(name):
            return read_sentencepiece(checkpoint, name, fitting)
    if checkpoint.has("tekken.json"):
        raise VocabError(
            f"{checkpoint.folder} contains Mistral's own tekken.json alone, which kconv does not read",
            hint="get the model's tokenizer.json and tokenizer_config.json, or its base model's; or have "
            "transformers make them: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`",
        )
    raise VocabError(
        f"{checkpoint.folder} contains no tokenizer: neither tokenizer.json, nor vocab.json with "
        "merges.txt, nor vocab.txt, nor tokenizer.model",
        hint="download these files of the checkpoint, too",
    )


def _by_sentencepiece(checkpoint: Checkpoint, copy: Source, settings: TokenSettings) -> Source:
    """The SentencePiece model a tokenizer.json was made from, if it lies beside it and has the same tokens.

    The model was trained with it, and the tokenizers library normalizes by rules of its own: it looks up
    letters with their marks as a whole where SentencePiece takes the longest match. Else the copy, with what
    SentencePiece would make of it.
    """
    from .sentencepiece_copy import as_sentencepiece
    from .sentencepiece_model import MODEL_FILES, read_sentencepiece

    for name in MODEL_FILES:
        if checkpoint.has(name):
            original = read_sentencepiece(checkpoint, name, settings, copy.table)
            if original.kind == copy.kind and original.tokens == copy.tokens:
                return replace(original, copy=copy.encode_batch)
            break
    return replace(copy, original=as_sentencepiece(copy))
