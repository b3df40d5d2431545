"""A checkpoint's vocabulary where its own tokenizer stays and llama.cpp has no part: for ONNX folders.

Special ids and the chat template are found as for a GGUF, by the same adapters. What they do for llama.cpp's
sake alone is left out: EOS in the place of a BOS the model does not have, one key for one stop token.
"""

from __future__ import annotations

from ..core.errors import VocabError
from ..core.model import Note
from ..core.vocabulary import Vocab
from .adapters import enabled_adapters, unify_bos_eos
from .candidates import Candidate, base_vocab
from .context import AdapterContext
from .end_of_turn import turn_end
from .selection import adapted
from .special_ids import looks_special
from .tokenizer import Source

_NOT_NEEDED = frozenset({"added-words", "unify-bos-eos", "generation-tags", "end-of-turn"})


def own_vocabulary(source: Source, context: AdapterContext) -> tuple[Vocab, tuple[Note, ...]]:
    """Tokens, special ids and chat template of ``source``, adapted; ``model`` is empty, as for no llama.cpp.

    The notes are about chat templates and known dangers. Raises VocabError for more tokens than rows,
    UsageError for an unknown chat template.
    """
    own = Candidate("the tokenizer itself", base_vocab(source, model=""))
    vocab, notes = adapted(own, context, enabled_adapters(_NOT_NEEDED))
    if "bos" in vocab.special:
        vocab, _ = unify_bos_eos(vocab, context)  # padding where BOS is EOS
    return vocab, tuple(note for note in notes if note.warning or note.name == "chat-template")


def stop_ids(vocab: Vocab, context: AdapterContext) -> tuple[tuple[int, ...], tuple[Note, ...]]:
    """The tokens that end an answer: EOS first, then the end of a turn, then others the configuration lists.

    A note where the chat template cannot be rendered, so that what ends its turns is not known.
    """
    notes: tuple[Note, ...] = ()
    try:
        turn = turn_end(vocab)
    except VocabError as error:
        turn = None
        notes = (Note("chat-template", f"{error.message}; it is copied unchanged", warning=True),)
    configured, listed = (each.get("eos_token_id") for each in (context.generation_config, context.config))
    further = [
        each
        for each in (
            *(configured if isinstance(configured, list) else [configured]),
            *(listed if isinstance(listed, list) else []),
        )
        if isinstance(each, int) and not isinstance(each, bool) and looks_special(vocab, each)
    ]
    stops = [vocab.special.get("eos"), turn, *further]
    return tuple(dict.fromkeys(each for each in stops if each is not None)), notes
