"""kconv quantize: whole files, byte for byte, against llama_model_quantize."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from requantize_material import QUANTIZED_KEYS, half_file, llama_file, odd_file, theirs

from kconv.core.errors import InputError, NonFiniteError
from kconv.core.gguf_file import header_bytes, read_header, read_pairs
from kconv.core.gguf_pairs import encode_pairs
from kconv.flows.quantize import quantize
from kconv.quant.formats import FORMATS
from kconv.quant.policy import parse_policy

TYPES = ("q8_0", "q4_0", "q4_k_m", "q6_k", "q2_k", "f16", "bf16", "f32")
SHAPES = {
    "plain": {},
    "tied": {"tied": True},
    "rows of no whole blocks": {"hidden": 160, "feed_forward": 328, "kv_heads": 1},
    "eight experts": {"feed_forward": 256, "experts": 8},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by shape and float type."""
    folder = tmp_path_factory.mktemp("sources")
    made = {}
    for number, (shape, sizes) in enumerate(SHAPES.items()):
        made[f"{shape}, f32"] = llama_file(folder / f"{number}-f32.gguf", **sizes)
        made[f"{shape}, bf16"] = llama_file(folder / f"{number}-bf16.gguf", bf16=True, **sizes)
        made[f"{shape}, f16"] = half_file(folder / f"{number}-f16.gguf", made[f"{shape}, f32"])
    return made


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_files_equal_llama_quantize(sources: dict[str, Path], tmp_path: Path, shape: str, dtype: str) -> None:
    source = sources[f"{shape}, {dtype}"]
    made = quantize(source, tmp_path, types=TYPES, threads=2)
    assert len(made.outputs) == len(TYPES)
    for name, output in zip(TYPES, made.outputs, strict=True):
        expected = tmp_path / "theirs.gguf"
        assert theirs(source, expected, parse_policy(name).file_type)
        assert output.path.read_bytes() == expected.read_bytes(), name
        assert output.bytes == expected.stat().st_size


def test_pure_and_named_tensors_equal_llama_quantize(sources: dict[str, Path], tmp_path: Path) -> None:
    source, file_type = sources["plain, f32"], parse_policy("q4_k_m").file_type
    types = {name: FORMATS[name].ggml_type for name in ("q8_0", "q5_K", "q6_K", "q3_K")}
    assert theirs(source, tmp_path / "a.gguf", file_type, pure=True)
    assert theirs(
        source,
        tmp_path / "b.gguf",
        file_type,
        output_tensor_type=types["q8_0"],
        token_embedding_type=types["q5_K"],
        overrides=[(r"blk\.1\.ffn", types["q6_K"]), ("ffn_down", types["q3_K"])],
    )
    pure = quantize(source, tmp_path / "x.gguf", types=["q4_k_m"], pure=True)
    named = quantize(
        source,
        tmp_path / "y.gguf",
        types=["q4_k_m"],
        output_type="q8_0",
        embedding_type="q5_k",
        tensor_types=[r"blk\.1\.ffn=q6_k", "ffn_down=q3_k"],
    )
    for letter, made in (("a", pure), ("b", named)):
        assert made.outputs[0].path.read_bytes() == (tmp_path / f"{letter}.gguf").read_bytes()


