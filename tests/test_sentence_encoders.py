"""BERT and RoBERTa as sentence encoders: GGUF in the real llama.cpp, ONNX in onnxruntime, and the proof."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_material import fetched_converter, read_with_gguf_py, run_quantizer
from sentence_material import (
    TEXTS,
    cosine,
    embedded_by_llama_cpp,
    padded,
    states_of_transformers,
)
from shared_material import shared
from tokenizers import Tokenizer

from kconv.converters.pooling import pooling_of
from kconv.converters.results import Options
from kconv.converters.samples import SAMPLES, write_sample
from kconv.converters.samples.encoders import word_piece_tokenizer, write_pooling
from kconv.core.errors import CheckpointError, EmbedsOnly, InputError, UsageError, VocabError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.flows.compare import compare
from kconv.flows.convert import to_gguf
from kconv.flows.embed import embed
from kconv.flows.generate import generate
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify
from kconv.verify.cosine_gates import cosine_gate, judge_cosine

FAMILIES = ("bert", "roberta", "xlm-roberta")
PADDING = {"bert": 0, "roberta": 1, "xlm-roberta": 1}
POOLED: dict[str, Callable[[Any], Any]] = {
    "bert": lambda states: states.mean(0),
    "roberta": lambda states: states[0],
    "xlm-roberta": lambda states: states[0],
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, their GGUF files and ONNX folders, none proven yet."""

    def make(root: Path) -> None:
        for family in FAMILIES:
            write_sample(family, root / family)
            to_gguf(root / family, root / family, types=("f32", "f16", "q4_k_m"), verify=False)
            to_onnx(root / family, root / f"{family}-onnx", type="f32", verify=False)

    return shared(tmp_path_factory, "sentence-encoders", make)


def gguf_of(made: Path, family: str, type: str = "F32") -> Path:
    return made / family / f"{family}-{type}.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_embeds_as_transformers_does(made: Path, family: str) -> None:
    states, ids = states_of_transformers(made / family)
    embedded, tokens = embedded_by_llama_cpp(gguf_of(made, family))
    assert tokens == ids
    for found, expected in zip(embedded, states, strict=True):
        assert cosine(found, POOLED[family](expected)) > 1 - 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_gives_what_transformers_gives_alone_and_padded(made: Path, family: str) -> None:
    import onnxruntime

    states, ids = states_of_transformers(made / family)
    session = onnxruntime.InferenceSession(made / f"{family}-onnx" / "model.onnx")
    names = {each.name for each in session.get_inputs()}
    assert names == {"input_ids", "attention_mask"} | ({"token_type_ids"} if family == "bert" else set())

    def run(matrix: Any, mask: Any) -> Any:
        feeds = {"input_ids": matrix, "attention_mask": mask, "token_type_ids": np.zeros_like(matrix)}
        return session.run(None, {name: feeds[name] for name in names})

    together = run(*padded(ids, PADDING[family]))
    for row, (each, expected) in enumerate(zip(ids, states, strict=True)):
        alone = run(np.array([each]), np.ones((1, len(each)), np.int64))
        vector = POOLED[family](expected)
        vector = vector if family == "bert" else vector / np.linalg.norm(vector)  # as modules.json says
        for found, pooled in ((alone[0][0], alone[1][0]), (together[0][row, : len(each)], together[1][row])):
            assert np.abs(found - expected).max() < 1e-4
            assert np.abs(pooled - vector).max() < 1e-4


def test_a_second_segment_counts_in_onnx(made: Path) -> None:
    import onnxruntime
    import torch
    from transformers import AutoModel

    ids, types = np.array([[2, 50, 51, 3, 60, 3]]), np.array([[0, 0, 0, 0, 1, 1]])
    model = AutoModel.from_pretrained(made / "bert", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor(ids), token_type_ids=torch.tensor(types)).last_hidden_state.numpy()
    session = onnxruntime.InferenceSession(made / "bert-onnx" / "model.onnx")
    feeds = {"input_ids": ids, "token_type_ids": types, "attention_mask": np.ones_like(ids)}
    assert np.abs(session.run(["last_hidden_state"], feeds)[0] - expected).max() < 1e-4


