"""``--optimize`` from text to proof: less loss in the same size, the same bytes again, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage_material import edited

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.recorded import read_manifest
from kconv.converters.samples import write_sample
from kconv.converters.tokenizer import read_tokenizer
from kconv.core.errors import InputError, OutputExists, UsageError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.flows.quantize import quantize
from kconv.flows.results import Conversion
from kconv.quant import native
from kconv.quant.code_layouts import LAYOUTS, layout_of
from kconv.quant.formats import format_of_type
from kconv.quant.full_statistics import read_statistics
from kconv.quant.gguf_weights import open_gguf
from kconv.quant.importance import read_importance
from kconv.quant.optimize import whole
from kconv.quant.strengths import of_half
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.gguf_artifact import GgufArtifact
from kconv.verify.inputs import Expected, VerifyOptions, text_windows
from kconv.verify.logits import compare
from kconv.verify.proof import WeightsPart
from kconv.vocab.selection import select_vocab

pytestmark = pytest.mark.skipif(not native.available_sets(), reason="kconv's kernels were not built")

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
UNSEEN = [(TEXTS / "held_out.txt").read_text("utf-8")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("sample") / "sample")


@pytest.fixture(scope="module")
def statistics(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "통계.gguf"
    texts = [word for name in ("facts.txt", "stories.txt") for word in ("--text", str(TEXTS / name))]
    assert main(["imatrix", str(folder), *texts, "-o", str(path), "--chunks", "8", "--full", "--json"]) == 0
    return path


@pytest.fixture(scope="module")
def made(folder: Path, statistics: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """With its statistics beside it."""
    target = tmp_path_factory.mktemp("made")
    shutil.copy(statistics, target)
    return to_gguf(
        folder,
        target / "m.gguf",
        types=("q3_k_m",),
        imatrix=target / statistics.name,
        optimize=True,
        verify=False,
    )


def expected_of(folder: Path) -> Expected:
    """With a tokenizer process of its own, which ends when nobody holds it any more."""
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    return Expected(checkpoint, family, build(family, checkpoint), read_tokenizer(checkpoint))


def weights(path: Path, folder: Path) -> WeightsPart:
    """What the proof says of the weights of a file."""
    with open_gguf(path) as file:
        return GgufArtifact(file, read_manifest(path)).weights(expected_of(folder), VerifyOptions(threads=2))


def test_less_is_lost_on_unseen_text_in_files_of_the_same_size(
    folder: Path, statistics: Path, made: Conversion, tmp_path: Path
) -> None:
    plain = to_gguf(folder, tmp_path / "plain.gguf", types=("q3_k_m",), imatrix=statistics, verify=False)
    before, after = read_header(plain.outputs[0].path), read_header(made.outputs[0].path)
    assert [(i.name, i.ggml_type, i.nbytes) for i in before.tensors] == [
        (i.name, i.ggml_type, i.nbytes) for i in after.tensors
    ]
    found = divergences(folder, [made.outputs[0].path, plain.outputs[0].path])
    assert found[0] < 0.95 * found[1]


def divergences(folder: Path, paths: Sequence[Path]) -> list[float]:
    """Mean KL of each file on unseen text."""
    expected = expected_of(folder)
    model, _ = select_vocab(expected.model, expected.checkpoint, expected.source)
    windows = text_windows(replace(expected, model=model), UNSEEN, tokens=512, window=None)
    reading = Reference(expected.checkpoint, expected.family, threads=2).read(windows)
    found = []
    for path in paths:
        with LlamaReader(path, threads=2) as reader:
            found.append(compare(lambda asked: reading, reader, windows).figures().kl_mean)
    return found


def test_file_and_manifest_say_how_codes_were_chosen(statistics: Path, made: Conversion) -> None:
    keys = read_header(made.outputs[0].path).metadata
    importance = read_importance(statistics)
    assert keys["kconv.optimized.statistics"] == statistics.name
    assert keys["kconv.optimized.statistics_sha256"] == importance.sha256
    manifest = json.loads(made.outputs[0].manifest.read_text("utf-8"))
    matrices = manifest["importance"]["optimized"]["matrices"]
    assert len(matrices) == 21
    (strength,) = matrices["blk.1.ffn_down.weight"]["q4_K"]["strength"]
    assert strength in (0.1, 0.3, 0.6, 1.0)
    assert any(note["name"] == "optimized" for note in manifest["notes"])


def test_same_statistics_give_the_same_bytes_however_they_are_used(
    folder: Path, made: Conversion, tmp_path: Path
) -> None:
    """Threads, parts, other types beside it, and a GGUF as the source."""
    statistics = made.outputs[0].path.parent / "통계.gguf"
    before = made.outputs[0].path.read_bytes()
    to_gguf(
        folder,
        tmp_path / "several",
        types=("q3_k_m", "q4_0", "f16"),
        imatrix=statistics,
        optimize=True,
        verify=False,
        threads=1,
    )
    (again,) = (tmp_path / "several").glob("*Q3_K_M.gguf")
    assert again.read_bytes() == before
    (floats,) = (tmp_path / "several").glob("*F16.gguf")
    requantized = quantize(floats, tmp_path / "r.gguf", types=("q3_k_m",), imatrix=statistics, optimize=True)
    assert data_of(requantized.outputs[0].path) == data_of(made.outputs[0].path)


def data_of(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor; their order is the source's."""
    header, data = read_header(path), path.read_bytes()
    starts = {info.name: (header.data_offset + info.offset, info.nbytes) for info in header.tensors}
    return {name: data[start : start + size] for name, (start, size) in starts.items()}


