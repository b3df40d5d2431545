"""A real, trained model: stories260K, whose greedy text and loss others have published or measured."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kconv.converters import to_gguf

CONTEXT = 512
_CALLBACKS: list[Any] = []  # llama.cpp keeps pointers to them for the rest of the process


@pytest.fixture(scope="module")
def stories(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K as an f32 GGUF made by kconv."""
    target = tmp_path_factory.mktemp("stories") / "stories.gguf"
    (made,) = to_gguf(real / "hf_stories260K", target, types=["f32"], verify=False).outputs
    return made.path


class Runtime:
    """llama.cpp on that file in plain fp32: caches of f32, no flash attention, one thread."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.library: Any = llama_cpp
        _CALLBACKS.append(llama_cpp.llama_log_callback(lambda *_: None))
        llama_cpp.llama_log_set(_CALLBACKS[-1], ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = CONTEXT
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context

    def close(self) -> None:
        """Free the context and the model."""
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)

    def tokenize(self, text: str) -> list[int]:
        """Ids with what the file says belongs in front."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self.library.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, False)
        assert count >= 0
        return list(ids[:count])

    def text(self, ids: list[int]) -> str:
        """The text of the ids, control tokens left out."""
        codes = (ctypes.c_int32 * len(ids))(*ids)
        buffer = ctypes.create_string_buffer(len(ids) * 32)
        count = self.library.llama_detokenize(self.vocab, codes, len(ids), buffer, len(buffer), True, False)
        assert count >= 0
        return buffer.raw[:count].decode()

    def forward(self, ids: list[int], start: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Logits ``(tokens, vocabulary)`` of the ids that stand at place ``start`` and after."""
        batch = self.library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = start + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = True
        try:
            assert self.library.llama_decode(self.context, batch) == 0
            rows = [
                np.ctypeslib.as_array(self.library.llama_get_logits_ith(self.context, place), (self.size,))
                for place in range(len(ids))
            ]
            return np.stack(rows).astype(np.float64)
        finally:
            self.library.llama_batch_free(batch)

    def forget(self) -> None:
        """Empty the cache."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)


@pytest.fixture
def runtime(stories: Path) -> Any:
    """The file, loaded."""
    runtime = Runtime(stories)
    yield runtime
    runtime.close()


def test_greedy_text_is_the_published_one(runtime: Runtime, real: Path) -> None:
    expected = json.loads((real / "golden" / "stories260K_greedy_ids.json").read_text("utf-8"))
    ids = runtime.tokenize("")
    assert ids == expected["ids"][:1]
    logits = runtime.forward(ids)
    while len(ids) < len(expected["ids"]):
        ids.append(int(logits[-1].argmax()))
        logits = runtime.forward(ids[-1:], len(ids) - 1)
    assert len(ids) >= 256
    assert ids == expected["ids"]
    published = (real / "golden" / "stories260K_greedy.txt").read_text("utf-8")
    assert runtime.text(ids).strip() == expected["published_text"].strip() == published.strip()


def test_loss_is_the_measured_one(runtime: Runtime, real: Path) -> None:
    stories = (real / "text" / "tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
    losses = []
    for story in filter(None, map(str.strip, stories)):
        ids = runtime.tokenize(story)[:CONTEXT]
        runtime.forget()
        logits = runtime.forward(ids)
        logits -= logits.max(1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += [-chances[place, token] for place, token in enumerate(ids[1:])]
    assert np.mean(losses) == pytest.approx(1.266441, abs=2e-6)  # real/README.md; f16 would give 1.266486
