"""All windows through a layer before the next is read: the same bits, and weights are read once."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kconv.converters.families import family_for
from kconv.converters.samples import SAMPLES, write_sample
from kconv.converters.samples.decoders import write_exaone4
from kconv.core.errors import EnvironmentProblem
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Tensor
from kconv.core.windows import Window
from kconv.reference.encoder_decoder import layer_stacks
from kconv.reference.magnitudes import HEAD
from kconv.reference.model import Reading, Reference
from kconv.reference.states import kept_states
from kconv.reference.watching import Watch

Floats = npt.NDArray[np.float32]
PAIRS = ((60, 50), (31, 70), (64, 64), (64, 64), (50, 3), (9, 60))  # tokens, and those of a source
TOGETHER = 160  # tokens a batch: several windows of one length, of two lengths, and one alone


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kconv.reference.batches._TOKENS", TOGETHER)


@dataclass
class Found:
    """What a reading gave, and in which order."""

    told: dict[str, list[tuple[int, Floats]]] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    reading: Reading | None = None

    def tell(self, name: str, window: int, values: Floats) -> None:
        self.told.setdefault(name, []).append((window, values.copy()))
        self.events.append(("told", name))

    def finished(self, name: str) -> None:
        self.events.append(("finished", name))

    def counted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        def read(tensor: Tensor, start: int, stop: int) -> Any:
            self.rows[tensor.name] += stop - start
            return tensor.read(start, stop)

        return {
            name: replace(tensor, read=lambda start, stop, tensor=tensor: read(tensor, start, stop))
            for name, tensor in tensors.items()
        }


def matrices(model: torch.nn.Module) -> frozenset[str]:
    """The names of all linear modules, and of the experts' matrices."""
    found = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, module in model.named_modules():
        if getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3:
            experts = range(module.gate_up_proj.shape[0])  # type: ignore[union-attr, index]
            kinds = ("gate_proj", "up_proj", "down_proj")
            found |= {f"{name}.{expert}.{kind}" for expert in experts for kind in kinds}
    return frozenset(found)


def read(folder: Path, *, by_layer: bool) -> tuple[Found, Reference]:
    checkpoint = open_checkpoint(folder)
    found = Found()
    weights = found.counted(checkpoint.tensors)
    reference = Reference(checkpoint, family_for(checkpoint.config), weights=weights, threads=2)
    random = np.random.default_rng(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.integers(0, 250, count).tolist())

    pairs = PAIRS if reference.encoder_layers else [(length, 0) for length, _ in PAIRS]
    windows = [Window(0, ids(length), source=ids(source)) for length, source in pairs]
    watch = Watch(tuple(windows[2:]), matrices(reference._model), found.tell, found.finished)
    found.reading = reference.read(
        windows[:4],
        layers_of=windows[1],
        watch=watch,
        by_layer=by_layer,
        progress=lambda *step: found.steps.append(step),
    )
    return found, reference


def assert_same(one: Found, other: Found) -> None:
    assert one.reading is not None
    assert other.reading is not None
    for each in ("hidden", "layers"):
        pairs = zip(getattr(one.reading, each), getattr(other.reading, each), strict=True)
        assert all(np.isfinite(a).all() and (a == b).all() for a, b in pairs), each
    assert len(one.reading.layers) > 1
    if one.reading.magnitudes.flows.get(HEAD) is not None:  # an encoder has none
        assert (one.reading.logits(3, 20, 40) == other.reading.logits(3, 20, 40)).all()
    assert one.told.keys() == other.told.keys()
    for name, values in one.told.items():
        for (window, a), (same, b) in zip(values, other.told[name], strict=True):
            assert window == same, name
            assert (a == b).all(), name
    assert one.steps == other.steps == [("reference", at, one.steps[-1][2]) for at in range(len(one.steps))]


def exaone4_of_two_kinds(folder: Path) -> Path:
    """Layers with a window of 16 tokens, and one in four without."""
    return write_exaone4(folder, num_hidden_layers=4, sliding_window=16, sliding_window_pattern="LLLG")


