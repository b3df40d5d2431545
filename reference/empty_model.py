"""Transformers' model of a checkpoint's architecture, without its weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..converters.family import InTransformers
from ..core.errors import CheckpointError, EnvironmentProblem
from ..core.input_files import quoted
from ..core.tensor import Tensor
from .encoder_decoder import embeddings
from .torch_library import load_torch_library, uncollected

# Keys of config.json that do not say what the model computes: code to import, how weights are stored, with
# what to compute, what to return. Special ids matter in training and generation only, and may be any; whether
# there is an encoder the class says.
_NOT_THE_MODEL = frozenset(
    {"auto_map", "architectures", "trust_remote_code", "quantization_config", "compression_config"}
    | {"torch_dtype", "dtype", "_name_or_path", "_commit_hash", "transformers_version"}
    | {"pad_token_id", "bos_token_id", "eos_token_id", "is_encoder_decoder", "is_decoder"}
    | {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "torchscript"}
    | {"_attn_implementation_autoset", "experts_implementation", "_experts_implementation", "device_map"}
    | {"use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states"}
    | {"gradient_checkpointing", "pruned_heads", "pretraining_tp", "chunk_size_feed_forward", "tp_plan"}
    | {"base_model_tp_plan", "base_model_pp_plan", "kernel_config", "id2label", "label2id", "num_labels"}
    | {"task_specific_params", "generation_config"}
)


@dataclass(frozen=True)
class Head:
    """The output matrix ``(vocabulary, hidden)`` and, in some families, a bias ``(vocabulary,)``."""

    matrix: Tensor
    bias: Tensor | None


@contextlib.contextmanager
def computing(threads: int) -> Iterator[None]:
    """Torch with that many threads and without gradients, transformers without a word; then as before."""
    load_torch_library()
    with uncollected():
        import torch
        from transformers.utils import logging

    before, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
        logging.set_verbosity(verbosity)


def empty_model(reference: InTransformers, config: Mapping[str, Any], where: str) -> Any:
    """Transformers' model of a config.json, its parameters without memory, its buffers computed."""
    import transformers

    name = reference.name
    with uncollected():  # the module of the class is imported here
        made = getattr(transformers, name, None)
    if made is None:
        raise EnvironmentProblem(
            f"transformers {transformers.__version__} has no {name}", hint="install a newer transformers"
        )
    # null stands for the class's default but where the family knows better; transformers 5 refuses most of
    # them
    adapted = reference.config(config)
    given = {key: value for key, value in adapted.items() if value is not None or key in reference.nulls}
    described = {
        key: value for key, value in given.items() if key not in _NOT_THE_MODEL or key in reference.kept
    }
    try:
        with _heads_of_their_own_size(made.config_class, described):
            settings = made.config_class.from_dict(described)
        settings._attn_implementation = "eager"
        if (getattr(settings, "pad_token_id", None) or 0) >= (getattr(settings, "vocab_size", None) or 0):
            settings.pad_token_id = None  # the class's default, which a smaller vocabulary does not have
        with _without_memory():
            model = _with_linear(made(settings, **reference.arguments).eval())
        for key in reference.kept & described.keys():
            setattr(model.config, key, described[key])
        return model
    except Exception as error:  # anything may come of a configuration made up by somebody
        raise refusal(where, "make", name, error) from error


