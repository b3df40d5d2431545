"""What can be checked of an ONNX folder before it runs: its tokenizer and its settings."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..converters.family import AnyFamily
from ..converters.onnx.side_files import CONFIG, GENERATION, configurations, same_ids
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.errors import InputError
from ..core.input_files import quoted, read_bytes, read_json
from ..core.language import phrase
from ..core.model import Model
from ..quant.parts import EMBEDDING
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_least import WINDOW
from ..vocab.byte_vocabulary import KIND as BYTES
from ..vocab.context import read_context
from ..vocab.exam import exam
from ..vocab.parity import Parity
from ..vocab.token_settings import read_token_settings
from ..vocab.tokenizer import Source
from ..vocab.tokenizer_process import TokenizerProcess
from .onnx_graphs import with_todays
from .proof import Finding, MetadataPart, TokensPart, verdict_of
from .tokens import cut

Encode = Callable[[Sequence[str], bool], Sequence[Sequence[int]]]
_FILE = "tokenizer.json"
_LISTED = 12  # ids shown of each side
# What may differ without changing what is computed: how the checkpoint was saved, and for GBST what reads it.
_FREE = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "tokenizer_class", "torch_dtype"}
    | {"transformers_version", "tie_word_embeddings", "use_cache"}
)
# Read only where a window is in use; transformers 4 writes null of one that is not.
_OF_WINDOWS = frozenset({"sliding_window", "max_window_layers"})
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def folder_source(folder: OnnxFolder) -> Source:
    """The tokenizer of a folder, read as a checkpoint's is. Raises what ``read_tokenizer`` raises."""
    return read_tokenizer(folder.without_weights)


def check_folder_tokens(
    folder: OnnxFolder, checkpoint: Checkpoint, source: Source, texts: Sequence[str] = ()
) -> TokensPart:
    """Hold a folder's tokenizer against the checkpoint's, ``source``, on the built-in texts and ``texts``.

    ``tokenizer.json`` is read by the tokenizers library itself, as whoever loads the folder does; without one
    the folder's tokenizer is read as the checkpoint's is.
    """
    questions = exam(source, cut(texts))
    asked, right = questions.texts, questions.parsed
    name = _FILE if (folder.path / _FILE).is_file() else "tokenizer"
    if name == _FILE and source.kind == BYTES:
        right = tuple(source.encode_batch([_without_dropped(source, text) for text in asked], True))
    try:
        ids = _encoder(folder)(asked, True)
    except InputError as error:
        parity = Parity(name, len(asked), 0, "mismatch", error=error.message)
        return TokensPart("failed", parity, 0, (Finding(name, error.message),))
    wrong = [
        (text, expected, got)
        for text, expected, got in zip(asked, right, ids, strict=True)
        if list(got) != list(expected) and not _as_good(source, got, expected)
    ]
    parity = Parity(name, len(asked), len(asked) - len(wrong), "mismatch" if wrong else "exact")
    if not wrong:
        return TokensPart("passed", parity)
    text, expected, got = wrong[0]
    same = name == _FILE and read_bytes(folder.path, _FILE) == read_bytes(checkpoint.folder, _FILE)
    message = (
        f"{name} gives other token ids for {len(wrong)} of {len(asked)} texts, the first being "
        f"{quoted(text[:60])}"
        + ("; the file is the checkpoint's own, whose other tokenizer files differ from it" if same else "")
    )
    finding = Finding(name, message, _listed(expected), _listed(got), grave=not same)
    return TokensPart(verdict_of((finding,)), parity, 0, (finding,))


def _encoder(folder: OnnxFolder) -> Encode:
    """Token ids of texts without BOS and EOS, special tokens in them recognised."""
    if not (folder.path / _FILE).is_file():
        return folder_source(folder).encode_batch
    process = TokenizerProcess("tokenizers", str(folder.path / _FILE))
    process.open(read_bytes(folder.path, _FILE) or b"")
    return lambda texts, parse_special: process.encode(texts, parse_special=parse_special)