def test_file_of_statistics_is_an_imatrix(folder: Path, statistics: Path, tmp_path: Path) -> None:
    """Kconv imatrix without --full makes the same numbers, and files of it are the same to the byte."""
    texts = [word for name in ("facts.txt", "stories.txt") for word in ("--text", str(TEXTS / name))]
    plain = tmp_path / "통계.gguf"
    assert main(["imatrix", str(folder), *texts, "-o", str(plain), "--chunks", "8", "--json"]) == 0
    one, other = read_importance(statistics), read_importance(plain)
    assert one.full is not None
    assert other.full is None
    assert one.values.keys() == other.values.keys()
    assert all(np.array_equal(one.values[name], other.values[name]) for name in one.values)


def test_statistics_are_the_products_of_the_inputs(statistics: Path) -> None:
    """Those that share an input share a site; both halves together are the whole, whose diagonal is known."""
    importance = read_importance(statistics)
    full = importance.full
    assert full is not None
    sites = {name: site.number for (name, _), site in full.members.items()}
    same = [("attn_q", "attn_k"), ("attn_q", "attn_v"), ("ffn_gate", "ffn_up")]
    assert all(sites[f"blk.1.{one}.weight"] == sites[f"blk.1.{other}.weight"] for one, other in same)
    assert len(set(sites.values())) == 3 * 4
    site = full.members["blk.0.ffn_down.weight", 0]
    roots = whole(full, site, 0.0).roots
    assert np.allclose(roots**2, importance.values["blk.0.ffn_down.weight"], rtol=1e-4)
    halves = [of_half(full, site, half) for half in (0, 1)]
    products = [
        count * half.matrix * np.outer(half.roots, half.roots)
        for half, count in zip(halves, site.counts, strict=True)
    ]
    both = whole(full, site, 0.0)
    assert np.allclose(
        sum(products) / sum(site.counts),
        both.matrix * np.outer(both.roots, both.roots),
        atol=2e-3 * both.roots.max() ** 2,
    )
    assert np.linalg.eigvalsh(both.matrix.astype(float)).min() > -0.01


