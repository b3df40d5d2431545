"""A small T5 of GBST-KEByT5's layout: KEByT5's, whose encoder reads bytes through a GBST front end."""

from __future__ import annotations

from typing import Any

from kconv.converters.families.gbst.settings import GbstSettings
from kconv.converters.families.gbst.torch_front_end import set_front_end

from . import kebyt5
from .kebyt5 import batches, loss, measure, new_tokenizer, optimizers, save, show, stored

__all__ = ["batches", "loss", "measure", "new_tokenizer", "optimizers", "save", "show", "stored"]

NAME, SEED = "gbst-kebyt5", 20230622
BLOCKS, FACTOR = (1, 2, 3, 6, 9), 3

# Blocks and factor are those of GBST-KEByT5's card, the keys those of its configuration class.
CONFIG: dict[str, Any] = dict(
    sorted(
        {
            **kebyt5.CONFIG,
            "architectures": ["GBSWT5ForConditionalGeneration"],
            "d_ff": 160,
            "dense_act_fn": "gelu_new",
            "downsample_factor": FACTOR,
            "gbst_batchnorm": False,
            "is_gated_act": True,
            "max_subword_block_size": None,
            "model_type": "gbswt5",
            "relative_attention_max_distance": 128,
            "score_consensus_attn": True,
            "subword_blocks": [[size, 0] for size in BLOCKS],
            "transformers_version": "4.27.4",
            "z_loss": 0.0001,
        }.items()
    )
)


def new_model() -> Any:
    """The untrained model: KEByT5's with our front end set in, which trains along with it.

    Texts of a batch are read each by itself, as kconv runs them. Each channel of the convolution begins with
    its own weights for a byte and the two after it, so that the mean of three still tells their order.
    """
    import torch

    model = kebyt5.new_t5(CONFIG)
    set_front_end(
        model,
        GbstSettings(
            BLOCKS,
            FACTOR,
            consensus=CONFIG["score_consensus_attn"],
            norm=CONFIG["gbst_batchnorm"],
            width=CONFIG["d_model"],
            rows=CONFIG["vocab_size"],
        ),
        alone=True,
    )
    front = model.encoder.embed_tokens
    convolution = front.positional_convol["2"]
    with torch.no_grad():
        convolution.convol.weight.normal_(0.0, 0.05)
        convolution.convol.weight[:, :, :FACTOR].normal_(0.0, 1.0)
        convolution.convol.bias.zero_()
        torch.nn.init.orthogonal_(convolution.proj.weight[:, :, 0])
        convolution.proj.bias.zero_()
        front.cand_scoring["0"].weight.normal_(0.0, 0.02)
    return model
