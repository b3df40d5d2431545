"""Attention over narrow vectors (DeepSeek's MLA), computed as llama.cpp multiplies it out.

transformers' classes widen the narrow vector of each position to keys and values of all heads with one
matrix, ``kv_b_proj``. llama.cpp has it in two: it multiplies each head's query by the keys' part and attends
to the narrow vectors themselves, and multiplies what comes of that by the values' part. In exact arithmetic
that is the same; what is rounded, and by which format, is not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.errors import UnsupportedModel
from .copies import Matrix
from .streamed import WHOLE

if TYPE_CHECKING:
    import torch

KEYS, VALUES = "k_b_proj", "v_b_proj"
"""What the parts of ``kv_b_proj`` are called (converters/gguf_names.py)."""
_EAGER = "eager_attention_forward"
Synchronize = Callable[[str, "torch.Tensor"], "torch.Tensor"]
Round = Callable[["torch.Tensor", Matrix], "torch.Tensor"]


class Absorbed:
    """Stands in for the attention of one of transformers' classes meanwhile.

    ``keys`` and ``values`` are the file's matrices, ``synchronize`` and ``round_`` are the run's.
    """

    def __init__(
        self, module: Any, keys: Matrix, values: Matrix, synchronize: Synchronize, round_: Round
    ) -> None:
        if "q8_1" in (keys.rounding, values.rounding) or not hasattr(module, "expand_kv"):
            raise UnsupportedModel(
                f"what llama.cpp multiplies {keys.name} and {values.name} by cannot be computed again",
            )
        self.module = module
        setattr(module.kv_b_proj, WHOLE, True)
        self._keys, self._values = keys, values
        self._synchronize, self._round = synchronize, round_
        self._narrow: torch.Tensor | None = None
        self._weight: torch.Tensor | None = None

    def before(self, module: Any, args: Any) -> None:
        """What flows into ``kv_b_proj``, whose weights are in memory now."""
        self._narrow = args[0]
        self._weight = module.weight.clone()

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        """``(copies, positions, heads, values)`` of ``(copies, heads, positions, columns)``."""
        import torch

        assert self._narrow is not None
        assert self._weight is not None
        plain, heads = self.module.qk_nope_head_dim, query.shape[1]
        narrow = self._narrow.reshape(len(key), 1, key.shape[2], -1)
        matrix = self._weight.view(heads, -1, narrow.shape[-1])
        asked = self._each_head(query[..., :plain], self._keys)
        wide = torch.einsum("bhtn,hnl->bhtl", asked, matrix[:, :plain])
        scores = wide @ narrow.transpose(2, 3) + query[..., plain:] @ key[..., plain:].transpose(2, 3)
        scores = scores * scaling
        if mask is not None:
            scores = scores + mask
        seen = self._each_head(torch.softmax(scores, dim=-1) @ narrow, self._values)
        made = torch.einsum("bhtl,hvl->bhtv", seen, matrix[:, plain:])
        self._narrow = self._weight = None
        return made.transpose(1, 2).contiguous()

    def _each_head(self, values: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """``(copies, heads, positions, columns)`` compared with llama.cpp's and rounded."""
        copies, heads, positions, columns = values.shape
        together = values.transpose(1, 2).reshape(copies, positions, heads * columns)
        together = self._synchronize(matrix.name, together)
        parts = together.reshape(copies, positions, heads, columns)
        return self._round(parts, matrix).transpose(1, 2)


@contextlib.contextmanager
def absorbing(layers: list[Absorbed]) -> Iterator[None]:
    """Let those layers attend by ``Absorbed.attend``; all are of one class of transformers."""
    by_module = {id(each.module): each for each in layers}
    places = {sys.modules[type(each.module).__module__] for each in layers}
    before = {place: getattr(place, _EAGER) for place in places}

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **others: Any
    ) -> Any:
        return by_module[id(module)].attend(query, key, mask, scaling), None

    with contextlib.ExitStack() as stack:
        for each in layers:
            stack.callback(each.module.kv_b_proj.register_forward_pre_hook(each.before).remove)
        try:
            for place in places:
                setattr(place, _EAGER, attention)
            yield
        finally:
            for place, function in before.items():
                setattr(place, _EAGER, function)
