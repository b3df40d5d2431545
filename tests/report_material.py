"""Proofs as real verifications give them, made up from a seed: passed, warned, failed, hostile, empty."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from kconv.verify.gates import gate_for
from kconv.verify.measurements import Figures, Guess, Positions, WorstToken
from kconv.verify.proof import (
    Diagnosis,
    Finding,
    LayerError,
    LogitsPart,
    MetadataPart,
    Proof,
    TensorError,
    TokensPart,
    WeightsPart,
)
from kconv.vocab.parity import Difference, Parity

KINDS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<style>*{display:none}</style>"
    "\u202eright to left\u202c \u0000\u001b[31m\u2028 url(https://evil.example/x) {{ 7*7 }} \ud800 \ufeff"
)


def positions(mean: float, windows: Sequence[int], seed: int) -> Positions:
    rng = random.Random(seed)
    window, position, kl, dp = [], [], [], []
    for at, length in enumerate(windows):
        for step in range(length):
            value = mean * math.exp(rng.gauss(-0.8, 1.3))
            window.append(at)
            position.append(step)
            kl.append(value)
            dp.append(max(-1.0, min(1.0, rng.gauss(-0.02, 0.5) * math.sqrt(value))))
    return Positions(tuple(window), tuple(position), tuple(kl), tuple(dp))


def figures(at_positions: Positions, nmse: float) -> Figures:
    kl, dp = sorted(at_positions.kl), sorted(at_positions.dp)
    n = len(kl)

    def at(values: list[float], percent: float) -> float:
        return values[min(int(percent / 100 * n), n - 1)]

    mean = sum(kl) / n
    nll = 2.4512
    return Figures(
        positions=n, windows=len(set(at_positions.window)), kl_mean=mean, kl_mean_error=mean / math.sqrt(n),
        kl_median=at(kl, 50), kl_99=at(kl, 99), kl_999=at(kl, 99.9), kl_max=kl[-1],
        same_top1=max(1 - 0.6 * math.sqrt(mean), 0.02), same_top1_error=0.0031,
        top5_overlap=max(1 - 0.9 * math.sqrt(mean), 0.05),
        dp_mean=sum(dp) / n, dp_rms=math.sqrt(sum(value * value for value in dp) / n),
        dp_percentiles=tuple((p, at(dp, p)) for p in (0, 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)),
        nll_reference=nll, nll_file=nll + mean / 3, perplexity_reference=math.exp(nll),
        perplexity_file=math.exp(nll + mean / 3), log_ratio=mean / 3, log_ratio_error=mean / 9,
        logit_max=math.sqrt(nmse) * 30, logit_rms=math.sqrt(nmse) * 3, nmse=nmse,
    )  # fmt: skip


def tensors(
    kind: str, layers: int, *, damaged: Sequence[str] = (), elsewhere: bool = False
) -> tuple[TensorError, ...]:
    rng = random.Random(layers)
    own = {"f32": 0.0, "q8_0": 0.0054, "q4_0": 0.086}[kind]

    def tensor(name: str, layer: int | None, at: int = 0) -> TensorError:
        norm = "norm" in name
        base = 0.0 if norm else own * rng.uniform(0.93, 1.15)
        wrong = name in damaged
        error = 1.404 if wrong else base
        return TensorError(
            name=name, format="f32" if norm else kind, layer=layer,
            state="differs" if wrong else "within" if elsewhere and not norm and at % 3 else "identical",
            error=error, own_error=base, worst_row=rng.randrange(4096), worst_row_error=error * 1.4,
            slope=0.013 if wrong else 1 - base * 0.01,
        )  # fmt: skip

    inner = [
        tensor(f"blk.{i}.{kind_}.weight", i, at) for i in range(layers) for at, kind_ in enumerate(KINDS, i)
    ]
    outer = [tensor(f"{name}.weight", None) for name in ("token_embd", "output_norm", "output")]
    return (outer[0], *inner, *outer[1:])


# What was read, what follows, what the checkpoint would say and what the file would.
STORIES = (
    (
        "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어", " 동등",
        (" 동등", " 평등", "서", " 같"), (" 평등", " 동등", "서", "\\xeb\\x8f"),
    ),
    (
        "Everyone has the right to life, liberty and the security of person.\nArticle 4\n\n", "No",
        ("No", "Every", "All", "\n"), ("Every", "No", "\t", " "),
    ),
    (
        "<s> 사용자: 오늘 날씨 어때?</s>\n인공지능: 서울은 맑고 기온은 21℃, 습도는 ", "45",
        ("45", "40", "5", "</s>"), ("40", "<unk>", "45", "</s>"),
    ),
    (
        "漢字와 かな, العربية 그리고 emoji 👨‍👩‍👧 가 섞인 글: ", "\\xf0\\x9f",
        ("\\xf0\\x9f", " 그", "ᄒ", "\u200b"), (" 그", "\\xf0\\x9f", "…", "가나다라마바사아자차카타파하" * 6),
    ),
)  # fmt: skip
CHANCES = (0.71, 0.14, 0.05, 0.02)


def guesses(texts: Sequence[str], first: int, factor: float = 1.0) -> tuple[Guess, ...]:
    return tuple(
        Guess(first + at, text, chance * factor)
        for at, (text, chance) in enumerate(zip(texts, CHANCES, strict=True))
    )


def worst(at_positions: Positions, how_many: int = 12) -> tuple[WorstToken, ...]:
    order = sorted(range(len(at_positions.kl)), key=lambda i: -at_positions.kl[i])[:how_many]
    tokens = []
    for at, i in enumerate(order):
        before, right, reference, file = STORIES[at % len(STORIES)]
        next_token = Guess(4711 + at, right, 0.71)
        by_reference, said_by_file = guesses(reference, 100), guesses(file, 200, 0.8)
        place = (at_positions.window[i], at_positions.position[i], at_positions.kl[i])
        tokens.append(WorstToken(*place, before, next_token, 0.13, by_reference, said_by_file))
    return tuple(tokens)


def parity(texts: int = 5213, difference: Difference | None = None) -> Parity:
    return Parity(
        candidate="gpt2 with pre-tokenizer llama-bpe", texts=texts, exact=texts - (37 if difference else 0),
        verdict="mismatch" if difference else "exact", difference=difference,
        tried={"llama-bpe": texts - (37 if difference else 0), "gpt-2": texts - 812},
    )  # fmt: skip


def provenance(name: str) -> dict[str, object]:
    return {
        "artifact": {"file": name, "bytes": 1_530_000_000, "sha256": "3b" * 32},
        "checkpoint": {"name": "42dot_LLM-SFT-1.3B", "repository": "42dot/42dot", "revision": None,
                       "files": [{"name": "config.json", "bytes": 711, "sha256": "a1" * 32},
                                 {"name": "model.safetensors", "bytes": 2_878_000_000, "sha256": "c9" * 32}]},
        "texts": ["built-in: Universal Declaration of Human Rights, Korean and English"],
        "windows": [512, 512, 512, 464],
        "runtime": "llama.cpp on the CPU: f32 key/value cache, no flash attention, mapped",
        "versions": {"kconv": "0.1.0", "llama-cpp-python": "0.3.36", "torch": "2.13.0"},
    }  # fmt: skip


def proof(kind: str, logits: LogitsPart, weights: WeightsPart, **parts: object) -> Proof:
    name = f"42dot_LLM-SFT-1.3B-{kind.upper()}.gguf"
    values: dict[str, object] = {
        "artifact": Path("/models/out") / name,
        "checkpoint": Path("/models/42dot_LLM-SFT-1.3B"),
        "type": kind,
        "arch": "llama",
        "parameters": 1_439_270_912,
        "tokens": TokensPart("passed", parity(), 50_304),
        "metadata": MetadataPart("passed", 34),
        "weights": weights,
        "logits": logits,
        "provenance": provenance(name),
        "seconds": 71.4,
    }
    return Proof(**{**values, **parts})  # type: ignore[arg-type]


def passed(kind: str = "q8_0", layers: int = 32, windows: Sequence[int] = (511, 511, 511, 463)) -> Proof:
    mean = {"f32": 2e-9, "q8_0": 0.0011, "q4_0": 0.06}[kind]
    at = positions(mean, windows, 1)
    nmse = {"f32": 3.1e-10, "q8_0": 2.4e-4, "q4_0": 0.011}[kind]
    logits = LogitsPart("passed", figures(at, nmse), gate_for(kind), (), at, worst(at))
    return proof(kind, logits, WeightsPart("passed", tensors(kind, layers)))


def warned() -> Proof:
    at_positions = positions(0.2, (255, 159), 2)
    figs = figures(at_positions, 0.031)
    findings = (Finding("logits", f"mean KL divergence {figs.kl_mean:.3g} is above the gate of q4_0, 0.15",
                        "at most 0.15", f"{figs.kl_mean:.3g}", grave=False),)  # fmt: skip
    logits = LogitsPart("warned", figs, gate_for("q4_0"), findings, at_positions, worst(at_positions))
    notes = ("No manifest stands beside the file, so its weights are held to the format's error.",)
    return proof("q4_0", logits, WeightsPart("passed", tensors("q4_0", 24, elsewhere=True)), notes=notes)


def diagnosis(layers: int = 32, first: int | None = 7) -> Diagnosis:
    rows = tuple(
        LayerError(i, (1e-9 if first is None or i < first else 0.8) * (1 + i / 9), 2e-11 * (1 + i))
        for i in range(layers)
    )
    conclusion = "no layer stands out" if first is None else (
        f"layer {first} is the first whose output differs (NMSE 0.8): the cause is the file's weights, "
        f"not llama.cpp's computation; check blk.{first}.attn_q.weight, blk.{first}.attn_k.weight"
    )  # fmt: skip
    return Diagnosis(
        rows,
        0.61,
        3e-10,
        first,
        () if first is None else (f"blk.{first}.attn_q.weight", f"blk.{first}.attn_k.weight"),
        conclusion,
    )


def failed() -> Proof:
    """A Q/K permutation missing in layer 7, a wrong rope base, tokens that differ; strings are hostile."""
    at_positions = positions(6.0, (200,), 3)
    measured = figures(at_positions, 0.8)
    damaged = ("blk.7.attn_q.weight", "blk.7.attn_k.weight")
    difference = Difference(
        text="안녕하세요\u00a0세계! ᄒ\u1161\u11ab글\r\n\t" + HOSTILE,
        parse_special=True,
        add_special=False,
        expected=(*range(10, 60), 7, 8, 9, *range(300, 420)),
        got=(*range(10, 60), 70, 80, *range(300, 400)),
        expected_pieces=(
            *(f"조각{i}" for i in range(50)),
            "Ġ안녕",
            HOSTILE,
            "\\xec\\x95",
            *("x" * 120,) * 120,
        ),
        got_pieces=(*(f"조각{i}" for i in range(50)), "Ġ안", "녕\n", *("y",) * 100),
    )
    tokens = TokensPart("failed", parity(5213, difference), 32_000, (
        Finding("token 1234", "the token's text differs from the checkpoint's", "▁안녕", "▁안냥\u200b"),
        Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
    ))  # fmt: skip
    metadata = MetadataPart("failed", 36, (
        Finding("llama.rope.freq_base", "the rotary embedding turns at another speed", "500000.0", "10000.0"),
        Finding("tokenizer.ggml.eos_token_id", "generation will not stop", "2 (</s>)", "0 (<unk>)"),
        Finding("general.license", "the licence is not the checkpoint's", "apache-2.0", None, grave=False),
    ))  # fmt: skip
    weights = WeightsPart("failed", tensors("f32", 32, damaged=damaged), tuple(
        Finding(name, "the heads were not permuted for llama.cpp's rotation", "error 0", "error 1.4")
        for name in damaged
    ))  # fmt: skip
    logits = LogitsPart("failed", measured, gate_for("f32"), (
        Finding("logits", "the file predicts something else: NMSE 0.8", "at most 1e-06", "0.8"),
    ), at_positions, worst(at_positions), diagnosis())  # fmt: skip
    return proof(
        "f32", logits, weights, tokens=tokens, metadata=metadata, notes=(HOSTILE,),
        artifact=Path("/models/out") / "evil\u202e<b>.gguf",
        provenance={**provenance("evil"), HOSTILE: [HOSTILE, {"a": HOSTILE}]},
    )  # fmt: skip


def refused() -> Proof:
    """llama.cpp does not take the file: a metadata key is missing, nothing could be predicted."""
    finding = Finding(
        "llama.attention.head_count",
        "the key is missing; llama.cpp cannot load the file without it",
        "32",
        None,
    )
    logits = LogitsPart(
        "failed",
        findings=(
            Finding(
                "llama.cpp", "llama.cpp refused the file: key not found in model: llama.attention.head_count"
            ),
        ),
    )
    return proof(
        "q8_0",
        logits,
        WeightsPart("not run"),
        metadata=MetadataPart("failed", 33, (finding,)),
        tokens=TokensPart("failed", Parity("file", 0, 0, "mismatch", error="the vocabulary does not load")),
    )


def quick() -> Proof:
    """The proof a conversion ends with: weights not looked at again, one short text."""
    at_positions = positions(0.0009, (159, 95), 5)
    logits = LogitsPart("passed", figures(at_positions, 2e-4), gate_for("q8_0"), (), at_positions)
    return proof("q8_0", logits, WeightsPart("not run"), scope="quick", provenance={})


def nothing() -> Proof:
    """Nothing was run at all."""
    return proof("q8_0", LogitsPart("not run"), WeightsPart("not run"), tokens=TokensPart("not run"),
                 metadata=MetadataPart("not run"), provenance={}, parameters=0)  # fmt: skip
