"""What ``kconv inspect`` says of what lies at a path, as plain JSON values. Reads headers only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, KconvError, UsageError

if TYPE_CHECKING:
    from ..core.checkpoint import Checkpoint
    from ..core.elsewhere import Elsewhere
    from ..core.gguf_file import GgufHeader
    from ..core.gguf_split import GgufModel

Description = dict[str, Any]

_LONG_ARRAY = 16  # longer arrays of metadata are described by their length


def describe(path: str | Path) -> Description:
    """What lies at ``path``, or is called that on the Hub.

    Raises UsageError, GgufError, CheckpointError, HubRefusal, VocabError and EnvironmentProblem.
    """
    if isinstance(path, str):
        from .hub_descriptions import describe_repository

        return describe_repository(path)
    if path.is_dir():
        from .onnx_descriptions import describe_onnx, is_onnx

        return describe_onnx(path) if is_onnx(path) else describe_checkpoint(path)
    if path.suffix in (".safetensors", ".bin", ".json"):
        raise UsageError(
            f"{path} is part of a checkpoint, not a GGUF file",
            hint=f"give the folder: kconv inspect {path.parent}",
        )
    from ..core.gguf_split import read_model

    return describe_gguf(path, read_model(path))


def describe_gguf(path: Path, model: GgufModel) -> Description:
    """A GGUF file, or a model in several of which it is one, from the headers."""
    from ..converters.targets import manifest_path
    from ..quant.provenance import provenance_in

    header, first = model.header, model.paths[0]
    metadata = header.metadata
    tensors = [
        tensor_line(info.name, info.shape, _type_name(info.ggml_type), info.nbytes) for info in header.tensors
    ]
    manifest = manifest_path(first)
    prefix = f"{header.arch}."
    shown = {key: plain(value) for key, value in metadata.items()}
    formats_chosen, codes_chosen = provenance_in(shown)
    return {
        "path": str(path),
        "kind": "gguf",
        "name": plain(metadata.get("general.name")),
        "architecture": header.arch,
        "purpose": _purpose(header),
        "license": plain(metadata.get("general.license")),
        "bytes": header.size,
        "parts": [str(part) for part in model.paths] if len(model.paths) > 1 else [],
        **summary(tensors),
        "file_type": _file_type(header),
        "hyperparameters": {key: value for key, value in shown.items() if key.startswith(prefix)},
        "vocabulary": _gguf_vocabulary(metadata),
        "metadata": {
            key: value for key, value in shown.items() if not key.startswith((prefix, "tokenizer."))
        },
        "formats_chosen": formats_chosen,
        "codes_chosen": codes_chosen,
        "manifest": str(manifest) if manifest.is_file() else None,
        "proof": proof_of(manifest_of(first), header.size),
        "tensors": tensors,
    }


def _purpose(header: GgufHeader) -> str | None:
    """What a file is that does not run alone: one of the two of a GBST model. None for others."""
    from ..converters.families import FRONT_ENDS
    from ..converters.front_end import FINGERPRINT_KEY, KIND_KEY

    for front in FRONT_ENDS:
        if header.arch == front.kind:
            named = plain(header.metadata.get(f"{front.kind}.fingerprint"))
            return (
                f"front end of a {front.title} model: turns bytes into the encoder's input; works "
                f"only together with a body of fingerprint {named!s:.16}…"
            )
    if KIND_KEY not in header.metadata:
        return None
    named = plain(header.metadata.get(FINGERPRINT_KEY))
    kind = plain(header.metadata.get(KIND_KEY))
    return (
        f"body of a GBST model: needs its front end, the {kind}-….gguf of fingerprint {named!s:.16}…, "
        "in the same folder"
    )


def manifest_of(path: Path) -> Mapping[str, Any] | None:
    """The manifest beside a file or in a folder; None where there is none that can be read."""
    from ..converters.recorded import read_manifest

    try:
        return read_manifest(path)
    except KconvError:
        return None


def proof_of(manifest: Mapping[str, Any] | None, size: int) -> Description | None:
    """The proof as the manifest has it; None where there is none, or it is that of other files."""
    proof = None if manifest is None or manifest["output"]["bytes"] != size else manifest.get("proof")
    if not isinstance(proof, dict) or not isinstance(proof.get("verdict"), str):
        return None
    logits = proof.get("logits")
    figures = logits.get("figures") if isinstance(logits, dict) else None
    measured = figures if isinstance(figures, dict) else {}
    embeddings = proof.get("embeddings")
    alike = embeddings.get("figures") if isinstance(embeddings, dict) else None
    return {
        **{key: plain(proof.get(key)) for key in ("verdict", "scope", "cause")},
        **{key: plain(measured.get(key)) for key in ("kl_mean", "same_top1")},
        **({"cosine_mean": plain(alike.get("cosine_mean"))} if isinstance(alike, dict) else {}),
    }


def describe_checkpoint(source: Path | Elsewhere) -> Description:
    """A checkpoint, from config.json, the headers of its weights and its tokenizer."""
    from ..converters.card import general_metadata
    from ..converters.intake import prepared
    from ..core.reading import open_checkpoint

    checkpoint, problem = open_checkpoint(source), None
    try:
        checkpoint = prepared(checkpoint)
    except InputError as error:
        problem = error.message
    tensors = [
        tensor_line(tensor.name, tensor.shape, (tensor.held_as or tensor.dtype.value).lower(), tensor.nbytes)
        for tensor in checkpoint.tensors.values()
        if tensor.name not in checkpoint.aliases
    ]
    general = general_metadata(checkpoint)
    return {
        "path": str(checkpoint.folder),
        "kind": "checkpoint",
        "name": plain(general.get("general.name")),
        "architecture": classes(checkpoint.config),
        "license": plain(general.get("general.license")),
        "bytes": sum(file.size for file in checkpoint.opened),
        **summary(tensors),
        "supported": None if problem else _support(checkpoint.config),
        "problem": problem,
        "notes": [asdict(note) for note in checkpoint.notes],
        "hyperparameters": {
            str(key): plain(value) for key, value in checkpoint.config.items() if key != "architectures"
        },
        "vocabulary": tokenizer(checkpoint),
        "metadata": {key: plain(value) for key, value in general.items()},
        "weight_files": [file.name for file in checkpoint.weight_files],
        "dropped": dict(checkpoint.dropped),
        "aliases": dict(checkpoint.aliases),
        "tensors": tensors,
    }


def tensor_line(name: str, shape: Sequence[int], type_name: str, size: int) -> Description:
    """A tensor; ``size`` in bytes."""
    return {"name": name, "shape": list(shape), "type": type_name, "bytes": size}


def summary(tensors: Sequence[Description]) -> Description:
    """Counts over all tensors; those computed from the configuration are no parameters."""
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        line = types.setdefault(tensor["type"], {"tensors": 0, "parameters": 0, "bytes": 0})
        line["tensors"] += 1
        line["parameters"] += math.prod(tensor["shape"])
        line["bytes"] += tensor["bytes"]
    weights = [tensor for tensor in tensors if tensor["name"] != "rope_freqs.weight"]
    parameters = sum(math.prod(tensor["shape"]) for tensor in weights)
    bits = 8 * sum(tensor["bytes"] for tensor in weights) / parameters if parameters else None
    return {
        "parameters": parameters,
        "bits_per_weight": None if bits is None else round(bits, 4),
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
    }


def _type_name(number: int) -> str:
    from ..quant.formats import format_of_type

    known = format_of_type(number)
    return f"type {number}" if known is None else known.name


def _file_type(header: GgufHeader) -> str | None:
    """``general.file_type`` by name, where kconv knows it."""
    from ..quant.policy import POLICIES

    number = header.metadata.get("general.file_type")
    name = next((policy.name for policy in POLICIES.values() if policy.file_type == number), None)
    return name if name is not None or not isinstance(number, int) else f"file type {number}"


def _gguf_vocabulary(metadata: Mapping[str, Any]) -> Description | None:
    """What stands under ``tokenizer.*``; values of unexpected types are left out, never trusted."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple):
        return None
    prefix, suffix = "tokenizer.ggml.", "_token_id"
    special = {
        key.removeprefix(prefix).removesuffix(suffix): _special(tokens, value)
        for key, value in metadata.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }
    from ..vocab.byte_vocabulary import are_bytes, sentinels

    texts = [str(token) for token in tokens]
    merges = metadata.get("tokenizer.ggml.merges")
    flags = ("add_bos_token", "add_eos_token", "add_space_prefix")
    return {
        "model": plain(metadata.get("tokenizer.ggml.model")),
        "pre": plain(metadata.get("tokenizer.ggml.pre")),
        "size": len(tokens),
        "merges": len(merges) if isinstance(merges, tuple) else 0,
        "types": _type_counts(metadata.get("tokenizer.ggml.token_type")),
        "special": special,
        **({"sentinels": sentinels(texts)} if are_bytes(texts) else {}),
        **{flag: plain(metadata.get(prefix + flag)) for flag in flags},
        "chat_template": plain(metadata.get("tokenizer.chat_template")),
    }