CHECKPOINTS = {**SAMPLES, "exaone4, two kinds of layers": exaone4_of_two_kinds}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_same_bits_and_weights_read_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    folder = CHECKPOINTS[name](tmp_path / "checkpoint")
    held = open_checkpoint(folder).tensors
    expected, _ = read(folder, by_layer=False)
    monkeypatch.setattr("kconv.reference.by_layer.STATES", 100_000)  # of states some in memory, some in files
    found, reference = read(folder, by_layer=True)
    assert_same(expected, found)
    assert list(scratch.glob("kconv-*")) == []
    layers = names_of_layers(reference)
    assert_finished_layer_by_layer(found, layers)
    module = family_for(open_checkpoint(folder).config).reference.module
    inside = [name for name in held if module(name).startswith(tuple(layers)) and name in found.rows]
    assert len(inside) > len(layers)
    for name in inside:
        assert found.rows[name] == held[name].rows, name
        assert expected.rows[name] >= 3 * held[name].rows, name  # once for each batch


def names_of_layers(reference: Reference) -> list[str]:
    names = {module: name for name, module in reference._model.named_modules()}
    stacks = layer_stacks(reference._model, reference._layers)
    return [f"{names[layer]}." for layers in stacks for layer in layers]


def assert_finished_layer_by_layer(found: Found, layers: list[str]) -> None:
    """Nothing flows into a layer before all is finished in the one before, each module once."""
    begun = {name: at for at, (event, name) in enumerate(found.events) if event == "told"}  # the last time
    finished = {name: at for at, (event, name) in enumerate(found.events) if event == "finished"}
    assert begun.keys() == finished.keys() == found.told.keys()
    assert sum(event == "finished" for event, _ in found.events) == len(finished)
    order = [layers.index(layer) for _, name in found.events for layer in layers if name.startswith(layer)]
    assert order == sorted(order)
    assert set(order) == set(range(len(layers)))
    assert all(begun[name] < finished[name] for name in finished)


def test_a_model_that_computes_between_its_layers_is_read_batch_by_batch(tmp_path: Path) -> None:
    """Nothing is learned twice, and nothing from what stood in for the states."""
    folder = write_sample("eagle", tmp_path / "checkpoint")
    checkpoint = open_checkpoint(folder)
    windows = [Window(0, tuple(range(start, start + 100))) for start in (0, 50, 90)]
    readings, told = [], []
    for by_layer in (False, True):
        reference = Reference(checkpoint, family_for(checkpoint.config), threads=2)
        _, second, *_ = layer_stacks(reference._model, reference._layers)[0]
        second.register_forward_pre_hook(lambda module, args: (args[0] * 1.5, *args[1:]))
        found = Found()
        watch = Watch(tuple(windows), matrices(reference._model), found.tell, found.finished)
        readings.append(reference.read(windows, watch=watch, by_layer=by_layer))
        told.append({name: [window for window, _ in each] for name, each in found.told.items()})
    assert all((a == b).all() for a, b in zip(readings[0].hidden, readings[1].hidden, strict=True))
    assert told[0] == told[1]


def test_states_wait_in_memory_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = [torch.randn(3, 5), torch.arange(6).view(2, 3).mT, torch.tensor([[True, False]])]

    def files() -> list[Path]:
        return [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]

    with kept_states(100) as states:
        first = states.keep(values[0])  # 60 bytes
        assert first.get() is values[0]
        assert files() == []
        others = [states.keep(value) for value in values]
        assert len(files()) == 2  # the last one's two bytes still fit
        for kept, value in zip(others, values, strict=True):
            assert kept.get().dtype == value.dtype
            assert torch.equal(kept.get(), value)
        del first, others, kept
        assert files() == []
        assert states.keep(values[0]).get() is values[0]  # there is room again
        full = torch.zeros(100)
        kept = states.keep(full)
        (path,) = files()
        path.write_bytes(b"cut")
        with pytest.raises(EnvironmentProblem, match="was cut"):
            kept.get()
    assert list(tmp_path.iterdir()) == []
