"""The proof of encoder-decoders: fp32 reference, llama.cpp's side, pairs of texts, damages of T5 files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from damage_material import edited, zeroed_tensors
from proof_material import proof_text
from t5_checkpoints import BYT5, nmse, t5_logits, t5_weights, write_t5

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import unmapped
from kconv.core.errors import CheckpointError, ChildDied, InputError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.quant.gguf_weights import open_gguf
from kconv.reference.model import Reading, Reference
from kconv.report.html import report_html
from kconv.runtimes.llama_reader import LlamaReader
from kconv.runtimes.reader import RuntimeFailure
from kconv.verify import verify
from kconv.vocab.byte_text import shown, shown_next
from kconv.vocab.gaps import gaps_of, with_gaps
from kconv.vocab.sources import read_source
from kconv.vocab.text_pairs import PairReader, built_in_pairs, default_size, text_pairs
from kconv.vocab.tokenizer import Source

Floats = npt.NDArray[np.float32]

# What is left where pairs of several lengths are computed together, of the largest logit; test_reference.py
# says where it comes from.
ROUNDING = 5e-6

HEADS: dict[str, dict[str, Any]] = {
    "own head": {},
    "tied": {"tie_word_embeddings": True, "head": False},
    "tied, nothing said": {"tie_word_embeddings": None, "head": False},
    "tied, not scaled": {"tie_word_embeddings": True, "scale_decoder_outputs": False, "head": False},
    "own head, as transformers 5 saves it": {"tie_word_embeddings": True, "scale_decoder_outputs": False},
    "own head, said to be tied": {"tie_word_embeddings": True},
    "relu": {"feed_forward_proj": "relu"},
    "equal depths, other buckets": {"num_decoder_layers": None, "relative_attention_num_buckets": 20},
    "mT5": {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"},
}


def pair(source: int, target: int, seed: int = 0) -> Window:
    """A source and, after the start token, a target of that many tokens."""
    numbers = np.random.default_rng(seed)
    ids = [tuple(numbers.integers(3, 259, count).tolist()) for count in (source, target)]
    return Window(0, (0, *ids[1]), source=ids[0])


def loaded(folder: Path) -> Any:
    """The checkpoint's model in fp32, with attention as written in its code."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def truth(folder: Path, window: Window) -> Floats:
    """Its logits of every position."""
    import torch

    with torch.no_grad():
        outputs = loaded(folder)(
            input_ids=torch.tensor([window.source]), decoder_input_ids=torch.tensor([window.ids])
        )
    logits: Floats = outputs.logits[0].numpy()
    return logits


def off(actual: Floats, expected: Floats) -> float:
    """The largest difference as a part of the largest value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def reference(folder: Path, **options: Any) -> Reference:
    checkpoint = open_checkpoint(folder)
    return Reference(checkpoint, family_for(checkpoint.config), threads=2, **options)


def whole(reading: Reading, index: int, window: Window) -> Floats:
    return reading.logits(index, 0, len(window.ids))


def read(path: Path, *windows: Window, **options: Any) -> list[Floats]:
    """llama.cpp's logits per window."""
    collected: list[list[Floats]] = [[] for _ in windows]
    with LlamaReader(path, threads=2, **options) as reader:
        for block in reader.logits(windows):
            collected[block.window].append(block.logits.copy())
    return [np.concatenate(blocks) for blocks in collected]


