"""What is changed or made of a checkpoint's configuration and tokenizer files for an ONNX folder.

Each function gives contents by file name, of the files that are not copied as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.input_files import quoted, read_bytes, read_json
from ...core.model import Model, Note
from ...core.vocabulary import Vocab
from ...vocab.byte_vocabulary import KIND as BYTES
from ...vocab.context import AdapterContext
from ...vocab.own_vocabulary import stop_ids
from ...vocab.sentencepiece_json import difference, sentencepiece_tokenizer_json
from ...vocab.special_ids import shown
from ...vocab.token_settings import read_token_settings
from ...vocab.tokenizer import Source
from ...vocab.tokenizer_json import byte_tokenizer_json, gpt2_tokenizer_json
from ...vocab.wordpiece import vocab_txt_text
from ..families import family_for

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_ROLES = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
Contents = dict[str, bytes | None]


def as_json(value: Mapping[str, Any]) -> bytes:
    """The text of a file."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def configurations(
    checkpoint: Checkpoint, model: Model, context: AdapterContext, vocab: Vocab, notes: list[Note]
) -> Contents:
    """config.json and generation_config.json, their special ids those of the vocabulary.

    Where several tokens end an answer, generation_config.json lists them and is made if there is none.
    """
    made: Contents = {}
    config, generating = dict(checkpoint.config), dict(context.generation_config)
    family = family_for(config)
    if family.encoder_only:  # which generates nothing, so its ids matter to nobody
        return _of_encoder(checkpoint, config, notes)
    ids = {key: vocab.special.get(role) for key, role in _ROLES.items()}
    stops, stop_notes = stop_ids(vocab, context)
    notes += stop_notes
    several = {**ids, "eos_token_id": list(stops)} if len(stops) > 1 else ids
    wanted = several if isinstance(config.get("eos_token_id"), list) else ids
    granted = {key: value for key, value in model.granted.items() if config.get(key) is None}
    changed = _with_ids(CONFIG, _without_code(config, notes) | granted, wanted, vocab, notes)
    front = family.front_end
    if front is not None:
        made[front.onnx_file] = as_json(config)
        changed |= front.onnx_config
        message = f"config.json declares T5, since the graphs run as one; see {front.onnx_file}"
        notes.append(Note("gbst-config", message))
    made[CONFIG] = as_json(changed)
    if changed == read_json(checkpoint.folder, CONFIG):
        made[CONFIG] = read_bytes(checkpoint.folder, CONFIG) or made[CONFIG]
    if checkpoint.has(GENERATION) or len(stops) > 1:
        changed = _with_ids(GENERATION, generating, several, vocab, notes)
        if changed != generating:
            made[GENERATION] = as_json(changed)
    return made


def _of_encoder(checkpoint: Checkpoint, config: dict[str, Any], notes: list[Note]) -> Contents:
    changed = _without_code(config, notes)
    if changed == read_json(checkpoint.folder, CONFIG):
        return {CONFIG: read_bytes(checkpoint.folder, CONFIG)}
    return {CONFIG: as_json(changed)}


def _without_code(settings: Mapping[str, Any], notes: list[Note]) -> dict[str, Any]:
    """Without ``auto_map``: code of the checkpoint's own, which is not copied and not needed."""
    if "auto_map" in settings:
        notes.append(
            Note("custom-code", "auto_map is left out: the folder does not need the checkpoint's own code")
        )
    return {key: value for key, value in settings.items() if key != "auto_map"}


def _with_ids(
    file: str, settings: dict[str, Any], ids: Mapping[str, Any], vocab: Vocab, notes: list[Note]
) -> dict[str, Any]:
    """``settings`` with ``ids``, and a note of what they were; the order in a list is the file's own."""
    changes = {key: value for key, value in ids.items() if not same_ids(settings.get(key), value)}
    if changes:
        changed = (
            f"{key} {quoted(settings.get(key))} is now {_shown(vocab, changes[key])}" for key in changes
        )
        notes.append(Note("special-ids", f"{file}: {'; '.join(changed)}"))
    return settings | changes


