"""tokenizer.json in the shape of Gemma's, trained on the spot."""

from __future__ import annotations

import json
from typing import Any

from .korean_text import korean_text
from .tokenizer_files import added

_SPACE = "\u2581"  # sentencepiece's visible space
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_WORDS = ("\n\n", "\n\n\n", "<table>", "<h1>")  # matched before anything else


def gemma_style_tokenizer(vocab_size: int) -> dict[str, Any]:
    """A tokenizer.json with byte fallback: spaces become U+2581, none is put in front, ``<bos>`` is.

    Runs of line breaks and some HTML are added words, which are no special tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL, *_WORDS, *bytes_],
        limit_alphabet=900,
        show_progress=False,
    )
    trained.train_from_iterator((line.replace(" ", _SPACE) for line in korean_text()), trainer)
    trained.normalizer = normalizers.Replace(" ", _SPACE)
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    begin = [("<bos>", _SPECIAL.index("<bos>"))]
    trained.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", begin)
    result: dict[str, Any] = json.loads(trained.to_str())
    result["added_tokens"] = [
        added(number, text, special=text in _SPECIAL) for number, text in enumerate((*_SPECIAL, *_WORDS))
    ]
    result["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return result
