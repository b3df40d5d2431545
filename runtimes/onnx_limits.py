"""What an ONNX folder may take of the machine: processor time and memory, in proportion to its files.

A graph is a program. A Loop of 2^62 rounds or a tensor that grows without end would keep ``kconv run`` and
the proof waiting for ever, so onnxruntime gets a limit that no honest folder reaches; running into it is a
finding about the folder. Wall clock plays no part: a machine may be as slow and as busy as it likes.

Time. A token takes two operations for each weight, and a byte of the files holds two weights at most (4 bits
each): four operations a byte. They are allowed as if a core did 10^8 a second, where one of a Raspberry Pi
does about 10^9. Every token that was read counts again in each request, which leaves room for attention and
for graphs without a cache. What does not grow with the weights gets 20 ms a token, and a request five seconds
(of a small model it takes some milliseconds). The slowest we measured (412 million weights in q8_0)
took 0.9 s for a token, which alone may take 22 s, and after thirty others nine minutes. Loading gets 100 ns
for each byte, 5 ms for each node, and twenty seconds.

Memory. Weights may be held up to twelve times: three graphs, each with the file's bytes, the same in float32
and repacked. For each token the model's context can hold, three times its place in the cache (as the inputs
of the graphs have it) and the scores of 512 tokens in 64 heads; both are at most a part of the files' size,
so that a small file cannot claim much. To that come 4 GiB, and a heap for each thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .onnx_folder import OnnxFolder
from .onnx_model_file import ModelFile

_SLOW = 1e8  # operations a second
_OPERATIONS = 4  # for a byte and a token
_TOKEN, _REQUEST, _LOADING, _NODE = 0.02, 5.0, 20.0, 0.005  # seconds
_SLOW_LOADING = 1e7  # bytes a second
_COPIES = 12
_COMPUTED = 4 << 30
_SCORES = 3 * 512 * 64 * 4  # bytes for a token of the context
_SMALLEST_WIDTH = 32  # a token's place in the cache is smaller than the weights divided by a model's width
_CONTEXTS = (1 << 13, 1 << 17)  # the least and the most tokens
_THREAD = 256 << 20  # what glibc reserves for one


@dataclass(frozen=True)
class Limits:
    """``loading`` in seconds of processor time, ``memory`` in bytes."""

    loading: float
    memory: int
    _token: float

    def request(self, tokens: int) -> float:
        """Seconds of processor time for reading; ``tokens`` are all read so far, source and padding, too."""
        return _REQUEST + tokens * self._token


def limits_of(folder: OnnxFolder, threads: int) -> Limits:
    """What loading and running the folder may take."""
    nodes = sum(count for model in folder.models for count in model.operators.values())
    return Limits(
        _LOADING + nodes * _NODE + folder.bytes / _SLOW_LOADING,
        _COMPUTED + _COPIES * folder.bytes + _of_the_context(folder) + threads * _THREAD,
        _TOKEN + folder.bytes * _OPERATIONS / _SLOW,
    )


def _of_the_context(folder: OnnxFolder) -> int:
    """Bytes for as many tokens as the model was trained to see at once."""
    context = folder.config.get("max_position_embeddings")
    least, most = _CONTEXTS
    tokens = min(max(context if isinstance(context, int) else least, least), most)
    most_a_token = folder.bytes // _SMALLEST_WIDTH
    cache = max(map(_cache_of_a_token, folder.models), default=0)
    return tokens * (min(3 * cache, most_a_token) + min(_SCORES, most_a_token))


def _cache_of_a_token(model: ModelFile) -> int:
    shapes = (value.shape for value in model.inputs if value.name.startswith("past_key_values."))
    return sum(4 * math.prod(size for size in shape if isinstance(size, int)) for shape in shapes)
