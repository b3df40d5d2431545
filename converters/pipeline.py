"""The whole way from a checkpoint to files: ``convert`` is the diagram of ARCHITECTURE.md in code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import UsageError
from ..core.files import atomic_files, refuse_existing
from ..core.model import Model, Note
from ..core.progress import Progress, silent
from ..core.reading import hub_origin, open_checkpoint
from ..core.tensor import DType
from ..core.vocabulary import Vocab
from ..quant.policy import FormatChoice, Policy, choose_formats, parse_policy, quantization_metadata
from ..vocab.context import read_context
from ..vocab.parity import Parity
from ..vocab.sampling import recommended_sampling, sampling_metadata
from ..vocab.settle import settle_vocab
from .architectures import recipe_for
from .card import general_metadata, licence_notice
from .gguf_writer import FilePlan, plan_file, write_files
from .manifest import SourceFile, SourceHashes, as_text, manifest_path, versions
from .recipe import build

# A key of our own: text given to this file's vocabulary must begin with a space (`kconv run` adds it).
LEADING_SPACE = "kconv.leading_space"


@dataclass(frozen=True)
class Options:
    """What the caller asked for; goes into the manifest as it is."""

    types: tuple[str, ...] = ("auto",)
    pure: bool = False
    allow_nan: bool = False
    allow_tokenizer_mismatch: bool = False
    disabled_adapters: tuple[str, ...] = ()
    chat_template: str | None = None
    verify: bool = True


@dataclass(frozen=True)
class Output:
    """One file made. ``type`` as given (``q8_0``), sizes in bytes."""

    path: Path
    type: str
    bytes: int
    manifest: Path
    formats: tuple[tuple[str, int], ...]
    bits_per_weight: float


@dataclass(frozen=True)
class Conversion:
    """What a conversion did; the fields are those of ``--json``."""

    source: Path
    arch: str
    parameters: int
    outputs: tuple[Output, ...]
    parity: Parity
    notes: tuple[Note, ...]
    chat_template: str | None
    license: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "source": str(self.source),
            "architecture": self.arch,
            "parameters": self.parameters,
            "outputs": [
                {
                    "path": str(output.path),
                    "type": output.type,
                    "bytes": output.bytes,
                    "bits_per_weight": round(output.bits_per_weight, 4),
                    "formats": dict(output.formats),
                    "manifest": str(output.manifest),
                }
                for output in self.outputs
            ],
            "tokens": self.parity.to_json(),
            "logits": None,
            "notes": [asdict(note) for note in self.notes],
            "chat_template": self.chat_template,
            "license": self.license,
        }


def to_gguf(
    source: str | Path,
    output: str | Path | None = None,
    *,
    types: Sequence[str] = ("auto",),
    pure: bool = False,
    allow_nan: bool = False,
    allow_tokenizer_mismatch: bool = False,
    disabled_adapters: Sequence[str] = (),
    chat_template: str | None = None,
    verify: bool = True,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Convert a checkpoint folder to GGUF files, one for each of ``types``, from one read.

    ``output`` is a file where it ends in ``.gguf``, else a folder (default: the current one). Raises
    KconvError of every kind; nothing is left under a final name unless all files are whole. ``verify``
    is recorded only, until the logits proof exists; token parity always runs.
    """
    options = Options(
        tuple(types),
        pure,
        allow_nan,
        allow_tokenizer_mismatch,
        tuple(disabled_adapters),
        chat_template,
        verify,
    )
    return convert(source, output, options, force=force, threads=threads, progress=progress)


