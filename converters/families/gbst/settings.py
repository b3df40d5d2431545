"""What config.json says of a GBST front end, held against the tensors.

Names are those of ETRI's code (github.com/etri-crossmodal/gbswt5, configuration_gbst5.py and gbst.py). Its
class has defaults that no published checkpoint uses, and its model code has others, so nothing is ever taken
for granted here: a setting is in config.json, or it can be told from the tensors alone, or it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ....core.errors import CheckpointError, UnsupportedModel
from ....core.input_files import quoted
from ....core.tensor import Tensor
from ...settings import Settings

PREFIX = "encoder.embed_tokens."
EMBEDDING = PREFIX + "embeds.weight"
# The same matrix; safetensors keep one of its names, and which depends on what wrote them.
SHARED = ("shared.weight", "decoder.embed_tokens.weight")
CONVOLUTION = PREFIX + "positional_convol.2.convol."
NORM = PREFIX + "positional_convol.2.bn."
PROJECTION = PREFIX + "positional_convol.2.proj."
SCORE = PREFIX + "cand_scoring.0."

# torch's BatchNorm1d as ETRI's code makes it; config.json has no word for it.
NORM_EPSILON = 1e-5

MOST_BLOCKS = 64
LARGEST_PERIOD = 1 << 16  # positions; the original pads every text to a multiple of the period
_HINT = "check that config.json belongs to these weight files"


@dataclass(frozen=True)
class GbstSettings:
    """A front end's settings.

    ``blocks`` are the sizes of candidate blocks in bytes, ``factor`` how many positions become one, ``width``
    that of the embeddings (d_model), ``rows`` the number of byte embeddings. ``consensus`` says that scores
    are averaged over similar positions, ``norm`` that a batch norm stands between the two convolutions.
    """

    blocks: tuple[int, ...]
    factor: int
    consensus: bool
    norm: bool
    width: int
    rows: int

    @property
    def kernel(self) -> int:
        """The width of the depth-wise convolution: the largest block."""
        return max(self.blocks)

    @property
    def period(self) -> int:
        """Positions after which all blocks and down-sampling begin together again."""
        return math.lcm(*self.blocks, self.factor)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor of the front end, by its name in a checkpoint, in PyTorch's order of axes."""
        width = self.width
        expected: dict[str, tuple[int, ...]] = {
            EMBEDDING: (self.rows, width),
            CONVOLUTION + "weight": (width, 1, self.kernel),
            CONVOLUTION + "bias": (width,),
            PROJECTION + "weight": (width, width, 1),
            PROJECTION + "bias": (width,),
            SCORE + "weight": (1, width),
            SCORE + "bias": (1,),
        }
        if self.norm:
            expected |= {NORM + key: (width,) for key in ("weight", "bias", "running_mean", "running_var")}
        return expected


def read_settings(config: Settings, tensors: Mapping[str, Tensor]) -> GbstSettings:
    """The settings of a checkpoint, whose tensors must agree with them.

    ``gbst_batchnorm`` alone may be missing, as it is in checkpoints older than the option: the tensors say
    it. Raises CheckpointError for what is missing or contradicts the tensors (naming both), UnsupportedModel
    for blocks that do not begin at the start of the text.
    """
    blocks = _read_blocks(config)
    factor = config.integer("downsample_factor")
    if factor > max(blocks):
        raise config.refuse("downsample_factor", factor, f"at most the largest block, {max(blocks)}")
    if "score_consensus_attn" not in config:
        raise config.refuse("score_consensus_attn", None, "true or false")
    settings = GbstSettings(
        blocks,
        factor,
        config.flag("score_consensus_attn"),
        _norm(config, tensors),
        config.integer("d_model"),
        config.integer("vocab_size"),
    )
    _check_period(settings, config.where)
    _check_kernel(settings, config, tensors)
    for name, shape in settings.shapes().items():
        _check_shape(settings, config, name, shape, front_end_tensor(tensors, name))
    return settings


