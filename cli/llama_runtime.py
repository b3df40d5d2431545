"""Running a GGUF through llama.cpp's C interface (llama.h).

The high-level class of llama-cpp-python is not used: it adds a BOS of its own, reads the whole context's
logits back and cannot run encoder-decoder models.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ..core.errors import EnvironmentProblem, GgufError, UnsupportedModel
from ..core.progress import Progress, silent
from .generation import Sampling

_BATCH = 512
_LOG_ERROR = 4  # ggml.h, enum ggml_log_level
KV_TYPES = ("f16", "f32", "q8_0")
_log_callback: Any = None  # llama.cpp keeps a pointer to it for the rest of the process


class LlamaRuntime:
    """A model loaded by llama.cpp; a context manager, see generation.Runtime for the methods.

    ``context`` is the size to use, None for what a generation needs. ``kv_type`` f32 also switches flash
    attention off: slower, and as close to the checkpoint's arithmetic as llama.cpp comes. Raises GgufError
    where llama.cpp refuses the file, with the reason it gives.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        context: int | None = None,
        kv_type: str = "f16",
        verbose: bool = False,
        progress: Progress = silent,
    ) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._threads, self._context_size, self._kv_type = threads, context, kv_type
        self._progress = progress
        self._complaints = _capture_log(llama_cpp, verbose)
        self._context: Any = None
        llama_cpp.llama_backend_init()
        self._model = self._load(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        if llama_cpp.llama_model_has_encoder(self._model) or not llama_cpp.llama_model_has_decoder(
            self._model
        ):
            self.close()
            raise UnsupportedModel(
                f"{path} is no decoder-only model", hint="kconv runs decoder-only models so far"
            )

    def __enter__(self) -> LlamaRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what llama.cpp holds."""
        if self._context is not None:
            self._api.llama_free(self._context)
            self._context = None
        if self._model is not None:
            self._api.llama_model_free(self._model)
            self._model = None

    @property
    def context_length(self) -> int:
        """Tokens the model was trained to see at once."""
        return int(self._api.llama_model_n_ctx_train(self._model))

    def tokenize(self, text: str) -> list[int]:
        """Ids of ``text``; BOS in front if the file asks for it and the text does not begin with one."""
        data = text.encode("utf-8")
        size = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * size)()
            count = self._api.llama_tokenize(self._vocab, data, len(data), ids, size, False, True)
            if count >= 0:
                break
            size = -count
        found = list(ids[:count])
        if self._api.llama_vocab_get_add_bos(self._vocab):
            bos = int(self._api.llama_vocab_bos(self._vocab))
            # a chat template often writes the BOS itself; a second one spoils the answer
            if bos >= 0 and found[:1] != [bos]:
                found.insert(0, bos)
        return found

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; nothing for control tokens."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._api.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def is_end(self, token: int) -> bool:
        """Whether the token ends a turn or the text."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def generate(self, prompt: Sequence[int], sampling: Sampling, count: int) -> Iterator[int]:
        """Up to ``count`` tokens; one that ends the turn is the last. Each call begins from nothing.

        Raises EnvironmentProblem where the context does not fit in memory.
        """
        if self._context is not None:
            self._api.llama_free(self._context)
        self._context = self._new_context(self._context_size or len(prompt) + count)
        self._read_prompt(prompt)
        sampler = self._sampler(sampling)
        try:
            for token in prompt[-sampling.repeat_last_n :] if sampling.repeat_last_n else ():
                self._api.llama_sampler_accept(sampler, token)
            for position in range(count):
                token = int(self._api.llama_sampler_sample(sampler, self._context, -1))
                yield token
                if self.is_end(token) or position + 1 == count:
                    return
                self._decode([token])
        finally:
            self._api.llama_sampler_free(sampler)

    def _load(self, path: Path) -> Any:
        params = self._api.llama_model_default_params()
        with _deferred_interrupts() as interrupted:

            def on_progress(fraction: float, data: Any) -> bool:
                self._progress("loading", round(fraction * 1000), 1000)
                return not interrupted()

            params.progress_callback = self._api.llama_progress_callback(on_progress)
            model = self._api.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), params)
        if not model:
            raise GgufError(
                f"llama.cpp refuses {path}{self._complaint()}",
                hint="convert the checkpoint again, or use a newer llama-cpp-python",
            )
        return model

    def _complaint(self) -> str:
        text = "; ".join(line for line in self._complaints)
        return f": {text}" if text else ""

    def _new_context(self, size: int) -> Any:
        api = self._api
        params = api.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        types = {"f16": api.GGML_TYPE_F16, "f32": api.GGML_TYPE_F32, "q8_0": api.GGML_TYPE_Q8_0}
        params.type_k = params.type_v = types[self._kv_type]
        if self._kv_type == "f32":
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._complaints.clear()
        context = api.llama_init_from_model(self._model, params)
        if not context:
            raise EnvironmentProblem(
                f"llama.cpp cannot set up a context of {size} tokens{self._complaint()}",
                hint="pass a smaller --ctx",
            )
        return context

    def _read_prompt(self, prompt: Sequence[int]) -> None:
        with _deferred_interrupts() as interrupted:
            abort = self._api.ggml_abort_callback(lambda data: interrupted())
            self._api.llama_set_abort_callback(self._context, abort, None)
            for start in range(0, len(prompt), _BATCH):
                self._progress("reading the prompt", start, len(prompt))
                if interrupted():
                    break
                self._decode(prompt[start : start + _BATCH], aborted_is_fine=True)
            # one token later on takes no time worth interrupting, but thousands of calls back do
            self._api.llama_set_abort_callback(self._context, self._api.ggml_abort_callback(), None)
        self._progress("reading the prompt", len(prompt), len(prompt))

    def _decode(self, tokens: Sequence[int], *, aborted_is_fine: bool = False) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(tokens)))
        if status and not (status == 2 and aborted_is_fine):
            raise EnvironmentProblem(
                f"llama.cpp cannot go on (llama_decode gave {status}){self._complaint()}"
            )

    def _sampler(self, sampling: Sampling) -> Any:
        """The chain of llama.cpp's own programs (common/sampling.cpp), in the same order."""
        api = self._api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        steps = []
        if sampling.repeat_penalty != 1 and sampling.repeat_last_n:
            size = api.llama_vocab_n_tokens(self._vocab)
            penalty = (sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0)
            steps.append(api.llama_sampler_init_penalties(size, *penalty))
        if sampling.temperature <= 0:
            steps.append(api.llama_sampler_init_greedy())
        else:
            steps += [
                api.llama_sampler_init_top_k(sampling.top_k),
                api.llama_sampler_init_top_p(sampling.top_p, 1),
                api.llama_sampler_init_min_p(sampling.min_p, 1),
                api.llama_sampler_init_temp(sampling.temperature),
                api.llama_sampler_init_dist(sampling.seed),
            ]
        for step in steps:
            api.llama_sampler_chain_add(chain, step)
        return chain


def _capture_log(api: Any, verbose: bool) -> deque[str]:
    """Take llama.cpp's log: shown if ``verbose``, else only the last errors are kept, for messages."""
    global _log_callback
    complaints: deque[str] = deque(maxlen=3)

    def on_log(level: int, text: bytes, data: Any) -> None:
        line = text.decode("utf-8", "replace")
        if verbose:
            sys.stderr.write(line)
        elif level == _LOG_ERROR and line.strip():
            complaints.append(line.strip())

    _log_callback = api.llama_log_callback(on_log)
    api.llama_log_set(_log_callback, None)
    return complaints


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Let long calls into C be stopped: signals are noted, the call asks and returns, then we raise.

    An exception from a signal handler would be lost if it struck within a callback from C.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
        before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, note)
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if seen:
            raise KeyboardInterrupt
