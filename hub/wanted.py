"""Which files of a repository a conversion reads: what decides, what describes, and one set of weights.

Repositories hold the same weights several times (safetensors and .bin, TensorFlow, ``original/``, ``onnx/``,
GGUF); the rule that chooses among files in a folder chooses here, too (core/weight_files.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.side_files import is_side_file
from ..core.weight_files import STANDARD, find_weights, is_not_the_model
from .source import HubFile, HubSource

_ALWAYS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
)
_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", *_MODELS)
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_CARRIED = ("NOTICE",)
"""What goes into a folder of ONNX files along with the licence."""
_FOREIGN = ("adapter_config.json", "params.json")
"""What tells that it is no checkpoint, and what it is; the second only where there is no config.json."""
_LARGEST = 64 << 20  # bytes of a file that is no weights


def small_files(source: HubSource) -> list[HubFile]:
    """What a conversion reads, copies or names in its manifest beside the weights."""
    decide = [each.path for each in source.files if is_side_file(each.path)]
    return _there(source, (*decide, *_LICENCES, *_CARRIED, *_FOREIGN))


def first_files(source: HubSource) -> list[HubFile]:
    """What a plan reads in any case; ``second_files`` depend on them."""
    names = {each.path for each in source.files}
    vocabulary = ("tokenizer.json",) if "tokenizer.json" in names else _VOCABULARIES
    foreign = _FOREIGN[: 1 if "config.json" in names else None]
    return _there(source, (*_ALWAYS, *vocabulary, *foreign, *_indexes(source)))


def second_files(source: HubSource, folder: Path) -> list[HubFile]:
    """What a plan reads depending on ``folder``, where the first lie.

    The SentencePiece model of a tokenizer.json that has its rules, and the licence where the card names none.
    """
    names: list[str] = []
    tokenizer, card = folder / "tokenizer.json", folder / "README.md"
    if tokenizer.is_file() and b"precompiled_charsmap" in tokenizer.read_bytes():
        names += _MODELS
    if not card.is_file() or b"\nlicense:" not in card.read_bytes()[: 1 << 16]:
        names += _LICENCES
    return _there(source, names)


def _indexes(source: HubSource) -> list[str]:
    """The index of the weights that will be chosen; none where one file is."""
    there = {each.path for each in source.files}
    first = next((name for name in STANDARD if name in there), "")
    return [first] if first.endswith(".json") else []


def _there(source: HubSource, names: Sequence[str]) -> list[HubFile]:
    found = [source.file(name) for name in dict.fromkeys(names)]
    return [each for each in found if each is not None and each.size <= _LARGEST]


def weight_files(source: HubSource, folder: Path) -> list[HubFile]:
    """The files of the weights; ``folder`` has the small ones. Raises CheckpointError where it is unclear."""
    at_top = [each.path for each in source.files if "/" not in each.path]
    if "config.json" not in at_top and (below := _folders_with_models(source)):
        shown = ", ".join(below[:5])
        raise CheckpointError(
            f"{source.asked} has no model at its top, but folders in it have: {shown}",
            hint=f"download one of them: hf download {source.repository} --revision {source.commit} "
            f"--include '{below[-1]}/*' --local-dir .",
        )
    names = find_weights(folder, at_top).files
    found = [source.file(name) for name in names]
    return [each for each in found if each is not None]


def likely_weights(source: HubSource) -> list[HubFile]:
    """The same by the names in the Hub's list alone, where no index can be asked for."""
    for kind in (".safetensors", ".bin"):
        whole = source.file(f"{'model' if kind == '.safetensors' else 'pytorch_model'}{kind}")
        if whole is not None:
            return [whole]
        at_top = [each for each in source.files if "/" not in each.path and each.path.endswith(kind)]
        if found := [each for each in at_top if not is_not_the_model(each.path)]:
            return found
    return []


def _folders_with_models(source: HubSource) -> list[str]:
    ends = "/config.json"
    return [each.path.removesuffix(ends) for each in source.files if each.path.endswith(ends)]
