"""A family: one value that says how models of one architecture become files, and how they are proven.

Its table of rows names, for every tensor of a GGUF, the tensors of a checkpoint it comes from. The mapping is
total: each source tensor is used or dropped by name, each target is made, or one MappingError lists
everything that does not fit. The configuration is read once, into the family's facts; GGUF keys, the ONNX
graph and the limits of the runtimes all follow from those, none from another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from ..core.checkpoint import Checkpoint
from ..core.model import MetadataValue, Model, Note
from ..core.tensor import Tensor
from .settings import Settings

if TYPE_CHECKING:
    from .front_end import FrontEnd
    from .onnx.graph import Graph
    from .onnx.request import GraphRequest

Sizes = Mapping[str, int]
Runtime = Literal["llama.cpp", "ONNX"]


class Facts(Protocol):
    """What config.json says of a model, read once and checked; each family has a dataclass of its own."""

    @property
    def sizes(self) -> Sizes:
        """The words of the rows' shapes, and of what they count, in numbers."""
        ...


F = TypeVar("F", bound=Facts)


@dataclass(frozen=True)
class Transform:
    """How a target comes from its sources, and how they come back from it; lazy both ways.

    ``undo(apply(sources))`` gives the sources again, in the order of ``Row.sources``: through it the fp32
    reference reads a converted file's weights.
    """

    apply: Callable[[Sequence[Tensor], Sizes], Tensor]
    undo: Callable[[Tensor, Sizes], Sequence[Tensor]]


@dataclass(frozen=True)
class Share:
    """The part of its source that a row's target is: number ``place`` of ``count``.

    ``join`` makes the source of all those targets, in their order.
    """

    place: int
    count: int
    join: Callable[[Sequence[Tensor], Sizes], Tensor]


@dataclass(frozen=True)
class Row:
    """One target tensor.

    ``{i}`` in names counts the layers, ``{e}`` in those of sources the experts: a row with it has a source
    for each expert. ``shape`` is that of the first source, in words of the facts' sizes: ``("heads *
    head_dim", "hidden")``. ``transform`` makes the target from the sources (default: the source as it is).
    ``when`` names the flag of ``Family.flags`` under which the row exists; without the flag its sources must
    not be there either. ``layers`` and ``experts`` are the words for those numbers. A row without sources is
    zeros of that shape, for graphs that insist on a bias the model does not have. ``back_to`` names what the
    inverse gives where that is not the sources: a head made from the embedding stands for ``lm_head.weight``.
    Rows may share a target if their flags exclude one another; with ``share`` they share a source, which
    comes back from all their targets, and ``back_to`` is then only what the part is called.
    """

    target: str
    sources: tuple[str, ...]
    shape: tuple[str, ...] = ()
    transform: Transform | None = None
    when: str | None = None
    layers: str = "layers"
    experts: str = "experts"
    back_to: tuple[str, ...] = ()
    share: Share | None = None

    def named(self, names: Sequence[str], i: int, sizes: Sizes) -> list[str]:
        """``names`` of layer ``i``, those with ``{e}`` once for each expert."""
        resolved: list[str] = []
        for name in names:
            experts = range(sizes[self.experts]) if "{e}" in name else (0,)
            resolved += [name.format(i=i, e=e) for e in experts]
        return resolved


@dataclass(frozen=True)
class Companion:
    """A second file that all files of a conversion need beside them: what llama.cpp has no graph for.

    ``model`` goes into it, everything in f32, ``place`` gives its path from the folder and the checkpoint's
    name, ``keys`` are those by which each body names it. ``lies_at`` says whether a file is this companion
    already, as another conversion of the checkpoint has written it.
    """

    model: Model
    keys: Mapping[str, MetadataValue]
    place: Callable[[Path, str], Path]
    lies_at: Callable[[Path], bool]


@dataclass(frozen=True)
class InTransformers:
    """How transformers names and shapes the same model, for the fp32 reference.

    ``name`` is its class, ``config`` puts into its present words what config.json may say otherwise. A null
    in config.json means the class's default, but for the keys of ``nulls``, where it means null. Keys of
    ``kept`` mean what config.json says where the class sets them to something else. ``arguments`` go to the
    class besides. ``tensors`` gives weights, under a checkpoint's names, the names and shapes of the class's
    parameters (renamed, stacked, split), lazily. ``module`` names the module of the class whose input a
    checkpoint's matrix is multiplied by.
    """

    name: str
    config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config
    nulls: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tensors: Callable[[Mapping[str, Tensor], Sizes], Mapping[str, Tensor]] = lambda held, sizes: held
    module: Callable[[str], str] = lambda name: name.removesuffix(".weight")


