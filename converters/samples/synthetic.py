"""Small checkpoints in the layout of a family, with random weights and a tokenizer trained on the spot.

They are for trying tools and for tests. Nothing in them comes from the families' published files; names,
ids, keys and file layout follow what their cards and configurations say in public.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import OutputExists
from ...core.files import explained
from ...core.tensor import DType
from .korean_text import korean_text
from .weights import WeightFormat, write_checkpoint, write_json, write_readme

_SPACE = "\u2581"  # sentencepiece's visible space

# tiktoken's pattern as Llama 3 publishes it (llama-models, tokenizer.py, pat_str).
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_eagle(
    folder: Path,
    *,
    dtype: DType = DType.BF16,
    shards: int = 1,
    weight_format: WeightFormat = "safetensors",
    seed: int = 0,
    vocab_size: int = 2500,
) -> Path:
    """Write an EAGLE-like checkpoint: byte-fallback BPE that splits digits, BOS and EOS both ``</s>``.

    ``folder`` must not exist yet, or be empty. Raises OutputExists and EnvironmentProblem.
    """
    with _whole_folder(folder) as place:
        tokenizer = byte_fallback_tokenizer(vocab_size)
        size = len(tokenizer["model"]["vocab"])
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": size,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 2,
            "eos_token_id": 2,
        }
        roles = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
        write_json(
            place,
            {
                "tokenizer.json": tokenizer,
                "tokenizer_config.json": {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "model_max_length": 2048,
                    "clean_up_tokenization_spaces": False,
                    **roles,
                },
                "special_tokens_map.json": roles,
                "generation_config.json": {"bos_token_id": 2, "eos_token_id": 2},
            },
        )
        write_checkpoint(place, config, dtype=dtype, shards=shards, seed=seed, weight_format=weight_format)
        write_readme(
            place,
            "An EAGLE-like demo checkpoint",
            ("ko", "en"),
            "Layout: `LlamaForCausalLM` with a byte-fallback BPE tokenizer that splits digits; the "
            "beginning and the end of a text are both `</s>`, and `<unk>` serves as padding.",
        )
    return folder


def write_llama_3_ko(
    folder: Path,
    *,
    dtype: DType = DType.BF16,
    shards: int = 2,
    weight_format: WeightFormat = "safetensors",
    seed: int = 0,
    base_vocab: int = 1800,
    rope_scaling: bool = False,
    pairs: bool = True,
) -> Path:
    """Write a checkpoint like Llama-3-Ko-8B-Instruct-AOG: tiktoken-style BPE, GQA 4:1, rope_theta 500000.

    As in the original, config.json and generation_config.json still name the special ids of Llama 2
    (1, 2, 2), which are ordinary tokens here. ``rope_scaling`` adds Llama 3.1's; ``pairs`` writes merges
    as pairs, as tokenizers 0.20 and later do, otherwise as strings. ``folder`` must not exist yet, or be
    empty. Raises OutputExists and EnvironmentProblem.
    """
    with _whole_folder(folder) as place:
        tokenizer = tiktoken_style_tokenizer(base_vocab, pairs=pairs)
        added = {token["content"]: token for token in tokenizer["added_tokens"]}
        stale = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(tokenizer["model"]["vocab"]) + len(added),
            "hidden_size": 256,
            "intermediate_size": 896,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "rope_scaling": _LLAMA_3_1_ROPE if rope_scaling else None,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "use_cache": True,
            **stale,
        }
        end = "<|end_of_text|>"
        roles = {"bos_token": "<|begin_of_text|>", "eos_token": end, "pad_token": end}
        write_json(
            place,
            {
                "tokenizer.json": tokenizer,
                "tokenizer_config.json": {
                    "added_tokens_decoder": {
                        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                        for token in added.values()
                    },
                    "clean_up_tokenization_spaces": True,
                    "model_input_names": ["input_ids", "attention_mask"],
                    "model_max_length": 8192,
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    **roles,
                },
                "special_tokens_map.json": roles,
                "generation_config.json": {"_from_model_config": True, "do_sample": True, **stale},
            },
        )
        write_checkpoint(place, config, dtype=dtype, shards=shards, seed=seed, weight_format=weight_format)
        write_readme(
            place,
            "A Llama-3-Ko-like demo checkpoint",
            ("ko", "en"),
            "Layout: `LlamaForCausalLM` with grouped heads (4:1), rope_theta 500000 and a byte-level BPE "
            "tokenizer with Llama 3's pattern and special tokens. config.json names special ids that do "
            "not belong to this vocabulary, as in the family's published files.",
        )
    return folder


_LLAMA_3_1_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

FAMILIES: Mapping[str, Callable[[Path], Path]] = {"eagle": write_eagle, "llama-3-ko": write_llama_3_ko}
"""What ``kconv demo-checkpoint`` calls, by family name."""


def byte_fallback_tokenizer(vocab_size: int) -> dict[str, Any]:
    """A tokenizer.json with byte fallback: spaces become U+2581, one stands in front, digits are split.

    The vocabulary also holds ``U+2581 0`` to ``U+2581 9`` with their merges, which no text can reach since
    the digits are split off first; vocabularies exported from sentencepiece have such pieces.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_SPACE, "merged_with_next"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 10,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        limit_alphabet=1500,
        show_progress=False,
    )
    lines = (_SPACE + line.replace(" ", _SPACE) for line in korean_text())
    trained.train_from_iterator(lines, trainer)
    result: dict[str, Any] = json.loads(trained.to_str())
    model = result["model"]
    model["merges"][100:100] = [[_SPACE, digit] for digit in "0123456789"]
    for digit in "0123456789":
        model["vocab"][_SPACE + digit] = len(model["vocab"])
    result["added_tokens"] = [_added(number, text) for number, text in enumerate(("<unk>", "<s>", "</s>"))]
    result["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ],
    }
    result["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
    result["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return result


def tiktoken_style_tokenizer(base_vocab: int, *, pairs: bool = True) -> dict[str, Any]:
    """A tokenizer.json as Llama 3's: its pattern, byte-level BPE, ``ignore_merges``, 256 special tokens.

    The special tokens follow the base vocabulary, the first of them ``<|begin_of_text|>``, which is put in
    front of every text. A few whole words are in the vocabulary that no merge makes; ``ignore_merges``
    reaches them.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA_3_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    words = ["안녕하세요", " 대한민국의", " tokenizer"]
    trained = Tokenizer(models.BPE())
    skeleton = json.loads(trained.to_str())
    skeleton["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    trained = Tokenizer.from_str(json.dumps(skeleton))
    trainer = trainers.BpeTrainer(
        vocab_size=base_vocab - len(words),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(korean_text(), trainer)
    result: dict[str, Any] = json.loads(trained.to_str())
    model = result["model"]
    for word in words:
        ((symbols, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
            word
        )
        model["vocab"].setdefault(symbols, len(model["vocab"]))
    model["ignore_merges"] = True
    model["merges"] = [list(pair) if pairs else " ".join(pair) for pair in map(_pair, model["merges"])]
    first = len(model["vocab"])
    result["added_tokens"] = [_added(first + number, text) for number, text in enumerate(_llama_3_specials())]
    result["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            _begin_with("<|begin_of_text|>", first),
        ],
    }
    result["decoder"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    return result


def _llama_3_specials() -> list[str]:
    """The 256 special tokens of Llama 3, in order of id (llama-models, tokenizer.py)."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: "<|eot_id|>",
    }
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    return [named.get(position) or next(reserved) for position in range(256)]


def _begin_with(token: str, number: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    second = {"SpecialToken": {"id": token, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            second,
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _added(number: int, text: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge as a pair; before tokenizers 0.20 they were strings with one space."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` that takes its name at the end, or vanishes on any failure."""
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputExists(
            f"{folder} exists already", hint="name a folder that does not exist, or an empty one"
        )
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            place.chmod(0o755)
            yield place
            os.replace(place, folder)  # an empty folder of that name gives way
        finally:
            shutil.rmtree(place, ignore_errors=True)
