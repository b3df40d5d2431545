"""Which tensor gets which format in ONNX, held against the types in GGUF files of the same checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from t5_checkpoints import BYT5 as T5
from t5_checkpoints import t5_weights, write_t5

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build, sources_of
from kconv.converters.onnx.formats import OnnxFormats, choose_onnx_formats
from kconv.converters.samples import write_sample
from kconv.core.errors import UsageError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.quant.formats import F16, F32, FORMATS, Q6_K, Q8_0, Format, format_of_type

FAMILIES = ("42dot", "kogpt", "kebyt5", "gbst-kebyt5")
TYPES = ("f32", "f16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    return {family: write_sample(family, folder / family) for family in FAMILIES}


def chosen(folder: Path, type: str) -> OnnxFormats:
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    return choose_onnx_formats(family, checkpoint, build(family, checkpoint), type)


def in_gguf(folder: Path, path: Path) -> dict[str, Format]:
    """The formats in a file, by the checkpoint's names."""
    checkpoint = open_checkpoint(folder)
    sources = sources_of(family_for(checkpoint.config), checkpoint)
    collected: dict[str, Any] = {}
    for tensor in read_header(path).tensors:
        for source in sources.get(tensor.name, ()):
            collected[source] = format_of_type(tensor.ggml_type)
    return collected


@pytest.mark.parametrize("family", FAMILIES)
def test_formats_are_those_of_the_gguf(family: str, samples: dict[str, Path], tmp_path: Path) -> None:
    folder = samples[family]
    files = to_gguf(folder, tmp_path, types=TYPES, verify=False).outputs
    assert len(files) == len(TYPES)
    for type, file in zip(TYPES, files, strict=True):
        right = {
            name: Q8_0 if format == Q6_K else format for name, format in in_gguf(folder, file.path).items()
        }
        if family == "gbst-kebyt5":  # the table is the front end's too, which computes in float32
            right["shared.weight"] = F32
        formats = chosen(folder, type).formats
        assert {name: formats[name] for name in right} == right
        quantized = {format for format in right.values() if format.quantized}
        assert quantized == {"q4_0": {FORMATS["q4_0"], Q8_0}, "q8_0": {Q8_0}}.get(type, set())


def test_a_front_end_and_the_names_of_its_table(samples: dict[str, Path]) -> None:
    """Every name of the table has the same format, whichever the graph asks for."""
    for family, format in (("gbst-kebyt5", F32), ("kebyt5", FORMATS["q4_0"])):
        formats = chosen(samples[family], "q4_0").formats
        names = {"shared.weight", "decoder.embed_tokens.weight"}
        names |= {"encoder.embed_tokens.embeds.weight"} if format == F32 else {"encoder.embed_tokens.weight"}
        assert {name: formats[name] for name in names} == dict.fromkeys(names, format)
        assert formats["lm_head.weight"] == Q8_0


def test_auto(samples: dict[str, Path], tmp_path: Path) -> None:
    """Half precision stays, but not for T5, which overflows in it."""
    types = {family: chosen(folder, "auto").type for family, folder in samples.items()}
    assert types == {"42dot": "f16", "kogpt": "f16", "kebyt5": "f32", "gbst-kebyt5": "f32"}
    assert chosen(write_t5(tmp_path / "model"), "AUTO").type == "f32"


def test_wo_of_t5_stays_f32_in_f16(samples: dict[str, Path]) -> None:
    made = chosen(samples["kebyt5"], "f16")
    wide = {name for name in made.formats if name.endswith("DenseReluDense.wo.weight")}
    assert len(wide) >= 4
    assert {made.formats[name] for name in wide} == {F32}
    assert made.formats["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"] == F16
    assert [note.name for note in made.notes] == ["feed-forward-wo"]


def test_a_tied_table_is_q8_0(tmp_path: Path) -> None:
    """One matrix embeds and makes the logits; scaled logits make two of it in a GGUF."""
    for number, tie in enumerate(({}, {"scale_decoder_outputs": False})):
        folder = write_t5(tmp_path / str(number), head=False, tie_word_embeddings=True, **tie)
        assert chosen(folder, "q4_0").formats["shared.weight"] == Q8_0
    weights = t5_weights(T5, head=False)
    weights["lm_head.weight"] = weights["shared.weight"].clone()  # stored twice, and still one matrix
    folder = write_t5(tmp_path / "twice", weights, tie_word_embeddings=True)
    assert chosen(folder, "q4_0").formats["shared.weight"] == Q8_0


def test_rows_that_are_no_whole_blocks_stay_f32(tmp_path: Path) -> None:
    made = chosen(write_t5(tmp_path / "model", d_model=100), "q4_0")
    name = "decoder.block.1.layer.1.EncDecAttention.v.weight"
    assert made.formats[name] == F32
    assert made.formats["decoder.block.1.layer.2.DenseReluDense.wo.weight"] == FORMATS["q4_0"]
    assert (name, FORMATS["q4_0"], F32) in made.fallbacks
    (note,) = made.notes
    assert note.warning
    assert note.message.endswith(
        "rows that are not a multiple of 32 weights long: stored as F32 in the Q4_0 folder"
    )


def test_types_there_are_not(samples: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="unknown type 'q4_k_m' for ONNX") as caught:
        chosen(samples["42dot"], "q4_k_m")
    assert "choose one of auto, f32, f16, q8_0, q4_0" in (caught.value.hint or "")
