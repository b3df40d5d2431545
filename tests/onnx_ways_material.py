"""Every way applications read with ONNX graphs, and what transformers makes of the same texts in fp32.

A way is a function of a model's sessions and its ``Truth``; it returns the largest difference of logits (of
hidden states, for encoders). Padding counts for nothing: decoders are held against each text read alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from gbst_material import random_gbswt5, random_model
from onnx_causal_material import Cache, Floats, Ids, in_steps, run
from onnx_t5_material import right_logits
from t5_checkpoints import write_t5
from t5_material import one_thread

from kconv.converters.families import family_for
from kconv.converters.onnx.flavours import FLAVOURS, Flavour
from kconv.converters.onnx.graphs import graphs_of
from kconv.converters.onnx.writer import write_onnx
from kconv.converters.samples import SAMPLES, write_sample
from kconv.converters.samples.t5_encoder import write_t5_encoder
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.reference.model import Reference

MODELS: Mapping[str, Callable[[Path], Path]] = {
    **{name: partial(write_sample, name) for name in SAMPLES},
    "gbst-kebyt5": random_gbswt5,  # whose reference takes masks
    "t5": partial(write_t5, head=False, feed_forward_proj="relu", tie_word_embeddings=True),
    "mt5": partial(write_t5, architectures=["MT5ForConditionalGeneration"], model_type="mt5"),
    "mt5-encoder": partial(write_t5_encoder, kind="MT5"),
    "umt5-encoder": partial(write_t5_encoder, kind="UMT5", own_biases=True),
}
"""A small checkpoint of every family, and of some of its shapes."""


@dataclass(frozen=True)
class Sizes:
    """How much is read: ``texts`` of ``length`` tokens, answers of ``answer``, ``steps`` behind padding."""

    texts: int = 4
    length: int = 72  # longer than the windows of the samples
    answer: int = 20
    steps: int = 3
    beams: int = 3
    seed: int = 0


def checkpoint_of(name: str, folder: Path) -> Path:
    """The small checkpoint of that name, in ``folder``."""
    return MODELS[name](folder / name)


def graphs_in(checkpoint: Path, folder: Path, flavour: Flavour, *, merged: bool = False) -> dict[str, Any]:
    """All graphs of a checkpoint in F32, written into a new folder and opened, by their files' names."""
    opened = open_checkpoint(checkpoint)
    family = family_for(opened.config)
    folder.mkdir(parents=True)
    write_onnx(graphs_of(family, opened, {}, merged=merged, flavour=flavour), folder, threads=2)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return {
        each.name.partition(".")[0]: onnxruntime.InferenceSession(
            each, options, providers=["CPUExecutionProvider"]
        )
        for each in sorted(folder.glob("*.onnx"))
    }