@pytest.fixture(scope="module")
def byt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ByT5 with three encoder and two decoder layers."""
    return write_t5(tmp_path_factory.mktemp("verify-t5") / "byt5")


@pytest.fixture(scope="module")
def file(byt5: Path) -> Path:
    """It as GGUF in f32."""
    return to_gguf(byt5, byt5.parent / "byt5.gguf", types=["f32"], verify=False).outputs[0].path


@pytest.fixture(scope="module")
def source(byt5: Path) -> Source:
    return read_source(open_checkpoint(byt5))


# --- the reference ---


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_transformers_own(name: str, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "checkpoint", **HEADS[name])
    one, others = pair(120, 80), [pair(5, 90, 1), pair(200, 2, 2), pair(120, 80, 3)]
    expected = [truth(folder, each) for each in (one, *others)]
    alone = reference(folder).read([one])
    assert np.array_equal(whole(alone, 0, one), expected[0])
    together = reference(folder).read([one, *others])
    for index, each in enumerate((one, *others)):
        assert off(whole(together, index, each), expected[index]) < ROUNDING


@pytest.mark.parametrize("name", ["own head", "tied", "own head, said to be tied", "mT5"])
def test_a_files_weights_give_the_same_logits(name: str, tmp_path: Path) -> None:
    """Through ``unmapped``, the scaled head of tied models included."""
    folder = write_t5(tmp_path / "checkpoint", **HEADS[name])
    made = to_gguf(folder, tmp_path / "made.gguf", types=["f32"], verify=False).outputs[0].path
    checkpoint, window = open_checkpoint(folder), pair(60, 70)
    with open_gguf(made) as opened:
        tensors = {info.name: opened.tensor(info) for info in opened.header.tensors}
        weights = unmapped(family_for(checkpoint.config), checkpoint, tensors)
        actual = whole(reference(folder, weights=weights).read([window]), 0, window)
    assert off(actual, truth(folder, window)) < ROUNDING


def test_what_says_nothing_of_the_model_changes_nothing(byt5: Path, tmp_path: Path) -> None:
    """Nulls, which stand for defaults, ids of special tokens that are none, and no word of the encoder."""
    (tmp_path / "model.safetensors").symlink_to(byt5 / "model.safetensors")
    config = json.loads((byt5 / "config.json").read_text())
    nulls = dict.fromkeys(
        ("relative_attention_max_distance", "layer_norm_epsilon", "dropout_rate", "head_dim")
    )
    odd = {**nulls, "bos_token_id": "a", "eos_token_id": -1, "is_encoder_decoder": False}
    (tmp_path / "config.json").write_text(json.dumps({**config, **odd}))
    window = pair(40, 50)
    assert np.array_equal(whole(reference(tmp_path).read([window]), 0, window), truth(byt5, window))


def test_the_embedding_may_stand_under_a_stacks_name(byt5: Path, tmp_path: Path) -> None:
    weights = t5_weights(BYT5)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    folder = write_t5(tmp_path / "checkpoint", weights)
    window = pair(50, 80)
    assert np.array_equal(whole(reference(folder).read([window]), 0, window), truth(byt5, window))


def test_layers_are_the_encoders_then_the_decoders(byt5: Path) -> None:
    import torch

    window, longer = pair(40, 30), pair(90, 60, 1)
    model = loaded(byt5)
    expected: list[Floats] = []
    for block in (*model.encoder.block, *model.decoder.block):
        block.register_forward_hook(lambda module, args, output: expected.append(output[0][0].numpy()))
    with torch.no_grad():
        model(
            input_ids=torch.tensor([window.source]),
            decoder_input_ids=torch.tensor([window.ids]),
            use_cache=False,
        )
    reader = reference(byt5)
    alone = reader.read([], layers_of=window).layers
    assert reader.encoder_layers == 3
    assert [layer.shape for layer in alone] == [(40, 96)] * 3 + [(31, 96)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(alone, expected, strict=True))
    padded = reader.read([longer, window], layers_of=window).layers
    assert max(off(a, b) for a, b in zip(padded, expected, strict=True)) < ROUNDING


def test_more_pairs_than_go_together(byt5: Path) -> None:
    progress_calls: list[tuple[str, int, int]] = []
    windows = [pair(400, 300, seed) for seed in range(7)] + [pair(3, 200, 9)]
    reading = reference(byt5).read(windows, progress=lambda *step: progress_calls.append(step))
    for index in (0, 6, 7):
        expected = truth(byt5, windows[index])
        assert off(whole(reading, index, windows[index]), expected) < ROUNDING
    assert progress_calls == [
        ("reference", done, progress_calls[-1][2]) for done in range(progress_calls[-1][2] + 1)
    ]
    modules = len(reference(byt5)._modules)
    assert progress_calls[-1][2] == 4 * modules  # two pairs of 701 tokens go together, not three


def test_windows_without_a_source_and_tokens_without_a_row_are_refused(byt5: Path) -> None:
    with pytest.raises(ValueError, match="needs a source"):
        reference(byt5).read([Window(0, (0, 5, 6))])
    with pytest.raises(InputError, match="0 to 383"):
        reference(byt5).read([replace(pair(5, 5), source=(384, 1))])


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    weights = t5_weights(BYT5)
    weights["lm_head.weight"] = weights["lm_head.weight"][:100].clone()
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is \[100, 96\]"):
        reference(write_t5(tmp_path / "checkpoint", weights))


# --- llama.cpp ---


def test_the_child_gives_what_llama_cpp_gives(file: Path) -> None:
    windows = [pair(200, 120), pair(7, 40, 1), pair(90, 3, 2)]
    together = read(file, *windows)
    for window, actual in zip(windows, together, strict=True):
        expected = t5_logits(file, window.source, window.ids)[:-1]
        assert np.abs(actual - expected).max() < 1e-5
    (alone,) = read(file, windows[0])
    assert np.array_equal(alone, t5_logits(file, windows[0].source, windows[0].ids[:-1]))


def test_pieces_and_scored_positions(file: Path) -> None:
    window = pair(150, 100)
    (expected,) = read(file, window)
    (pieces,) = read(file, window, batch=16)
    assert np.abs(pieces - expected).max() < 1e-5
    (some,) = read(file, replace(window, scored_from=60), batch=32)
    assert np.abs(some - expected[60:]).max() < 1e-5


def test_layers_are_those_of_the_reference(file: Path, byt5: Path) -> None:
    window = pair(70, 40)
    with LlamaReader(file, threads=2, batch=16) as reader:
        actual = reader.layers(window)
        again = reader.layers(window)
        (logits,) = [np.concatenate([block.logits.copy() for block in reader.logits([window])])]
    expected = reference(byt5).read([], layers_of=window).layers
    assert [layer.shape for layer in actual] == [layer.shape for layer in expected]
    assert max(nmse(a, b) for a, b in zip(actual, expected, strict=True)) < 1e-5
    assert all(np.array_equal(a, b) for a, b in zip(actual, again, strict=True))
    assert nmse(logits, truth(byt5, window)[:-1]) < 1e-4


def test_what_cannot_be_read_is_told(file: Path, tmp_path: Path) -> None:
    with LlamaReader(file, threads=1) as reader:
        for window in (
            Window(0, (0, 5, 6)),
            replace(pair(4, 4), source=(400,)),
            Window(0, (0, 999, 1), 0, (5,)),
        ):
            with pytest.raises(RuntimeFailure):
                list(reader.logits([window]))
        assert len(list(reader.logits([pair(4, 4)]))) == 1
    huge = edited(file, tmp_path / "huge.gguf", metadata={"t5.context_length": 2**31 - 1})
    with LlamaReader(huge, threads=1) as reader, pytest.raises(ChildDied, match="out of memory"):
        list(reader.logits([pair(4, 4)]))


def test_the_childs_memory_is_bounded(tmp_path: Path) -> None:
    """Thirty pairs take no more than three: nothing is kept from window to window."""
    folder = write_t5(tmp_path / "checkpoint", vocab_size=30000)
    made = to_gguf(folder, tmp_path / "made.gguf", types=["f32"], verify=False, allow_tokenizer_mismatch=True)
    with LlamaReader(made.outputs[0].path, threads=2) as reader:
        assert reader._loaded
        status = Path(f"/proc/{reader._loaded.pid}/status")
        peaks = []
        for count in (3, 30):
            windows = [pair(200, 120, seed) for seed in range(count)]
            assert sum(len(block.logits) for block in reader.logits(windows)) == 120 * count
            (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
            peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 8 << 10


# --- the error, and the share of llama.cpp's GELU in it ---


@pytest.mark.parametrize("name", ["own head", "tied"])
def test_most_of_the_error_is_llama_cpps_table_of_gelu(name: str, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "checkpoint", d_model=256, d_ff=640, num_heads=6, d_kv=64, **HEADS[name])
    made = to_gguf(folder, tmp_path / "made.gguf", types=["f32"], verify=False).outputs[0].path
    window = pair(300, 200)
    (actual,) = read(made, window)
    errors = {}
    for table in (False, True):
        reading = reference(folder, llama_cpps_gelu=table).read([window])
        errors[table] = nmse(actual, whole(reading, 0, window)[:-1])
    print(f"{name}: NMSE {errors[False]:.2e}, with the same GELU {errors[True]:.2e}")
    assert errors[False] < 1e-4
    assert errors[True] < errors[False] / 5


# --- pairs of texts ---


def reader(source: Source, **changes: Any) -> PairReader:
    return replace(PairReader(source, start=0, eos=1, size=512, context=1024, source_context=1024), **changes)


def test_gaps_are_those_of_byt5s_pre_training(source: Source) -> None:
    gaps = gaps_of(source)
    assert gaps is not None
    assert gaps.sentinels[:3] == (258, 257, 256)
    text = "한국의 수도는 서울이고 일본의 수도는 도쿄이다. " * 12
    ids = source.encode(text, False)
    corrupted, spoken = with_gaps(ids, gaps)
    count = sum(token >= 248 for token in corrupted)
    assert count == round(0.15 * len(ids) / 20)
    # the sentinels in order, one more at the end, and text and gaps together the whole text
    assert [token for token in corrupted if token >= 248] == [258 - i for i in range(count)]
    assert [token for token in spoken if token >= 248] == [258 - i for i in range(count + 1)]
    assert spoken[-1] == 258 - count
    filled: list[int] = []
    for token in corrupted:
        if token < 248:
            filled.append(token)
        else:
            filled += spoken[spoken.index(token) + 1 : spoken.index(token - 1)]
    assert filled == ids
    # no character is cut
    for side in (corrupted, spoken):
        bytes_ = b"".join(b"|" if token >= 248 else bytes([token - 3]) for token in side)
        assert bytes_.decode()


@pytest.mark.parametrize("length", range(2, 60))
def test_gaps_of_short_texts(source: Source, length: int) -> None:
    gaps = gaps_of(source)
    assert gaps is not None
    corrupted, spoken = with_gaps(source.encode("a" * length, False), gaps)
    assert corrupted.count(258) == 1
    assert (spoken[0], spoken[-1]) == (258, 257)
    assert len(spoken) > 2


def test_gaps_of_pieces(real: Path) -> None:
    """<extra_id_0> and on, spans of three pieces, 15 % in all."""
    source = read_source(open_checkpoint(real / "hf_t5x_tiny"))
    gaps = gaps_of(source)
    assert gaps is not None
    assert len(gaps.sentinels) == 100
    assert source.tokens[gaps.sentinels[1]] == "<extra_id_1>"
    windows = built_in_pairs(reader(source), {"eng": 400})
    assert sum(window.tokens for window in windows) > 1200
    first, last = windows[0].ids, windows[-1].ids
    assert first[:2] == (0, gaps.sentinels[0])
    assert first[-1] == last[-1] == windows[0].source[-1] == 1
    missing = sum(len(window.ids) - 2 for window in windows)
    assert 0.15 < missing / 1200 < 0.25  # the gaps, and a sentinel each


def test_built_in_pairs(source: Source) -> None:
    windows = built_in_pairs(reader(source), {"kor": 300, "eng": 200})
    assert [window.text for window in windows] == [0, 0, 1, 1]
    for window in windows:
        assert len(window.source) <= 512
        assert window.source[-1] == window.ids[-1] == 1
        assert window.ids[:2] == (0, 258)
        assert window.scored == range(len(window.ids) - 1)
    assert "세 계 인 권 선 언" in shown(source, windows[0].source)
    few = built_in_pairs(reader(source, eos=None, start=259), {"kor": 300}, tokens=100)
    assert (len(few), few[0].ids[0], few[0].source[-1] == 1) == (1, 259, False)


def test_without_sentinels_the_second_half_is_said_after_the_first(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kconv.vocab.text_pairs.gaps_of", lambda source: None)
    (window,) = text_pairs(reader(source), ["abcdefgh"])
    assert (shown(source, window.source), shown(source, window.ids[1:])) == ("abcd</s>", "efgh</s>")


def test_the_users_pairs(source: Source) -> None:
    text = "한국의 수도는?\t서울\r\n\nsummarize: a b c\ta <extra_id_0>\n"
    windows = text_pairs(reader(source), ["running text, long enough", text])
    assert [window.text for window in windows] == [0, 1, 1]
    assert shown(source, windows[1].source) == "한국의 수도는?</s>"
    assert windows[1].ids == (0, *(byte + 3 for byte in "서울".encode()), 1)
    assert windows[2].ids[-2:] == (259, 1)  # special tokens are found in the user's text
    limited = text_pairs(reader(source), [text], tokens=24)
    assert len(limited) == 1
    assert limited[0].tokens == 24
    assert limited[0].source == windows[1].source


BAD_PAIRS = {
    "a\tb\nplain": "line 2: no tab, but other lines have tabs",
    "a\tb\tc": "line 1: 2 tabs",
    "a\tb\n\t답": "line 2: the source is empty",
    "질문\t ": "line 1: the target is empty",
    "a\t" + "b" * 2000: "line 1: the target has 2000 tokens, expected at most 1023",
    "x": "text 1 has 1 token,",
}


@pytest.mark.parametrize("text", BAD_PAIRS)
def test_bad_pairs_are_refused(source: Source, text: str) -> None:
    with pytest.raises(InputError) as caught:
        text_pairs(reader(source), [text])
    assert BAD_PAIRS[text] in caught.value.message
    assert caught.value.hint


def test_too_few_tokens_for_a_pair(source: Source) -> None:
    with pytest.raises(InputError, match="use up all 5"):
        text_pairs(reader(source), ["long source\ttarget"], tokens=5)


def test_a_huge_vocabulary_is_read_in_smaller_pieces() -> None:
    assert default_size(512, 384) == default_size(512, 32128) == 512
    assert default_size(512, 250112) == 134


def test_bytes_are_shown_as_characters(source: Source) -> None:
    ids = [byte + 3 for byte in "가나다".encode()]
    assert shown(source, ids[1:8]) == "나"  # parts of characters at both ends are left out
    assert shown(source, [0, 258, *ids, 257, 1]) == "<pad>[258]가나다[257]</s>"
    assert shown(source, []) == ""
    assert shown_next(source, ids[:5], ids[5]) == "나"
    assert shown_next(source, ids[:4], ids[4]) == "\\xeb\\x82"
    assert shown_next(source, ids[:5], 258) == "[258]"
    assert shown_next(source, ids[:5], ord("a") + 3) == "a"
    assert shown_next(source, ids[:3], ids[4]) == "\\x82"
    assert shown_next(source, ids[:3], 1) == "</s>"
    assert shown_next(source, [259], 0xC0 + 3) == "\\xc0"


# --- damages ---


def swapped(path: Path, out: Path, one: str, other: str) -> Path:
    """Two blocks in each other's place; a relative bias stays where it is."""
    names = {}
    for info in read_header(path).tensors:
        for old, new in ((one, other), (other, one)):
            if info.name.startswith(old) and "rel_b" not in info.name:
                names[info.name] = new + info.name.removeprefix(old)
    return edited(path, out, renamed=names)


