"""The child that runs onnxruntime; imports nothing of kconv but its side of a child.

Files of strangers may crash it, run for ever or fill the memory, which then costs this process and no more.
Its arguments are THREADS MAPPED TAPPED SECONDS MEMORY DECODER CACHED [ENCODER]: the processor time that
loading may take, and the bytes its memory may grow by (runtimes/onnx_limits.py). All numbers are
little-endian.

- ``BEGIN`` with ids: forget everything; an encoder reads the ids (decoder-only models are given none).
- ``READ`` with ids: the decoder reads them after what it has read; logits of the last ``rows`` of them.
- ``EMBED`` with ids: an encoder that writes no text reads them; ``rows`` is the id of its padding. The
  answer has two parts: hidden states, batch times length rows of them, and embeddings, one of each text (none
  where the graph has no ``sentence_embedding``).
- ``INPUTS``, where TAPPED is 1: what each matrix was multiplied by since ``BEGIN``: a number of them, and
  each as INPUT, its name (``GRAPH/INITIALIZER``: names may come again in another graph) and float32 numbers.

MAPPED is 1 where weights are to stay in their file, which costs no memory of the process, instead of being
copied into an order that suits matrix products. In float32 that makes a product some per cent slower, so the
graph an encoder-decoder generates with gets its copy all the same; products of blocks are slow without.

Ids are a batch, text after text, with PADDING where a text has no token. A request says what processor time
it may take. It is answered by rows (of all texts) and columns of float32 numbers, which follow (``BEGIN``: 0
and 0), and so is loading.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any

from ..core import child
from ..core.child import Stop
from .onnx_taps import Tap
from .onnx_taps import tapped as graph_tapped

REQUEST = struct.Struct("<iiiid")
"""What is wanted, how many texts of how many ids follow (int64), how many rows are wanted of each text, and
the seconds of processor time it may take."""
PADDING = -1
ANSWER = struct.Struct("<ii")
INPUT = struct.Struct("<iiii")
"""Of an input: bytes of its name, its level (onnx_taps.Tap), rows, columns."""
BEGIN, READ, INPUTS, EMBED = 1, 2, 3, 4
_STATES, _EMBEDDING = "last_hidden_state", "sentence_embedding"
REFUSED, NOT_COMPUTED, NOT_SUPPORTED = 11, 12, 13
_PAST, _PRESENT = "past_key_values.", "present."


class Model:
    """The sessions of a folder, and what has been read: its length, the cache, what the encoder made."""

    def __init__(
        self,
        threads: int,
        decoder: str,
        cached: str,
        encoder: str | None,
        *,
        mapped: bool = False,
        tapped: bool = False,
    ) -> None:
        generating = cached if encoder else None
        opened: dict[str, Any] = {}
        self.taps: dict[Any, dict[str, Tap]] = {}
        for path in dict.fromkeys([decoder, cached, encoder]):
            if path:
                graph, taps = graph_tapped(path) if tapped else (None, {})
                taps = {f"{os.path.basename(path)}/{name}": tap for name, tap in taps.items()}
                session = _session(path, threads, mapped=mapped and path != generating, graph=graph)
                opened[path], self.taps[session] = session, taps
        self.inputs: dict[str, tuple[int, list[Any]]] = {}
        self.decoder, self.cached = opened[decoder], opened[cached]
        self.encoder = opened[encoder] if encoder else None
        self.past: dict[str, Any] = {}
        self.mask: Any = None  # of the tokens read, 0 for padding; ``source`` that of the encoder's
        self.source: Any = None
        self.encoded: Any = None

    def begin(self, ids: Any) -> None:
        """Forget all that was read, and have the encoder read ``ids``."""
        self.past, self.mask, self.source, self.inputs = {}, None, _mask(ids), {}
        if self.encoder is not None:
            feeds = {each.name: self._of_encoder(each.name, ids) for each in self.encoder.get_inputs()}
            self.encoded = self._run(self.encoder, ["last_hidden_state"], feeds)["last_hidden_state"]

    def read(self, ids: Any, rows: int) -> Any:
        """Logits ``(batch, rows, vocabulary)`` after the last ``rows`` of each text's ``ids``."""
        import numpy as np

        self.mask = _mask(ids) if self.mask is None else np.concatenate([self.mask, _mask(ids)], axis=1)
        session = self.cached if self.past else self.decoder
        feeds = {each.name: self._fed(each, ids) for each in session.get_inputs()}
        outputs = self._run(session, [each.name for each in session.get_outputs()], feeds)
        logits = outputs["logits"].numpy()
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise Stop(NOT_COMPUTED, f"the logits of {ids.shape} tokens have the shape {logits.shape}")
        going_on = bool(self.past)
        for name, value in outputs.items():
            # what a decoder made of the encoder's output stays as it is; a merged one repeats it empty
            if name.startswith(_PRESENT) and not (going_on and ".encoder." in name):
                self.past[_PAST + name.removeprefix(_PRESENT)] = value
        return logits[:, ids.shape[1] - rows :].astype("<f4", order="C")

    def embed(self, ids: Any, padding: int) -> list[Any]:
        """Hidden states ``(batch, length, hidden)``, and embeddings ``(batch, width)``, or none."""
        import numpy as np

        self.inputs = {}
        feeds = {}
        for each in self.decoder.get_inputs():
            if each.name not in ("input_ids", "attention_mask", "token_type_ids"):
                raise Stop(NOT_SUPPORTED, f"the encoder has an input {each.name!r}")
            filled = np.where(ids == PADDING, padding, ids)
            given = {"input_ids": filled, "attention_mask": _mask(ids)}
            feeds[each.name] = _value(given.get(each.name, np.zeros_like(ids)))
        names = [each.name for each in self.decoder.get_outputs() if each.name in (_STATES, _EMBEDDING)]
        if _STATES not in names:
            raise Stop(NOT_SUPPORTED, f"the graph has no output {_STATES!r}")
        found = {name: value.numpy() for name, value in self._run(self.decoder, names, feeds).items()}
        if found[_STATES].ndim != 3 or found[_STATES].shape[:2] != ids.shape:
            problem = f"the hidden states of {ids.shape} tokens have the shape {found[_STATES].shape}"
            raise Stop(NOT_COMPUTED, problem)
        pooled = found.get(_EMBEDDING, np.empty((0, 0), "<f4"))
        if pooled.ndim != 2 or len(pooled) not in (0, len(ids)):
            raise Stop(NOT_COMPUTED, f"the embeddings of {len(ids)} texts have the shape {pooled.shape}")
        return [found[_STATES].reshape(ids.size, -1), pooled]

    def _run(self, session: Any, names: Sequence[str], feeds: Any) -> dict[str, Any]:
        """The outputs of those names; what was multiplied on the way is kept in ``inputs``."""
        taps = self.taps[session]
        wanted = list(dict.fromkeys([*names, *(tap.value for tap in taps.values())]))
        found = dict(zip(wanted, session.run_with_ort_values(wanted, feeds), strict=True))
        for name, tap in taps.items():
            values = found[tap.value].numpy()
            if values.ndim > 1:  # the branch that was taken multiplies by this matrix
                self.inputs.setdefault(name, (tap.level, []))[1].append(values)
        return {name: found[name] for name in names}

    def _of_encoder(self, name: str, ids: Any) -> Any:
        import numpy as np

        if name not in ("input_ids", "attention_mask"):
            raise Stop(NOT_SUPPORTED, f"the encoder has an input {name!r}")
        return _value(np.maximum(ids, 0) if name == "input_ids" else _mask(ids))

    def _fed(self, value: Any, ids: Any) -> Any:
        """What an input of a decoder is given."""
        import numpy as np

        name = value.name
        if name == "input_ids":
            return _value(np.maximum(ids, 0))
        if name == "attention_mask":
            return _value(self.mask)
        if name == "position_ids":  # a text's first token stands at 0, however much padding comes before it
            return _value(np.maximum(self.mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :])
        if name == "encoder_attention_mask":
            return _value(self.source)
        if name == "encoder_hidden_states" and self.encoded is not None:
            return self.encoded
        if name == "use_cache_branch":
            return _value(np.array([bool(self.past)]))
        if name.startswith(_PAST):
            return self.past[name] if name in self.past else _nothing_read(value, len(ids))
        raise Stop(NOT_SUPPORTED, f"the decoder has an input {name!r}")