def test_weights_are_derived_again_where_the_statistics_lie_beside_the_file(
    folder: Path, made: Conversion
) -> None:
    part = weights(made.outputs[0].path, folder)
    assert part.verdict == "passed"
    assert {tensor.state for tensor in part.tensors} == {"identical"}


@pytest.fixture(scope="module")
def alone(made: Conversion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same file without its statistics."""
    target = tmp_path_factory.mktemp("alone")
    for path in (made.outputs[0].path, made.outputs[0].manifest):
        shutil.copy(path, target)
    return target / "m.gguf"


@pytest.mark.parametrize("manifest", [True, False])
def test_without_the_statistics_weights_are_judged_by_bounds(
    folder: Path, alone: Path, tmp_path: Path, manifest: bool
) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(alone, path)
    if manifest:
        shutil.copy(alone.with_name("m.gguf.manifest.json"), tmp_path)
    part = weights(path, folder)
    assert part.verdict == "passed", part.findings
    assert {tensor.state for tensor in part.tensors} == {"identical", "within"}


def within_a_step(path: Path, out: Path, name: str, low: int) -> Path:
    """The file with codes of a tensor drawn at random from those ``low`` to 1 steps from its own."""
    header, data = read_header(path), bytearray(path.read_bytes())
    info = next(info for info in header.tensors if info.name == name)
    format = format_of_type(info.ggml_type)
    assert format is not None
    layout = layout_of(format)
    assert layout is not None
    start = header.data_offset + info.offset
    blocks = np.frombuffer(data, np.uint8)[start : start + info.nbytes].reshape(-1, format.block_bytes).copy()
    codes = layout.codes(blocks).astype(int)
    codes += np.random.default_rng(0).integers(low, 2, codes.shape)
    layout.put(blocks, np.clip(codes, layout.grid.low, layout.grid.high).astype(np.uint8))
    data[start : start + info.nbytes] = blocks.tobytes()
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("low", [-1, 0])
def test_random_codes_within_a_step_are_found_without_the_statistics(
    folder: Path, alone: Path, tmp_path: Path, low: int
) -> None:
    path = within_a_step(alone, tmp_path / "m.gguf", "blk.1.ffn_up.weight", low)
    assert wrong(path, folder) == {"blk.1.ffn_up.weight"}


def wrong(path: Path, folder: Path) -> set[str]:
    return {tensor.name for tensor in weights(path, folder).tensors if tensor.state == "differs"}


def _row_zeroed(weights: Any) -> Any:
    weights[17] = 0
    return weights


DAMAGES = (
    ("blk.1.ffn_down.weight", lambda rows: rows * np.float32(1.01)),
    ("blk.1.ffn_up.weight", _row_zeroed),
    ("blk.1.ffn_up.weight", lambda rows: np.roll(rows, 1, 1)),
)


@pytest.mark.parametrize(("name", "change"), DAMAGES)
def test_damages_are_found_without_the_statistics(
    folder: Path, alone: Path, tmp_path: Path, name: str, change: Any
) -> None:
    """One in a hundred is beyond the scatter of three bits, but not of four."""
    path = edited(alone, tmp_path / "m.gguf", tensors={name: change})
    assert wrong(path, folder) == {name}


def test_with_the_statistics_a_scale_is_found_in_three_bits_and_so_is_a_single_row(
    folder: Path, made: Conversion, tmp_path: Path
) -> None:
    def one_row(rows: Any) -> Any:
        rows[5] *= np.float32(1.01)
        return rows

    shutil.copytree(made.outputs[0].path.parent, tmp_path / "with")
    changes = {"blk.1.ffn_up.weight": lambda rows: rows * np.float32(1.01), "blk.0.attn_q.weight": one_row}
    path = edited(made.outputs[0].path, tmp_path / "with" / "m.gguf", tensors=changes)
    assert wrong(path, folder) == set(changes)


def test_one_step_conversion_keeps_the_statistics_and_goes_on_with_them(folder: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"types": ("q4_0",), "optimize": True, "verify": False}
    call["calibrate"] = (TEXTS / "facts.txt",)
    first = to_gguf(folder, tmp_path, **call)
    (kept,) = tmp_path.glob("*-statistics.gguf")
    digest = read_header(first.outputs[0].path).metadata["kconv.optimized.statistics_sha256"]
    assert read_importance(kept).sha256 == digest
    expected, told = first.outputs[0].path.read_bytes(), []
    first.outputs[0].path.unlink()
    first.outputs[0].manifest.unlink()
    with pytest.raises(OutputExists):
        to_gguf(folder, tmp_path, **call)
    again = to_gguf(folder, tmp_path, **call, resume=True, announce=told.append)
    assert again.outputs[0].path.read_bytes() == expected
    assert any("statistics have been computed already" in text for text in told)


def test_little_text_leaves_the_bytes_of_an_imatrix(folder: Path, tmp_path: Path) -> None:
    """A single window has no second half to try anything on."""
    text = tmp_path / "little.txt"
    text.write_text((TEXTS / "facts.txt").read_text("utf-8")[:800], "utf-8")
    statistics = tmp_path / "little.gguf"
    assert main(["imatrix", str(folder), "--text", str(text), "-o", str(statistics), "--full", "--json"]) == 0
    found = [
        to_gguf(
            folder, tmp_path / f"{on}.gguf", types=("q4_0",), imatrix=statistics, optimize=on, verify=False
        )
        for on in (False, True)
    ]
    assert data_of(found[0].outputs[0].path) == data_of(found[1].outputs[0].path)
    assert any(note.name == "not-optimized" and note.warning for note in found[1].notes)


def test_what_cannot_be_is_refused(folder: Path, statistics: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs to know what flows"):
        to_gguf(folder, tmp_path, types=("q4_0",), optimize=True)
    for elsewhere in ({"scheduler": "tcp://127.0.0.1:1"}, {"stream": True}):
        with pytest.raises(UsageError, match="cannot be combined"):
            to_gguf(folder, tmp_path, types=("q4_0",), optimize=True, imatrix=statistics, **elsewhere)
    with pytest.raises(UsageError, match="beside the output"):
        to_gguf(folder, "s3://some/where", types=("q4_0",), optimize=True, calibrate=(TEXTS / "facts.txt",))
    plain = tmp_path / "plain.gguf"
    edited(statistics, plain, metadata={"kconv.statistics.version": None})
    with pytest.raises(InputError, match="does not contain full statistics"):
        to_gguf(folder, tmp_path, types=("q4_0",), imatrix=plain, optimize=True)
    other = write_sample("kogpt", tmp_path / "other")
    with pytest.raises(InputError, match="another model"):
        to_gguf(other, tmp_path, types=("q4_0",), imatrix=statistics, optimize=True)
    later = edited(statistics, tmp_path / "later.gguf", metadata={"kconv.statistics.version": 2})
    with pytest.raises(InputError, match="version 2, expected 1"):
        read_importance(later)
    lacking = edited(statistics, tmp_path / "lacking.gguf", tensors={"site.3.correlations": None})
    with pytest.raises(InputError, match="site 3 are missing or of another size"):
        read_importance(lacking)


def test_nan_among_the_correlations_is_one_clear_error(
    folder: Path, statistics: Path, tmp_path: Path
) -> None:
    full = read_statistics(statistics)
    assert full is not None
    broken, site = tmp_path / "broken.gguf", full.members["blk.2.attn_q.weight", 0]
    data = bytearray(statistics.read_bytes())
    data[site.correlations_at + 100 : site.correlations_at + 102] = b"\0\x7e"
    broken.write_bytes(data)
    with pytest.raises(InputError, match="values that are not correlations"):
        to_gguf(folder, tmp_path, types=("q4_0",), imatrix=broken, optimize=True, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf"]


def test_every_format_that_has_codes_is_known() -> None:
    assert set(LAYOUTS) == {
        *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs")
    }