def _special(tokens: Sequence[Any], value: Any) -> Description:
    inside = isinstance(value, int) and 0 <= value < len(tokens)
    return {"id": plain(value), "token": str(tokens[value]) if inside else None}


def _type_counts(types: Any) -> dict[str, int]:
    from ..core.vocabulary import TokenType

    names = {kind.value: kind.name.lower().replace("_", "-") for kind in TokenType}
    numbers: Iterable[Any] = types if isinstance(types, tuple) else ()
    return dict(Counter(names.get(number, f"type {number}") for number in numbers))


def classes(config: Mapping[str, Any]) -> str:
    """What config.json calls the model."""
    classes = config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    return ", ".join(named) or str(config.get("model_type", ""))


def _support(config: Mapping[str, Any]) -> str | None:
    """The title of the family a conversion would take, None if there is none."""
    from ..converters.families import family_for

    try:
        return family_for(config).title
    except KconvError:
        return None


def tokenizer(checkpoint: Checkpoint) -> Description:
    """The checkpoint's own tokenizer, part by part; where it cannot be read, why."""
    from ..converters.tokenizer import read_tokenizer

    try:
        source = read_tokenizer(checkpoint)
    except InputError as error:
        return {"error": error.message}
    description = source.description
    return {
        "kind": description.kind,
        "files": list(description.files),
        "model": description.model,
        "normalizer": description.normalizer,
        "pre_tokenizer": description.pre_tokenizer,
        "decoder": description.decoder,
        "post_processor": description.post_processor,
        "size": description.size,
        "added_tokens": description.added,
        **({"sentinels": description.sentinels} if description.sentinels else {}),
        "special": {
            role: {"id": number, "token": text} for role, (number, text) in description.specials.items()
        },
        "add_bos_token": description.add_bos,
        "add_eos_token": description.add_eos,
        "notes": [asdict(note) for note in source.notes],
        "chat_template": source.chat_template,
    }


def plain(value: Any) -> Any:
    """A metadata value as JSON can hold it: long arrays by their length, numbers that are none as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in list(value.items())[:_LONG_ARRAY]}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value] if len(value) <= _LONG_ARRAY else f"{len(value)} values"
    if isinstance(value, (str, int, float, type(None))):
        return value
    return str(value)