@dataclass(frozen=True)
class Departure:
    """A known difference of llama.cpp's arithmetic from a checkpoint's, which no file can do anything about.

    ``config`` makes of a config.json the one llama.cpp computes by; ``what`` continues "llama.cpp ".
    """

    what: str
    config: Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Family(Generic[F]):
    """How one architecture becomes files, and how they are proven; ``models`` names the ones it is known for.

    ``hf_classes`` are those of config.json's ``architectures``, ``arch`` is llama.cpp's graph. ``facts``
    reads config.json; everything below follows from them: ``flags`` the conditions of rows (and of the
    tensors that are there), ``keys`` the GGUF keys without the architecture's prefix, ``from_files`` those
    that other files than config.json decide, ``extra`` tensors computed from the configuration. ``dropped``
    are patterns (with ``{i}``) of tensors that carry nothing. ``limits`` raise UnsupportedModel for what the
    graphs of a runtime cannot compute. ``remarks`` say what a runtime computes a little
    otherwise. ``graphs`` describes the model in ONNX, by files; None where kconv
    cannot yet. ``upright`` turns matrices that
    lie (in, out) in checkpoints to (out, in), as ONNX has them.
    ``reference`` is how transformers has the model. ``gelu`` says that the activation is a GELU,
    which llama.cpp computes through a table of half floats (ggml-cpu/vec.h), so that logits are less exact
    than in other families. ``encoder_decoder`` says that text goes through llama_encode and that the decoder
    begins with ``decoder_start_token_id``, ``encoder_only`` that the model writes no text: it gives
    hidden states, and embeddings of texts. ``tokenizer_class`` is transformers' for a SentencePiece model
    where no file names one. ``wide_inputs`` is as of ``Model``: what flows there, or in ONNX anywhere, may
    exceed half precision. ``granted`` are keys transformers takes for granted where config.json is silent,
    and other programs do not. ``left_out`` is what llama.cpp's graph takes for keys a file leaves out, where
    other graphs take another. ``front_end`` is what stands before the encoder where llama.cpp has no graph of
    it; it comes with ``companions``, the files the model needs besides its own. ``instead`` is the family of
    those of its configurations that run in another graph. ``departure`` is where llama.cpp's graph computes
    otherwise than config.json says, whatever is in a file.
    """

    name: str
    title: str
    models: tuple[str, ...]
    hf_classes: tuple[str, ...]
    arch: str
    facts: Callable[[Settings], F]
    flags: Callable[[F, Checkpoint], frozenset[str]]
    keys: Callable[[F], Mapping[str, MetadataValue]]
    rows: tuple[Row, ...]
    limits: Mapping[Runtime, Callable[[F], None]]
    reference: InTransformers
    graphs: Callable[[GraphRequest[F]], dict[str, Graph]] | None = None
    dropped: tuple[str, ...] = ()
    extra: Callable[[F], Sequence[Tensor]] = lambda facts: ()
    notes: Callable[[F, frozenset[str]], Sequence[Note]] = lambda facts, flags: ()
    remarks: Mapping[Runtime, Callable[[F], Sequence[Note]]] = field(default_factory=dict)
    from_files: Callable[[F, Checkpoint], Mapping[str, MetadataValue]] = lambda facts, folder: {}
    upright: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors
    gelu: bool = False
    encoder_decoder: bool = False
    encoder_only: bool = False
    tokenizer_class: str = ""
    wide_inputs: str | None = None
    granted: Callable[[F], Mapping[str, Any]] = lambda facts: {}
    left_out: Callable[[F], Mapping[str, MetadataValue]] = lambda facts: {}
    front_end: FrontEnd | None = None
    companions: Callable[[Checkpoint], Sequence[Companion]] = lambda checkpoint: ()
    instead: Callable[[Mapping[str, Any]], Family[F] | None] = lambda config: None
    departure: Departure | None = None

    def read(self, config: Mapping[str, Any]) -> F:
        """The facts of a config.json. Raises CheckpointError, UnsupportedModel."""
        return self.facts(Settings(config, "config.json"))

    def hparams(self, facts: F, checkpoint: Checkpoint) -> dict[str, MetadataValue]:
        """All GGUF keys of the architecture, with its prefix; those of the tokenizer have their own."""
        keys = {**self.keys(facts), **self.from_files(facts, checkpoint)}
        return {_prefixed(self.arch, key): value for key, value in keys.items()}


def _prefixed(arch: str, key: str) -> str:
    return key if key.startswith("tokenizer.") else f"{arch}.{key}"


AnyFamily = Family[Any]
"""A family, whatever its facts."""