def _read_blocks(config: Settings) -> tuple[int, ...]:
    """Block sizes from ``subword_blocks`` ([size, offset] pairs or sizes) or ``max_subword_block_size``."""
    listed = config.values.get("subword_blocks")
    if "max_subword_block_size" in config:
        largest = config.integer("max_subword_block_size")
        if listed is not None:
            raise CheckpointError(
                f"{config.where}: subword_blocks is {quoted(listed)} and max_subword_block_size {largest}; "
                "expected one of the two, the other null",
                hint="compare the file with the published one",
            )
        if largest > MOST_BLOCKS:
            raise config.refuse("max_subword_block_size", largest, f"at most {MOST_BLOCKS}")
        return tuple(range(1, largest + 1))
    expected = "a list of [size, offset] pairs such as [[1, 0], [2, 0], [3, 0]]"
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_BLOCKS:
        raise config.refuse("subword_blocks", listed, expected)
    sizes = []
    for item in listed:
        size, offset = item if isinstance(item, list) and len(item) == 2 else (item, 0)
        if type(size) is not int or type(offset) is not int or not 0 < size <= LARGEST_PERIOD:
            raise config.refuse("subword_blocks", listed, expected)
        if offset != 0:
            raise UnsupportedModel(
                f"{config.where}: subword_blocks has a block of {size} with offset {offset}; only offset 0 "
                "is supported, as in every published GBST-KEByT5",
                hint="open an issue with the model's name if you need it",
            )
        sizes.append(size)
    return tuple(sizes)


def _check_period(settings: GbstSettings, where: str) -> None:
    """Refuse blocks that meet again only after so many positions that no memory would do."""
    if settings.period > LARGEST_PERIOD:
        raise CheckpointError(
            f"{where}: blocks {settings.blocks} and factor {settings.factor} coincide only every "
            f"{settings.period} positions, to which every text would be padded; at most {LARGEST_PERIOD} "
            "are supported",
            hint="compare the file with the published one",
        )


def front_end_tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A front-end tensor; the byte embedding may stand under a name of the shared one alone."""
    names = (name, *SHARED) if name == EMBEDDING else (name,)
    return next((tensors[name] for name in names if name in tensors), None)


def _norm(config: Settings, tensors: Mapping[str, Tensor]) -> bool:
    there = sorted(name for name in tensors if name.startswith(NORM))
    if "gbst_batchnorm" not in config:
        return bool(there)
    stated = config.flag("gbst_batchnorm")
    if there and not stated:
        raise CheckpointError(
            f"{config.where}: gbst_batchnorm is false, but the checkpoint has the tensor "
            f"{quoted(there[0])} of a batch norm",
            hint=_HINT,
        )
    if stated and not there:
        raise CheckpointError(
            f"{config.where}: gbst_batchnorm is true, but the checkpoint has no tensor {NORM}weight",
            hint=_HINT,
        )
    return stated


def _check_kernel(settings: GbstSettings, config: Settings, tensors: Mapping[str, Tensor]) -> None:
    tensor = tensors.get(CONVOLUTION + "weight")
    if tensor is None or len(tensor.shape) != 3:
        return  # named by the check of shapes
    _, inputs, kernel = tensor.shape
    if inputs != 1:
        raise CheckpointError(
            f"{config.where}: {tensor.name} is {list(tensor.shape)}: each channel has {inputs} "
            f"inputs; expected a depth-wise convolution, [{settings.width}, 1, {settings.kernel}]",
            hint=_HINT,
        )
    if kernel != settings.kernel:
        raise CheckpointError(
            f"{config.where}: the largest block of {_stated(settings, config)} is {settings.kernel}, but "
            f"{tensor.name} is {list(tensor.shape)}, a convolution over {kernel} positions",
            hint=_HINT,
        )


def _stated(settings: GbstSettings, config: Settings) -> str:
    key = "max_subword_block_size" if "max_subword_block_size" in config else "subword_blocks"
    return f"{key} {list(settings.blocks)}"


def _check_shape(
    settings: GbstSettings, config: Settings, name: str, shape: tuple[int, ...], tensor: Tensor | None
) -> None:
    if tensor is None:
        raise CheckpointError(
            f"{config.where} describes a GBST front end, but its tensor {name} {list(shape)} is missing",
            hint=_HINT,
        )
    if tensor.shape != shape:
        raise CheckpointError(
            f"{config.where}: d_model {settings.width}, vocab_size {settings.rows} and blocks "
            f"{list(settings.blocks)} imply {name} {list(shape)}, but it is {list(tensor.shape)}",
            hint=_HINT,
        )
