"""The contrib flavour: onnxruntime's own operators make of a checkpoint what transformers makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_material import kconv
from onnx_causal_material import Floats, Ids, greedy, in_steps, run, session, write
from t5_material import one_thread

from kconv.converters.onnx.flavours import CONTRIB, FLAVOURS, STANDARD
from kconv.converters.samples import write_sample
from kconv.flows.to_onnx import to_onnx
from kconv.verify import verify

DECODERS = [
    *("42dot", "exaone", "exaone4", "gemma2", "gemma3", "gpt-neox", "gpt2", "hyperclovax", "kogpt"),
    *("mistral", "mpt", "opt", "qwen2", "qwen3", "qwen3-moe", "xglm"),
]
pytestmark = pytest.mark.usefixtures("kconv_server")
NEAR = 1e-4
TEXT = np.random.default_rng(0).integers(3, 200, (1, 40))
LENGTHS = [5, 17, 1, 30]
Make = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A sample checkpoint and the folder with its contrib graph, made once."""
    place = tmp_path_factory.mktemp("contrib")

    def make(family: str) -> tuple[Path, Path]:
        checkpoint, folder = place / family, place / f"{family}-onnx"
        if not folder.exists():
            write_sample(family, checkpoint)
            write(checkpoint, folder, flavour=CONTRIB)
        return checkpoint, folder

    return make


def right(checkpoint: Path, ids: Ids) -> Floats:
    """The logits of transformers; of the standard flavour where it has no class (EXAONE 3)."""
    if checkpoint.name == "exaone":
        return run(session(write(checkpoint, checkpoint.with_name("standard"))), ids)[0]
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with one_thread(), torch.no_grad():
        logits: Floats = model(torch.from_numpy(ids)).logits.numpy()
    return logits


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_those_of_transformers_however_texts_are_read(made: Make, family: str) -> None:
    checkpoint, folder = made(family)
    model, wanted = session(folder / "model.onnx"), right(checkpoint, TEXT)[0]
    for steps in ([40], [1] * 40, [7, 1, 13, 19]):
        assert abs(in_steps(model, TEXT, *steps)[0] - wanted).max() < NEAR, steps
    for side in ("left", "right"):
        ids, mask = np.zeros((4, 30), np.int64), np.zeros((4, 30), np.int64)
        for row, count in enumerate(LENGTHS):
            place = slice(30 - count, 30) if side == "left" else slice(0, count)
            ids[row, place], mask[row, place] = TEXT[0, :count], 1
        logits, cache = run(model, ids, mask=mask, positions=np.maximum(mask.cumsum(1) - 1, 0))
        for row, count in enumerate(LENGTHS):
            assert abs(logits[row][mask[row] == 1] - wanted[:count]).max() < NEAR, side
        order = [2, 0, 3, 1]  # as beams are exchanged
        mask, cache = mask[order], {name: each[order] for name, each in cache.items()}
        for step in range(3):
            at = np.array(LENGTHS)[order] + step
            mask = np.concatenate([mask, np.ones((4, 1), np.int64)], axis=1)
            logits, cache = run(model, TEXT[0, at][:, None], cache, mask=mask, positions=at[:, None])
            assert abs(logits[:, 0] - wanted[at]).max() < NEAR, (side, step)


def test_padding_may_be_anywhere_and_a_row_of_padding_leaves_the_others_alone(made: Make) -> None:
    checkpoint, folder = made("42dot")
    model, wanted = session(folder / "model.onnx"), right(checkpoint, TEXT)[0]
    mask = np.ones((3, 20), np.int64)
    mask[0, [0, 3, 4, 11, 19]] = 0
    mask[1] = 0
    ids = np.zeros((3, 20), np.int64)
    for row in (0, 2):
        ids[row, mask[row] == 1] = TEXT[0, : mask[row].sum()]
    logits, _ = run(model, ids, mask=mask, positions=np.maximum(mask.cumsum(1) - 1, 0))
    for row in (0, 2):
        assert abs(logits[row][mask[row] == 1] - wanted[: mask[row].sum()]).max() < NEAR


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("family", ["gemma3", "mpt"])
def test_windows_and_slopes_do_not_count_padding(
    made: Make, tmp_path: Path, family: str, flavour: str
) -> None:
    checkpoint, folder = made(family)
    if flavour == STANDARD.name:
        folder = write(checkpoint, tmp_path / "standard").parent
    text = np.tile(TEXT, (1, 2))  # longer than Gemma's window of 48
    model, wanted = session(folder / "model.onnx"), right(checkpoint, text)[0]
    ids, mask = np.zeros((2, 76), np.int64), np.ones((2, 76), np.int64)
    ids[0], ids[1, :60], mask[1, 60:] = text[0, :76], text[0, :60], 0
    logits, cache = run(model, ids, mask=mask, positions=np.maximum(mask.cumsum(1) - 1, 0))
    for step in range(3):  # the second text goes on behind its padding
        at = np.array([76, 60]) + step
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        logits, cache = run(model, text[0, at][:, None], cache, mask=mask, positions=at[:, None])
        assert abs(logits[:, 0] - wanted[at]).max() < NEAR


