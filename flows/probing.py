"""What each tensor loses in each format, measured: probes of groups of tensors, and errors of each.

A group (quant/choice_groups.py) is quantized alone in one format, the rest of the model stays in fp32, and
the divergence on some of the calibration text is measured (reference/probes.py). Within the group and from
that format to others it goes by the tensors' relative errors (quant/choice_losses.py), except for those whose
errors say little (``outstanding``): these are measured in several formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace

from ..converters.mapping import parameters
from ..core.errors import InputError
from ..core.model import Model
from ..core.sizes import size_text
from ..core.tensor import Tensor
from ..core.windows import Window, evenly
from ..quant.choice_groups import BANDS, Group, groups_of, outstanding
from ..quant.choice_losses import Errors, as_stored, offered, relative_errors
from ..quant.formats import FORMATS, Format
from ..quant.importance import Importance
from ..quant.parts import EMBEDDING
from ..reference.kept_probes import KeptProbes
from ..reference.probes import Change, Divergence, Probing
from ..reference.saved_pass import SparePass
from ..verify.cost import arithmetic_of_probes, estimated_mixes, in_words, multiplying_speed
from ..verify.inputs import Expected, VerifyOptions
from .kept_losses import keep_errors, kept_errors, key_of
from .losses import Formats, Groups, Losses

PROBE = FORMATS["q3_K"]
"""The format groups are probed in: coarse enough to be felt, fine enough that losses still add up."""

_WINDOWS, _SHORTEST = 16, 256  # windows that are probed on, and tokens below which none is cut
_SLICE = 32  # tokens: two texts that have so many in common are one


@dataclass(frozen=True)
class Effort:
    """What a model's size allows: tokens of each probe and held out, and groups of layers."""

    weights: float
    tokens: int
    held_out: int
    bands: int = BANDS


_EFFORTS = (
    Effort(20e6, 8192, 8192, 32),
    Effort(200e6, 1024, 4096, 32),
    Effort(500e6, 2048, 2048),
    Effort(math.inf, 1024, 1024),
)


