"""The truth a file is held against: the checkpoint's own architecture in fp32 on the CPU, streamed.

transformers' own model code computes, on parameters that are read from the checkpoint module by module
(reference/streamed.py); nothing of the checkpoint is executed. The two matrices of vocabulary size are never
in memory whole: of the embedding the rows needed are read, and the output matrix is multiplied in slices
after the pass, for the positions that are asked for.

Windows are computed together, padded on the right to the longest: no position sees what follows it, and each
window's positions count from zero. One window alone, or several of one length, give the very bits that
from_pretrained in fp32 gives; padding groups the terms of some sums differently (a logit by some 1e-6).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..converters.family import AnyFamily
from ..converters.mapping import refuse_too_many
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import CheckpointError, InputError, KconvError
from ..core.progress import Progress, silent
from ..core.tensor import Tensor
from ..core.windows import Window
from .batches import batches_of, first_context
from .by_layer import BetweenLayers, LayerByLayer
from .empty_model import computing, empty_model, fitting_weight, refusal, vocabulary_matrices
from .encoder_decoder import embeddings, encoder_layers, has_encoder, inputs, layer_stacks
from .gelu_table import take_llama_cpps_gelu
from .headless import LastStates, embedding_of
from .magnitudes import Magnitudes
from .reading import OutputMatrix, Reading
from .streamed import StreamedModules, stream_embedding
from .streamed_experts import stream_experts
from .tail import Tail
from .watching import Watch, Watching, captured_outputs
from .weight_reader import RowRange, WeightReader

if TYPE_CHECKING:
    import torch

    from .saved_pass import SavedPass

Floats = npt.NDArray[np.float32]
LookingOn = Callable[[int], contextlib.AbstractContextManager[None]]


class Reference:
    """A checkpoint ready to be read with in fp32; no weight is in memory yet.

    ``weights`` replace the checkpoint's own, under the same names: those of a converted file after
    ``unmapped``. ``as_llama_cpp`` computes by the family's departure; ``llama_cpps_gelu`` rounds that
    activation as llama.cpp does (gelu_table.py), and ``gelus`` is how many of them do. ``vocabulary`` is the
    number of rows of the output matrix, ``encoder_layers`` how many of the layers an encoder has (0 in
    models of one stack). An encoder that writes no text has no ``output``: what would enter it are its hidden
    states. Raises CheckpointError if transformers cannot make the model config.json describes, or the weights
    do not fit it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: AnyFamily,
        *,
        weights: Mapping[str, Tensor] | None = None,
        as_llama_cpp: bool = False,
        llama_cpps_gelu: bool = False,
        threads: int | None = None,
    ) -> None:
        tensors = checkpoint.tensors if weights is None else weights
        self._where = f"{checkpoint.folder}/config.json"
        sizes = family.read(checkpoint.config).sizes
        self._layers = sizes["layers"]
        # before a model of millions of layers is made
        refuse_too_many(family, sizes, len(tensors), self._where, CheckpointError)
        self._threads = threads or available_cores()
        self.reader = WeightReader(self._threads)
        with computing(self._threads):
            config = checkpoint.config
            if as_llama_cpp and family.departure is not None:
                config = family.departure.config(config)
            self._model = empty_model(family.reference, config, self._where)
            self._factor, front = 1, family.front_end
            if front is not None:
                self._factor = front.join(self._model, checkpoint)
                tensors = front.weights(tensors, checkpoint)
            tensors = family.reference.tensors(tensors, sizes)
            self.output: OutputMatrix | None = None
            if family.encoder_only:
                self._embedding = embedding_of(self._model, tensors, self._where)
                self._tail: Tail | LastStates = LastStates(self._model)
            else:
                head, self._embedding = vocabulary_matrices(self._model, tensors, self._where)
                tail = self._tail = Tail(self._model)
                self.output = OutputMatrix(head, self.reader, self._threads, self._changed_logits(tail))
            self.gelus = 0
            if llama_cpps_gelu:
                self.gelus = take_llama_cpps_gelu(self._model, exact=family.encoder_only)
            self._step: Callable[[], None] = lambda: None
            self._modules = self._attach(tensors)
        self.vocabulary = self._embedding.rows if self.output is None else self.output.rows
        self.encoder_layers = encoder_layers(self._model)

    def read(
        self,
        windows: Sequence[Window],
        *,
        layers_of: Window | None = None,
        watch: Watch | None = None,
        by_layer: bool = False,
        saved: SavedPass | None = None,
        progress: Progress = silent,
    ) -> Reading:
        """Compute what enters the output matrix, and, for ``layers_of``, what leaves each layer.

        Windows of up to 2048 tokens are computed together (fewer where attention scores would exceed 128
        MiB); a longer window goes alone, and its scores take what they take. Each such batch takes a pass
        over the weights of its own, in the memory of two modules, or, ``by_layer``, all go through a layer
        before the next one is read (by_layer.py), in the memory of a layer and 256 MiB of states, with more
        in temporary files; the bits are the same. Tells ``progress("reference", done, total)`` in modules.
        A pass by layers can be ``saved``, and begins behind the layers that are; neither ``watch`` nor the
        magnitudes learn of these then.

        ``layers_of`` need not be among the windows; an encoder's layers come before the decoder's, for the
        positions it computes (fewer than tokens behind a GBST front end). ``watch`` has windows of its own,
        which are read along. Raises CheckpointError, EnvironmentProblem, InputError for tokens the embedding
        does not have.
        """
        asked = list(windows)
        followed = None
        if layers_of is not None:
            if layers_of not in asked:
                asked.append(layers_of)
            followed = asked.index(layers_of)
        kept = len(asked)
        asked += () if watch is None else watch.windows
        self._check_tokens(asked)
        hidden: list[Floats] = [np.empty(0, np.float32)] * kept
        layers: list[Floats] = []
        batches = self._batches(asked)
        watching = None if watch is None else Watching(watch, kept)
        magnitudes = Magnitudes(len(windows))
        self._report(progress, len(batches) * len(self._modules))

        @contextlib.contextmanager
        def looking_on(number: int) -> Iterator[None]:
            batch = batches[number]
            sizes = [(self._encoded(asked[index]), len(asked[index].ids)) for index in batch]
            with contextlib.ExitStack() as stack:
                stack.enter_context(magnitudes.along(self._model, batch, sizes))
                if followed in batch:
                    every = [layer for each in layer_stacks(self._model, self._layers) for layer in each]
                    stack.enter_context(captured_outputs(every, batch.index(followed), layers))
                if watching is not None:
                    stack.enter_context(watching.along(self._model, batch, sizes))
                yield

        in_layers = partial(self._by_layer, saved=saved)
        read = in_layers if by_layer and len(batches) > 1 else self._by_batch
        together = [[asked[index] for index in batch] for batch in batches]
        found = contextlib.closing(read(together, looking_on, watching))
        with computing(self._threads), found as every:
            for batch, entering in zip(batches, every, strict=True):
                for index, values in zip(batch, entering, strict=True):
                    if index < kept:
                        hidden[index] = values.copy()
        self.reader.forget()
        if watching is not None:
            watching.finish()
        if layers_of is not None:
            lengths = [self._encoded(layers_of)] * self.encoder_layers
            lengths += [len(layers_of.ids)] * (len(layers) - len(lengths))
            layers = [layer[:length].copy() for layer, length in zip(layers, lengths, strict=True)]
        return Reading(hidden[: len(windows)], layers, self.output, magnitudes)

    def entering_head(
        self,
        windows: Sequence[Window],
        attached: Callable[[Any], contextlib.AbstractContextManager[None]],
        progress: Progress = silent,
    ) -> torch.Tensor:
        """What enters the output matrix for windows of one length, ``(windows, positions, hidden)``.

        ``attached`` is given transformers' model and may change meanwhile what its modules compute. Tells
        ``progress("runtime", done, total)`` in modules.
        """
        self._check_tokens(windows)
        self._report(progress, len(self._modules), "runtime")
        self._modules.start()
        with computing(self._threads), attached(self._model), self._refused():
            return self._tail.entering(**self._inputs(windows))

    def _inputs(self, windows: Sequence[Window]) -> dict[str, torch.Tensor]:
        return inputs(windows, both_ways=self.output is None)

    def _by_batch(
        self, batches: Sequence[Sequence[Window]], looking_on: LookingOn, watching: Watching | None
    ) -> Generator[list[Floats], None, None]:
        """What enters the output matrix for each batch, one after the other through the whole model."""
        for number, batch in enumerate(batches):
            self._modules.start()
            with looking_on(number), self._refused():
                found = self._forward(batch)
            yield found

    def _by_layer(
        self,
        batches: Sequence[Sequence[Window]],
        looking_on: LookingOn,
        watching: Watching | None,
        *,
        saved: SavedPass | None = None,
    ) -> Generator[list[Floats], None, None]:
        """The same, all batches through a layer before the next one is read."""
        names = {module: name for name, module in self._model.named_modules()}

        def passed(layer: torch.nn.Module) -> None:
            if watching is not None:
                watching.finish(f"{names[layer]}.")

        forwards = [partial(self._forward, batch) for batch in batches]
        walk = LayerByLayer(self._model, layer_stacks(self._model, self._layers), self._modules)
        try:
            with self._refused():
                yield from walk.read(forwards, self._few_tokens, looking_on, passed, saved)
        except BetweenLayers:
            yield from self._by_batch(batches, looking_on, watching)

    def _few_tokens(self) -> list[Any]:
        """A forward that takes no time, to see what layers give."""
        return self._forward([Window(0, (0,), source=(0,) * self._factor if self.encoder_layers else ())])

    def _batches(self, windows: Sequence[Window]) -> list[list[int]]:
        sizes = [(len(window.source), len(window.ids)) for window in windows]
        largest = max((buffer.nbytes for buffer in self._model.buffers()), default=0)
        config = self._model.config
        return batches_of(sizes, config.num_attention_heads, largest, first_context(config))

    def _report(self, progress: Progress, total: int, stage: str = "reference") -> None:
        """From now on report every module that has run."""
        done = itertools.count(1)
        self._step = lambda: progress(stage, next(done), total)
        progress(stage, 0, total)

    def _encoded(self, window: Window) -> int:
        """Positions the encoder computes of a window; all there are of a model that is an encoder."""
        if self.output is None:
            return len(window.ids)
        return -(-len(window.source) // self._factor)

    def _forward(self, windows: Sequence[Window]) -> list[Floats]:
        entering = self._tail.entering(**self._inputs(windows))
        pairs = zip(entering, windows, strict=True)
        return [values[: len(window.ids)].numpy() for values, window in pairs]

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Whatever goes wrong in transformers' code is about the checkpoint."""
        try:
            yield
        except (KconvError, BetweenLayers):
            raise
        except Exception as error:
            raise refusal(self._where, "compute with", type(self._model).__name__, error) from error

    def _attach(self, tensors: Mapping[str, Tensor]) -> StreamedModules:
        """Let every module read its weights when it runs."""
        lookups = embeddings(self._model)
        streamed = StreamedModules(self.reader, lambda: self._step())
        for name, module in self._model.named_modules():
            own = {key: value for key, value in module._parameters.items() if value is not None}
            self._fill_buffers(name, module, tensors)
            if any(module is lookup for lookup in lookups):
                table = self._embedding
                if f"{name}.weight" in tensors:
                    table = fitting_weight(tensors, (f"{name}.weight",), module.weight, self._where)
                stream_embedding(module, table, self.reader)
                continue
            if not own:
                continue
            weights = {
                key: fitting_weight(tensors, (f"{name}.{key}",), value, self._where)
                for key, value in own.items()
            }
            whole = stream_experts(module, weights, self.reader)
            if whole:
                streamed.add(module, whole)
        return streamed

    def _fill_buffers(self, name: str, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Read what the class learns and keeps beside its parameters, such as the biases of a router."""
        for key, value in module._buffers.items():
            place = f"{name}.{key}"
            if value is None or key in module._non_persistent_buffers_set or place not in tensors:
                continue
            weight = fitting_weight(tensors, (place,), value, self._where)
            with self.reader.reading([RowRange(weight, 0, weight.rows)]) as (values,):
                module._buffers[key] = values.clone()

    def _changed_logits(self, tail: Tail) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What the class does to logits, None where it leaves them alone."""
        with self._refused():
            return tail.behind if tail.changes_logits() else None

    def _check_tokens(self, windows: Sequence[Window]) -> None:
        rows, encoder = self._embedding.rows, has_encoder(self._model)
        for window in windows:
            if bool(window.source) is not encoder:
                problem = "needs a source text" if encoder else "has no encoder to read a source text"
                raise ValueError(f"{type(self._model).__name__} {problem}")
            ids = (*window.source, *window.ids)
            if not window.ids or min(ids) < 0 or max(ids) >= rows:
                raise InputError(f"token ids must be 0 to {rows - 1}, the rows of the checkpoint's embedding")
