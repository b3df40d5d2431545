"""A small XGLM: sinusoids for positions, scaled embeddings that are the head, too, unigram pieces."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_texts.generator import JOINT

from . import causal, texts

NAME, SEED = "xglm", 20211220
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
FIRST = 2  # </s>, in front of every text
UNKNOWN, OFFSET = 3, 1  # of fairseq's ids: SentencePiece's from 3 on and one
MADE_UP = 7
WORDS = tuple(f"<madeupword{number}>" for number in range(MADE_UP))  # behind the pieces
VOCABULARY, CONTEXT = 1112, 256
DOCUMENTS = 5000

# Keys and values as facebook/xglm-1.7B has them; the sizes are ours.
CONFIG: dict[str, Any] = {
    "activation_dropout": 0,
    "activation_function": "gelu",
    "architectures": ["XGLMForCausalLM"],
    "attention_dropout": 0.0,
    "attention_heads": 4,
    "bos_token_id": 0,
    "d_model": 128,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
    "eos_token_id": 2,
    "ffn_dim": 512,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": CONTEXT,
    "model_type": "xglm",
    "num_layers": 3,
    "pad_token_id": 1,
    "scale_embedding": True,
    "torch_dtype": "float16",
    "transformers_version": "4.15.0.dev0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


@dataclass(frozen=True)
class Pieces:
    """The trained SentencePiece model, and the tokenizer.json transformers 4 makes of it."""

    model: bytes
    tokenizer: Any

    def ids(self, text: str) -> list[int]:
        """Ids by SentencePiece, as fairseq counts them."""
        import sentencepiece

        found = sentencepiece.SentencePieceProcessor(model_proto=self.model).encode(text)
        return [each + OFFSET if each else UNKNOWN for each in found]


def new_tokenizer() -> Pieces:
    """A unigram model with SentencePiece's usual ids and normalization; fairseq's ids around it."""
    import sentencepiece

    written = io.BytesIO()
    stream = (text.replace(JOINT, "\n") for text in texts.documents(SEED, causal.ASKED))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(
            line for text in itertools.islice(stream, DOCUMENTS) for line in text.split("\n") if line
        ),
        model_writer=written,
        model_type="unigram",
        vocab_size=VOCABULARY - OFFSET - MADE_UP,
        num_threads=1,
        minloglevel=2,
    )
    return Pieces(written.getvalue(), _as_tokenizer_json(written.getvalue()))


def _as_tokenizer_json(data: bytes) -> Any:
    """What XGLMConverter of transformers 4 makes: four special tokens, the pieces, seven made-up words."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = [(model.id_to_piece(each), model.get_score(each)) for each in range(3, len(model))]
    made_up = [(text, 0.0) for text in WORDS]
    vocab = [*((text, 0.0) for text in SPECIALS), *pieces, *made_up]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=UNKNOWN, byte_fallback=False))
    charsmap = messages.ModelProto.FromString(data).normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> </s> $B", special_tokens=[("<s>", 0), ("</s>", FIRST)]
    )
    tokenizer.add_special_tokens([*SPECIALS, *WORDS])
    return tokenizer


def new_model() -> Any:
    """The untrained model."""
    import torch
    from transformers import XGLMConfig, XGLMForCausalLM

    settings = {
        key: value for key, value in CONFIG.items() if key not in ("torch_dtype", "transformers_version")
    }
    model = XGLMForCausalLM(XGLMConfig(**settings)).float().train()
    causal.initialize(model, ("out_proj.weight", "fc2.weight"), CONFIG["num_layers"])
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.05)
    return model


optimizers = causal.optimizers
loss = causal.loss


def batches(tokenizer: Pieces, count: int) -> Iterator[dict[str, Any]]:
    """Rows of CONTEXT ids."""
    return causal.batches(tokenizer.ids, SEED, CONTEXT, count, FIRST)


def measure(model: Any, tokenizer: Pieces) -> dict[str, dict[str, float]]:
    """Loss on held-out texts."""
    return causal.measure(model, tokenizer.ids, CONTEXT, FIRST)


def show(model: Any, tokenizer: Pieces) -> str:
    """What the model says to the prompt."""
    return causal.show(model, tokenizer.tokenizer, FIRST)


def stored(tensor: Any) -> Any:
    """A weight as the file holds it: float16."""
    import torch

    return tensor.to(torch.float16)


def save(model: Any, tokenizer: Pieces, folder: Path) -> None:
    """pytorch_model.bin, in which the head repeats the embedding, and the tokenizer's files."""
    import torch

    state = {name: stored(tensor).contiguous() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # one storage, written once
    torch.save(dict(sorted(state.items())), folder / "pytorch_model.bin")
    (folder / "sentencepiece.bpe.model").write_bytes(tokenizer.model)
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
    roles |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    more = {"additional_special_tokens": list(WORDS)}
    (folder / "special_tokens_map.json").write_text(json.dumps({**roles, **more}), encoding="utf-8")
    settings = {**roles, **more, "tokenizer_class": "XGLMTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
