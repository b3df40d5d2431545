"""Samplers of llama.cpp, chained as its own programs chain them."""

from __future__ import annotations

from typing import Any

from .generation import Sampling


def sampler_chain(api: Any, vocabulary: Any, sampling: Sampling) -> Any:
    """The chain of llama.cpp's own programs (common/sampling.cpp), in the same order.

    ``api`` is the module llama_cpp; whoever calls frees the chain.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    steps = []
    if sampling.repeat_penalty != 1 and sampling.repeat_last_n:
        size = api.llama_vocab_n_tokens(vocabulary)
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
