"""The second file: written from a checkpoint, found beside a body, read with nothing trusted."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gbst_material import config_settings, random_gbswt5
from hypothesis import given, settings
from hypothesis import strategies as st

from kconv.converters.families import FRONT_ENDS
from kconv.converters.families.gbst import GBSWT5
from kconv.converters.families.gbst import front_end as gbst
from kconv.converters.families.gbst.front_end_file import (
    front_end_path,
    read_front_end,
    write_front_end,
)
from kconv.converters.families.gbst.settings import EMBEDDING, NORM, PREFIX
from kconv.converters.families.gbst.tensors import body_keys, front_end_model, own_fingerprint
from kconv.converters.front_end import front_end_of
from kconv.converters.mapping import build
from kconv.core.errors import CheckpointError, GgufError, MappingError
from kconv.core.gguf_file import TensorInfo, read_header, write_header
from kconv.core.model import Model
from kconv.core.reading import open_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gbswt5(tmp_path_factory.mktemp("gbst") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return front_end_model(open_checkpoint(folder), {"general.name": "small", "general.license": "other"})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    path = front_end_path(tmp_path_factory.mktemp("written"), "small")
    write_front_end(path, model)
    return path


def body_metadata(fingerprint: str, width: int = 64) -> dict[str, Any]:
    return {"general.architecture": "t5", "t5.embedding_length": width, **body_keys(fingerprint)}


def test_the_file_says_every_setting_and_gives_the_same_embeddings(
    folder: Path, model: Model, written: Path
) -> None:
    header = read_header(written)
    assert written.name == "gbst-small.gguf"
    assert header.arch == "gbst"
    assert header.metadata["general.license"] == "other"
    assert header.metadata["gbst.block_sizes"] == (1, 2, 3, 6, 9)
    assert header.metadata["gbst.downsample_factor"] == 3
    assert header.metadata["gbst.score_consensus"] is True
    assert all(info.ggml_type == 0 for info in header.tensors)
    front_end = read_front_end(written)
    assert front_end.fingerprint == own_fingerprint(model)
    assert front_end.front_end.settings == config_settings()
    checkpoint = open_checkpoint(folder)
    weights = {n: t.read(0, t.rows) for n, t in checkpoint.tensors.items() if n.startswith(PREFIX)}
    expected = gbst.embed(gbst.front_end(config_settings(), weights), [3, 4, 5, 200, 1])
    assert np.array_equal(gbst.embed(front_end.front_end, [3, 4, 5, 200, 1]).values, expected.values)


def test_llama_cpp_reads_the_keys_with_gguf_py(written: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(written)
    assert {tensor.name for tensor in reader.tensors} == {info.name for info in read_header(written).tensors}


def test_the_fingerprint_is_the_front_ends_and_not_the_files(tmp_path: Path, model: Model) -> None:
    other_name = random_gbswt5(tmp_path / "other name")
    assert own_fingerprint(front_end_model(open_checkpoint(other_name))) == own_fingerprint(model)
    half = random_gbswt5(tmp_path / "half", half=True)
    mean = random_gbswt5(tmp_path / "mean", score_consensus_attn=False)
    sizes = random_gbswt5(tmp_path / "sizes", subword_blocks=[[1, 0], [3, 0], [9, 0]])
    prints = [own_fingerprint(front_end_model(open_checkpoint(path))) for path in (half, mean, sizes)]
    assert len({*prints, own_fingerprint(model)}) == 4


def test_half_floats_are_widened_exactly(tmp_path: Path) -> None:
    folder = random_gbswt5(tmp_path / "half", half=True)
    write_front_end(tmp_path / "gbst-half.gguf", front_end_model(open_checkpoint(folder)))
    front_end = read_front_end(tmp_path / "gbst-half.gguf")
    table = open_checkpoint(folder).tensors[EMBEDDING]
    assert np.array_equal(front_end.front_end.embedding, table.read(0, 384).astype(np.float32))


def test_a_batch_norm_goes_into_the_file(tmp_path: Path) -> None:
    folder = random_gbswt5(tmp_path / "norm", gbst_batchnorm=True)
    write_front_end(tmp_path / "gbst-norm.gguf", front_end_model(open_checkpoint(folder)))
    front_end = read_front_end(tmp_path / "gbst-norm.gguf")
    assert front_end.front_end.settings.norm
    assert front_end.front_end.scale is not None


def test_a_pytorch_file_with_tied_names_and_a_counter_of_steps(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = random_gbswt5(tmp_path / "bin", gbst_batchnorm=True)
    expected = own_fingerprint(front_end_model(open_checkpoint(folder)))
    state = load_file(folder / "model.safetensors")
    for name in (EMBEDDING, "decoder.embed_tokens.weight"):
        state[name] = state["shared.weight"]  # one storage, as in ETRI's own files
    state[NORM + "num_batches_tracked"] = torch.tensor(1000)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.aliases
    assert own_fingerprint(front_end_model(checkpoint)) == expected
    assert build(GBSWT5, checkpoint).arch == "t5"


def test_a_negative_variance_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = random_gbswt5(tmp_path / "norm", gbst_batchnorm=True)
    rewrite(folder, lambda state: state[NORM + "running_var"].neg_())
    with pytest.raises(CheckpointError, match="running_var"):
        front_end_model(open_checkpoint(folder))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("kept", [EMBEDDING, "shared.weight"])
def test_the_embedding_under_one_of_its_names_serves_body_and_front_end(
    tmp_path: Path, kept: str, model: Model
) -> None:
    drop = tuple({EMBEDDING, "shared.weight", "decoder.embed_tokens.weight"} - {kept})
    checkpoint = open_checkpoint(random_gbswt5(tmp_path / "one", drop=drop))
    assert own_fingerprint(front_end_model(checkpoint)) == own_fingerprint(model)
    assert build(GBSWT5, checkpoint).tensor("token_embd.weight").shape == (384, 64)


def test_the_body_is_a_t5_without_the_front_end(folder: Path) -> None:
    body = build(GBSWT5, open_checkpoint(folder))
    assert body.arch == "t5"
    names = {tensor.name for tensor in body.tensors}
    assert {
        "token_embd.weight",
        "output.weight",
        "enc.blk.2.ffn_down.weight",
        "dec.output_norm.weight",
    } <= names
    assert not any("conv" in name or "score" in name for name in names)


def test_two_embeddings_are_refused(tmp_path: Path) -> None:
    folder = random_gbswt5(tmp_path / "two")
    rewrite(folder, lambda state: state["shared.weight"].mul_(2))
    with pytest.raises(CheckpointError, match=r"embeds.weight differs from shared.weight"):
        front_end_model(open_checkpoint(folder))


def test_a_tensor_nobody_knows_is_refused_by_both(tmp_path: Path) -> None:
    folder = random_gbswt5(tmp_path / "more")
    rewrite(
        folder, lambda state: state.update({PREFIX + "block_pos.weight": state["shared.weight"][:3].clone()})
    )
    with pytest.raises(MappingError, match=r"block_pos"):
        front_end_model(open_checkpoint(folder))
    with pytest.raises(MappingError, match=r"block_pos"):
        build(GBSWT5, open_checkpoint(folder))


def test_grouped_keys_are_refused(tmp_path: Path) -> None:
    from kconv.core.errors import UnsupportedModel

    with pytest.raises(UnsupportedModel, match="kv_heads is 3"):
        build(GBSWT5, open_checkpoint(random_gbswt5(tmp_path / "faster", kv_heads=3)))


def test_the_front_end_is_found_beside_its_body(written: Path, model: Model) -> None:
    body = written.parent / "small-Q4_0.gguf"
    front_end = front_end_of(FRONT_ENDS, body, body_metadata(own_fingerprint(model)))
    assert front_end is not None
    assert front_end.path == written
    assert front_end_of(FRONT_ENDS, body, {"general.architecture": "t5"}) is None


def test_of_several_files_the_one_of_the_model_is_taken(tmp_path: Path, written: Path, model: Model) -> None:
    other = random_gbswt5(tmp_path / "other", score_consensus_attn=False)
    write_front_end(tmp_path / "gbst-a.gguf", front_end_model(open_checkpoint(other)))
    (tmp_path / "gbst-b.gguf").write_bytes(b"not a GGUF")
    (tmp_path / "gbst-z.gguf").write_bytes(written.read_bytes())
    front_end = front_end_of(FRONT_ENDS, tmp_path / "body.gguf", body_metadata(own_fingerprint(model)))
    assert front_end is not None
    assert front_end.path.name == "gbst-z.gguf"
    (tmp_path / "gbst-z.gguf").unlink()
    altered(tmp_path / "gbst-body.gguf", written, {"general.architecture": "t5", "gbst.fingerprint": None})
    with pytest.raises(
        GgufError, match=r": gbst-a.gguf belongs to another model; [^ ]*gbst-b.gguf: .*not a GGUF[^;]*$"
    ):
        front_end_of(FRONT_ENDS, tmp_path / "gbst-body.gguf", body_metadata(own_fingerprint(model)))


def test_a_missing_or_foreign_front_end_is_refused(tmp_path: Path, written: Path, model: Model) -> None:
    body = tmp_path / "small-F16.gguf"
    with pytest.raises(GgufError, match="needs its front end") as caught:
        front_end_of(FRONT_ENDS, body, body_metadata(own_fingerprint(model)))
    assert "gbst-" in str(caught.value.hint)
    assert caught.value.exit_code == 3
    with pytest.raises(GgufError, match="of another model"):
        front_end_of(FRONT_ENDS, body, body_metadata("0" * 64), written)
    with pytest.raises(GgufError, match="of width 64"):
        front_end_of(FRONT_ENDS, body, body_metadata(own_fingerprint(model), width=128), written)
    with pytest.raises(GgufError, match="does not need a front end"):
        front_end_of(FRONT_ENDS, body, {}, written)
    with pytest.raises(GgufError, match="damaged"):
        front_end_of(FRONT_ENDS, body, {"kconv.front_end": "gbst", "kconv.front_end.fingerprint": 3})
    with pytest.raises(GgufError, match="damaged"):
        front_end_of(
            FRONT_ENDS, body, {"kconv.front_end": "whisper", "kconv.front_end.fingerprint": "0" * 64}
        )


def altered(path: Path, written: Path, keys: dict[str, Any], shapes: dict[str, Any] | None = None) -> Path:
    """The written file with other keys (None takes one away) or tensors, its data as it was."""
    header = read_header(written)
    metadata = {key: value for key, value in {**header.metadata, **keys}.items() if value is not None}
    arch = metadata.pop("general.architecture")
    infos = []
    for info in header.tensors:
        shape = (shapes or {}).get(info.name, info.shape)
        if shape is not None:
            infos.append(replace(info, shape=shape))
    infos += [TensorInfo(name, shape, 0, 4) for name, shape in (shapes or {}).items() if name.startswith("+")]
    start = write_header(path, arch, metadata, infos)
    data = written.read_bytes()[header.data_offset :]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data + bytes(64))
    return path


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.architecture": "t5"}, "architecture t5|architecture 't5'"),
        ({"gbst.version": 2}, "version"),
        ({"gbst.version": None}, "version"),
        ({"gbst.block_sizes": (1, 2, 3)}, "conv.weight"),
        ({"gbst.block_sizes": (1, 0, 9)}, "block_sizes"),
        ({"gbst.block_sizes": (-1, 9)}, "block_sizes"),
        ({"gbst.block_sizes": "1,2"}, "block_sizes"),
        ({"gbst.block_sizes": (1.0, 9.0)}, "block_sizes"),
        ({"gbst.block_sizes": (4093, 9, 8)}, "block_sizes"),
        ({"gbst.block_sizes": (9,) * 65}, "at most 64 sizes"),
        ({"gbst.block_sizes": None}, "block_sizes is missing"),
        ({"gbst.block_sizes": (1, 2, 3, 9)}, "fingerprint"),
        ({"gbst.downsample_factor": 0}, "downsample_factor"),
        ({"gbst.downsample_factor": 10}, "downsample_factor"),
        ({"gbst.downsample_factor": 2}, "fingerprint"),
        ({"gbst.score_consensus": 1}, "score_consensus"),
        ({"gbst.score_consensus": False}, "fingerprint"),
        ({"gbst.batch_norm": True}, "batch_norm_epsilon"),
        ({"gbst.batch_norm": True, "gbst.batch_norm_epsilon": 1e-5}, "norm.weight"),
        ({"gbst.embedding_length": 63}, "token_embd.weight"),
        ({"gbst.embedding_length": True}, "embedding_length"),
        ({"gbst.vocab_size": 10**9}, "token_embd.weight"),
        ({"gbst.fingerprint": "0" * 64}, "fingerprint"),
        ({"gbst.fingerprint": None}, "fingerprint"),
    ],
)
def test_keys_that_do_not_hold_are_refused(
    tmp_path: Path, written: Path, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(GgufError, match=words) as caught:
        read_front_end(altered(tmp_path / "x.gguf", written, keys))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"conv.weight": (64, 9)}, "conv.weight"),
        ({"score.bias": None}, "score.bias .* is missing"),
        ({"+more": (1,)}, "overlaps|unexpected tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, written: Path, shapes: dict[str, Any], words: str
) -> None:
    with pytest.raises(GgufError, match=words):
        read_front_end(altered(tmp_path / "x.gguf", written, {}, shapes))


def test_damaged_weights_are_refused(tmp_path: Path, written: Path) -> None:
    data = bytearray(written.read_bytes())
    header = read_header(written)
    place = header.data_offset + header.tensors[3].offset
    (value,) = struct.unpack_from("<f", data, place)
    struct.pack_into("<f", data, place, float(np.nextafter(np.float32(value), np.float32(9))))
    (tmp_path / "bit.gguf").write_bytes(data)
    with pytest.raises(GgufError, match="fingerprint"):
        read_front_end(tmp_path / "bit.gguf")
    struct.pack_into("<f", data, place, float("nan"))
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(GgufError, match="NaN"):
        read_front_end(tmp_path / "nan.gguf")


def test_truncated_missing_and_odd_files_are_refused(tmp_path: Path, written: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(written.read_bytes()[:-100])
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("short.gguf", "pipe.gguf", "none.gguf", "."):
        with pytest.raises(GgufError):
            read_front_end(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 1200), value=st.integers(0, 255))
def test_any_byte_of_the_header_may_lie(written: Path, place: int, value: int) -> None:
    data = bytearray(written.read_bytes())
    if data[place] == value:
        return
    data[place] = value
    other = written.with_name("fuzzed")
    other.write_bytes(data)
    try:
        assert read_front_end(other).fingerprint == read_front_end(written).fingerprint
    except GgufError:
        return
