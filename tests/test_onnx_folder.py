"""Names and side files of ONNX folders: read by transformers they say what the checkpoint says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from t5_checkpoints import write_t5
from test_t5_bytes import texts

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.onnx.folder import LAYOUTS, SideFiles, collect_side_files, parse_layout
from kconv.converters.samples import write_sample
from kconv.core.errors import UsageError
from kconv.core.reading import open_checkpoint
from kconv.vocab.sources import read_source

OPTIMUM, JAVASCRIPT = LAYOUTS["optimum"], LAYOUTS["transformers.js"]
JSON = dict[str, Any]


def beside(folder: Path, layout: str = "optimum", graphs: Mapping[str, int] | None = None) -> SideFiles:
    checkpoint = open_checkpoint(folder)
    model = build(family_for(checkpoint.config), checkpoint)
    return collect_side_files(checkpoint, read_source(checkpoint), model, LAYOUTS[layout], graphs or {})


def written(side_files: SideFiles, folder: Path) -> Path:
    folder.mkdir()
    for name, content in side_files.contents.items():
        (folder / name).write_bytes(content)
    return folder


def edited(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def test_names_of_graphs_and_weights() -> None:
    """Those of optimum, and those Transformers.js makes of its dtypes fp32, fp16, q8 and q4."""
    assert OPTIMUM.graph_path("decoder_with_past_model.onnx", "q4_0") == "decoder_with_past_model.onnx"
    assert OPTIMUM.data_path("encoder_model.onnx", "q4_0") == "model.onnx_data"
    types = ("f32", "f16", "q8_0", "q4_0")
    assert [JAVASCRIPT.graph_path("model.onnx", type) for type in types] == [
        "onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx", "onnx/model_q4.onnx"
    ]  # fmt: skip
    assert JAVASCRIPT.data_path("encoder_model.onnx", "q4_0") == "onnx/encoder_model_q4.onnx_data"
    assert parse_layout("Transformers.js") is JAVASCRIPT
    with pytest.raises(UsageError, match="unknown layout 'optimun'") as caught:
        parse_layout("optimun")
    assert "did you mean optimum" in (caught.value.hint or "")


def test_files_that_need_no_change_are_copied(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "model")
    (folder / "generation_config.json").write_text(
        '{ "bos_token_id": 2001, "eos_token_id": 2000,  "pad_token_id": 2002 }'
    )
    (folder / "LICENSE").write_text("free")
    side_files = beside(folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "LICENSE"):
        assert side_files.contents[name] == (folder / name).read_bytes()
    kept = {path.name for path in folder.iterdir()} - set(side_files.contents)
    assert not [name for name in kept if not name.endswith((".safetensors", ".bin", "README.md"))]
    assert [note.name for note in side_files.notes] == ["chat-template", "made-tokenizer"]


@pytest.mark.parametrize(
    "name", ["NOTICE", "tokenizer.model", "chat_template.jinja", "generation_config.json"]
)
def test_links_to_files_of_this_machine_are_left_out(name: str, tmp_path: Path) -> None:
    folder, secret = write_sample("42dot", tmp_path / "model"), tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_text('{"secret": "of this machine"}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    side_files = beside(folder)
    assert name not in side_files.contents
    assert not [each for each, content in side_files.contents.items() if b"of this machine" in content]
    (text,) = [note.message for note in side_files.notes if note.name == "foreign-link" and note.warning]
    assert text.startswith(f"{name} is left out: it is a link to {str(secret)!r}")


def test_links_as_in_the_hubs_cache_are_copied(tmp_path: Path) -> None:
    """Of all files into ``blobs``, also where config.json is a copy, and into a folder within."""
    blobs, snapshot = write_sample("42dot", tmp_path / "blobs"), tmp_path / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    (snapshot / "original").mkdir()
    (snapshot / "original" / "NOTICE").write_text("free")
    (snapshot / "NOTICE").symlink_to(Path("original", "NOTICE"))
    for config in ("linked", "copied"):
        if config == "copied":
            (snapshot / "config.json").unlink()
            (snapshot / "config.json").write_bytes((blobs / "config.json").read_bytes())
        assert beside(snapshot).contents == {**beside(blobs).contents, "NOTICE": b"free"}


def test_code_of_the_checkpoint_is_left_out(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json"):
        edited(folder / name, auto_map={"AutoModel": "evil.Model"})
    side_files = beside(folder)
    for name in ("config.json", "tokenizer_config.json"):
        content, before = json.loads(side_files.contents[name]), json.loads((folder / name).read_text())
        assert content == {key: value for key, value in before.items() if key != "auto_map"}
    assert [note.name for note in side_files.notes] == ["chat-template", "custom-code", "made-tokenizer"]


@pytest.mark.parametrize("family", ["kogpt", "eagle"])
def test_tokenizers_give_what_the_graphs_take(family: str, tmp_path: Path) -> None:
    """Under transformers 4 the class of these samples adds token_type_ids unless told not to."""
    folder = write_sample(family, tmp_path / "model")
    settings = json.loads(beside(folder).contents["tokenizer_config.json"])
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    edited(folder / "tokenizer_config.json", model_input_names=["input_ids"])
    assert beside(folder).contents["tokenizer_config.json"] == (folder / "tokenizer_config.json").read_bytes()


def test_a_front_end_is_told_as_t5(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = write_sample("gbst-kebyt5", tmp_path / "model")
    before = json.loads((folder / "config.json").read_text())
    place = written(beside(folder), tmp_path / "onnx")
    assert json.loads((place / "config.gbswt5.json").read_text()) == before
    config = AutoConfig.from_pretrained(place)
    assert (config.model_type, config.architectures) == ("t5", ["T5ForConditionalGeneration"])
    for key in ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "vocab_size"):
        assert getattr(config, key) == before[key]


def test_what_transformers_takes_for_granted_is_said(tmp_path: Path) -> None:
    """Transformers.js counts num_decoder_layers caches and begins with decoder_start_token_id."""
    folder = write_t5(
        tmp_path / "model", num_decoder_layers=None, decoder_start_token_id=None, is_encoder_decoder=None
    )
    content = json.loads(beside(folder).contents["config.json"])
    assert (content["num_decoder_layers"], content["decoder_start_token_id"]) == (3, 0)
    assert content["is_encoder_decoder"] is True


def test_transformers_js_is_told_of_the_files_of_weights(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model")
    side_files = beside(
        folder, "transformers.js", {"onnx/encoder_model_q4.onnx": 1, "onnx/decoder_model_merged_q4.onnx": 2}
    )
    output = json.loads(side_files.contents["config.json"])["transformers.js_config"]
    assert output == {
        "use_external_data_format": {"encoder_model_q4.onnx": 1, "decoder_model_merged_q4.onnx": 2}
    }


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "ByT5Tokenizer", "model_max_length": 99}])
def test_a_byte_tokenizer_in_both_forms(settings: JSON | None, tmp_path: Path) -> None:
    """AutoTokenizer reads the class, PreTrainedTokenizerFast and others the file; all say what ByT5 says."""
    from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

    folder = write_t5(tmp_path / "model")
    if settings is not None:
        edited(folder / "tokenizer_config.json", **settings)
    place = written(beside(folder), tmp_path / "onnx")
    content = json.loads((place / "tokenizer_config.json").read_text())
    assert content.items() >= (settings or {"tokenizer_class": "ByT5Tokenizer"}).items()
    assert (content["pad_token"], content["eos_token"], content["unk_token"]) == ("<pad>", "</s>", "<unk>")
    asked = texts()[:400]
    right = [ByT5Tokenizer()(text)["input_ids"] for text in asked]
    for tokenizer in (
        AutoTokenizer.from_pretrained(place),
        PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json")),
    ):
        assert [tokenizer(text)["input_ids"] for text in asked] == right
