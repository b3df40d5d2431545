"""Llama: 42dot LLM, ETRI EAGLE 3B, Llama-3-Ko and everything else of that class.

Keys and tensors as llama.cpp reads them in src/llama-model.cpp and src/models/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ...core.input_files import quoted
from ...core.model import MetadataValue, Note
from ...core.tensor import Array, DType, Tensor
from ..activations import NOT_IN_LLAMA_CPP, SILU, refuse_unless_in_onnx
from ..recipe import Recipe, Row, Sizes
from ..settings import Settings
from ..transforms import interleave_heads, same_weights

_LAYER = "model.layers.{i}."
_QUERY = ("heads * head_dim", "hidden")
_KEY = ("kv_heads * head_dim", "hidden")
_DOWN, _UP = ("hidden", "ffn"), ("ffn", "hidden")
_Q_ORDER, _K_ORDER = interleave_heads("heads"), interleave_heads("kv_heads")
_ATTENTION, _MLP = "attention_bias", "mlp_bias"  # config.json's names of the flags


def _layer(target: str, source: str, shape: tuple[str, ...], **rest: object) -> Row:
    return Row(f"blk.{{i}}.{target}", (_LAYER + source,), shape, **rest)  # type: ignore[arg-type]


ROWS = (
    Row("token_embd.weight", ("model.embed_tokens.weight",), ("rows", "hidden")),
    _layer("attn_norm.weight", "input_layernorm.weight", ("hidden",)),
    _layer("attn_q.weight", "self_attn.q_proj.weight", _QUERY, transform=_Q_ORDER),
    _layer("attn_k.weight", "self_attn.k_proj.weight", _KEY, transform=_K_ORDER),
    _layer("attn_v.weight", "self_attn.v_proj.weight", _KEY),
    _layer("attn_output.weight", "self_attn.o_proj.weight", ("hidden", "heads * head_dim")),
    _layer("attn_q.bias", "self_attn.q_proj.bias", _QUERY[:1], transform=_Q_ORDER, when=_ATTENTION),
    _layer("attn_k.bias", "self_attn.k_proj.bias", _KEY[:1], transform=_K_ORDER, when=_ATTENTION),
    _layer("attn_v.bias", "self_attn.v_proj.bias", _KEY[:1], when=_ATTENTION),
    _layer("attn_output.bias", "self_attn.o_proj.bias", ("hidden",), when=_ATTENTION),
    _layer("ffn_norm.weight", "post_attention_layernorm.weight", ("hidden",)),
    _layer("ffn_gate.weight", "mlp.gate_proj.weight", _UP),
    _layer("ffn_up.weight", "mlp.up_proj.weight", _UP),
    _layer("ffn_down.weight", "mlp.down_proj.weight", _DOWN),
    _layer("ffn_gate.bias", "mlp.gate_proj.bias", _UP[:1], when=_MLP),
    _layer("ffn_up.bias", "mlp.up_proj.bias", _UP[:1], when=_MLP),
    _layer("ffn_down.bias", "mlp.down_proj.bias", _DOWN[:1], when=_MLP),
    Row("output_norm.weight", ("model.norm.weight",), ("hidden",)),
    Row("output.weight", ("lm_head.weight",), ("rows", "hidden"), when="head"),
)  # fmt: skip


def _sizes(settings: Settings) -> Sizes:
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if "head_dim" not in settings and hidden % heads:
        raise settings.refuse("hidden_size", hidden, f"a multiple of num_attention_heads {heads}")
    head_dim = settings.integer("head_dim", hidden // heads)
    if head_dim % 2:
        raise settings.refuse("head_dim", head_dim, "an even number (rotary embedding pairs dimensions)")
    kv_heads = settings.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise settings.refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    return {
        "layers": settings.integer("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn": settings.integer("intermediate_size"),
        "rows": settings.integer("vocab_size"),
    }


def _flags(settings: Settings, checkpoint: Checkpoint) -> frozenset[str]:
    """Which rows exist. A head that only repeats the embedding is tied, whatever the files say of it."""
    _refuse_partial_rotation(settings)
    flags = {flag for flag in (_ATTENTION, _MLP) if settings.flag(flag)}
    head = checkpoint.tensors.get("lm_head.weight")
    embedding = checkpoint.tensors.get("model.embed_tokens.weight")
    tied = settings.flag("tie_word_embeddings") and (
        head is None or embedding is None or same_weights(head, embedding)
    )
    return frozenset(flags if tied else flags | {"head"})


def _refuse_partial_rotation(settings: Settings) -> None:
    for place in (settings, _rope(settings)[2]):
        factor = None if place is None else place.values.get("partial_rotary_factor")
        if place is not None and factor not in (None, 1, 1.0):
            raise UnsupportedModel(
                f"{place.where}: partial_rotary_factor is {quoted(factor)}; a Llama rotates whole heads",
                hint="open an issue with the model's name if you need it",
            )


def activation(settings: Settings) -> str:
    """Its name, as transformers has it."""
    return settings.text("hidden_act", "silu")


def _limits_of_llama_cpp(settings: Settings, sizes: Sizes) -> None:
    if activation(settings) not in SILU:
        raise UnsupportedModel(
            f"{settings.where}: hidden_act is {quoted(activation(settings))}; llama.cpp's llama graph "
            "computes silu only",
            hint=NOT_IN_LLAMA_CPP,
        )


def _limits_of_onnx(settings: Settings, sizes: Sizes) -> None:
    refuse_unless_in_onnx(activation(settings), f"{settings.where}: hidden_act")


def _rope(settings: Settings) -> tuple[float, str, Settings | None]:
    """Base, scaling type and its parameters, from transformers 4's or 5's layout.

    Version 4 writes rope_theta and rope_scaling {type or rope_type, …}, version 5 one object
    rope_parameters with both. Where a file has both, rope_scaling counts, unless it is empty
    (modeling_rope_utils.py, convert_rope_params_to_dict).
    """
    section = settings.section("rope_scaling")
    if section is None or not section.values:
        section = settings.section("rope_parameters")
    base = settings.real("rope_theta", 10000.0)
    if section is None:
        return base, "default", None
    base = section.real("rope_theta", base)
    return base, section.text("rope_type", section.text("type", "default")), section


def _hparams(settings: Settings, sizes: Sizes) -> dict[str, MetadataValue]:
    base, scaling, section = _rope(settings)
    keys: dict[str, MetadataValue] = {
        "block_count": sizes["layers"],
        "context_length": settings.integer("max_position_embeddings", 2048),
        "embedding_length": sizes["hidden"],
        "feed_forward_length": sizes["ffn"],
        "attention.head_count": sizes["heads"],
        "attention.head_count_kv": sizes["kv_heads"],
        "attention.layer_norm_rms_epsilon": settings.real("rms_norm_eps", 1e-6),
        "attention.key_length": sizes["head_dim"],
        "attention.value_length": sizes["head_dim"],
        "rope.freq_base": base,
        "rope.dimension_count": sizes["head_dim"],
        "vocab_size": sizes["rows"],
    }
    if scaling == "linear" and section is not None:
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = section.real("factor")
    elif scaling not in ("default", "llama3", "dynamic"):
        raise UnsupportedModel(
            f"{settings.where}: rope scaling {scaling!r} is not supported (default, linear and llama3 are)",
            hint="open an issue with the model's name if you need it",
        )
    return keys


def _extra(settings: Settings, sizes: Sizes) -> Sequence[Tensor]:
    base, scaling, section = _rope(settings)
    if scaling != "llama3" or section is None:
        return ()
    # modeling_rope_utils.py, standardize_rope_params: the key beside the section counts before the one in it.
    key = "original_max_position_embeddings"
    trained = settings.integer("max_position_embeddings", 2048)
    context = settings.integer(key) if key in settings else section.integer(key, trained)
    factors = llama3_factors(base, sizes["head_dim"], section, context)

    def read(start: int, stop: int) -> Array:
        return factors[start:stop]

    return (
        Tensor(
            "rope_freqs.weight",
            factors.shape,
            DType.F32,
            read,
            origin="config.json: rope scaling",
            computed=True,
        ),
    )


@np.errstate(all="ignore")  # what overflows is refused at the end
def llama3_factors(base: float, head_dim: int, section: Settings, old_context: int) -> Array:
    """By what each frequency of the rotary embedding is divided, ``(head_dim / 2,)`` in float32.

    Llama 3.1's scaling: short wavelengths stay, long ones are stretched by ``factor``, between them the
    two are blended (transformers, modeling_rope_utils.py; llama.cpp takes the divisors as rope_freqs).
    """
    factor, low, high = (
        section.real("factor"),
        section.real("low_freq_factor"),
        section.real("high_freq_factor"),
    )
    if high <= low:
        raise section.refuse("high_freq_factor", high, f"more than low_freq_factor {low}")
    # In float32 and in the order of PyTorch's operations (a number over a tensor is the number times the
    # reciprocal), so that the bits are those transformers and llama.cpp's converter get.
    f32 = np.float32
    exponents = np.arange(0, head_dim, 2, dtype=f32) / f32(head_dim)
    frequencies = f32(1) / np.power(float(f32(base)), exponents.astype(np.float64)).astype(f32)
    wavelengths = f32(1) / frequencies * f32(2 * math.pi)
    smooth = (f32(1) / wavelengths * f32(old_context) - f32(low)) / f32(high - low)
    blended = f32(1) / ((f32(1) - smooth) / f32(factor) + smooth)
    stretched = np.where(wavelengths > f32(old_context / low), f32(factor), blended)
    factors: Array = np.where(wavelengths < f32(old_context / high), f32(1), stretched)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise section.refuse("factor", factor, "a scaling of sensible size")
    return factors


def _notes(settings: Settings, flags: frozenset[str]) -> Sequence[Note]:
    notes = []
    if _rope(settings)[1] == "dynamic":
        message = "rope scaling 'dynamic' changes nothing within the trained context and is left out"
        notes.append(Note("rope-scaling", message, warning=True))
    if "head" in flags and settings.flag("tie_word_embeddings"):
        message = "config.json says tied, but lm_head.weight differs from the embedding: kept as its own"
        notes.append(Note("untied-head", message, warning=True))
    return notes


LLAMA = Recipe(
    name="llama",
    title="Llama",
    models=("42dot LLM PLM/SFT 1.3B", "ETRI EAGLE 3B", "Llama-3-Ko 8B and its fine-tunes (AOG)"),
    hf_classes=("LlamaForCausalLM",),
    arch="llama",
    sizes=_sizes,
    flags=_flags,
    hparams=_hparams,
    rows=ROWS,
    limits={"llama.cpp": _limits_of_llama_cpp, "ONNX": _limits_of_onnx},
    dropped=(
        "model.layers.{i}.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "lm_head.weight",
    ),
    extra=_extra,
    notes=_notes,
)