def unscaled_head(path: Path, out: Path) -> Path:
    """The embedding itself for the head, as llama.cpp's converter leaves it."""
    root = np.float32(BYT5["d_model"] ** 0.5)
    return edited(path, out, tensors={"output.weight": lambda rows: rows * root})


def hparams(**changes: Callable[[int], int]) -> Callable[[Path, Path], Path]:
    metadata = {f"t5.{name.replace('__', '.')}": change for name, change in changes.items()}
    return lambda path, out: edited(path, out, metadata=metadata)


def double(value: int) -> int:
    return value * 2


def half(value: int) -> int:
    return value // 2


# By name: what is done to the file, the part that must fail, a word of the cause, and whether logits tell.
DAMAGES: Mapping[str, tuple[Callable[[Path, Path], Path], str, str, bool]] = {
    "encoder layers swapped": (
        lambda path, out: swapped(path, out, "enc.blk.1.", "enc.blk.2."),
        "weights",
        "encoder layer 1 and encoder layer 2 are swapped",
        True,
    ),
    "decoder layers swapped": (
        lambda path, out: swapped(path, out, "dec.blk.0.", "dec.blk.1."),
        "weights",
        "decoder layer 0 and decoder layer 1 are swapped",
        True,
    ),
    "self- and cross-attention swapped": (
        lambda path, out: edited(
            path,
            out,
            renamed={
                f"dec.blk.1.{a}attn_q.weight": f"dec.blk.1.{b}attn_q.weight"
                for a, b in (("", "cross_"), ("cross_", ""))
            },
        ),
        "weights",
        "dec.blk.1.attn_q.weight and dec.blk.1.cross_attn_q.weight are swapped",
        True,
    ),
    "relative bias zeroed": (
        lambda path, out: zeroed_tensors(path, out, ["enc.blk.0.attn_rel_b.weight"]),
        "weights",
        "zero",
        True,
    ),
    "decoder's bias in the encoder": (
        lambda path, out: edited(
            path,
            out,
            renamed={
                "enc.blk.0.attn_rel_b.weight": "dec.blk.0.attn_rel_b.weight",
                "dec.blk.0.attn_rel_b.weight": "enc.blk.0.attn_rel_b.weight",
            },
        ),
        "weights",
        "encoder layer 0 and decoder layer 0 are swapped",
        True,
    ),
    "head not scaled": (unscaled_head, "weights", "output.weight", True),
    "wrong decoder start": (hparams(decoder_start_token_id=lambda old: old + 1), "metadata", "start", False),
    "wrong key length": (hparams(attention__key_length=half), "metadata", "key", True),
    "wrong head split": (
        hparams(
            attention__key_length=half,
            attention__value_length=half,
            attention__head_count=double,
            attention__head_count_kv=double,
        ),
        "metadata",
        "head",
        True,
    ),
    "a decoder layer too few": (
        hparams(decoder_block_count=lambda old: old - 1),
        "metadata",
        "decoder_block_count",
        True,
    ),
    "no EOS after a text": (
        lambda path, out: edited(path, out, metadata={"tokenizer.ggml.add_eos_token": False}),
        "metadata",
        "EOS",
        False,
    ),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 over bytes with its embedding for a head."""
    folder = tmp_path_factory.mktemp("damages") / "tied"
    return write_t5(folder, tie_word_embeddings=True, head=False)


@pytest.fixture(scope="module")
def good(tied: Path) -> dict[str, Path]:
    made = to_gguf(tied, tied.parent, types=["f32", "q8_0"], verify=False)
    return {output.type: output.path for output in made.outputs}


def verified(path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of ``kconv verify``."""
    code = main(
        [
            "verify",
            str(path),
            "--against",
            str(checkpoint),
            "--tokens",
            "200",
            "--json",
            "--gate",
            "q8_0=0.05",
        ]
    )
    proof: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, proof


@pytest.mark.parametrize("type_", ["f32", "q8_0"])
def test_good_files_pass(
    type_: str, good: dict[str, Path], tied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, proof = verified(good[type_], tied, capsys)
    assert (code, proof["verdict"]) == (0, "passed"), proof["cause"]


@pytest.mark.parametrize(
    ("name", "type_"),
    [*((name, "f32") for name in DAMAGES), ("relative bias zeroed", "q8_0"), ("head not scaled", "q8_0")],
)
def test_every_damage_is_caught(
    name: str,
    type_: str,
    good: dict[str, Path],
    tied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, part, word, logits_tell = DAMAGES[name]
    path = make(good[type_], tmp_path / good[type_].name)
    shutil.copy(f"{good[type_]}.manifest.json", f"{path}.manifest.json")
    code, proof = verified(path, tied, capsys)
    print(proof["cause"])
    assert (code, proof["verdict"]) == (1, "failed")
    assert proof[part]["verdict"] == "failed"
    assert word in proof["cause"]
    if logits_tell and type_ == "f32":  # rounding to 8 bits hides some of it
        assert proof["logits"]["verdict"] == "failed"


# --- the whole proof ---


def test_where_it_goes_wrong(byt5: Path, file: Path, tmp_path: Path) -> None:
    """The diagnosis names the side and the layer, and tells weights from metadata."""
    louder = {"dec.blk.1.ffn_up.weight": lambda rows: rows * np.float32(1.5)}
    worse = edited(file, tmp_path / "weights.gguf", tensors=louder)
    actual = verify(worse, byt5, texts=["한국의 수도는 서울이다. " * 20], threads=2).logits
    assert actual.verdict == "failed"
    assert actual.diagnosis is not None
    assert (actual.diagnosis.encoder_layers, actual.diagnosis.first) == (3, 4)
    assert "decoder layer 1 is the first whose output differs" in actual.diagnosis.conclusion
    assert "dec.blk.1.ffn_up.weight" in actual.diagnosis.conclusion
    other = edited(
        file, tmp_path / "metadata.gguf", metadata={"t5.attention.layer_norm_rms_epsilon": lambda old: 0.1}
    )
    proof = verify(other, byt5, texts=["한국의 수도는 서울이다. " * 20], threads=2)
    assert proof.metadata.verdict == "failed"
    assert proof.logits.diagnosis is not None
    assert "encoder layer 0 is the first" in proof.logits.diagnosis.conclusion
    assert "check the metadata" in proof.logits.diagnosis.conclusion
    shown_ = proof_text(proof)
    assert "encoder layer 2" in shown_
    assert "given: 한국의 수도는" in shown_
    assert "llama.cpp's GELU in fp32" in shown_


def test_the_share_of_the_gelu_table_is_told(byt5: Path, file: Path) -> None:
    proof = verify(file, byt5, texts=["질문은 무엇인가?\t답은 이것이다."], diagnose=True, threads=2)
    diagnosis = proof.logits.diagnosis
    assert proof.verdict == "passed"
    assert diagnosis is not None
    assert diagnosis.logits_same_gelu is not None
    assert diagnosis.logits_same_gelu < diagnosis.logits_runtime / 5
    figures = proof.logits.figures
    assert figures is not None
    assert figures.nmse_same_gelu is not None
    assert figures.nmse_same_gelu < figures.nmse / 5
    assert proof.to_json()["logits"]["figures"]["nmse_same_gelu"] == figures.nmse_same_gelu
    assert "with llama.cpp's arithmetic in fp32)" in proof_text(proof)
    assert "Logits, NMSE, same arithmetic" in report_html([proof])
    assert proof.logits.figures is not None
    assert proof.logits.figures.positions == len("답은 이것이다.".encode()) + 1
    (worst, *_) = proof.logits.worst
    assert worst.source == "질문은 무엇인가?</s>"
    assert json.dumps(proof.to_json())


def test_a_conversion_ends_with_its_proof(byt5: Path, tmp_path: Path) -> None:
    announced: list[str] = []
    made = to_gguf(byt5, tmp_path, types=["f32", "q4_0"], threads=2, announce=announced.append)
    assert made.proofs[0].verdict == "passed"
    assert "tokens through" in announced[0]
    manifest = json.loads(made.outputs[0].manifest.read_text(encoding="utf-8"))
    assert manifest["proof"]["logits"]["verdict"] == "passed"
    texts = manifest["proof"]["provenance"]["texts"]
    assert "gaps to fill" in texts[0]


def test_a_text_the_command_refuses(
    byt5: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "pairs.tsv"
    text.write_text("질문\t답\n답만\n", encoding="utf-8")
    assert main(["verify", str(file), "--against", str(byt5), "--text", str(text)]) == 3
    assert "line 2: no tab" in capsys.readouterr().err