def write_imatrix(path: Path, values: dict[str, np.ndarray]) -> Path:
    """An imatrix as llama-imatrix writes it, through gguf-py; one token was counted."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, each in values.items():
        stack = each.reshape(-1, each.shape[-1])  # one row, or one for each expert
        writer.add_tensor(f"{name}.in_sum2", stack)
        writer.add_tensor(f"{name}.counts", np.ones((len(stack), 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("shape", ["plain", "eight experts"])
def test_importance_equals_llama_quantize(sources: dict[str, Path], tmp_path: Path, shape: str) -> None:
    """Types that need importance data, too; only the keys that tell of it are ours."""
    source = sources[f"{shape}, f16"]
    generator = np.random.default_rng(5)
    values = {
        info.name: generator.random((*info.shape[:-2], info.shape[-1]), np.float32) + np.float32(0.1)
        for info in read_header(source).tensors
        if len(info.shape) > 1 and not info.name.startswith(("token_embd", "output"))
    }
    imatrix = write_imatrix(tmp_path / "some.imatrix.gguf", values)
    types = ("q4_k_m", "q8_0", "iq2_xxs", "q2_k_s", "iq4_nl")
    for name, output in zip(
        types, quantize(source, tmp_path, types=types, imatrix=imatrix).outputs, strict=True
    ):
        expected = tmp_path / "theirs.gguf"
        assert theirs(source, expected, parse_policy(name).file_type, importance=values)
        ours, header = read_pairs(output.path), read_header(output.path)
        keys = [key for key in ours if key.startswith("quantize.imatrix")]
        assert keys[0] == "quantize.imatrix.file"
        assert header.metadata["quantize.imatrix.entries_count"] == len(values)
        bare = header_bytes([pair for key, pair in ours.items() if key not in keys], header.tensors)
        assert bare + output.path.read_bytes()[header.data_offset :] == expected.read_bytes(), name


def test_every_key_is_kept_byte_for_byte(tmp_path: Path) -> None:
    source = odd_file(tmp_path / "odd.gguf")
    (output,) = quantize(source, tmp_path / "made.gguf", types=["q8_0"]).outputs
    assert theirs(source, tmp_path / "theirs.gguf", 7)
    assert output.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    before, after = read_pairs(source), read_pairs(output.path)
    assert list(after)[-2:] == list(QUANTIZED_KEYS)
    for key in QUANTIZED_KEYS:
        before.pop(key)
        after.pop(key)
    assert list(after.items()) == list(before.items())


def test_an_unusual_alignment_is_kept(tmp_path: Path) -> None:
    """llama_model_quantize forgets it and writes a file nothing can read."""
    plain = llama_file(tmp_path / "plain.gguf")
    header, pairs = read_header(plain), list(read_pairs(plain).values())
    data = plain.read_bytes()[header.data_offset :]
    odd = tmp_path / "odd.gguf"  # its tensors are of sizes that fit both alignments
    head = header_bytes([*pairs, *encode_pairs({"general.alignment": 64})], header.tensors, 64)
    odd.write_bytes(head + data)
    assert read_header(odd).tensors == header.tensors
    quantize(odd, tmp_path / "made.gguf", types=["q4_0"], split_max_size="150K")
    quantize(plain, tmp_path / "expected.gguf", types=["q4_0"], split_max_size="150K")
    for made, expected in zip(
        sorted(tmp_path.glob("made-*.gguf")), sorted(tmp_path.glob("expected-*.gguf")), strict=True
    ):
        ours_read = gguf.GGUFReader(made)
        assert ours_read.alignment == 64
        for one, other in zip(ours_read.tensors, gguf.GGUFReader(expected).tensors, strict=True):
            assert (one.name, one.data.tobytes()) == (other.name, other.data.tobytes())


def test_quantized_sources(sources: dict[str, Path], tmp_path: Path) -> None:
    """Refused unless asked for; what is in the wanted format already is copied."""
    for first, second in (("q8_0", "q4_0"), ("q4_k_m", "q6_k"), ("q6_k", "q8_0"), ("q4_0", "f16")):
        (source,) = quantize(sources["plain, bf16"], tmp_path, types=[first], force=True).outputs
        with pytest.raises(InputError, match="already quantized") as refused:
            quantize(source.path, tmp_path / "made.gguf", types=[second], force=True)
        assert "--allow-requantize" in (refused.value.hint or "")
        (made,) = quantize(
            source.path, tmp_path / "made.gguf", types=[second], allow_requantize=True, force=True
        ).outputs
        file_type = parse_policy(second).file_type
        assert not theirs(source.path, tmp_path / "theirs.gguf", file_type)
        assert theirs(source.path, tmp_path / "theirs.gguf", file_type, allow_requantize=True)
        assert made.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_copying_equals_llama_quantize(sources: dict[str, Path], tmp_path: Path) -> None:
    (source,) = quantize(sources["eight experts, f32"], tmp_path, types=["q4_k_m"]).outputs
    (made,) = quantize(source.path, tmp_path / "made.gguf", types=["copy"]).outputs
    assert theirs(source.path, tmp_path / "theirs.gguf", 0, only_copy=True)
    assert made.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_threads_do_not_show(sources: dict[str, Path], tmp_path: Path) -> None:
    for threads in (1, 3):
        quantize(sources["plain, f16"], tmp_path / f"{threads}", types=["q4_k_m", "q8_0"], threads=threads)
    one = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    assert one == {path.name: path.read_bytes() for path in (tmp_path / "3").iterdir()}
    assert len(one) == 4


def test_names_and_manifest(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "my-model-F32.gguf"
    source.write_bytes(sources["plain, f32"].read_bytes())
    (output,) = quantize(source, tmp_path / "new" / "folder", types=["Q4_K_M"]).outputs
    assert output.path == tmp_path / "new" / "folder" / "my-model-Q4_K_M.gguf"
    manifest = json.loads(output.manifest.read_text("utf-8"))
    (made_from,) = manifest["made_from"]
    assert made_from["name"] == source.name
    assert made_from["bytes"] == source.stat().st_size
    assert manifest["output"] == {
        "file": output.path.name,
        "type": "q4_K_M",
        "bytes": output.path.stat().st_size,
        "bits_per_weight": round(output.bits_per_weight, 4),
    }
    assert manifest["options"]["types"] == ["Q4_K_M"]
    types = {name: FORMATS[kind].ggml_type for name, kind in manifest["tensors"].items()}
    assert types == {info.name: info.ggml_type for info in read_header(output.path).tensors}


@pytest.mark.parametrize("harm", [np.nan, np.inf, 1e6])
def test_harmful_weights_are_refused(tmp_path: Path, harm: float) -> None:
    source = llama_file(tmp_path / "source.gguf")
    info = next(info for info in read_header(source).tensors if info.name == "blk.1.ffn_down.weight")
    with source.open("r+b") as file:
        file.seek(read_header(source).data_offset + info.offset + 4 * 300)
        file.write(np.float32(harm).tobytes())
    with pytest.raises(NonFiniteError, match=r"tensor blk\.1\.ffn_down\.weight"):
        quantize(source, tmp_path / "made.gguf", types=["f16"])
    assert not theirs(source, tmp_path / "theirs.gguf", 1)
    made = quantize(source, tmp_path / "made.gguf", types=["f16"], allow_nan=True)
    assert [note.name for note in made.notes] == ["not-finite"]


def test_infinite_scales_of_copied_weights_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    (source,) = quantize(sources["plain, f32"], tmp_path, types=["q8_0"]).outputs
    header = read_header(source.path)
    info = next(info for info in header.tensors if info.name == "blk.0.attn_q.weight")
    with source.path.open("r+b") as file:
        file.seek(header.data_offset + info.offset + 34 * 5)
        file.write(np.float16(np.inf).tobytes())
    with pytest.raises(NonFiniteError, match=r"blk\.0\.attn_q\.weight"):
        quantize(source.path, tmp_path / "made.gguf", types=["copy"])