def test_sentence_transformers_files_go_along(made: Path) -> None:
    folder = made / "roberta-onnx"
    for name in ("modules.json", "1_Pooling/config.json", "vocab.txt", "tokenizer.json", "config.json"):
        assert (folder / name).read_bytes() == (made / "roberta" / name).read_bytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_f32_file_is_proven_by_cosine(made: Path, family: str) -> None:
    proof = verify(gguf_of(made, family), made / family, tokens=64)
    figures = proof.measured.figures
    assert proof.embeddings is not None
    assert proof.embeddings.figures is figures
    assert (proof.verdict, proof.right) == ("passed", "passed")
    assert proof.runtime.matrices == 3 * 6 + 1  # every matrix, and the hidden states
    assert figures.cosine_least > 1 - 1e-6
    assert figures.nmse < 1e-6
    assert figures.nmse_same_gelu < figures.nmse / 10  # what differs is llama.cpp's GELU
    assert figures.same_nearest == 1
    kept = proof.to_manifest()["embeddings"]["figures"]["cosine_mean"]  # digits of what it lacks of one
    assert 1 - kept == pytest.approx(1 - figures.cosine_mean, rel=1e-3, abs=1e-12)
    values = proof.to_json()
    assert "logits" not in values
    assert values["embeddings"]["loss"] == "nothing"


def test_the_onnx_folder_is_proven_by_cosine(made: Path) -> None:
    proof = verify(made / "roberta-onnx", made / "roberta", tokens=64)
    part = proof.embeddings
    assert proof.verdict == "passed"
    assert part is not None
    assert part.figures is not None
    assert part.figures.nmse < 1e-10
    assert part.padded is not None
    assert part.padded > 1 - 1e-9


def test_a_text_that_fills_the_context_has_no_room_for_padding(made: Path) -> None:
    context = json.loads((made / "bert" / "config.json").read_text())["max_position_embeddings"]
    proof = verify(made / "bert-onnx", made / "bert", texts=["안녕하세요. " * context], tokens=context - 2)
    part = proof.embeddings
    assert part is not None
    assert part.figures is not None
    assert (part.verdict, part.figures.texts, part.figures.positions) == ("passed", 1, context)
    assert part.padded is None


def test_limits_are_cosines(made: Path) -> None:
    path, folder = gguf_of(made, "bert", "Q4_K_M"), made / "bert"
    proof = verify(path, folder, tokens=64, min_cosine=0.9999)
    assert (proof.verdict, proof.right) == ("failed", "passed")
    assert "below 0.99990" in (proof.cause or "")
    assert proof.embeddings is not None
    assert proof.embeddings.figures is not None
    assert not judge_cosine(proof.embeddings.figures, cosine_gate("q4_K_M", gelu=True, least=0.9))
    with pytest.raises(UsageError, match="write no text"):
        verify(path, folder, max_kl=0.1)
    with pytest.raises(UsageError, match="no cosine"):
        verify(path, folder, min_cosine=2.0)
    with pytest.raises(UsageError, match="measures predictions"):
        compare(folder, options=Options(types=("q8_0", "q4_0")))


def test_run_prints_an_embedding_and_generating_is_refused(made: Path) -> None:
    (theirs,), (ids,) = embedded_by_llama_cpp(gguf_of(made, "bert"), ["안녕하세요."])
    one, other = embed(gguf_of(made, "bert"), "안녕하세요."), embed(made / "bert-onnx", "안녕하세요.")
    assert one.ids == other.ids == tuple(ids)
    for found in (one, other):
        assert cosine(found.embedding, theirs) > 1 - 1e-6
        assert abs(np.linalg.norm(found.embedding) - 1) < 1e-5
    for artifact in (gguf_of(made, "bert"), made / "bert-onnx"):
        with pytest.raises(EmbedsOnly, match="writes none"):
            generate(artifact, "안녕하세요.")
    with pytest.raises(InputError, match="tokens, but"):
        embed(gguf_of(made, "bert"), "가 " * 400)


def test_without_pooling_hidden_states_are_compared(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "roberta", tmp_path / "roberta")
    (folder / "modules.json").unlink()
    path = to_gguf(folder, tmp_path / "a", types=("f32",), verify="quick").outputs[0]
    proof = json.loads(path.manifest.read_text())["proof"]
    assert proof["verdict"] == "passed"
    assert proof["embeddings"]["figures"]["pooling"] == "none"
    assert "bert.pooling_type" not in read_header(path.path).metadata
    with pytest.raises(InputError, match="how hidden states become an embedding"):
        embed(path.path, "안녕하세요.")