def _session(path: str, threads: int, *, mapped: bool, graph: bytes | None) -> Any:
    """A session of the file, or of ``graph`` in its place, with the weights beside the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what is wrong is raised
    # threads that wait would take the processor from whoever computes beside them
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", str(int(mapped)))
    if graph is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.path.dirname(path)
        )
    try:
        return onnxruntime.InferenceSession(graph or path, options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except Exception as error:  # all of onnxruntime's classes come from its C++ part
        raise Stop(REFUSED, str(error)) from error


def _mask(ids: Any) -> Any:
    return (ids != PADDING).astype("int64")


def _value(array: Any) -> Any:
    import numpy as np
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _nothing_read(declared: Any, batch: int) -> Any:
    """An empty cache of the input's own heads and width."""
    import numpy as np
    from onnxruntime import OrtValue

    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    if declared.type not in types or len(declared.shape) != 4:
        raise Stop(
            NOT_SUPPORTED, f"the input {declared.name!r} is a {declared.type} of shape {declared.shape}"
        )
    _, heads, _, width = declared.shape
    if not isinstance(heads, int) or not isinstance(width, int):
        raise Stop(
            NOT_SUPPORTED,
            (f"the input {declared.name!r} does not declare its heads and width: {declared.shape}"),
        )
    return OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, width), types[declared.type]))


