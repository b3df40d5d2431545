"""genai_config.json: what onnxruntime-genai wants to know of a folder with a decoder.

It takes token ids, the names of inputs and outputs and the defaults of generation from this file alone; the
chat template it finds in tokenizer_config.json (docs of onnxruntime-genai, "Config reference").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ...core.model import Model
from .folder import Layout, SideFiles
from .graph import Graph
from .side_files import CONFIG, GENERATION, as_json

GENAI = "genai_config.json"
_LONGEST = 4096
"""Tokens an answer may have with its prompt where generation_config.json does not say: a shared buffer for
the cache is as large as this from the beginning."""
_SEARCH = (
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("min_length", "num_beams", "num_return_sequences", "length_penalty", "early_stopping"),
)
"""What generation_config.json has by the same names; genai's own defaults are those of transformers."""
_INPUTS = ("input_ids", "attention_mask", "position_ids")


def with_genai(files: SideFiles, model: Model, graphs: Mapping[str, Graph], layout: Layout) -> SideFiles:
    """The files with genai_config.json among them, if this is a decoder that genai would find by its name."""
    graph = graphs.get("model.onnx")
    if graph is None or layout.folder or "logits" not in {each.name for each in graph.outputs}:
        return files
    read = {name: json.loads(files.contents.get(name) or b"{}") for name in (CONFIG, GENERATION)}
    made = {
        "model": _model(read[CONFIG], read[GENERATION], model, graph),
        "search": _search(read[GENERATION], model, graph),
    }
    return replace(files, contents=MappingProxyType({**files.contents, GENAI: as_json(made)}))


def _model(
    config: Mapping[str, Any], generation: Mapping[str, Any], model: Model, graph: Graph
) -> dict[str, Any]:
    caches = [each for each in graph.inputs if each.name not in _INPUTS]
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    stops = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ids = {"bos_token_id": config.get("bos_token_id"), "eos_token_id": stops}
    padding = config.get("pad_token_id")
    padding = padding if padding is not None else (stops or [0])[0]  # one number; as transformers takes it
    return {
        "type": "decoder",
        **{name: value for name, value in ids.items() if value not in (None, [])},
        "pad_token_id": padding,
        "vocab_size": graph.outputs[0].shape[-1],
        "context_length": _context(model),
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "head_size": caches[0].shape[3],
            "hidden_size": _key(model, "embedding_length"),
            "num_attention_heads": _key(model, "attention.head_count"),
            "num_key_value_heads": caches[0].shape[1],
            "num_hidden_layers": len(caches) // 2,
            "inputs": {**{name: name for name in _INPUTS}, **_pair("past", "past_key_values")},
            "outputs": {"logits": "logits", **_pair("present", "present")},
        },
    }


def _search(generation: Mapping[str, Any], model: Model, graph: Graph) -> dict[str, Any]:
    """GroupQueryAttention can write into the cache it is given; ONNX's Attention makes a new one."""
    context = _context(model)
    longest = generation.get("max_length")
    limited = isinstance(longest, int) and 0 < longest <= context
    given = {name: generation[name] for name in _SEARCH if _is_number(generation.get(name))}
    return {
        "do_sample": False,
        **given,
        "max_length": longest if limited else min(context, _LONGEST),
        "past_present_share_buffer": graph.flavour.shares_cache,
    }


def _is_number(value: Any) -> bool:
    """True and False among them; NaN and Infinity, which Python reads and writes, are no JSON."""
    return isinstance(value, int | float) and math.isfinite(value)


def _pair(prefix: str, names: str) -> dict[str, str]:
    return {f"{prefix}_{each}_names": f"{names}.%d.{each}" for each in ("key", "value")}


def _context(model: Model) -> int:
    return int(_key(model, "context_length"))


def _key(model: Model, name: str) -> Any:
    return model.hparams[f"{model.arch}.{name}"]