def damaged(made: Path, target: Path, key: str, value: int) -> Path:
    """The F32 file of roberta with another number for a key of 32 bits."""
    source = gguf_of(made, "roberta")
    data = bytearray(source.read_bytes())
    place = data.index(key.encode()) + len(key) + 4
    data[place : place + 4] = value.to_bytes(4, "little")
    target.write_bytes(data)
    assert read_header(target).metadata[key] == value
    return target


@pytest.mark.parametrize(("key", "value"), [("bert.pooling_type", 1), ("tokenizer.ggml.token_type_count", 2)])
def test_a_wrong_key_is_named(made: Path, tmp_path: Path, key: str, value: int) -> None:
    path = damaged(made, tmp_path / "file.gguf", key, value)
    proof = verify(path, made / "roberta", tokens=32)
    assert proof.metadata.verdict == "failed"
    assert proof.metadata.findings[0].where == key
    if key.endswith("pooling_type"):
        assert proof.embeddings is not None
        assert proof.embeddings.verdict == "failed"


def test_positions_one_row_off_are_found(made: Path, tmp_path: Path) -> None:
    """What comes of forgetting that RoBERTa's positions begin behind the padding's."""
    path = tmp_path / "file.gguf"
    data = bytearray(gguf_of(made, "roberta").read_bytes())
    header = read_header(gguf_of(made, "roberta"))
    info = next(each for each in header.tensors if each.name == "position_embd.weight")
    rows, hidden = info.shape
    start = header.data_offset + info.offset
    shifted = data[start + 4 * hidden : start + 4 * rows * hidden]
    data[start : start + len(shifted)] = shifted
    path.write_bytes(data)
    proof = verify(path, made / "roberta", tokens=32)
    assert (proof.weights.verdict, proof.right) == ("failed", "failed")
    assert proof.embeddings is not None
    assert proof.embeddings.verdict == "failed"