class Truth:
    """What transformers makes of a checkpoint's texts; where it has no class, the reference of the proof."""

    def __init__(self, checkpoint: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self._checkpoint = checkpoint
        self._config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text("utf-8"))
        config, family = self._config, family_for(self._config)
        self.family = family.name
        self.kind = "encoder" if family.encoder_only else "both" if family.encoder_decoder else "decoder"
        random = np.random.default_rng(sizes.seed)
        top = min(config["vocab_size"], 259 if self.kind == "both" else 1000)
        self.top = top
        self.texts: Ids = random.integers(3, top, (sizes.texts, sizes.length))
        answers = random.integers(3, top, (sizes.texts, sizes.answer))
        answers[:, 0] = 0  # the start token
        self.answers: Ids = answers
        self.lengths = [sizes.length, sizes.length // 2, 1, sizes.length - 5, 9][: sizes.texts]

    @functools.cached_property
    def model(self) -> Any:
        """The model in fp32."""
        import torch
        import transformers

        name = self._config["architectures"][0]
        if name == "GBSWT5ForConditionalGeneration":
            return random_model(self._config, alone=True)
        loader = getattr(transformers, name)
        model = loader.from_pretrained(self._checkpoint, dtype=torch.float32).eval()
        if "tie_word_embeddings" in self._config:  # version 5 takes a UMT5's head of its own for a tied one
            model.config.tie_word_embeddings = self._config["tie_word_embeddings"]
        return model

    def logits(self, ids: Ids) -> Floats:
        """Of a decoder, ``(texts, length, vocabulary)``, nothing padded."""
        if self._beyond_transformers():
            return self._by_reference(ids)
        import torch

        with one_thread(), torch.no_grad():
            logits: Floats = self.model(torch.from_numpy(ids)).logits.numpy()
        return logits

    def _beyond_transformers(self) -> bool:
        """EXAONE 3, of which it has no class, and a hidden size that is no multiple of the heads."""
        if "ExaoneForCausalLM" in self._config["architectures"]:
            return True
        heads = self._config.get("num_attention_heads") if self._config["model_type"] == "llama" else None
        return heads is not None and self._config["hidden_size"] % heads != 0

    def _by_reference(self, ids: Ids) -> Floats:
        opened = open_checkpoint(self._checkpoint)
        reference = Reference(opened, family_for(opened.config), threads=1)
        reading = reference.read([Window(0, tuple(map(int, row))) for row in ids])
        return np.stack([reading.logits(row, 0, ids.shape[1]) for row in range(len(ids))])

    @functools.cached_property
    def alone(self) -> Floats:
        """The logits of the decoder's texts."""
        return self.logits(self.texts)

    def answered(self, ids: Ids, mask: Ids, answers: Ids) -> Floats:
        """The logits of an encoder-decoder."""
        return right_logits(self.model, ids, mask, answers)

    def states(self, ids: Ids, mask: Ids) -> Floats:
        """The hidden states of an encoder."""
        import torch

        with one_thread(), torch.no_grad():
            made = self.model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        states: Floats = made.last_hidden_state.numpy()
        return states

    def padded(self, side: str) -> tuple[Ids, Ids]:
        """The beginnings of all texts in one batch, padded to the longest, and the mask."""
        width = max(self.lengths)
        ids, mask = (
            np.zeros((len(self.lengths), width), np.int64),
            np.zeros((len(self.lengths), width), np.int64),
        )
        for row, count in enumerate(self.lengths):
            place = slice(width - count, width) if side == "left" else slice(0, count)
            ids[row, place], mask[row, place] = self.texts[row, :count], 1
        return ids, mask


class Made:
    """What transformers makes of a checkpoint, and its graphs by flavour and layout, each made once."""

    def __init__(self, checkpoint: Path, sizes: Sizes) -> None:
        self.truth = Truth(checkpoint, sizes)
        self._checkpoint = checkpoint
        self._opened: dict[tuple[str, bool], Sessions] = {}

    def sessions(self, flavour: str, *, merged: bool) -> Sessions:
        """The graphs in onnxruntime, with one decoder or two."""
        if (flavour, merged) not in self._opened:
            place = self._checkpoint.with_name(f"{self._checkpoint.name}-{flavour}-{merged}")
            self._opened[flavour, merged] = graphs_in(
                self._checkpoint, place, FLAVOURS[flavour], merged=merged
            )
        return self._opened[flavour, merged]

    def differences(self, flavour: str) -> dict[str, float]:
        """The largest difference of each way; an encoder-decoder's with one decoder and with two."""
        found = {}
        for merged in (False, True) if self.truth.kind == "both" else (False,):
            for name, way in WAYS[self.truth.kind].items():
                found[f"{name}, merged" if merged else name] = way(
                    self.sessions(flavour, merged=merged), self.truth
                )
        return found


Sessions = Mapping[str, Any]
Way = Callable[[Sessions, Truth], float]


def apart(ours: Floats, theirs: Floats) -> float:
    """The largest difference; what is no number is infinitely far."""
    assert ours.shape == theirs.shape
    return float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max())


# --- decoders


def _at_once(sessions: Sessions, truth: Truth) -> float:
    return apart(run(sessions["model"], truth.texts)[0], truth.alone)


def _stepwise(sessions: Sessions, truth: Truth) -> float:
    return apart(in_steps(sessions["model"], truth.texts, *[1] * truth.sizes.length), truth.alone)


def _in_chunks(sessions: Sessions, truth: Truth) -> float:
    """One text in pieces, as all flavours read it."""
    steps = [7, 1, 13, truth.sizes.length - 21]
    return apart(in_steps(sessions["model"], truth.texts[:1], *steps), truth.alone[:1])


def _padded(side: str, sessions: Sessions, truth: Truth) -> float:
    """A padded batch, which then goes on a token at a time."""
    model, (ids, mask) = sessions["model"], truth.padded(side)
    short = np.minimum(truth.lengths, truth.sizes.length - truth.sizes.steps)
    for row, count in enumerate(short):  # each text has tokens left to go on with
        ids[row], mask[row] = 0, 0
        place = slice(ids.shape[1] - count, None) if side == "left" else slice(0, count)
        ids[row, place], mask[row, place] = truth.texts[row, :count], 1
    logits, past = run(model, ids, mask=mask, positions=np.maximum(mask.cumsum(1) - 1, 0))
    rows = range(len(short))
    worst = max(apart(logits[row][mask[row] == 1], truth.alone[row, : short[row]]) for row in rows)
    for step in range(truth.sizes.steps):
        places = short + step
        mask = np.concatenate([mask, np.ones((len(short), 1), np.int64)], axis=1)
        token = truth.texts[rows, places][:, None]
        logits, past = run(model, token, past, mask=mask, positions=places[:, None])
        worst = max(worst, apart(logits[:, 0], truth.alone[rows, places]))
    return worst


def _beams(sessions: Sessions, truth: Truth) -> float:
    """Hypotheses of one text that are continued, dropped and doubled, and take their caches along."""
    model, random = sessions["model"], np.random.default_rng(1)
    histories = truth.texts[:1, :20].repeat(truth.sizes.beams, 0)
    _, past = run(model, histories[:1])
    past = {name: each.repeat(truth.sizes.beams, 0) for name, each in past.items()}
    worst = 0.0
    for _ in range(5):
        order = random.integers(0, truth.sizes.beams, truth.sizes.beams)
        histories, past = histories[order], _exchanged(past, order)
        histories = np.concatenate([histories, random.integers(3, truth.top, (len(order), 1))], axis=1)
        logits, past = run(model, histories[:, -1:], past)
        worst = max(worst, apart(logits[:, 0], truth.logits(histories)[:, -1]))
    return worst


