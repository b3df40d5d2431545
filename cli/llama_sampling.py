"""Samplers of llama.cpp, chained as its own programs chain them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from .generation import Sampling


def sampler_chain(api: Any, size: int, sampling: Sampling) -> Any:
    """The chain of llama.cpp's own programs (common/sampling.cpp), in the same order.

    ``api`` is the module llama_cpp, ``size`` the number of tokens; whoever calls frees the chain.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    steps = []
    if sampling.repeat_penalty != 1 and sampling.repeat_last_n:
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


class Sampler:
    """The same chain over logits of another runtime; a context manager.

    The same logits and the same seed give the token llama.cpp would take.
    """

    def __init__(self, size: int, sampling: Sampling) -> None:
        import llama_cpp

        self._api, self._size, self._sampling = llama_cpp, size, sampling
        self._tokens = (llama_cpp.llama_token_data * size)()

    def __enter__(self) -> Sampler:
        self._chain = sampler_chain(self._api, self._size, self._sampling)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_sampler_free(self._chain)

    def accept(self, tokens: Iterable[int]) -> None:
        """Tell of tokens that stand before, as far as a penalty looks back."""
        for token in tokens:
            self._api.llama_sampler_accept(self._chain, token)

    def choose(self, logits: Any) -> int:
        """The next token; ``logits`` is a float32 vector of the vocabulary's size."""
        import numpy as np

        table = np.frombuffer(self._tokens, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        table["id"], table["logit"], table["p"] = np.arange(self._size), logits, 0
        data = ctypes.cast(self._tokens, ctypes.POINTER(self._api.llama_token_data))
        candidates = self._api.llama_token_data_array(data, self._size, -1, False)
        self._api.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        self.accept([token])
        return token