def _with_linear(model: Any) -> Any:
    """``model`` with a Linear in the place of each Conv1D, the same with its matrix turned.

    Families give its weights so (``InTransformers.tensors``); what watches products looks for one kind.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = torch.nn.Linear(module.weight.shape[0], module.weight.shape[1], device="meta")
            model.set_submodule(name, linear.eval())
    return model


@contextlib.contextmanager
def _heads_of_their_own_size(config_class: Any, described: Mapping[str, Any]) -> Iterator[None]:
    """Let ``head_dim`` count where the hidden size is no multiple of the heads (Kanana 2.1B).

    transformers 5 checks the multiple in several classes although the size of a head is given
    (transformers PR 46211).
    """
    hidden, heads = described.get("hidden_size"), described.get("num_attention_heads")
    checks = getattr(config_class, "__class_validators__", None)
    divided = isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads == 0
    if checks is None or described.get("head_dim") is None or divided:
        yield
        return
    config_class.__class_validators__ = [each for each in checks if each.__name__ != "validate_architecture"]
    try:
        yield
    finally:
        config_class.__class_validators__ = checks


@contextlib.contextmanager
def _without_memory() -> Iterator[None]:
    """Let the parameters of modules made meanwhile have no memory, and equal buffers be one tensor.

    ``torch.device("meta")`` would take the buffers along, whose values could not be recomputed. GPT-J
    makes its table of sines and cosines anew for every layer. Two names of one module stay two tensors: a
    class may change one in place (LongRoPE).
    """
    import torch
    from torch.nn.modules import module as hooks

    made: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}

    def emptied(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    def once(module: torch.nn.Module, name: str, buffer: torch.Tensor | None) -> torch.Tensor | None:
        if buffer is None:
            return None
        other = made.setdefault((name, tuple(buffer.shape)), buffer)
        return other if other.dtype == buffer.dtype and torch.equal(other, buffer) else buffer

    with (
        hooks.register_module_parameter_registration_hook(emptied),  # type: ignore[arg-type]
        hooks.register_module_buffer_registration_hook(once),  # type: ignore[arg-type]
    ):
        yield


def vocabulary_matrices(model: Any, tensors: Mapping[str, Tensor], where: str) -> tuple[Head, Tensor]:
    """The head and the embedding of ``model`` as they lie in the checkpoint.

    A head that is there counts, whatever config.json says of tying: transformers 5 says tied of every T5.
    """
    import torch

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if type(head) is not torch.nn.Linear or not isinstance(embedding, torch.nn.Embedding):
        raise CheckpointError(f"{where}: {type(model).__name__} has no ordinary embedding and output matrix")
    lookups = embeddings(model)  # the shared one, which an encoder-decoder's stacks repeat, comes first
    shared = tuple(name for lookup in lookups for name in names_of(model, lookup, "weight"))
    table = fitting_weight(tensors, shared, embedding.weight, where)
    names = names_of(model, head, "weight")
    if model.config.tie_word_embeddings and not any(name in tensors for name in names):
        names = shared
    matrix = fitting_weight(tensors, names, head.weight, where)
    bias = (
        None
        if head.bias is None
        else fitting_weight(tensors, names_of(model, head, "bias"), head.bias, where)
    )
    return Head(matrix, bias), table


def names_of(model: Any, module: Any, key: str) -> tuple[str, ...]:
    """Every name a module's parameter has (tied parameters have several)."""
    modules = model.named_modules(remove_duplicate=False)
    return tuple(f"{name}.{key}" for name, other in modules if other is module)


def fitting_weight(tensors: Mapping[str, Tensor], names: Sequence[str], like: Any, where: str) -> Tensor:
    """The weight by the first of ``names`` there is, in the shape of the parameter ``like``."""
    weight = next((tensors[name] for name in names if name in tensors), None)
    if weight is not None and weight.shape == tuple(like.shape):
        return weight
    problem = f"{names[0]} is missing" if weight is None else f"{names[0]} is {list(weight.shape)}"
    raise CheckpointError(
        f"{where}: {problem}, but the model transformers builds from it needs shape {list(like.shape)}",
        hint="check that config.json belongs to these weight files",
    )


def refusal(where: str, verb: str, name: str, error: Exception) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0] or "no reason given"
    kind = type(error).__name__
    return CheckpointError(
        f"{where}: transformers cannot {verb} the {name} it describes: {kind}: {quoted(reason)}",
        hint="compare the file with the published one",
    )
