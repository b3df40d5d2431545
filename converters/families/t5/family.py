"""T5 and its relatives: KEByT5 and ByT5, T5 v1.1, Flan-T5, mT5, UMT5.

Keys and tensors as llama.cpp reads them in src/models/t5.cpp; names of tensors as in src/llama-arch.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ....core.checkpoint import Checkpoint
from ....core.input_files import read_json
from ....core.model import MetadataValue, Note
from ....vocab.byte_vocabulary import is_byte_tokenizer
from ...family import Family, InTransformers, Row, Transform
from ...reshaping import multiply
from ...transforms import same_weights
from .facts import T5Facts, limits_of_llama_cpp, limits_of_onnx, read_facts
from .graphs import t5_graphs
from .shape import EMBEDDINGS, HEAD, OWN_HEAD, SCALED_HEAD, embedding_name

GATED, UNGATED = "gated", "ungated"  # flags
_SCALED = "scaled "

_BYTE_CONTEXT, _CONTEXT = 1024, 512
_SANE_CONTEXT = 1 << 17  # transformers writes 10^30 for "no limit"


def _scaled(*, copy: bool) -> Transform:
    """``(rows, hidden) -> (rows, hidden)`` in float32, each weight times d_model^-0.5.

    ``copy``: the source is the embedding, which counts among the model's weights already.

    Tied models multiply the decoder's output by that before the head (transformers, modeling_t5.py), which
    llama.cpp's graph does not.
    """
    return multiply(lambda sizes: sizes["hidden"] ** -0.5, copy=copy)


def _block(
    side: str, target: str, source: str, shape: tuple[str, ...], *, when: str | None = None, prefix: str = ""
) -> Row:
    layers = "layers" if side == "encoder" else "decoder_layers"
    name = f"{side[:3]}.blk.{{i}}.{prefix}{target}.weight"
    return Row(name, (f"{side}.block.{{i}}.layer.{source}.weight",), shape, when=when, layers=layers)


def _attention(side: str, norm: str, place: str, prefix: str = "") -> tuple[Row, ...]:
    inner, outer = ("heads * head_dim", "hidden"), ("hidden", "heads * head_dim")
    return (
        _block(side, "attn_norm", f"{norm}.layer_norm", ("hidden",), prefix=prefix),
        _block(side, "attn_q", f"{place}.q", inner, prefix=prefix),
        _block(side, "attn_k", f"{place}.k", inner, prefix=prefix),
        _block(side, "attn_v", f"{place}.v", inner, prefix=prefix),
        _block(side, "attn_o", f"{place}.o", outer, prefix=prefix),
    )


def _feed_forward(side: str, layer: int) -> tuple[Row, ...]:
    dense, up = f"{layer}.DenseReluDense", ("ffn", "hidden")
    return (
        _block(side, "ffn_norm", f"{layer}.layer_norm", ("hidden",)),
        _block(side, "ffn_gate", f"{dense}.wi_0", up, when=GATED),
        _block(side, "ffn_up", f"{dense}.wi_1", up, when=GATED),
        _block(side, "ffn_up", f"{dense}.wi", up, when=UNGATED),
        _block(side, "ffn_down", f"{dense}.wo", ("hidden", "ffn")),
    )


def _bias(side: str) -> Row:
    """Only the first block has one; the others share it."""
    source = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return Row(f"{side[:3]}.blk.0.attn_rel_b.weight", (source,), ("buckets", "heads"))


def _biases(side: str) -> Row:
    """UMT5: every block has its own."""
    return _block(side, "attn_rel_b", "0.SelfAttention.relative_attention_bias", ("buckets", "heads"))


def _head() -> tuple[Row, ...]:
    """``output.weight`` of a head of its own, or of the embedding where logits are scaled, else none."""
    shape, own, copy = ("rows", "hidden"), _scaled(copy=False), _scaled(copy=True)
    return (
        Row("output.weight", (HEAD,), shape, when=OWN_HEAD),
        Row("output.weight", (HEAD,), shape, own, when=SCALED_HEAD),
        *(
            Row("output.weight", (name,), shape, copy, when=_SCALED + name, back_to=(HEAD,))
            for name in EMBEDDINGS
        ),
    )


_BODY = (
    _bias("encoder"),
    *_attention("encoder", "0", "0.SelfAttention"),
    *_feed_forward("encoder", 1),
    Row("enc.output_norm.weight", ("encoder.final_layer_norm.weight",), ("hidden",)),
    _bias("decoder"),
    *_attention("decoder", "0", "0.SelfAttention"),
    *_attention("decoder", "1", "1.EncDecAttention", "cross_"),
    *_feed_forward("decoder", 2),
    Row("dec.output_norm.weight", ("decoder.final_layer_norm.weight",), ("hidden",)),
)
"""All rows but those of embedding and head."""

ROWS = (
    *(Row("token_embd.weight", (name,), ("rows", "hidden"), when=name) for name in EMBEDDINGS),
    *_BODY,
    *_head(),
)


def _flags(facts: T5Facts, checkpoint: Checkpoint) -> frozenset[str]:
    embedding = embedding_name(checkpoint)
    kind = GATED if facts.gated else UNGATED
    return frozenset({embedding, kind, *_head_flags(facts, checkpoint, embedding)})


def _head_flags(facts: T5Facts, checkpoint: Checkpoint, embedding: str) -> frozenset[str]:
    """How ``output.weight`` is made: from a head of its own or from the embedding, scaled or not.

    A head is its own if its weights are: flags of configurations saved by transformers 5 say nothing of that.
    Whether logits are scaled by d_model^-0.5 they do say, as that version reads them: scale_decoder_outputs,
    in older files anything but tie_word_embeddings false.
    """
    head, shared = checkpoint.tensors.get(HEAD), checkpoint.tensors.get(embedding)
    if head is None and not facts.tied:
        return frozenset({OWN_HEAD})  # transformers 5 never writes false: the head has been lost
    own = head is not None and (shared is None or not same_weights(head, shared))
    if own:
        return frozenset({SCALED_HEAD if facts.scaled else OWN_HEAD})
    return frozenset({_SCALED + embedding} if facts.scaled else ())


def _keys(facts: T5Facts) -> dict[str, MetadataValue]:
    return {
        "block_count": facts.layers,
        "decoder_block_count": facts.decoder_layers,
        "embedding_length": facts.hidden,
        "feed_forward_length": facts.ffn,
        "attention.head_count": facts.heads,
        "attention.head_count_kv": facts.heads,
        "attention.key_length": facts.head_dim,
        "attention.value_length": facts.head_dim,
        "attention.layer_norm_epsilon": facts.epsilon,
        "attention.layer_norm_rms_epsilon": facts.epsilon,
        "attention.relative_buckets_count": facts.buckets,
        "decoder_start_token_id": facts.start,
        "vocab_size": facts.rows,
    }


def context_keys(facts: T5Facts, checkpoint: Checkpoint) -> dict[str, MetadataValue]:
    """The length the model was trained with, as far as files say: T5's positions are relative.

    n_positions, else a sane model_max_length of the tokenizer, else 1024 bytes or 512 tokens. Behind a GBST
    front end the encoder has a position for ``downsample_factor`` bytes, so its texts may be so much longer;
    the decoder's are not down-sampled.
    """
    length = _BYTE_CONTEXT if is_byte_tokenizer(checkpoint) else _CONTEXT
    max_length = (read_json(checkpoint.folder, "tokenizer_config.json") or {}).get("model_max_length")
    if isinstance(max_length, int) and not isinstance(max_length, bool) and 1 <= max_length <= _SANE_CONTEXT:
        length = max_length
    return {"context_length": length if facts.positions is None else facts.positions}


def _notes(facts: T5Facts, flags: frozenset[str]) -> Sequence[Note]:
    notes = []
    if not facts.start_named:
        message = f"config.json has no decoder_start_token_id; the padding token, {facts.start}, is written"
        notes.append(Note("decoder-start", message, warning=True))
    if SCALED_HEAD in flags:
        message = (
            "config.json ties lm_head to the embedding, but lm_head.weight differs: kept as a "
            "separate matrix, scaled by d_model^-0.5 as in transformers 5 with this configuration"
        )
        notes.append(Note("untied-head", message, warning=True))
    if any(flag.startswith(_SCALED) for flag in flags):
        message = (
            "lm_head is tied to the embedding and the logits are scaled by d_model^-0.5; since "
            "llama.cpp does not scale, the GGUF gets an output.weight that is the scaled embedding"
        )
        notes.append(Note("scaled-head", message))
    return notes


T5 = Family(
    name="t5",
    title="T5",
    models=("KEByT5 and ByT5 small, base, large", "T5, T5 v1.1, Flan-T5"),
    hf_classes=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    arch="t5",
    facts=read_facts,
    flags=_flags,
    keys=_keys,
    rows=ROWS,
    limits={"llama.cpp": limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers("T5ForConditionalGeneration"),
    graphs=t5_graphs,
    dropped=(
        *EMBEDDINGS,
        HEAD,
        "decoder.block.{i}.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
    notes=_notes,
    from_files=context_keys,
    gelu=True,
    encoder_decoder=True,
    tokenizer_class="T5Tokenizer",
    # what flows into wo exceeds 65,504 in models as they were trained, and for F16 weights ggml makes halves
    # of that, too; transformers keeps these matrices in fp32 for that reason
    wide_inputs=r"(enc|dec)\.blk\.\d+\.ffn_down\.weight",
    granted=lambda facts: {
        "is_encoder_decoder": True,
        "num_decoder_layers": facts.decoder_layers,
        "decoder_start_token_id": facts.start,
    },
)
MT5 = replace(
    T5,
    name="mt5",
    title="mT5",
    models=("mT5",),
    hf_classes=("MT5ForConditionalGeneration",),
    facts=partial(read_facts, usual="gated-gelu", scale_key=None),
    reference=InTransformers("MT5ForConditionalGeneration"),
)
_SHARED = {_bias(side).target: _biases(side) for side in ("encoder", "decoder")}
UMT5 = replace(
    T5,
    name="umt5",
    title="UMT5",
    models=("UMT5",),
    hf_classes=("UMT5ForConditionalGeneration",),
    facts=partial(read_facts, usual="gated-gelu", scale_key="tie_word_embeddings", own_biases=True),
    rows=tuple(_SHARED.get(row.target, row) for row in T5.rows),
    # transformers 5 takes true for false there, and so scales the logits of UMT5 as it was published, which
    # neither its training nor transformers 4 does
    reference=InTransformers("UMT5ForConditionalGeneration", kept=frozenset({"tie_word_embeddings"})),
)