def convert(
    source: str | Path,
    target: str | Path | None,
    options: Options,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Conversion:
    """The flow: open, map, settle the vocabulary, choose formats, plan, write."""
    checkpoint = open_checkpoint(source)
    model = build(recipe_for(checkpoint.config), checkpoint)
    policies = _policies(options, model)
    paths = _free_paths(checkpoint, target, policies, force)
    model, parity = _with_vocab(model, checkpoint, options, progress)
    choices = [choose_formats(model, policy) for policy in policies]
    model = replace(model, notes=(*model.notes, *(note for choice in choices for note in choice.notes)))
    plans = [_plan(*each) for each in zip(paths, [model] * len(paths), policies, choices, strict=True)]
    manifests = [manifest_path(path) for path in paths]
    with atomic_files([*paths, *manifests], force=force) as temporaries:
        with SourceHashes(checkpoint) as hashes:
            sizes = write_files(
                model.tensors, plans, temporaries[: len(plans)],
                threads=threads, allow_nan=options.allow_nan, progress=progress,
            )  # fmt: skip
            files = hashes.result(progress)
        outputs = [_output(*each, model) for each in zip(plans, policies, sizes, strict=True)]
        common = _manifest(checkpoint, model, options, parity, files)
        for plan, output, temporary in zip(plans, outputs, temporaries[len(plans) :], strict=True):
            temporary.write_text(as_text(_manifest_of(plan, output, common)), encoding="utf-8")
    return _conversion(checkpoint, model, outputs, parity)


def _policies(options: Options, model: Model) -> list[Policy]:
    names = [own_type(model) if name.lower() == "auto" else name for name in options.types]
    policies = [parse_policy(name, pure=options.pure) for name in names]
    return list({policy.name: policy for policy in policies}.values())


def own_type(model: Model) -> str:
    """The float type most of the checkpoint's weights have: f32, f16 or bf16."""
    weights = dict.fromkeys(DType, 0)
    for tensor in model.tensors:
        weights[tensor.dtype] += tensor.elements
    return max(weights, key=lambda dtype: weights[dtype]).value.lower()


def _free_paths(
    checkpoint: Checkpoint, output: str | Path | None, policies: Sequence[Policy], force: bool
) -> list[Path]:
    """Where each type goes; OutputExists before any work is done."""
    target = Path(output) if output is not None else Path()
    if target.suffix == ".gguf":
        if len(policies) > 1:
            raise UsageError(
                f"-o {target} names one file, but {len(policies)} types were asked for",
                hint="give a folder with -o, or one type",
            )
        paths = [target]
    else:
        name = checkpoint_name(checkpoint)
        paths = [target / f"{name}-{policy.display}.gguf" for policy in policies]
    for path in paths:
        refuse_existing(path, force=force)
        refuse_existing(manifest_path(path), force=force)
    return paths


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """The folder's name, or the repository's in a Hub cache, fit for a file name."""
    repository, _ = hub_origin(checkpoint.folder)
    name = repository.rpartition("/")[2] if repository else checkpoint.folder.resolve().name
    return re.sub(r"[^\w.\-+]", "_", name) or "model"


def _with_vocab(
    model: Model, checkpoint: Checkpoint, options: Options, progress: Progress
) -> tuple[Model, Parity]:
    """The model with its proven vocabulary, and what the card says: licence, sampling."""
    metadata = general_metadata(checkpoint)
    notice = licence_notice(metadata)
    model = replace(model, notes=(*model.notes, *([notice] if notice else [])))
    model, parity = settle_vocab(
        model,
        checkpoint,
        disabled_adapters=options.disabled_adapters,
        chat_template=options.chat_template,
        allow_mismatch=options.allow_tokenizer_mismatch,
        progress=progress,
    )
    assert model.vocab is not None
    context = read_context(checkpoint, arch=model.arch, rows=model.vocab.size)
    metadata.update(sampling_metadata(recommended_sampling(context, model.vocab)))
    if parity.verdict == "leading-space":
        metadata[LEADING_SPACE] = True
        model = replace(model, vocab=_with_space_in_template(model.vocab))
    return replace(model, metadata=metadata), parity


def _with_space_in_template(vocab: Vocab) -> Vocab:
    """Chats begin with the space that the tokenizer would put there and this vocabulary does not."""
    if vocab.chat_template is None:
        return vocab
    return replace(vocab, chat_template="{{ ' ' }}" + vocab.chat_template)


def _plan(path: Path, model: Model, policy: Policy, choice: FormatChoice) -> FilePlan:
    formats = [choice[tensor.name] for tensor in model.tensors]
    return plan_file(path, model, formats, quantization_metadata(policy))


def _manifest(
    checkpoint: Checkpoint, model: Model, options: Options, parity: Parity, files: Sequence[SourceFile]
) -> dict[str, Any]:
    repository, revision = hub_origin(checkpoint.folder)
    return {
        "source": {
            "name": checkpoint_name(checkpoint),
            "repository": repository,
            "revision": revision,
            "license": model.metadata.get("general.license"),
            "files": [asdict(file) for file in files],
        },
        "architecture": model.arch,
        "parameters": parameters(model),
        "options": asdict(options),
        "versions": versions(),
        "notes": [asdict(note) for note in model.notes],
        "proof": {"tokens": parity.to_json(), "logits": None},
    }


def parameters(model: Model) -> int:
    """Weights of the checkpoint; tensors computed from the configuration do not count."""
    return sum(tensor.elements for tensor in model.tensors if tensor.name != "rope_freqs.weight")


def _output(plan: FilePlan, policy: Policy, size: int, model: Model) -> Output:
    weights: dict[str, int] = {}
    for info, format in zip(plan.tensors, plan.formats, strict=True):
        weights[format.name] = weights.get(format.name, 0) + math.prod(info.shape)
    bits = 8 * plan.data_bytes / max(1, parameters(model))
    return Output(plan.path, policy.name, size, manifest_path(plan.path), tuple(weights.items()), bits)


def _manifest_of(plan: FilePlan, output: Output, common: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {info.name: format.name for info, format in zip(plan.tensors, plan.formats, strict=True)}
    head = {"file": plan.path.name, "type": output.type, "bytes": output.bytes}
    return {"output": head, **common, "tensors": tensors}


def _conversion(
    checkpoint: Checkpoint, model: Model, outputs: Sequence[Output], parity: Parity
) -> Conversion:
    assert model.vocab is not None
    licence = model.metadata.get("general.license")
    return Conversion(
        checkpoint.folder,
        model.arch,
        parameters(model),
        tuple(outputs),
        parity,
        model.notes,
        model.vocab.chat_template,
        licence if isinstance(licence, str) else None,
    )


__all__ = ["Conversion", "Options", "Output", "convert", "to_gguf"]