_CONVERTER = """
import json, os, runpy, sys
script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
from conversion.base import TextModel
# it knows tokenizers by a hash, and knows none of ours; for WordPiece llama.cpp reads no such name
TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"
for source, target, outtype in json.loads(sys.argv[2]):
    sys.argv = [script, source, "--outfile", target, "--outtype", outtype]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="session")
def theirs(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What llama.cpp's converter makes of the checkpoints."""
    script = fetched_converter()

    def make(root: Path) -> None:
        jobs = []
        for family in FAMILIES:
            folder = shutil.copytree(made / family, root / family)
            if family == "roberta":  # with a tokenizer.json it takes the vocabulary for GPT-2's
                (folder / "tokenizer.json").unlink()
            jobs += [[str(folder), str(root / f"{family}-{type}.gguf"), type] for type in ("f32", "f16")]
        command = [sys.executable, "-c", _CONVERTER, str(script), json.dumps(jobs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return shared(tmp_path_factory, "sentence-encoders-by-llama-cpp", make)


@pytest.mark.parametrize(
    ("family", "type"),
    [("bert", "f32"), ("bert", "f16"), ("roberta", "f16"), ("xlm-roberta", "f16")],
)
def test_names_and_bytes_are_those_of_llama_cpps_converter(
    made: Path, theirs: Path, family: str, type: str
) -> None:
    other = read_with_gguf_py(theirs / f"{family}-{type}.gguf")
    ours = read_with_gguf_py(gguf_of(made, family, type.upper()))
    assert ours.tensors == other.tensors
    named = ("token_type_count", "bos_token_id", "tokenizer.ggml.model", "precompiled_charsmap")
    for key, value in other.keys.items():
        if key.startswith("bert.") or key.endswith(named):
            assert ours.keys[key] == value, key
    for key in ("tokens", "token_type"):  # rows without a token are called otherwise, and <mask> is lost
        values = [keys[f"tokenizer.ggml.{key}"][1] for keys in (other.keys, ours.keys)]
        count = 3000 if family != "xlm-roberta" else len(values[0]) - 1
        assert values[0][:count] == values[1][:count]


def test_types_are_those_of_llama_quantize(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    run_quantizer([(gguf_of(made, "bert"), path, "Q4_K_M", False)])
    one, other = (read_with_gguf_py(each) for each in (path, gguf_of(made, "bert", "Q4_K_M")))
    assert one.tensors == other.tensors


def test_the_file_of_llama_cpps_converter_is_right(made: Path, theirs: Path) -> None:
    proof = verify(theirs / "bert-f32.gguf", made / "bert", tokens=32)
    assert proof.right in ("passed", "warned")
    assert proof.measured.verdict == "passed"


def tokenizer_of(folder: Path, **normalizer: Any) -> Path:
    """The sample bert with another normalizer in its tokenizer."""
    tokenizer = word_piece_tokenizer(3000, **normalizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder


def test_an_uncased_tokenizer_gives_the_same_tokens(tmp_path: Path) -> None:
    folder = tokenizer_of(SAMPLES["bert"](tmp_path / "bert"), lowercase=True, strip_accents=False)
    parity = to_gguf(folder, tmp_path, types=("f16",), verify=False).parity
    assert parity.verdict == "ordinary-words"
    assert parity.exact > 0.97 * parity.texts


def test_accents_taken_off_have_no_counterpart_for_hangul(tmp_path: Path) -> None:
    folder = tokenizer_of(SAMPLES["bert"](tmp_path / "bert"), lowercase=True)
    with pytest.raises((VocabError, Exception), match="first text that differs") as raised:
        to_gguf(folder, tmp_path, types=("f16",), verify=False)
    hint = getattr(raised.value, "hint", "")
    assert "kconv to-onnx" in hint
    assert "first letter of a syllable" in hint
    counts = re.search(
        r"(\S+) of the (\S+) texts that differ contain Hangul; of the (\S+) without it (\S+)", hint
    )
    assert counts is not None, hint
    hangul, different, plain, equal = (int(each.replace(",", "")) for each in counts.groups())
    assert 0 < different - hangul == plain - equal < 0.05 * plain
    assert not list(tmp_path.glob("*.gguf"))


def test_vocab_txt_is_enough(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "bert", tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    conversion = to_gguf(folder, tmp_path / "a", types=("f16",), verify=False)
    theirs, ours = (
        read_header(path).metadata for path in (conversion.outputs[0].path, gguf_of(made, "bert", "F16"))
    )
    assert theirs["tokenizer.ggml.tokens"] == ours["tokenizer.ggml.tokens"]
    to_onnx(folder, tmp_path / "onnx", type="f32", verify=False)
    files = (made / "bert-onnx" / "tokenizer.json", tmp_path / "onnx" / "tokenizer.json")
    one, other = (Tokenizer.from_file(str(file)) for file in files)
    assert [one.encode(text).ids for text in TEXTS] == [other.encode(text).ids for text in TEXTS]


def test_a_masked_language_model_is_taken_for_its_encoder(made: Path, tmp_path: Path) -> None:
    """Other names in front, BERT's first names for norms, and a head that makes no embeddings."""
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(made / "bert", tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): each
        for name, each in tensors.items()
    }
    save_file(
        {**renamed, "cls.predictions.bias": tensors["embeddings.LayerNorm.bias"]},
        folder / "model.safetensors",
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    conversion = to_gguf(folder, tmp_path / "a", types=("f32",), verify=False)
    theirs, ours = (read_with_gguf_py(path) for path in (conversion.outputs[0].path, gguf_of(made, "bert")))
    assert theirs.tensors == ours.tensors


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, ("mean", False)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls", False)),
        ({"pooling_mode": "lasttoken"}, ("last", False)),
        ({"pooling_mode_max_tokens": True}, (None, True)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, (None, True)),
    ],
)
def test_how_a_folder_pools(
    tmp_path: Path, made: Path, config: dict[str, Any], expected: tuple[Any, bool]
) -> None:
    folder = shutil.copytree(made / "bert", tmp_path / "bert")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    pooling = pooling_of(open_checkpoint(folder))
    assert (pooling.way, bool(pooling.notes)) == expected


def test_modules_that_are_not_converted_or_lead_elsewhere(tmp_path: Path, made: Path) -> None:
    folder = shutil.copytree(made / "bert", tmp_path / "bert")
    write_pooling(folder, 256, "mean", normalized=True)
    assert pooling_of(open_checkpoint(folder)).normalized
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    pooling = pooling_of(open_checkpoint(folder))
    assert pooling.way is None
    assert pooling.notes[0].warning
    modules[1]["path"] = "../../etc"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="path of Pooling"):
        pooling_of(open_checkpoint(folder))
    (folder / "modules.json").unlink()
    assert pooling_of(open_checkpoint(folder)).way is None
