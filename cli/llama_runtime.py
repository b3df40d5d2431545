"""Running a GGUF through llama.cpp's C interface (llama.h).

The high-level class of llama-cpp-python is not used: it adds a BOS of its own, reads the whole context's
logits back and cannot run encoder-decoder models.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import EnvironmentProblem, GgufError, UnsupportedModel
from ..core.progress import Progress, silent
from .generation import Sampling
from .interrupts import deferred_interrupts
from .llama_log import capture_log
from .llama_sampling import sampler_chain

_BATCH = 512
_ABORTED = 2  # what llama_encode and llama_decode give when the abort callback said so
_NO_TOKEN = -1  # llama.h, LLAMA_TOKEN_NULL
KV_TYPES = ("f16", "f32", "q8_0")


class LlamaRuntime:
    """A model loaded by llama.cpp; a context manager, see generation.Runtime for the methods.

    ``encoder_decoder`` says which of the two kinds it is: a decoder that continues the prompt, or an encoder
    that reads the prompt and a decoder that answers. Its encoder reads token ids, or with ``front`` what that
    makes of them: float32 ``(positions, width)``, at most a position for each token.

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
        front: Callable[[Sequence[int]], Any] | None = None,
        progress: Progress = silent,
    ) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._threads, self._context_size, self._kv_type = threads, context, kv_type
        self._progress, self._front = progress, front
        self._complaints = capture_log(llama_cpp, verbose)
        self._context: Any = None
        llama_cpp.llama_backend_init()
        self._model = self._load(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.encoder_decoder = bool(llama_cpp.llama_model_has_encoder(self._model))
        try:
            self._check_decoder(path)
        except BaseException:
            self.close()
            raise

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

    def tokenize(self, *parts: str | int) -> list[int]:
        """Ids of the texts in ``parts``, and between them the numbers, which are ids already.

        BOS in front if the file asks for it and the text does not begin with one; likewise, for an encoder
        only, EOS at the end: a decoder would take the text for finished.
        """
        found = [token for part in parts for token in self._ids(part)]
        if self._api.llama_vocab_get_add_bos(self._vocab):
            bos = int(self._api.llama_vocab_bos(self._vocab))
            # a chat template often writes the BOS itself; a second one spoils the answer
            if bos >= 0 and found[:1] != [bos]:
                found.insert(0, bos)
        if self.encoder_decoder and self._api.llama_vocab_get_add_eos(self._vocab):
            eos = int(self._api.llama_vocab_eos(self._vocab))
            if eos >= 0 and found[-1:] != [eos]:  # as ByT5Tokenizer, which adds no second one
                found.append(eos)
        return found

    def _ids(self, part: str | int) -> list[int]:
        if isinstance(part, int):
            return [part]
        data = part.encode("utf-8")
        size = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * size)()
            count = self._api.llama_tokenize(self._vocab, data, len(data), ids, size, False, True)
            if count >= 0:
                return list(ids[:count])
            size = -count

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
            self._context = None
        if self.encoder_decoder:
            # an encoder sees everything at once, and its positions take none of the decoder's
            source = self._source(prompt)
            self._context = self._new_context(self._context_size or max(len(source), count), len(source))
            self._encode(source)
            begun: Sequence[int] = [self._decoder_start()]
            self._decode(begun)
        else:
            self._context = self._new_context(self._context_size or len(prompt) + count, _BATCH)
            self._read_prompt(prompt)
            begun = prompt
        size = self._api.llama_vocab_n_tokens(self._vocab)
        sampler = sampler_chain(self._api, size, sampling)
        try:
            for token in begun[-sampling.repeat_last_n :] if sampling.repeat_last_n else ():
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
        with deferred_interrupts() as interrupted:

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

    def _check_decoder(self, path: Path) -> None:
        """Raises UnsupportedModel for a lone encoder, GgufError where its decoder cannot begin."""
        if not self._api.llama_model_has_decoder(self._model):
            raise UnsupportedModel(
                f"{path} holds an encoder only, which generates nothing",
                hint="give a decoder-only model or an encoder-decoder",
            )
        start = self._decoder_start()
        if self.encoder_decoder and not 0 <= start < self._api.llama_vocab_n_tokens(self._vocab):
            raise GgufError(
                f"{path}: the decoder's start token (decoder_start_token_id) is "
                + ("missing" if start == _NO_TOKEN else f"{start}, which is not in the vocabulary"),
                hint="convert the checkpoint again, with a decoder_start_token_id in its config.json",
            )

    def _decoder_start(self) -> int:
        """The token an encoder-decoder's output begins with.

        llama.cpp's programs take the BOS where the file names none. Such a vocabulary rarely has one, and
        llama.cpp then guesses, which spoils the answer.
        """
        return int(self._api.llama_model_decoder_start_token(self._model))

    def _complaint(self) -> str:
        text = "; ".join(line for line in self._complaints)
        return f": {text}" if text else ""

    def _new_context(self, size: int, batch: int) -> Any:
        api = self._api
        params = api.llama_context_default_params()
        params.n_ctx = size
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        types = {"f16": api.GGML_TYPE_F16, "f32": api.GGML_TYPE_F32, "q8_0": api.GGML_TYPE_Q8_0}
        params.type_k = params.type_v = types[self._kv_type]
        if self._kv_type == "f32":
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._complaints.clear()
        # it logs, and an interrupt within our callback for that would be lost
        with deferred_interrupts():
            context = api.llama_init_from_model(self._model, params)
        if not context:
            raise EnvironmentProblem(
                f"llama.cpp cannot set up a context of {size} tokens{self._complaint()}",
                hint="pass a smaller --ctx",
            )
        return context

    def _read_prompt(self, prompt: Sequence[int]) -> None:
        with self._interruptible() as interrupted:
            for start in range(0, len(prompt), _BATCH):
                self._progress("reading the prompt", start, len(prompt))
                if interrupted():
                    break
                self._decode(prompt[start : start + _BATCH], aborted_is_fine=True)
        self._progress("reading the prompt", len(prompt), len(prompt))

    def _source(self, prompt: Sequence[int]) -> Any:
        """What the encoder reads: ids, or an embedding for each of its positions."""
        if self._front is None:
            return prompt
        values = self._front(prompt).astype("float32", order="C", copy=False)
        width = self._api.llama_model_n_embd(self._model)
        if values.ndim != 2 or values.shape[1] != width or not 0 < len(values) <= len(prompt):
            raise GgufError(
                f"the front end makes {values.shape} of {len(prompt)} tokens, the model is {width} wide",
                hint="give the front end of this model",
            )
        if not abs(values).max() < math.inf:
            raise GgufError(
                "the front end makes numbers of this text that are NaN or infinite",
                hint="prove the file against its checkpoint: kconv verify",
            )
        return values

    def _encode(self, source: Any) -> None:
        """Have the encoder read; what it makes of it stays in the context for the decoder."""
        self._progress("reading the prompt", 0, len(source))
        if self._front is None:
            ids = (ctypes.c_int32 * len(source))(*source)
            batch = self._api.llama_batch_get_one(ids, len(source))
        else:
            data = source.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            batch = self._api.llama_batch(n_tokens=len(source), embd=data)
        with self._interruptible():
            status = self._api.llama_encode(self._context, batch)
        if status not in (0, _ABORTED):
            raise self._stuck("llama_encode", status)
        self._progress("reading the prompt", len(source), len(source))

    def _decode(self, tokens: Sequence[int], *, aborted_is_fine: bool = False) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(tokens)))
        if status and not (status == _ABORTED and aborted_is_fine):
            raise self._stuck("llama_decode", status)

    def _stuck(self, function: str, status: int) -> EnvironmentProblem:
        return EnvironmentProblem(f"llama.cpp cannot go on ({function} gave {status}){self._complaint()}")

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[Callable[[], bool]]:
        """Let a long calculation be stopped; yields what tells whether it shall be."""
        with deferred_interrupts() as interrupted:
            abort = self._api.ggml_abort_callback(lambda data: interrupted())
            self._api.llama_set_abort_callback(self._context, abort, None)
            yield interrupted
            # one token later on takes no time worth interrupting, but thousands of calls back do
            self._api.llama_set_abort_callback(self._context, self._api.ggml_abort_callback(), None)
