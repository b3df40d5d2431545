"""What each tensor loses in each format, measured: probes of groups of tensors, and errors of each.

A group (quant/choice_groups.py) is quantized alone in one format, the rest of the model stays in fp32, and
the divergence on some of the calibration text is measured (reference/probes.py). Within the group and from
that format to others it goes by the tensors' relative errors (quant/choice_losses.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from ..converters.mapping import parameters
from ..core.errors import InputError
from ..core.model import Model
from ..core.sizes import size_text
from ..core.tensor import Tensor
from ..core.windows import Window, evenly
from ..quant.choice_groups import Group, groups_of, to_kinds
from ..quant.choice_losses import as_stored, offered, relative_errors
from ..quant.formats import FORMATS, Format
from ..quant.importance import Importance
from ..quant.parts import EMBEDDING
from ..reference.kept_probes import KeptProbes
from ..reference.probes import Divergence, Probing
from ..verify.cost import estimated_probes
from ..verify.inputs import Expected, VerifyOptions
from .kept_losses import keep_errors, kept_errors, key_of

PROBE = FORMATS["q3_K"]
"""The format groups are probed in: coarse enough to be felt, fine enough that losses still add up."""

_AMOUNTS = ((20_000_000, 8192), (500_000_000, 2048))  # weights, and tokens of a probe up to so many
_LEAST = 1024
_SLICE = 32  # tokens: two texts that have so many in common are one


@dataclass(frozen=True)
class Losses:
    """What tensors lose in formats, in nats, by name; ``measured`` says on what.

    ``to_kind`` is by how much each tensor would lose more if its kind of matrix lost the same in all layers.
    """

    of: Mapping[str, Mapping[Format, float]]
    measured: Mapping[str, Any]
    to_kind: Mapping[str, float] = field(default_factory=dict)

    def evened(self, strength: float) -> Losses:
        """The same with differences between layers shrunk: probes on little text overstate them."""
        even = {
            name: {each: loss * self.to_kind.get(name, 1.0) ** strength for each, loss in losses.items()}
            for name, losses in self.of.items()
        }
        return replace(self, of=even)


class Prober:
    """Probes a model on ``windows`` of the calibration text; ``tensors`` are those to be chosen for.

    What is chosen is measured on the windows ``held_out``. What has been found out so far is ``kept``.
    """

    def __init__(
        self,
        expected: Expected,
        tensors: Sequence[Tensor],
        importance: Importance | None,
        windows: Sequence[Window],
        held_out: Sequence[Window],
        options: VerifyOptions,
        kept: KeptProbes | None = None,
    ) -> None:
        self._expected, self._tensors, self._importance = expected, tensors, importance
        self._kept = kept
        self._windows, self._held_out, self._options = tuple(windows), tuple(held_out), options
        self._by_name = {tensor.name: tensor for tensor in tensors}
        plain = {tensor.name: tensor for tensor in expected.model.tensors}
        self._probing = Probing(expected.checkpoint, expected.family, plain, threads=options.threads)

    def losses(self, menu: Sequence[Format], texts_sha256: str, mixes: int) -> Losses:
        """What each tensor would lose in each format of the menu it can have; about ``mixes`` are going to be
        measured ``together``. Raises what reading raises.
        """
        groups = groups_of(self._by_name)
        menus = {tensor.name: offered(tensor, menu, self._importance) for tensor in self._tensors}
        probes = {tensor.name: offered(tensor, (PROBE,), self._importance)[0] for tensor in self._tensors}
        probed = [{name: probes[name] for name in names} for names in groups.values()]
        steps = self._probing.steps([self._change(formats) for formats in probed])
        self._options.announce(self._cost(len(probed), steps, mixes))
        errors = self._errors(menus, probes)
        found = self._divergences(probed, self._windows)
        of: dict[str, dict[Format, float]] = {}
        shares: dict[Group, float] = {}
        for (group, names), divergence in zip(groups.items(), found, strict=True):
            whole = sum(errors[name][probes[name]] for name in names)
            shares[group] = share = divergence.mean / whole if whole else 0.0
            for name in names:
                of[name] = {format: share * errors[name][format] for format in menus[name]}
        kinds = to_kinds(shares)
        to_kind = {name: kinds[group] for group, names in groups.items() for name in names}
        measured = {
            "tokens": sum(len(window.scored) for window in self._windows),
            "held_out_tokens": sum(len(window.scored) for window in self._held_out),
            "texts_sha256": texts_sha256,
            "probe": PROBE.name,
            "menu": [format.name for format in menu],
        }
        return Losses({tensor.name: of[tensor.name] for tensor in self._tensors}, measured, to_kind)

    def having(self, importance: Importance) -> Prober:
        """The same with other importance data, or with codes that are chosen by them."""
        other = copy(self)
        other._importance = importance
        return other

    def together(self, choices: Sequence[Mapping[str, Format]]) -> list[Divergence]:
        """What the model loses on held-out text where all tensors have the formats of each of ``choices``."""
        return self._divergences(choices, self._held_out)

    def _divergences(
        self, mixes: Sequence[Mapping[str, Format]], windows: Sequence[Window]
    ) -> list[Divergence]:
        """What the model loses on ``windows`` where the tensors of a mix have its formats."""
        keys = [key_of(formats, self._importance, windows) for formats in mixes]
        known = 0 if self._kept is None else sum(self._kept.divergence(key) is not None for key in keys)
        if known:
            count = len(keys)
            self._options.announce(f"resumed: {known} of {count} mixes of formats have been probed already")
        changes = [self._change(formats) for formats in mixes]
        return self._probing.divergences(changes, windows, self._options.progress, self._kept, keys)

    def _change(self, formats: Mapping[str, Format]) -> dict[str, Tensor]:
        return {
            name: as_stored(self._by_name[name], format, self._importance) for name, format in formats.items()
        }

    def _errors(
        self, menus: Mapping[str, Sequence[Format]], probes: Mapping[str, Format]
    ) -> dict[str, Mapping[Format, float]]:
        """Relative errors by tensor and format; encoding lets go of the interpreter, so in threads."""
        wanted = {
            tensor.name: tuple(dict.fromkeys([*menus[tensor.name], probes[tensor.name]]))
            for tensor in self._tensors
        }
        known = kept_errors(self._kept, self._importance)
        found = {name: known[name] for name in wanted if wanted[name] == tuple(known.get(name, ()))}
        if found:
            count = len(found)
            self._options.announce(f"resumed: the errors of {count} tensors are known already")
        left = [tensor for tensor in self._tensors if tensor.name not in found]

        def errors(tensor: Tensor) -> dict[Format, float]:
            return relative_errors(tensor, wanted[tensor.name], self._importance)

        with ThreadPoolExecutor(self._options.threads, thread_name_prefix="kconv-errors") as pool:
            try:
                for tensor, each in zip(left, pool.map(errors, left), strict=True):
                    found[tensor.name] = each
                    keep_errors(self._kept, self._importance, tensor.name, each)
                    self._options.progress("errors", len(found), len(self._tensors))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found

    def _cost(self, probes: int, steps: int, mixes: int) -> str:
        tokens = sum(window.tokens for window in self._windows)
        passes = steps / self._probing.layers
        about = estimated_probes(self._expected.model, self._windows, passes, probes, mixes)
        room = ""
        if self._kept is not None:
            hidden = next(t.shape[-1] for t in self._expected.model.tensors if t.name == EMBEDDING)
            size = size_text(2 * 4 * (1 + probes) * tokens * hidden)  # of the layer behind and of the next
            room = f"; meanwhile up to {size} lie beside the file, for --resume"
        return f"types: {probes} probes of {tokens:,} tokens each, about {about}{room}"


def probe_windows(model: Model, every: Sequence[Window]) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """The windows that are probed on, and as many others that choices are held against stock recipes on.

    Both are spread over all, turn by turn; fewer for large models, which scatter less. Where there is only
    one
    window it serves for both.
    """
    weights = parameters(model)
    amount = next((tokens for most, tokens in _AMOUNTS if weights <= most), _LEAST)
    longest = max(window.tokens for window in every)
    both = evenly(every, 2 * max(1, amount // longest))
    return both[::2], both[1::2] or both


def refuse_proof_text(calibration: Sequence[Window], proof: Sequence[Window]) -> None:
    """Raise InputError where the text of the proof is (in good part) the one that is calibrated on.

    What is chosen on a text looks better on that text than it is.
    """
    seen = {ids[at : at + _SLICE] for ids in _ids(calibration) for at in range(len(ids) - _SLICE + 1)}
    slices = [ids[at : at + _SLICE] for ids in _ids(proof) for at in range(0, len(ids) - _SLICE + 1, _SLICE)]
    again = sum(each in seen for each in slices)
    if slices and again * 4 > len(slices):
        raise InputError(
            f"the calibration text is the one the files are proven on ({again} of {len(slices)} passages)",
            hint="calibrate on other text: what is chosen on a text looks better there than it is",
        )


def _ids(windows: Sequence[Window]) -> list[tuple[int, ...]]:
    return [ids for window in windows for ids in (window.ids, window.source) if ids]


def refuse_silent(model: Model, *, encoder: bool) -> None:
    """Raise InputError for models that predict nothing: there is no divergence to choose by."""
    if encoder:
        raise InputError(
            f"types are chosen by what a model predicts, and {model.arch} models write no text",
            hint="leave out --target-size and --target-kl",
        )
