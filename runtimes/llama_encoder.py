"""llama.cpp as the measured side of an encoder that writes no text: hidden states and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.children import retry_once
from ..core.windows import Window
from . import llama_child as protocol
from .llama_reader import LlamaReader, request
from .matrix_inputs import MatrixInput
from .reader import Floats, RuntimeFailure


class LlamaEncoder(LlamaReader):
    """A GGUF of an encoder; see ``LlamaReader``. Every method raises RuntimeFailure and ChildDied."""

    def states(self, window: Window) -> Floats:
        """The hidden states of a text, ``(positions, hidden)``."""
        return retry_once(lambda: self._asked(window, protocol.STATES_WANTED)[2])

    def embedding(self, window: Window) -> Floats | None:
        """The embedding ``(hidden,)`` of a text, pooled as the file says; None where it says nothing."""
        way, _, rows = retry_once(lambda: self._asked(window, protocol.POOLED_WANTED))
        return rows[0] if way else None

    def matrix_inputs(self, window: Window) -> tuple[dict[str, MatrixInput], Floats]:
        """What each matrix of the file is multiplied by, by its name, and the hidden states of a text."""
        wanted = protocol.STATES_WANTED | protocol.INPUTS_WANTED
        _, inputs, states = retry_once(lambda: self._asked(window, wanted))
        return inputs, states

    def _asked(self, window: Window, wanted: int) -> tuple[int, dict[str, MatrixInput], Floats]:
        """The way of pooling, inputs, and the rows."""
        text: Sequence[Window] = [replace(window, scored_from=0, source=())]
        with self.reading() as loaded:
            loaded.send(request(wanted, len(window.ids), text))
            inputs = loaded.inputs() if wanted & protocol.INPUTS_WANTED else {}
            kind, index, way, rows = loaded.head()
            expected = 1 if wanted & protocol.POOLED_WANTED and way else len(window.ids)
            if (kind, index, rows) != (protocol.STATES, 0, expected):
                answer = (kind, index, way, rows)
                raise RuntimeFailure(f"the process that runs llama.cpp answered {answer}")
            values = np.empty((rows, loaded.hidden), np.float32)
            loaded.fill(values)
        return way, inputs, values
