"""GPT-J: KoGPT 6B, GPT-J 6B and everything else of that class, as llama.cpp's ``phi2`` graph.

llama.cpp lists the name gptj but has no graph for it. That of Phi-2 computes the same function (src/models/
phi2.cpp): one LayerNorm feeds attention and feed-forward side by side, the first dimensions of each head are
rotated, GELU in its tanh form, a head with a bias. Phi-2 rotates the first half of those dimensions with the
second where GPT-J rotates neighbours, so rows of query and key change places; biases GPT-J lacks are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ...core.input_files import quoted
from ...core.model import MetadataValue, Note
from ..activations import NOT_IN_LLAMA_CPP, TANH_GELU, refuse_unless_in_onnx
from ..recipe import Recipe, Row, Sizes
from ..settings import Settings
from ..transforms import as_a_copy, halve_rotary, same_weights

_LAYER = "transformer.h.{i}."
_SQUARE = ("heads * head_dim", "hidden")
_UP, _DOWN = ("ffn", "hidden"), ("hidden", "ffn")
_ORDER = halve_rotary("heads", "rotary")
_HEAD, _TIED = "head", "tied"

# transformers makes a table of sines and cosines for so many positions; no such model goes beyond 8192.
_MOST_POSITIONS = 1 << 16


def _layer(target: str, source: str | None, shape: tuple[str, ...], **rest: object) -> Row:
    sources = () if source is None else (_LAYER + source,)
    return Row(f"blk.{{i}}.{target}", sources, shape, **rest)  # type: ignore[arg-type]


# llama.cpp's loader insists on attn_output.bias; older ones, which other programs still carry, on all four.
ROWS = (
    Row("token_embd.weight", ("transformer.wte.weight",), ("rows", "hidden")),
    _layer("attn_norm.weight", "ln_1.weight", ("hidden",)),
    _layer("attn_norm.bias", "ln_1.bias", ("hidden",)),
    _layer("attn_q.weight", "attn.q_proj.weight", _SQUARE, transform=_ORDER),
    _layer("attn_k.weight", "attn.k_proj.weight", _SQUARE, transform=_ORDER),
    _layer("attn_v.weight", "attn.v_proj.weight", _SQUARE),
    _layer("attn_output.weight", "attn.out_proj.weight", ("hidden", "heads * head_dim")),
    _layer("attn_q.bias", None, _SQUARE[:1]),
    _layer("attn_k.bias", None, _SQUARE[:1]),
    _layer("attn_v.bias", None, _SQUARE[:1]),
    _layer("attn_output.bias", None, ("hidden",)),
    _layer("ffn_up.weight", "mlp.fc_in.weight", _UP),
    _layer("ffn_up.bias", "mlp.fc_in.bias", _UP[:1]),
    _layer("ffn_down.weight", "mlp.fc_out.weight", _DOWN),
    _layer("ffn_down.bias", "mlp.fc_out.bias", _DOWN[:1]),
    Row("output_norm.weight", ("transformer.ln_f.weight",), ("hidden",)),
    Row("output_norm.bias", ("transformer.ln_f.bias",), ("hidden",)),
    Row("output.weight", ("lm_head.weight",), ("rows", "hidden"), when=_HEAD),
    # the phi2 graph knows no tied head
    Row(
        "output.weight",
        ("transformer.wte.weight",),
        ("rows", "hidden"),
        as_a_copy(),
        when=_TIED,
        back_to=("lm_head.weight",),
    ),
    Row("output.bias", ("lm_head.bias",), ("rows",)),
)  # fmt: skip


def _sizes(settings: Settings) -> Sizes:
    hidden = settings.either("n_embd", "hidden_size")
    heads = settings.either("n_head", "num_attention_heads")
    if hidden % heads:
        raise settings.refuse("n_embd", hidden, f"a multiple of n_head {heads}")
    head_dim = hidden // heads
    return {
        "layers": settings.either("n_layer", "num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "head_dim": head_dim,
        "rotary": _rotary(settings, head_dim),
        "ffn": settings.integer("n_inner", 4 * hidden),
        "rows": settings.integer("vocab_size"),
    }


def _rotary(settings: Settings, head_dim: int) -> int:
    """How many dimensions of a head are rotated: 64 where nothing is said, the whole head for null."""
    said = "rotary_dim" in settings.values
    rotary = settings.integer("rotary_dim", head_dim if said else 64)
    if rotary % 2 or rotary > head_dim:
        raise settings.refuse(
            "rotary_dim",
            rotary,
            f"an even number (dimensions are rotated in pairs) up to the head's {head_dim}",
        )
    return rotary


def _flags(settings: Settings, checkpoint: Checkpoint) -> frozenset[str]:
    """Whether the head is its own; one that only repeats the embedding is tied, whatever the files say."""
    head = checkpoint.tensors.get("lm_head.weight")
    embedding = checkpoint.tensors.get("transformer.wte.weight")
    tied = settings.flag("tie_word_embeddings") and (
        head is None or embedding is None or same_weights(head, embedding)
    )
    return frozenset({_TIED if tied else _HEAD})


def activation(settings: Settings) -> str:
    """Its name, as transformers has it."""
    return settings.text("activation_function", "gelu_new")


def _limits_of_llama_cpp(settings: Settings, sizes: Sizes) -> None:
    if activation(settings) not in TANH_GELU:
        raise UnsupportedModel(
            f"{settings.where}: activation_function is {quoted(activation(settings))}; llama.cpp's phi2 "
            "graph, which GPT-J runs as, computes GELU in its tanh form (gelu_new) only",
            hint=NOT_IN_LLAMA_CPP,
        )


def _limits_of_onnx(settings: Settings, sizes: Sizes) -> None:
    refuse_unless_in_onnx(activation(settings), f"{settings.where}: activation_function")


def _hparams(settings: Settings, sizes: Sizes) -> dict[str, MetadataValue]:
    positions = settings.either("n_positions", "max_position_embeddings", 2048)
    if positions > _MOST_POSITIONS:
        raise settings.refuse("n_positions", positions, f"at most {_MOST_POSITIONS}")
    return {
        "block_count": sizes["layers"],
        "context_length": positions,
        "embedding_length": sizes["hidden"],
        "feed_forward_length": sizes["ffn"],
        "attention.head_count": sizes["heads"],
        "attention.head_count_kv": sizes["heads"],
        "attention.layer_norm_epsilon": settings.real("layer_norm_epsilon", 1e-5),
        "rope.dimension_count": sizes["rotary"],
        "rope.freq_base": 10000.0,
    }


def _for_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A null rotary_dim, which means the whole head, written out: transformers 5 refuses it."""
    if config.get("rotary_dim", 64) is not None:
        return config
    return {**config, "rotary_dim": _sizes(Settings(config, "config.json"))["head_dim"]}


def _notes(settings: Settings, flags: frozenset[str]) -> Sequence[Note]:
    if _HEAD in flags and settings.flag("tie_word_embeddings"):
        message = "config.json says tied, but lm_head.weight differs from the embedding: kept as its own"
        return (Note("untied-head", message, warning=True),)
    return ()


GPTJ = Recipe(
    name="gptj",
    title="GPT-J",
    models=("KoGPT 6B",),
    hf_classes=("GPTJForCausalLM",),
    arch="phi2",
    sizes=_sizes,
    flags=_flags,
    hparams=_hparams,
    rows=ROWS,
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": _limits_of_onnx},
    dropped=(
        "transformer.h.{i}.attn.bias",  # the causal mask, of whatever type
        "transformer.h.{i}.attn.masked_bias",
        "transformer.h.{i}.attn.embed_positions",
        "lm_head.weight",
    ),
    notes=_notes,
    for_transformers=_for_transformers,
    gelu=True,
)
