"""Special ids and chat templates of ONNX folders: transformers reads there what the tokenizer says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_material import random_llama
from vocab_material import checkpoint, dot42_like, eagle_like, llama3_like, model

from kconv.converters import to_onnx
from kconv.converters.onnx.folder import LAYOUTS, SideFiles, collect_side_files
from kconv.core.errors import UsageError, VocabError
from kconv.verify import verify
from kconv.vocab.sources import read_source
from kconv.vocab.templates import format_named, render_chat

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
STALE: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content | trim + '<|eot_id|>' }}{% endfor %}"
)
CHAT = [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네."}]


def edited(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def written(folder: Path, rows: int, template: str | None = None, **config: Any) -> tuple[Path, SideFiles]:
    """The files made of a tokenizer's folder, and where they lie."""
    edited(folder / "config.json", **LLAMA, vocab_size=rows, **config)
    read = checkpoint(folder, **json.loads((folder / "config.json").read_text("utf-8")))
    side_files = collect_side_files(read, read_source(read), model(rows), LAYOUTS["optimum"], {}, template)
    place = folder.parent / "onnx"
    place.mkdir()
    for name, content in side_files.contents.items():
        (place / name).write_bytes(content)
    return place, side_files


def ids(settings: Any) -> tuple[Any, ...]:
    return settings.bos_token_id, settings.eos_token_id, settings.pad_token_id


def test_stale_ids_of_llama_3_ko(tmp_path: Path) -> None:
    """As AOG has them: 1, 2 and 2 over Llama 3's vocabulary; everything else in the files stays."""
    from transformers import AutoConfig, GenerationConfig

    rows = llama3_like(tmp_path / "model")
    edited(tmp_path / "model" / "generation_config.json", **STALE, do_sample=True, temperature=0.7)
    edited(tmp_path / "model" / "special_tokens_map.json", pad_token="<|end_of_text|>")
    place, side_files = written(tmp_path / "model", rows, **STALE, max_position_embeddings=99)
    begin = rows - 32
    assert ids(AutoConfig.from_pretrained(place)) == (begin, begin + 1, begin + 1)
    assert AutoConfig.from_pretrained(place).max_position_embeddings == 99
    generating = GenerationConfig.from_pretrained(place)
    assert ids(generating) == (begin, begin + 1, begin + 1)
    assert (generating.do_sample, generating.temperature) == (True, 0.7)
    notes = [note.message for note in side_files.notes if note.name == "special-ids"]
    assert [message.partition(":")[0] for message in notes] == ["config.json", "generation_config.json"]
    assert f"eos_token_id 2 is now {begin + 1} '<|end_of_text|>'" in notes[1]


@pytest.mark.parametrize("there", [True, False])
def test_what_ends_a_turn_ends_an_answer(there: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    rows = llama3_like(tmp_path / "model")
    edited(tmp_path / "model" / "tokenizer_config.json", chat_template=INSTRUCT)
    if there:
        edited(tmp_path / "model" / "generation_config.json", **STALE)
    place, _ = written(tmp_path / "model", rows, **STALE)
    begin = rows - 32
    assert GenerationConfig.from_pretrained(place).eos_token_id == [begin + 1, begin + 4]
    assert AutoConfig.from_pretrained(place).eos_token_id == begin + 1


def test_lists_that_say_the_same_stay(tmp_path: Path) -> None:
    rows = llama3_like(tmp_path / "model")
    begin = rows - 32
    listed = {"bos_token_id": begin, "eos_token_id": [begin + 4, begin + 1]}
    edited(tmp_path / "model" / "generation_config.json", **listed)
    place, side_files = written(tmp_path / "model", rows, **listed)
    for name in ("config.json", "generation_config.json"):
        assert (place / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert side_files.notes == ()


def test_eagle_has_one_token_for_both_ends_and_another_for_padding(tmp_path: Path) -> None:
    from transformers import AutoConfig

    place, _ = written(tmp_path / "model", eagle_like(tmp_path / "model"), bos_token_id=1, eos_token_id=2)
    assert ids(AutoConfig.from_pretrained(place)) == (1, 1, 0)


def test_an_id_no_token_has_is_none(tmp_path: Path) -> None:
    rows = llama3_like(tmp_path / "model")
    place, side_files = written(
        tmp_path / "model", rows, bos_token_id=rows - 32, eos_token_id=2, pad_token_id=-1
    )
    assert json.loads((place / "config.json").read_text())["pad_token_id"] is None
    assert "pad_token_id -1 is now null" in side_files.notes[0].message


@pytest.mark.parametrize("jinja", [True, False])
def test_a_chat_template_that_is_asked_for(jinja: bool, tmp_path: Path) -> None:
    """As the format is; Transformers.js reads tokenizer_config.json only."""
    from transformers import AutoTokenizer

    rows = dot42_like(tmp_path / "model")
    if jinja:
        (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    else:
        edited(tmp_path / "model" / "tokenizer_config.json", chat_template="{{ messages }}")
    place, side_files = written(tmp_path / "model", rows, "42dot")
    named = format_named("42dot")
    assert named is not None
    assert json.loads((place / "tokenizer_config.json").read_text())["chat_template"] == named.template
    tokens = {"bos_token": "<||bos||>", "eos_token": "<|endoftext|>"}
    rendered = AutoTokenizer.from_pretrained(place).apply_chat_template(CHAT, tokenize=False)
    assert rendered == render_chat(named.template, CHAT, add_generation_prompt=False, **tokens)
    assert "chat template '42dot', as requested" in str([note.message for note in side_files.notes])


def test_no_chat_template_where_none_is_wanted(tmp_path: Path) -> None:
    rows = dot42_like(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    place, _ = written(tmp_path / "model", rows, "none")
    assert not (place / "chat_template.jinja").exists()
    assert "chat_template" not in json.loads((place / "tokenizer_config.json").read_text())


def test_a_template_in_a_file_of_its_own_is_told_twice(tmp_path: Path) -> None:
    rows = llama3_like(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(INSTRUCT)
    place, _ = written(tmp_path / "model", rows)
    assert (place / "chat_template.jinja").read_text() == INSTRUCT
    assert json.loads((place / "tokenizer_config.json").read_text())["chat_template"] == INSTRUCT


@pytest.mark.parametrize("template", [None, "none"])
def test_the_proof_expects_what_is_written(template: str | None, tmp_path: Path) -> None:
    """With whatever chat template a folder was made; ids that are stale after all are told."""
    rows = llama3_like(tmp_path / "tokenizer")
    edited(tmp_path / "tokenizer" / "tokenizer_config.json", chat_template=INSTRUCT)
    source = random_llama(tmp_path / "model", tmp_path / "tokenizer", vocab_size=rows, eos_token_id=2)
    edited(source / "generation_config.json", **STALE)
    made = to_onnx(source, tmp_path / "onnx", type="f32", chat_template=template)
    assert made.proof is not None
    assert made.verdict == "passed", made.proof.cause
    edited(tmp_path / "onnx" / "generation_config.json", eos_token_id=2)
    proof = verify(tmp_path / "onnx", source, tokens=40, threads=1, ignore_manifest=True)
    assert [finding.where for finding in proof.metadata.findings] == ["eos_token_id"]


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    rows = llama3_like(tmp_path / "model")
    with pytest.raises(UsageError, match="unknown chat template 'chatml'"):
        written(tmp_path / "model", rows, "chatml")
    with pytest.raises(VocabError, match=r"tokens, the embedding only"):
        written(tmp_path / "model", rows - 1)
