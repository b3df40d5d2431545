"""What the logits part measures: the figures, where they come from, and the tokens that are farthest off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NotFinite:
    """Positions left out of the figures since a logit there is NaN or infinite.

    ``window`` and ``position`` are the first one's; ``checkpoint`` and ``file`` say whose logits these are,
    anywhere in the text.
    """

    positions: int
    window: int
    position: int
    checkpoint: bool
    file: bool


@dataclass(frozen=True)
class Figures:
    """How far the file's predictions are from the checkpoint's, over ``positions`` positions.

    Divergences (Kullback-Leibler, of the file from the checkpoint) are in nats, Δp is the file's probability
    of the right token minus the checkpoint's (0 to 1), as in llama.cpp's tools/perplexity, its percentiles
    pairs of per cent (0 to 100, ascending) and value. ``..._error`` are standard errors. ``nmse`` is the
    squared logit difference over the variance of the checkpoint's logits, ``nmse_same_gelu`` the same where
    fp32 arithmetic takes llama.cpp's table for GELU, too (None: not measured). ``other_top1`` positions have
    another likeliest token; ``other_top1_lead`` is the most by which the checkpoint's own was ahead of the
    file's there, in logits of the checkpoint: next to nothing in a tie.
    """

    positions: int
    windows: int
    kl_mean: float
    kl_mean_error: float
    kl_median: float
    kl_99: float
    kl_999: float
    kl_max: float
    same_top1: float
    same_top1_error: float
    top5_overlap: float
    dp_mean: float
    dp_rms: float
    dp_percentiles: tuple[tuple[float, float], ...]
    nll_reference: float
    nll_file: float
    perplexity_reference: float
    perplexity_file: float
    log_ratio: float
    log_ratio_error: float
    logit_max: float
    logit_rms: float
    nmse: float
    not_finite: NotFinite | None = None
    other_top1: int = 0
    other_top1_lead: float = 0.0
    nmse_same_gelu: float | None = None


@dataclass(frozen=True)
class Positions:
    """The same, position by position, all lists equally long: for pictures.

    ``window`` and ``position`` say where, ``kl`` in nats, ``dp`` as above.
    """

    window: tuple[int, ...] = ()
    position: tuple[int, ...] = ()
    kl: tuple[float, ...] = ()
    dp: tuple[float, ...] = ()


@dataclass(frozen=True)
class Guess:
    """A token a model predicts, its text and its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class WorstToken:
    """A position where the two models disagree most, in its context.

    ``before`` is the text read so far (its end), ``right`` the token that follows in the text with the
    checkpoint's probability, ``right_file`` the file's probability of it; ``reference`` and ``file`` are the
    likeliest tokens of each, likeliest first. ``source`` is the beginning of what an encoder was given.
    """

    window: int
    position: int
    kl: float
    before: str
    right: Guess
    right_file: float
    reference: tuple[Guess, ...]
    file: tuple[Guess, ...]
    source: str = ""


@dataclass(frozen=True)
class MatrixInputError:
    """NMSE of what llama.cpp multiplied ``matrix`` by against the same computed again, and its limit."""

    matrix: str
    nmse: float
    limit: float


@dataclass(frozen=True)
class Shares:
    """What makes up the divergence: mean KL in nats at the first ``positions`` of the first text.

    ``weights``: with the file's weights and fp32 arithmetic; ``inputs``: with the inputs of matrices rounded
    as the runtime rounds them, too; ``runtime``: in the runtime itself.
    """

    positions: int
    weights: float
    inputs: float
    runtime: float
