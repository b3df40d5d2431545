"""Front end and body together: numpy, then llama.cpp's t5, against transformers' T5 with GBST in torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gbst_material import (
    CONFIG,
    config_settings,
    f32_body,
    random_model,
    random_weights,
    torch_front_end,
)
from t5_material import byte_ids

from kconv.converters.families import FRONT_ENDS
from kconv.converters.families.gbst.front_end import embed
from kconv.converters.families.gbst.settings import EMBEDDING, PREFIX
from kconv.converters.front_end import front_end_of
from kconv.core.gguf_file import read_header

Floats = npt.NDArray[np.float32]

TEXTS = ["한국의 수도는 서울이다.", "a", "", "고양이가 창가에서 햇볕을 쬐고 있었어요. " * 4]
DECODER = [0, 258, 240, 187, 188, 257, 1]


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The f32 body of a random checkpoint, its front end beside it."""
    return f32_body(tmp_path_factory.mktemp("gbst"))


class Body:
    """llama.cpp with a body: embeddings through its encoder, ids through its decoder."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.llama: Any = llama_cpp
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = 512, 512, 512
        settings.n_threads = settings.n_threads_batch = 2
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.width = llama_cpp.llama_model_n_embd(self.model)
        self.rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def close(self) -> None:
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

    def encode(self, values: Floats) -> None:
        self._forget()  # llama_encode refuses positions that do not follow those of the decoder's last text
        batch = self._batch(len(values), self.width)
        ctypes.memmove(batch.embd, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        status = self.llama.llama_encode(self.context, batch)
        self.llama.llama_batch_free(batch)
        assert status == 0

    def decode(self, ids: Sequence[int]) -> Floats:
        self._forget()
        batch = self._batch(len(ids), 0)
        for i, token in enumerate(ids):
            batch.token[i] = token
        assert self.llama.llama_decode(self.context, batch) == 0
        self.llama.llama_batch_free(batch)
        logits = self.llama.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (len(ids), self.rows)).copy()

    def _forget(self) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def _batch(self, count: int, width: int) -> Any:
        batch = self.llama.llama_batch_init(count, width, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, 1, 0, True
        return batch


_CALLBACKS: list[Any] = []  # llama.cpp keeps pointers to them for the rest of the process


@pytest.fixture
def loaded(body: Path) -> Any:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        pass

    _CALLBACKS.append(quiet)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    running = Body(body)
    yield running
    running.close()


def test_front_end_and_body_give_the_logits_of_the_whole_model(body: Path, loaded: Any) -> None:
    front = front_end_of(FRONT_ENDS, body, read_header(body).metadata)
    assert front is not None
    reference = random_model(CONFIG)
    for text in TEXTS:
        ids = byte_ids(text)
        loaded.encode(embed(front.front_end, ids).values)
        ours = loaded.decode(DECODER)
        right = whole(reference, ids, [1] * len(ids))[0].numpy()
        error = ((ours - right) ** 2).mean() / right.var()
        assert error < 1e-4  # measured: 5e-8 to 7e-7
        assert (ours.argmax(axis=1) == right.argmax(axis=1)).all()


def test_greedy_generation_is_the_same(body: Path, loaded: Any) -> None:
    import torch

    front = front_end_of(FRONT_ENDS, body, read_header(body).metadata)
    assert front is not None
    ids = byte_ids(TEXTS[0])
    loaded.encode(embed(front.front_end, ids).values)
    made = [0]
    for _ in range(24):
        made.append(int(loaded.decode(made)[-1].argmax()))
    with torch.no_grad():
        right = random_model(CONFIG).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24, min_new_tokens=24, do_sample=False, num_beams=1, eos_token_id=None,
        )  # fmt: skip
    assert made == right[0].tolist()


def whole(model: Any, ids: list[int], mask: list[int]) -> Any:
    """Logits of the whole model for DECODER."""
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.tensor([mask]),
            decoder_input_ids=torch.tensor([DECODER]),
        ).logits


def test_in_a_padded_batch_the_decoder_sees_the_down_sampled_mask() -> None:
    """Of padding only the leak through the convolution shows, and not even that where texts stand alone."""
    import torch

    model, alone = random_model(CONFIG), random_model(CONFIG, alone=True)
    ids, padding = byte_ids("한국"), [0] * 20
    reach = config_settings().kernel - 1
    mask = [1] * len(ids) + [0] * len(padding)
    unpadded, padded = whole(model, ids, [1] * len(ids)), whole(model, ids + padding, mask)
    beyond = padding[:reach] + [7] * (len(padding) - reach)
    torch.testing.assert_close(whole(model, ids + beyond, mask), padded)
    assert not torch.allclose(unpadded, padded, atol=1e-3)
    torch.testing.assert_close(whole(alone, ids + padding, mask), unpadded, atol=1e-4, rtol=1e-4)


def test_the_torch_front_end_can_be_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter lies in a module of its own, as the fp32 reference reads them."""
    import torch

    monkeypatch.setattr("kconv.reference.products._onednn", lambda: None)  # bits are compared

    from kconv.converters.families.gbst.torch_front_end import GbstEmbedding
    from kconv.core.tensor import DType, Tensor
    from kconv.reference.streamed import StreamedModules, stream_embedding
    from kconv.reference.weight_reader import WeightReader

    settings = replace(config_settings(), norm=True)
    weights = random_weights(settings)
    ids, mask = torch.tensor([byte_ids("한국")]), torch.ones(1, 7)
    with torch.device("meta"):
        empty = GbstEmbedding(settings).eval()
    stored = {
        name: Tensor(name, w.shape, DType.F32, lambda start, stop, w=w: w[start:stop])  # type: ignore[misc]
        for name, w in weights.items()
    }
    reader = WeightReader(1)
    streamed = StreamedModules(reader, lambda: None)
    for name, module in empty.named_modules():
        own = {
            key: stored[f"{PREFIX}{name}.{key}"]
            for key, value in module._parameters.items()
            if value is not None
        }
        if own and module is not empty.embeds:
            streamed.add(module, own)
    stream_embedding(empty.embeds, stored[EMBEDDING], reader)
    streamed.start()
    with torch.inference_mode():
        expected, _ = torch_front_end(settings, weights)(ids, mask)
        values, kept = empty(ids, mask)
    assert torch.equal(values, expected)
    assert kept.all()