def test_a_step_of_padding_is_overwritten_by_the_next_token(made: Make) -> None:
    checkpoint, folder = made("42dot")
    model, wanted = session(folder / "model.onnx"), right(checkpoint, TEXT)[0]
    _, cache = run(model, TEXT[:, :10].repeat(2, 0))
    mask = np.ones((2, 11), np.int64)
    mask[0, -1] = 0  # the first text waits for the second
    places = np.array([[0], [10]])
    _, cache = run(model, TEXT[:, 10:11].repeat(2, 0), cache, mask=mask, positions=places)
    mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    logits, _ = run(model, TEXT[0, [10, 11]][:, None], cache, mask=mask, positions=np.array([[10], [11]]))
    assert abs(logits[:, 0] - wanted[[10, 11]]).max() < NEAR


def test_texts_are_generated_as_with_the_standard_flavour(made: Make, tmp_path: Path) -> None:
    checkpoint, folder = made("kogpt")
    standard = session(write(checkpoint, tmp_path / "standard", flavour=STANDARD))
    assert greedy(session(folder / "model.onnx"), TEXT[:, :9], 24) == greedy(standard, TEXT[:, :9], 24)


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_no_texts_and_no_tokens_are_refused_at_once(
    made: Make, tmp_path: Path, flavour: object, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = made("42dot")
    if flavour == STANDARD:
        folder = write(checkpoint, tmp_path / "standard").parent
    model = session(folder / "model.onnx")
    for shape in ((0, 3), (2, 0), (0, 0)):
        with pytest.raises(Exception, match="Non-zero status code"):
            run(model, np.zeros(shape, np.int64))
    logits, _ = run(model, TEXT)  # and the session goes on
    assert abs(logits - right(checkpoint, TEXT)).max() < NEAR


@pytest.mark.parametrize("layout", ["optimum", "transformers.js"])
@pytest.mark.parametrize("family", ["42dot", "kebyt5", "gbst-kebyt5", "bert", "t5-encoder"])
def test_every_part_of_the_proof_passes(tmp_path: Path, family: str, layout: str) -> None:
    checkpoint = write_sample(family, tmp_path / "checkpoint")
    kind = "q4_0" if layout == "optimum" else "q8_0"
    made = to_onnx(
        checkpoint, tmp_path / "onnx", type=kind, layout=layout, flavour="contrib", verify=False, threads=1
    )
    proof = verify(made.path, checkpoint, tokens=80, threads=1)
    assert {name: part.verdict for name, part in proof.parts.items()} == dict.fromkeys(proof.parts, "passed")
    assert {error.state for error in proof.weights.tensors} == {"identical"}


@pytest.mark.parametrize("window", [60, 65, -1])
def test_another_window_is_wrong_however_short_the_text(tmp_path: Path, window: int) -> None:
    checkpoint = write_sample("gemma2", tmp_path / "checkpoint")
    folder = to_onnx(
        checkpoint, tmp_path / "onnx", type="q4_0", flavour="contrib", verify=False, threads=1
    ).path
    assert verify(folder, checkpoint, tokens=20, threads=1).metadata.verdict == "passed"
    (path,) = folder.glob("*.onnx")
    model = onnx.load_model(path, load_external_data=False)
    attributes = [each for node in model.graph.node for each in node.attribute]
    (attribute, *_) = (each for each in attributes if each.name == "local_window_size")
    attribute.i = window
    path.write_bytes(model.SerializeToString())
    metadata = verify(folder, checkpoint, tokens=20, threads=1).metadata
    assert (metadata.verdict, metadata.findings[0].where) == ("failed", "local_window_size")


def test_the_layout_decides_unless_a_flavour_is_asked_for(tmp_path: Path) -> None:
    checkpoint = write_sample("42dot", tmp_path / "checkpoint")
    found = {}
    for layout, flavour in (("optimum", None), ("transformers.js", None), ("transformers.js", "standard")):
        made = to_onnx(
            checkpoint, tmp_path / "onnx", layout=layout, flavour=flavour, verify=False, force=True
        )
        (path,) = made.path.rglob("*.onnx")
        model = onnx.load_model(path, load_external_data=False)
        opsets = {each.domain: each.version for each in model.opset_import}
        found[layout, flavour] = (opsets[""], model.ir_version)
        used = {node.op_type for node in model.graph.node}
        assert ("GroupQueryAttention" in used) == (opsets[""] == 21)
        assert ("Attention" in used) == (opsets[""] == 23)
    assert found == {
        ("optimum", None): (23, 11),
        ("transformers.js", None): (21, 10),
        ("transformers.js", "standard"): (23, 11),
    }


@pytest.mark.parametrize(
    ("family", "type", "flavour", "least"),
    [
        ("42dot", "f32", "contrib", "1.20"),
        ("42dot", "q4_0", "contrib", "1.22"),
        ("42dot", "f32", "standard", "1.23"),
        ("mpt", "f32", "contrib", "1.22"),
        ("gemma3", "f32", "contrib", "1.24"),
    ],
)
def test_inspect_names_the_flavour_and_the_least_onnxruntime(
    tmp_path: Path, family: str, type: str, flavour: str, least: str
) -> None:
    checkpoint = write_sample(family, tmp_path / "checkpoint")
    made = to_onnx(checkpoint, tmp_path / "onnx", type=type, flavour=flavour, verify=False, threads=1)
    shown = kconv("inspect", made.path)
    assert f"flavour          {flavour}\n" in shown.stdout
    assert f"runs in          onnxruntime {least} or newer\n" in shown.stdout
    described = json.loads(kconv("inspect", made.path, "--json").stdout)
    assert (described["flavour"], described["least_onnxruntime"]) == (flavour, least)


def test_genai_config_has_one_number_for_padding_and_all_tokens_that_end(tmp_path: Path) -> None:
    checkpoint = write_sample("llama-3-ko", tmp_path / "checkpoint")
    made = to_onnx(checkpoint, tmp_path / "onnx", flavour="contrib", verify=False, threads=1)
    read = {name: json.loads((made.path / f"{name}.json").read_text()) for name in ("genai_config", "config")}
    model, search = read["genai_config"]["model"], read["genai_config"]["search"]
    assert isinstance(model["pad_token_id"], int)
    ends = read["config"]["eos_token_id"]
    assert model["eos_token_id"] == (ends if isinstance(ends, list) else [ends])
    assert model["vocab_size"] == read["config"]["vocab_size"]
    assert model["decoder"]["num_key_value_heads"] == read["config"]["num_key_value_heads"]
    assert search["max_length"] <= model["context_length"]
    assert search["past_present_share_buffer"] is True
    standard = to_onnx(checkpoint, tmp_path / "standard", verify=False, threads=1).path
    other = json.loads((standard / "genai_config.json").read_text())
    assert other["search"]["past_present_share_buffer"] is False
    js = to_onnx(checkpoint, tmp_path / "js", layout="transformers.js", verify=False, threads=1).path
    assert not (js / "genai_config.json").exists()


def test_genai_config_is_json_whatever_the_card_says(tmp_path: Path) -> None:
    checkpoint = write_sample("gpt2", tmp_path / "checkpoint")
    odd = '{"temperature": NaN, "top_p": 1e400, "top_k": 7, "pad_token_id": [3, 4], "max_length": "long"}'
    (checkpoint / "generation_config.json").write_text(odd)
    made = to_onnx(checkpoint, tmp_path / "onnx", flavour="contrib", verify=False, threads=1)
    text = (made.path / "genai_config.json").read_text("utf-8")
    search = json.loads(text, parse_constant=pytest.fail)["search"]
    assert search["top_k"] == 7
    assert not {"temperature", "top_p"} & search.keys()


def test_no_family_names_an_operator_that_is_the_flavours_affair() -> None:
    room = Path(__file__).parent.parent / "converters"
    decided = re.compile(r'"(Attention|RMSNormalization|RotaryEmbedding|GroupQueryAttention)"')
    named = {path.name for path in room.rglob("*.py") if decided.search(path.read_text("utf-8"))}
    assert named == {"standard.py", "contrib.py"}
