"""Small random checkpoints of sentence encoders, folders as sentence-transformers publishes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from ...vocab.sentencepiece_proto import parse_model
from .korean_text import korean_text
from .tokenizer_files import unigram_sentencepiece
from .weights import Shape, write_checkpoint, write_json, write_readme

_VOCABULARY = 3000
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KLUE = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")  # klue/roberta's order, which fairseq's ids are


def word_piece_tokenizer(
    vocab_size: int,
    specials: Sequence[str] = _BERT,
    *,
    lowercase: bool = False,
    strip_accents: bool | None = None,
) -> dict[str, Any]:
    """A tokenizer.json as BertTokenizer's, trained on Korean; cased, accents kept unless asked otherwise."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    splitter = pre_tokenizers.BertPreTokenizer()
    texts = (normalizer.normalize_str(line) for line in korean_text())
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    pieces = [*specials, *_pieces(words, vocab_size - len(specials))]
    model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    trained = Tokenizer(model)
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.decoder = decoders.WordPiece()
    trained.add_special_tokens(list(specials))
    around = [(token, specials.index(token)) for token in ("[CLS]", "[SEP]")]
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=around
    )
    result: dict[str, Any] = json.loads(trained.to_str())
    return result


def _pieces(words: Mapping[str, int], count: int) -> list[str]:
    """All characters, at the beginning of a word and within, and what most of the text is made of.

    The library's trainer gives other pieces each time, since it breaks ties by the order of a hash table.
    """
    weights: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(len(word)):
            for end in range(start + 2, len(word) + 1):
                weights[("##" if start else "") + word[start:end]] += times * (end - start - 1)
    characters = sorted({character for word in words for character in word})
    single = [*characters, *(f"##{character}" for character in characters)]
    known = set(single)
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    longer = [piece for piece, _ in ranked if piece not in known]
    return [*single, *longer][:count]


def write_bert(folder: Path, *, dtype: DType = DType.F32, seed: int = 0, **changes: Any) -> Path:
    """Write a BERT as klue/bert-base is, with the mean pooled as KoSBERT's.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config = {**_common("BertModel", "bert"), "hidden_size": 256, "num_attention_heads": 4}
    config |= {"max_position_embeddings": 300, "type_vocab_size": 2}
    config |= {"layer_norm_eps": 1e-12, "pad_token_id": 0, **changes}
    return _write(folder, config, _BERT, "A KLUE-BERT-like demo checkpoint", dtype, seed, pooling="mean")


def write_roberta(folder: Path, *, dtype: DType = DType.F32, seed: int = 0, **changes: Any) -> Path:
    """Write a RoBERTa as klue/roberta is: BERT's tokenizer, positions that begin behind the padding's.

    The first token's state is the embedding, normalized to length 1, as KoSimCSE's.
    """
    config = {**_common("RobertaModel", "roberta"), "max_position_embeddings": 302, "type_vocab_size": 1}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "tokenizer_class": "BertTokenizer"}
    config |= {"layer_norm_eps": 1e-05, **ids, **changes}
    return _write(folder, config, _KLUE, "A KLUE-RoBERTa-like demo checkpoint", dtype, seed, pooling="cls")


def write_xlm_roberta(folder: Path, *, dtype: DType = DType.F32, seed: int = 0, **changes: Any) -> Path:
    """Write an XLM-RoBERTa as bge-m3-ko is: SentencePiece, the first token pooled, normalized."""
    config = {**_common("XLMRobertaModel", "xlm-roberta"), "max_position_embeddings": 302}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config |= {"type_vocab_size": 1, "layer_norm_eps": 1e-05, **ids, **changes}
    folder.mkdir(parents=True)
    data = unigram_sentencepiece(1500, normalization_rule_name="nmt_nfkc")
    (folder / "sentencepiece.bpe.model").write_bytes(data)
    pieces = len(parse_model(data, folder / "sentencepiece.bpe.model").pieces)
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    roles |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "XLMRobertaTokenizer", **roles}
    write_json(folder, {"tokenizer_config.json": settings, "special_tokens_map.json": roles})
    rows = pieces + 2  # fairseq's <pad> before them and <mask> behind
    whole = {"vocab_size": rows, **config}
    title = "A BGE-M3-like demo checkpoint"
    text = "Layout: `XLMRobertaModel` with a SentencePiece tokenizer and fairseq's ids, pooling `cls`."
    _finish(folder, whole, title, text, dtype, seed, pooling="cls")
    return folder


def _common(name: str, kind: str) -> dict[str, Any]:
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": 192,
        "intermediate_size": 800,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }


def encoder_shapes(config: Mapping[str, Any], prefix: str = "") -> dict[str, Shape]:
    """Names and shapes of the tensors of a ``BertModel`` or ``RobertaModel`` of that config.json."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, Shape] = {
        f"{prefix}embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        f"{prefix}embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        f"{prefix}embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
    }
    normed = [f"{prefix}embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        place = f"{prefix}encoder.layer.{layer}"
        linear = {f"attention.self.{each}": (hidden, hidden) for each in ("query", "key", "value")}
        linear |= {"attention.output.dense": (hidden, hidden)}
        linear |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        for name, shape in linear.items():
            shapes[f"{place}.{name}.weight"], shapes[f"{place}.{name}.bias"] = shape, shape[:1]
        normed += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
    for name in normed:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)
    shapes[f"{prefix}pooler.dense.weight"] = (hidden, hidden)
    shapes[f"{prefix}pooler.dense.bias"] = (hidden,)
    return shapes


def _write(
    folder: Path,
    config: Mapping[str, Any],
    specials: Sequence[str],
    title: str,
    dtype: DType,
    seed: int,
    *,
    pooling: str,
) -> Path:
    folder.mkdir(parents=True)
    tokenizer = word_piece_tokenizer(_VOCABULARY, specials)
    rows = len(tokenizer["model"]["vocab"])
    whole = {"vocab_size": rows + -rows % 64, **config}
    roles = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    roles |= {"mask_token": "[MASK]"}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": None, **roles}
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokenizer["model"]["vocab"]), "utf-8")
    write_json(
        folder,
        {"tokenizer.json": tokenizer, "tokenizer_config.json": settings, "special_tokens_map.json": roles},
    )
    text = f"Layout: `{config['architectures'][0]}` with a WordPiece tokenizer, pooling `{pooling}`."
    _finish(folder, whole, title, text, dtype, seed, pooling=pooling)
    return folder


def _finish(
    folder: Path, config: Mapping[str, Any], title: str, text: str, dtype: DType, seed: int, *, pooling: str
) -> None:
    write_pooling(folder, config["hidden_size"], pooling, normalized=pooling == "cls")
    write_checkpoint(folder, config, dtype=dtype, seed=seed, shapes=encoder_shapes(config))
    write_readme(folder, title, ("ko",), text)


def write_pooling(folder: Path, width: int, pooling: str, *, normalized: bool = False) -> None:
    """Write modules.json and 1_Pooling/config.json as sentence-transformers does."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(modules[: 3 if normalized else 2])
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    flags = {f"pooling_mode_{name}": key == pooling for key, name in modes.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling", {"config.json": {"word_embedding_dimension": width, **flags}})