def same_ids(actual: object, wanted: object) -> bool:
    """Whether two settings are the same, as lists in whatever order."""
    lists = [each if isinstance(each, list) else [each] for each in (actual, wanted)]
    return len(lists[0]) == len(lists[1]) and all(each in lists[1] for each in lists[0])


def _shown(vocab: Vocab, ids: Any) -> str:
    if ids is None:
        return "null, since the tokenizer has no such token"
    return ", ".join(shown(vocab, each) for each in (ids if isinstance(ids, list) else [ids]))


def tokenizer_files(
    checkpoint: Checkpoint,
    source: Source,
    vocab: Vocab,
    notes: list[Note],
    trimmed: Mapping[str, bytes | None],
) -> Contents:
    """tokenizer.json where there is none, and tokenizer_config.json with what its readers want to know.

    ``trimmed`` are files that are not as in the checkpoint.
    """
    made: Contents = {}
    data = trimmed.get(TOKENIZER)
    settings = (read_json(checkpoint.folder, TOKENIZER) or {}) if data is None else json.loads(data)
    changed = _without_code(settings, notes)
    if source.kind == BYTES:
        made["tokenizer.json"] = byte_tokenizer_json(source).encode()
        changed |= _byte_settings(changed, source)
        notes.append(
            Note(
                "byte-tokenizer",
                (
                    "tokenizer.json was created for the byte vocabulary and gives the same ids as "
                    "ByT5Tokenizer"
                ),
            )
        )
    elif not checkpoint.has("tokenizer.json") and checkpoint.has("merges.txt"):
        made["tokenizer.json"] = gpt2_tokenizer_json(source).encode()
        notes.append(Note("made-tokenizer", "tokenizer.json was created from vocab.json and merges.txt"))
    elif not checkpoint.has("tokenizer.json") and source.pieces is not None:
        made["tokenizer.json"] = vocab_txt_text(checkpoint, read_token_settings(checkpoint)).encode()
        notes.append(Note("made-tokenizer", "tokenizer.json was created from vocab.txt"))
    elif not checkpoint.has("tokenizer.json"):
        made |= _of_sentencepiece(source, notes)
    if changed.get("tokenizer_class") == "PreTrainedTokenizerFast":
        # transformers 4 gives this class's texts token types besides, which no graph takes
        changed.setdefault("model_input_names", ["input_ids", "attention_mask"])
    changed = _with_template(changed, source, vocab)
    if changed != settings:
        made[TOKENIZER] = as_json(changed)
    if checkpoint.has(TEMPLATE) and vocab.chat_template != source.chat_template:
        made[TEMPLATE] = None if vocab.chat_template is None else vocab.chat_template.encode()
    return made


def _of_sentencepiece(source: Source, notes: list[Note]) -> Contents:
    text, model = sentencepiece_tokenizer_json(source), source.description.files[0]
    apart = difference(text, source)
    if apart is None:
        notes.append(
            Note("made-tokenizer", (f"tokenizer.json was created from {model} and gives the same ids"))
        )
        return {"tokenizer.json": text.encode()}
    message = (
        f"no tokenizer.json was created from {model}, since it would give {apart}; programs that read "
        "nothing else, such as Transformers.js, cannot load this folder's tokenizer"
    )
    notes.append(Note("no-tokenizer-json", message, warning=True))
    return {}


def _byte_settings(settings: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """What ByT5Tokenizer takes for granted and Transformers.js does not."""
    granted = {"clean_up_tokenization_spaces": False} | {
        f"{key}_token": source.tokens[source.special[role]]
        for key, role in (("pad", "padding"), ("eos", "eos"), ("unk", "unknown"))
    }
    missing = {key: value for key, value in granted.items() if key not in settings}
    return {**missing, "tokenizer_class": "ByT5Tokenizer"}


def _with_template(settings: dict[str, Any], source: Source, vocab: Vocab) -> dict[str, Any]:
    """With the chat template, which Transformers.js looks for here only, transformers in two places."""
    if vocab.chat_template == source.chat_template and (
        vocab.chat_template is None or settings.get("chat_template")
    ):
        return settings
    others = {key: value for key, value in settings.items() if key != "chat_template"}
    return others if vocab.chat_template is None else {**others, "chat_template": vocab.chat_template}