def effort_for(model: Model) -> Effort:
    """What is measured of a model: more of a small one, whose groups scatter more and cost less."""
    weights = parameters(model)
    return next(each for each in _EFFORTS if weights <= each.weights)


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
        menus = {tensor.name: offered(tensor, menu, self._importance) for tensor in self._tensors}
        probes = {tensor.name: offered(tensor, (PROBE,), self._importance)[0] for tensor in self._tensors}
        bands = effort_for(self._expected.model).bands
        plain = groups_of(self._by_name, bands).values()
        self._options.announce(self._cost([self._change(_those(probes, names)) for names in plain], mixes))
        errors = self._errors(menus, probes)
        apart = outstanding({name: each.power for name, each in errors.items()})
        groups = Groups(groups_of(self._by_name, bands, apart), menus, errors)
        measured = {
            "tokens": sum(len(window.scored) for window in self._windows),
            "held_out_tokens": sum(len(window.scored) for window in self._held_out),
            "texts_sha256": texts_sha256,
            "probe": PROBE.name,
            "menu": [format.name for format in menu],
        }
        wanted: list[tuple[Group, Formats]] = [(group, probes) for group in groups.names]
        for group, names in groups.names.items():
            if group.alone:  # on its own, and in more than one format
                (name,) = names
                wanted += [
                    (group, {name: format}) for format in self._more(menus[name]) if format != probes[name]
                ]
        mixes_of = [_those(formats, groups.names[group]) for group, formats in wanted]
        found = self._divergences(mixes_of, self._windows)
        for (group, formats), divergence in zip(wanted, found, strict=True):
            groups.learn(group, formats, divergence.mean)
        return groups.losses(measured)

    def _more(self, menu: Sequence[Format]) -> Sequence[Format]:
        """The formats of a menu that a tensor unlike its neighbours is measured in."""
        if effort_for(self._expected.model).bands > BANDS:
            return menu
        return tuple(dict.fromkeys((menu[len(menu) // 2], menu[-1])))

    def having(self, importance: Importance) -> Prober:
        """The same with other importance data, or with codes that are chosen by them."""
        other = copy(self)
        other._importance = importance
        return other

    def together(self, choices: Sequence[Formats]) -> list[Divergence]:
        """What the model loses on held-out text where all tensors have the formats of each of ``choices``,
        with what llama.cpp's rounding of inputs adds.
        """
        return self._divergences(choices, self._held_out, rounding=True)

    def _divergences(
        self, mixes: Sequence[Formats], windows: Sequence[Window], *, rounding: bool = False
    ) -> list[Divergence]:
        """What the model loses on ``windows`` where the tensors of a mix have its formats.

        With ``rounding`` their inputs are rounded as llama.cpp rounds them, too.
        """
        keys = [key_of(formats, self._importance, windows, rounding=rounding) for formats in mixes]
        known = 0 if self._kept is None else sum(self._kept.divergence(key) is not None for key in keys)
        if known:
            count = len(keys)
            self._options.announce(f"resumed: {known} of {count} mixes of formats have been probed already")
        changes = [self._change(formats) for formats in mixes]
        inputs = [{name: format.name for name, format in formats.items()} for formats in mixes]
        return self._probing.divergences(
            changes, windows, self._options.progress, self._kept, keys, inputs if rounding else ()
        )

    def _change(self, formats: Formats) -> dict[str, Tensor]:
        return {
            name: as_stored(self._by_name[name], format, self._importance) for name, format in formats.items()
        }

    def _errors(self, menus: Mapping[str, Sequence[Format]], probes: Formats) -> dict[str, Errors]:
        """Relative errors by tensor and format; encoding lets go of the interpreter, so in threads."""
        wanted = {
            tensor.name: tuple(dict.fromkeys([*menus[tensor.name], probes[tensor.name]]))
            for tensor in self._tensors
        }
        known = kept_errors(self._kept, self._importance)
        found = {name: each for name, each in known.items() if wanted.get(name) == tuple(each.of)}
        if found:
            count = len(found)
            self._options.announce(f"resumed: the errors of {count} tensors are known already")
        left = [tensor for tensor in self._tensors if tensor.name not in found]

        def errors(tensor: Tensor) -> Errors:
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

    def _cost(self, changes: Sequence[Change], mixes: int) -> str:
        model, tokens = self._expected.model, sum(window.tokens for window in self._windows)
        passes = 1 + self._probing.steps(changes) / self._probing.layers
        held_out, probes = sum(window.tokens for window in self._held_out), len(changes)
        seconds = arithmetic_of_probes(model, tokens, passes, probes) / multiplying_speed()
        about = in_words(seconds + estimated_mixes(model, held_out, mixes))
        room = ""
        if self._kept is not None:
            hidden = next(t.shape[-1] for t in model.tensors if t.name == EMBEDDING)
            behind = min(4 * (1 + probes) * tokens * hidden, SparePass.MOST)
            size = size_text(2 * behind)  # what left the last layer, and what leaves the next
            room = f"; meanwhile about {size} lie beside the file, for --resume"
        return f"types: {probes} probes of {tokens:,} tokens each, about {about}{room}"


def _those(formats: Formats, names: Sequence[str]) -> Formats:
    return {name: formats[name] for name in names}


def probe_windows(model: Model, every: Sequence[Window]) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """The windows that are probed on, and others that choices are held against stock recipes on.

    Both are spread over all, turn by turn. Where there is only one window it serves for both; short texts
    are parted as the two amounts are. What is probed on are beginnings, so that it comes from more places.
    """
    effort, longest = effort_for(model), max(window.tokens for window in every)
    pairs = any(window.source for window in every)  # which are read as they are
    short = longest if pairs else min(longest, max(_SHORTEST, effort.tokens // _WINDOWS))
    probed, held_out = max(1, effort.tokens // short), max(1, effort.held_out // longest)
    both = evenly(every, probed + held_out)
    count = -(-len(both) * probed // (probed + held_out))
    own = {at * len(both) // count for at in range(count)}
    others = tuple(window for at, window in enumerate(both) if at not in own)
    return tuple(_shortened(both[at], short) for at in sorted(own)), others or both


def _shortened(window: Window, most: int) -> Window:
    """The beginning of a window, as far as anything counts in it."""
    if window.source or len(window.ids) <= most or window.scored_from >= most - 1:
        return window
    return replace(window, ids=window.ids[:most])


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