def _answer(model: Model) -> None:
    """One request, from its first byte to the last of its answer."""
    import numpy as np

    wanted, batch, length, rows, seconds = REQUEST.unpack(child.take(REQUEST.size))
    if wanted == INPUTS:
        _answer_inputs(model)
        return
    ids = np.frombuffer(child.take(8 * batch * length), "<i8").reshape(batch, length)
    child.limit_time(seconds)
    logits, parts = None, []
    try:
        if wanted == EMBED:
            parts = model.embed(ids, rows)
        elif wanted == BEGIN:
            model.begin(ids)
        else:
            logits = model.read(ids, rows)
    except (Stop, MemoryError):
        raise
    except Exception as error:
        raise Stop(NOT_COMPUTED, str(error)) from error
    child.limit_time(0)
    for part in parts:
        child.write(ANSWER.pack(*part.shape))
        child.write(np.ascontiguousarray(part, "<f4"))
    if parts:
        return
    child.write(ANSWER.pack(*(0, 0) if logits is None else (batch * rows, logits.shape[2])))
    if logits is not None and logits.size:
        child.write(logits)


def _answer_inputs(model: Model) -> None:
    import numpy as np

    child.write(ANSWER.pack(len(model.inputs), 0))
    for name, (level, parts) in model.inputs.items():
        values = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]).astype("<f4")
        text = name.encode()
        child.write(INPUT.pack(len(text), level, *values.shape) + text)
        if values.size:  # an expert may not have been chosen at all
            child.write(values)


def main(arguments: Sequence[str]) -> int:
    """Load, say so, and serve."""
    import numpy as np  # both come before the limits: how long a machine takes to start is its own affair
    import onnxruntime

    del np, onnxruntime
    threads, mapped, tapped, seconds, memory, decoder, cached, *encoder = arguments
    child.limit_memory(int(memory))
    child.limit_time(float(seconds))
    model = Model(
        int(threads),
        decoder,
        cached,
        encoder[0] if encoder else None,
        mapped=mapped == "1",
        tapped=tapped == "1",
    )
    child.limit_time(0)
    child.write(ANSWER.pack(0, 0))
    while True:
        _answer(model)