def _without_dropped(source: Source, text: str) -> str:
    """Without the white space ByT5Tokenizer drops beside some tokens, and its tokenizer.json with it; our own
    reading keeps it, as llama.cpp does (vocab/byte_vocabulary.py).
    """
    for token in source.added:
        if token.lstrip or token.rstrip:
            beside = [r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip)]
            text = re.sub(re.escape(token.text).join(beside), token.text.replace("\\", r"\\"), text)
    return text


def _as_good(source: Source, got: Sequence[int], right: Sequence[int]) -> bool:
    return source.equally_good is not None and source.equally_good(got, right)


def _listed(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:_LISTED])) + (" …" if len(ids) > _LISTED else "")


def check_folder_settings(
    folder: OnnxFolder, checkpoint: Checkpoint, model: Model, family: AnyFamily
) -> MetadataPart:
    """Every setting of the checkpoint's config.json against the folder's, and the special ids for generating.

    Of the graphs themselves the windows of attention are compared, which short texts do not reach. The right
    ids are those of ``model.vocab``, as a conversion writes them. A setting that is missing only warns; the
    graph has its own numbers in any case.
    """
    own, generating = _expected(folder, checkpoint, model)
    windowless = not own.get("use_sliding_window", True) and not folder.config.get("use_sliding_window")
    free = _FREE | (_OF_WINDOWS if windowless else frozenset())
    names = [name for name in own if name not in free]
    findings = [each for name in names for each in _compared(name, own, folder.config, CONFIG)]
    generation = read_json(folder.path, GENERATION) or {}
    ids = [name for name in _IDS if generating.get(name) is not None]
    findings += [each for name in ids for each in _compared(name, generating, generation, GENERATION)]
    findings += _windows(folder, checkpoint, family)
    findings.sort(key=lambda finding: not finding.grave)
    return MetadataPart(verdict_of(tuple(findings)), len(names) + len(ids), tuple(findings))


def _windows(folder: OnnxFolder, checkpoint: Checkpoint, family: AnyFamily) -> Iterator[Finding]:
    """Graphs of kconv's whose layers see further back, or less far, than those a conversion would make."""
    for file, graph in with_todays(folder, checkpoint, family):
        own = Counter(node.attributes[WINDOW] for node in graph.nodes if WINDOW in node.attributes)
        if own != file.near:
            message = phrase("layers of {file} attend to other windows than the checkpoint's")
            yield Finding(WINDOW, message.of(file=file.path.name), _counted(own), _counted(file.near))


def _counted(windows: Mapping[Any, int]) -> str:
    """``3 × 512``."""
    return ", ".join(f"{count} × {window}" for window, count in sorted(windows.items())) or "none"


def _expected(
    folder: OnnxFolder, checkpoint: Checkpoint, model: Model
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """config.json and generation_config.json as a conversion with the folder's chat template writes them."""
    context = read_context(checkpoint, rows=model.tensor(EMBEDDING).rows)
    assert model.vocab is not None
    vocab = model.vocab
    with contextlib.suppress(InputError):  # reported where tokens are compared
        vocab = replace(vocab, chat_template=read_token_settings(folder.without_weights).chat_template)
    written = configurations(checkpoint, model, context, vocab, [])
    text = written.get(GENERATION)
    return json.loads(written[CONFIG] or b"{}"), json.loads(text) if text else context.generation_config


def _compared(name: str, own: Mapping[str, Any], theirs: Mapping[str, Any], file: str) -> list[Finding]:
    if name in theirs and (theirs[name] == own[name] or (name in _IDS and same_ids(theirs[name], own[name]))):
        return []
    there = name in theirs
    message = phrase("{file} has another {name} than the checkpoint's").of(file=file, name=quoted(name))
    if not there:
        message = phrase("{file} lacks {name}, which the checkpoint's has").of(file=file, name=quoted(name))
    return [Finding(name, message, quoted(own[name]), quoted(theirs.get(name)), grave=there)]