def _exchanged(past: Cache, order: Ids) -> Cache:
    return {name: each[order] for name, each in past.items()}


# --- encoder-decoders


class Answering:
    """An encoder's states and a decoder's cache, in two decoders or one that is both."""

    def __init__(self, sessions: Sessions, ids: Ids, mask: Ids) -> None:
        self._sessions, self.mask = sessions, mask
        given = {"input_ids": ids, "attention_mask": mask}
        (self.states,) = sessions["encoder_model"].run(None, given)
        self.cache: Cache = {}

    def read(self, answers: Ids) -> Floats:
        """The logits of further tokens."""
        if merged := self._sessions.get("decoder_model_merged"):
            session, begun = merged, bool(self.cache)
            empty = {
                each.name: np.zeros((len(answers), each.shape[1], 0, each.shape[3]), np.float32)
                for each in session.get_inputs()
                if each.name.startswith("past")
            }
            given: dict[str, Any] = {**empty, **self.cache, "use_cache_branch": np.array([begun])}
        else:
            session = self._sessions["decoder_with_past_model" if self.cache else "decoder_model"]
            given, begun = dict(self.cache), bool(self.cache)
        given |= {"input_ids": answers, "encoder_attention_mask": self.mask}
        given["encoder_hidden_states"] = self.states
        named = {each.name for each in session.get_inputs()}
        names = [each.name for each in session.get_outputs()]
        made = session.run(names, {name: each for name, each in given.items() if name in named})
        values = {
            name.replace("present", "past_key_values"): each for name, each in zip(names, made, strict=True)
        }
        logits: Floats = values.pop("logits")
        kept = {name: each for name, each in values.items() if not (begun and ".encoder." in name)}
        self.cache = {**self.cache, **kept}
        return logits

    def exchange(self, order: Ids) -> None:
        """Rows as beams are exchanged; all of one text."""
        self.cache = _exchanged(self.cache, order)


def _answered(steps: Sequence[int] | None, side: str | None, sessions: Sessions, truth: Truth) -> float:
    ids, mask = (truth.texts, np.ones_like(truth.texts)) if side is None else truth.padded(side)
    answering, place, collected = Answering(sessions, ids, mask), 0, []
    for step in steps or [truth.sizes.answer]:
        collected.append(answering.read(truth.answers[:, place : place + step]))
        place += step
    assert place == truth.sizes.answer
    return apart(np.concatenate(collected, axis=1), truth.answered(ids, mask, truth.answers))


def _answered_stepwise(side: str | None, sessions: Sessions, truth: Truth) -> float:
    return _answered([1] * truth.sizes.answer, side, sessions, truth)


def _answered_in_chunks(sessions: Sessions, truth: Truth) -> float:
    return _answered([3, 1, 7, truth.sizes.answer - 11], None, sessions, truth)


def _answered_by_beams(sessions: Sessions, truth: Truth) -> float:
    random, beams = np.random.default_rng(1), truth.sizes.beams
    ids = truth.texts[:1].repeat(beams, 0)
    mask, worst = np.ones_like(ids), 0.0
    answering = Answering(sessions, ids, mask)
    histories = np.zeros((beams, 1), np.int64)
    answering.read(histories)
    for _ in range(5):
        order = random.integers(0, beams, beams)
        answering.exchange(order)
        new = random.integers(3, truth.top, (beams, 1))
        histories = np.concatenate([histories[order], new], axis=1)
        logits = answering.read(new)
        worst = max(worst, apart(logits[:, 0], truth.answered(ids, mask, histories)[:, -1]))
    return worst


# --- encoders


def _encoded(side: str | None, sessions: Sessions, truth: Truth) -> float:
    ids, mask = (truth.texts, np.ones_like(truth.texts)) if side is None else truth.padded(side)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    named = {each.name for each in sessions["model"].get_inputs()}
    (states,) = sessions["model"].run(
        ["last_hidden_state"], {name: each for name, each in given.items() if name in named}
    )
    return apart(states[mask == 1], truth.states(ids, mask)[mask == 1])


WAYS: Mapping[str, Mapping[str, Way]] = {
    "decoder": {
        "prefill": _at_once,
        "steps": _stepwise,
        "chunks": _in_chunks,
        "left padding": partial(_padded, "left"),
        "right padding": partial(_padded, "right"),
        "beams": _beams,
    },
    "both": {
        "prefill": partial(_answered, None, None),
        "steps": partial(_answered_stepwise, None),
        "chunks": _answered_in_chunks,
        "left padding": partial(_answered_stepwise, "left"),
        "right padding": partial(_answered_stepwise, "right"),
        "beams": _answered_by_beams,
    },
    # an encoder keeps nothing from one call to the next: it has no steps, chunks and beams
    "encoder": {
        "prefill": partial(_encoded, None),
        "left padding": partial(_encoded, "left"),
        "right padding": partial(_encoded, "right"),
    },
}
"""By what a model is: the ways it can be read."""
