"""Vocabulary adapters on vocabularies in the shape of each family, and llama.cpp's view of the result."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kconv.core.checkpoint import Checkpoint
from kconv.core.errors import UsageError, VocabError
from kconv.core.gguf_file import write_header
from kconv.core.model import Note
from kconv.core.vocabulary import TokenType, Vocab, gguf_keys
from kconv.vocab.adapters import adapt, adapter_names, enabled_adapters
from kconv.vocab.context import AdapterContext, read_context
from kconv.vocab.templates import resolve_template

BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
ALPHABET = tuple(
    chr(value) for value in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))
)
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|reserved_special_token_2|>",
    "<|reserved_special_token_3|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(5, 251)),
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)


def byte_level(size: int, specials: tuple[str, ...], **fields: Any) -> Vocab:
    """A GPT-2-like vocabulary: the alphabet, made-up pieces up to ``size``, then the special tokens."""
    pieces = ALPHABET + tuple(f"piece{number}" for number in range(size - len(ALPHABET)))
    types = (TokenType.NORMAL,) * size + (TokenType.CONTROL,) * len(specials)
    return Vocab("gpt2", pieces + specials, types, merges=("p i",), pre="gpt-2", **fields)


def dot42(**fields: Any) -> Vocab:
    """42dot's: 50,256 pieces, then four special tokens that added_tokens.json names without flags."""
    vocab = byte_level(50256, ("<|endoftext|>", "<||bos||>", "<||pad||>", "<||unk||>"), **fields)
    return replace(vocab, types=vocab.types[:50256] + (TokenType.USER_DEFINED,) * 4)


def llama3(**fields: Any) -> Vocab:
    """Llama 3's: 128,000 pieces and 256 special tokens."""
    return byte_level(128000, LLAMA3_SPECIALS, **fields)


def sentencepiece(size: int = 320, **fields: Any) -> Vocab:
    """Llama 2's layout: unk, bos, eos, the bytes, pieces."""
    pieces = tuple(f"▁p{number}" for number in range(size - 259))
    types = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL) + (TokenType.BYTE,) * 256
    return Vocab(
        "llama",
        ("<unk>", "<s>", "</s>", *BYTES, *pieces),
        types + (TokenType.NORMAL,) * len(pieces),
        scores=tuple(-float(number) for number in range(size)),
        add_space_prefix=True,
        **fields,
    )


DOT42_CONFIG = {
    "bos_token_id": 50257,
    "eos_token_id": 50256,
    "pad_token_id": 50258,
    "rope_theta": 10000.0,
    "vocab_size": 50304,
}
SFT = {"folder": "42dot_LLM-SFT-1.3B"}
AOG = {"folder": "Llama-3-Ko-8B-Instruct-AOG"}


def names_of(notes: tuple[Note, ...]) -> list[str]:
    return [note.name for note in notes]


def test_42dot() -> None:
    context = AdapterContext(
        rows=50304,
        config=DOT42_CONFIG,
        generation_config={"bos_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50258},
        tokenizer_config={"add_bos_token": False},
        names=SFT,
    )
    vocab, notes = adapt(dot42(add_bos=True), context)
    assert vocab.special == {"eos": 50256, "bos": 50257, "padding": 50258, "unknown": 50259}
    assert vocab.types[50256:50260] == (TokenType.CONTROL,) * 4
    assert vocab.add_bos is False
    assert vocab.size == 50304
    assert vocab.tokens[50260] == "[PAD50260]"
    assert vocab.tokens[50303] == "[PAD50303]"
    assert set(vocab.types[50260:]) == {TokenType.UNUSED}
    assert vocab.chat_template == resolve_template("42dot")
    assert names_of(notes) == ["42dot-specials", "chat-template", "pad-rows"]
    assert "folder: '42dot_LLM-SFT-1.3B'" in notes[1].message
    assert "50260-50303" in notes[2].message
    assert not any(note.warning for note in notes)


def test_42dots_specials_wherever_they_stand() -> None:
    moved = byte_level(300, ("<||unk||>", "<||pad||>", "<|endoftext|>", "<||bos||>"))
    vocab, _ = adapt(moved, AdapterContext(rows=304))
    assert vocab.special == {"unknown": 300, "padding": 301, "eos": 302, "bos": 303}


def test_tokenizer_roles_win_over_42dots_texts() -> None:
    context = AdapterContext(rows=50304, special_tokens_map={"pad_token": "<|endoftext|>"})
    vocab, _ = adapt(dot42(), context)
    assert vocab.special["padding"] == 50256


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"Hub cache": "42dot/42dot_LLM-SFT-1.3B"}, "42dot"),
        ({"folder": "model", "config.json _name_or_path": "42dot/42dot_LLM-SFT-1.3B"}, "42dot"),
        ({"folder": "model", "README.md": "42dot LLM-SFT 1.3B"}, "42dot"),
        ({"folder": "42dot_LLM-PLM-1.3B"}, None),
        ({"folder": "42dot_LLM-SFT-1.3B", "config.json _name_or_path": "42dot/42dot_LLM-PLM-1.3B"}, None),
        ({"folder": "model"}, None),
        ({}, None),
    ],
)
def test_42dot_format_only_with_certainty(names: dict[str, str], expected: str | None) -> None:
    vocab, notes = adapt(dot42(), AdapterContext(rows=50304, names=names))
    assert vocab.chat_template == (None if expected is None else resolve_template(expected))
    hinted = any("--chat-template 42dot" in note.message for note in notes)
    assert hinted == (expected is None and "PLM" not in str(names))


def test_a_name_without_the_vocabulary_is_not_enough() -> None:
    vocab, notes = adapt(sentencepiece(special={"bos": 1, "eos": 2}), AdapterContext(rows=320, names=SFT))
    assert vocab.chat_template is None
    assert notes == ()


def test_aog_stale_ids() -> None:
    stale = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    context = AdapterContext(
        rows=128256,
        config={**stale, "rope_theta": 500000.0},
        generation_config=stale,
        special_tokens_map={
            "bos_token": {"content": "<|begin_of_text|>"},
            "eos_token": {"content": "<|end_of_text|>"},
            "pad_token": "<|end_of_text|>",
        },
        names=AOG,
    )
    vocab, notes = adapt(llama3(add_bos=True), context)
    assert vocab.special == {"bos": 128000, "eos": 128001, "padding": 128001, "eot": 128001}
    assert vocab.add_bos is True
    assert names_of(notes) == ["special-ids", "chat-template", "end-of-turn"]
    assert "bos 128000 '<|begin_of_text|>' (config.json and generation_config.json: 1 " in notes[0].message
    assert "eos 128001 '<|end_of_text|>'" in notes[0].message


def test_llama3_instruct_ends_turns_with_eot() -> None:
    context = AdapterContext(
        rows=128256,
        config={"bos_token_id": 128000, "eos_token_id": 128001, "rope_theta": 500000.0},
        generation_config={"eos_token_id": [128001, 128009]},
    )
    vocab = llama3(special={"bos": 128000, "eos": 128001}, add_bos=True, chat_template=LLAMA3_TEMPLATE)
    adapted, notes = adapt(vocab, context)
    assert adapted.special == {"bos": 128000, "eos": 128001, "eot": 128009}
    assert adapted.chat_template == LLAMA3_TEMPLATE
    assert names_of(notes) == ["end-of-turn"]


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"rope_theta": 10000.0}, True),
        ({}, True),
        ({"rope_parameters": {"rope_theta": 10000}}, True),
        ({"rope_theta": 500000.0}, False),
        ({"rope_parameters": {"rope_theta": 500000.0}}, False),
    ],
)
def test_rope_theta(config: dict[str, Any], warned: bool) -> None:
    vocab = llama3(special={"bos": 128000, "eos": 128001})
    adapted, notes = adapt(vocab, AdapterContext(rows=128256, config=config))
    assert ([note.name for note in notes if note.warning] == ["rope-theta"]) is warned
    assert adapted == vocab


@pytest.mark.parametrize("where", ["tokenizer", "config only"])
def test_eagle_has_one_token_for_both_ends(where: str) -> None:
    eagle = sentencepiece(special={"unknown": 0, "eos": 2})
    if where == "tokenizer":
        context = AdapterContext(
            rows=320, tokenizer_config={"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
        )
    else:
        context = AdapterContext(rows=320, config={"bos_token_id": 2, "eos_token_id": 2})
    vocab, notes = adapt(eagle, context)
    assert vocab.special == {"unknown": 0, "eos": 2, "bos": 2, "padding": 0}
    assert vocab.add_bos is False
    assert "padding is 0 '<unk>'" in notes[-1].message


def test_eagle_starting_with_eos_is_said() -> None:
    eagle = sentencepiece(special={"unknown": 0, "bos": 2, "eos": 2, "padding": 0}, add_bos=True)
    context = AdapterContext(rows=320, tokenizer_config={"add_bos_token": True})
    vocab, notes = adapt(eagle, context)
    assert vocab == eagle
    assert names_of(notes) == ["unify-bos-eos"]
    assert (
        "as set by tokenizer_config.json, llama.cpp will begin every text with 2 '</s>'" in notes[0].message
    )


def test_without_bos_llama_cpp_must_not_take_an_ordinary_token() -> None:
    vocab, notes = adapt(byte_level(300, ("<|end|>",), special={"eos": 300}), AdapterContext(rows=301))
    assert vocab.special["bos"] == 300
    assert "would use 11 ','" in notes[0].message


def test_unknown_is_no_padding_where_it_can_occur() -> None:
    vocab = Vocab(
        "llama",
        ("<unk>", "</s>", "▁a"),
        (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.NORMAL),
        scores=(0.0, 0.0, -1.0),
        special={"unknown": 0, "bos": 1, "eos": 1},
    )
    assert adapt(vocab, AdapterContext(rows=3)) == (vocab, ())


def test_gpt2_style_shared_ends_stay_as_they_are() -> None:
    pythia = byte_level(300, ("<|endoftext|>", "[PAD]"), special={"bos": 300, "eos": 300, "unknown": 300})
    context = AdapterContext(rows=302, config={"bos_token_id": 300, "eos_token_id": 300})
    assert adapt(pythia, context) == (pythia, ())


@pytest.mark.parametrize(
    "context",
    [
        AdapterContext(rows=320),
        AdapterContext(
            rows=320,
            config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1, "rope_theta": 10000.0},
            generation_config={"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.6},
            tokenizer_config={
                "bos_token": {"content": "<s>"},
                "eos_token": "</s>",
                "pad_token": None,
                "add_bos_token": True,
            },
            special_tokens_map={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            names={"folder": "Llama-2-7b-hf", "config.json _name_or_path": "meta-llama/Llama-2-7b-hf"},
        ),
    ],
)
def test_ordinary_llama2_is_left_alone(context: AdapterContext) -> None:
    vocab = sentencepiece(special={"unknown": 0, "bos": 1, "eos": 2}, add_bos=True)
    assert adapt(vocab, context) == (vocab, ())


def test_tinyllama_chat_is_left_alone() -> None:
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
    )
    vocab = sentencepiece(special={"unknown": 0, "bos": 1, "eos": 2, "padding": 2}, chat_template=template)
    assert adapt(vocab, AdapterContext(rows=320)) == (vocab, ())


def test_stories260k_is_left_alone(real: Path) -> None:
    folder = real / "hf_stories260K"
    config = json.loads((folder / "config.json").read_text())
    checkpoint = Checkpoint(folder, config, {}, ())
    vocab = sentencepiece(512, special={"unknown": 0, "bos": 1, "eos": 2}, add_bos=True)
    context = read_context(checkpoint, rows=512)
    assert context.tokenizer_config["add_bos_token"] is True
    assert adapt(vocab, context) == (vocab, ())


def test_pads_and_holes() -> None:
    tokens = ("<unk>", "<s>", "</s>", "", "a", "[PAD6]")
    types = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL) + (TokenType.NORMAL,) * 3
    vocab = Vocab("llama", tokens, types, scores=(0.0,) * 6, special={"bos": 1, "eos": 2, "unknown": 0})
    adapted, notes = adapt(vocab, AdapterContext(rows=8))
    assert adapted.tokens == ("<unk>", "<s>", "</s>", "[PAD3]", "a", "[PAD6]", "[[PAD6]]", "[PAD7]")
    assert [index for index, kind in enumerate(adapted.types) if kind is TokenType.UNUSED] == [3, 6, 7]
    assert len(adapted.scores) == 8
    assert len(set(adapted.tokens)) == 8
    message = "3 unused tokens [PAD…] for ids 3, 6-7: the tokenizer has 5 tokens, the embedding 8 rows"
    assert notes == (Note("pad-rows", message),)


def test_more_tokens_than_rows() -> None:
    with pytest.raises(VocabError, match="51201 tokens, the embedding only 51200 rows"):
        adapt(byte_level(51200, ("<|endoftext|>",)), AdapterContext(rows=51200))


def test_special_id_outside() -> None:
    with pytest.raises(VocabError, match="eos token has id 400"):
        adapt(sentencepiece(special={"eos": 400}), AdapterContext(rows=320))


def test_config_ids_only_where_sensible() -> None:
    vocab = byte_level(300, ("<s>", "</s>", "<pad>"))
    context = AdapterContext(
        rows=303,
        config={"bos_token_id": 300, "eos_token_id": 5, "pad_token_id": 999, "sep_token_id": True},
        generation_config={"eos_token_id": [301], "pad_token_id": 302},
    )
    adapted, notes = adapt(vocab, context)
    assert adapted.special == {"bos": 300, "eos": 301, "padding": 302}
    texts = {note.warning: [] for note in notes}  # type: dict[bool, list[str]]
    for note in notes:
        texts[note.warning].append(note.message)
    assert "bos 300 '<s>'; eos 301 '</s>'; padding 302 '<pad>'" in texts[False][0]
    assert any("config.json has eos 5 '&', which is not a special token" in text for text in texts[True])
    assert any("config.json has padding 999 (no token)" in text for text in texts[True])


def test_contradicting_configurations_are_warned() -> None:
    vocab = byte_level(300, ("<s>", "</s>"))
    context = AdapterContext(
        rows=302, config={"eos_token_id": 300}, generation_config={"eos_token_id": 301, "bos_token_id": 300}
    )
    adapted, notes = adapt(vocab, context)
    assert adapted.special["eos"] == 301
    assert any(note.warning and "the tokenizer none" in note.message for note in notes)


def test_no_end_of_text_is_warned() -> None:
    _, notes = adapt(byte_level(300, ()), AdapterContext(rows=300))
    assert [note.warning for note in notes] == [True]
    assert "llama.cpp will use 11 ','" in notes[0].message


def test_role_texts_that_are_no_tokens_change_nothing() -> None:
    context = AdapterContext(rows=320, special_tokens_map={"pad_token": "[PAD]", "eos_token": 7})
    vocab = sentencepiece(special={"bos": 1, "eos": 2, "unknown": 0})
    assert adapt(vocab, context) == (vocab, ())


def test_an_ordinary_token_that_only_the_configuration_names_is_not_written() -> None:
    vocab = byte_level(300, ("</s>",), special={"eos": 5, "bos": 300})
    adapted, notes = adapt(vocab, AdapterContext(rows=301, config={"eos_token_id": 5, "bos_token_id": 300}))
    assert adapted.special == {"bos": 300}
    assert [note.warning for note in notes] == [True, True]


def test_precedence_of_tokenizer_files_is_that_of_transformers() -> None:
    files: dict[str, Any] = {
        "tokenizer_config": {"eos_token": "<s>"},
        "special_tokens_map": {"eos_token": "</s>"},
    }
    vocab = sentencepiece(special={"unknown": 0, "bos": 1})
    assert adapt(vocab, AdapterContext(rows=320, **files))[0].special["eos"] == 2
    files["tokenizer_config"]["added_tokens_decoder"] = {}
    assert adapt(vocab, AdapterContext(rows=320, **files))[0].special["eos"] == 1


def test_further_stop_ids() -> None:
    vocab = byte_level(
        300, ("<s>", "</s>", "[|endofturn|]", "<|stop|>", "<|halt|>"), special={"bos": 300, "eos": 301}
    )
    context = AdapterContext(rows=305, generation_config={"eos_token_id": [301, 302, 303, 304, 5, "x"]})
    adapted, notes = adapt(vocab, context)
    assert adapted.special == {"bos": 300, "eos": 301, "eot": 302, "eom": 303}
    assert [note.warning for note in notes] == [False, True]
    assert "304 '<|halt|>'" in notes[1].message


def test_a_template_that_does_not_render_is_carried_over() -> None:
    broken = "{{ raise_exception('tools only') }}"
    vocab = sentencepiece(special={"unknown": 0, "bos": 1, "eos": 2}, chat_template=broken)
    adapted, notes = adapt(vocab, AdapterContext(rows=320))
    assert adapted == vocab
    assert [(note.name, note.warning) for note in notes] == [("end-of-turn", True)]


def test_asked_for_templates(tmp_path: Path) -> None:
    vocab = sentencepiece(special={"unknown": 0, "bos": 1, "eos": 2}, chat_template="{{ messages }}")
    adapted, notes = adapt(vocab, AdapterContext(rows=320, chat_template="42dot"))
    assert adapted.chat_template == resolve_template("42dot")
    assert "instead of the checkpoint's own" in notes[0].message
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    assert (
        adapt(vocab, AdapterContext(rows=320, chat_template=str(file)))[0].chat_template == file.read_text()
    )
    none, notes = adapt(dot42(), AdapterContext(rows=50304, names=SFT, chat_template="none"))
    assert none.chat_template is None
    assert "chat-template" not in names_of(notes)


def test_switching_adapters_off() -> None:
    enabled = enabled_adapters(["42dot-specials", "chat-template"])
    assert enabled == frozenset(adapter_names()) - {"42dot-specials", "chat-template"}
    vocab, notes = adapt(dot42(), AdapterContext(rows=50304, names=SFT), enabled)
    assert vocab.types[50257] is TokenType.USER_DEFINED
    assert vocab.chat_template is None
    assert not {"42dot-specials", "chat-template"} & set(names_of(notes))
    with pytest.raises(UsageError, match="unknown adapter 'pad-row'") as caught:
        enabled_adapters(["pad-row"])
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in adapter_names())
    with pytest.raises(UsageError):
        adapt(dot42(), AdapterContext(rows=50304), ["nothing"])


def test_an_adapter_the_file_cannot_do_without() -> None:
    with pytest.raises(UsageError, match="50260 tokens, the embedding 50304 rows"):
        adapt(dot42(), AdapterContext(rows=50304), enabled_adapters(["pad-rows"]))
    with pytest.raises(UsageError, match="switched off"):
        adapt(
            dot42(),
            AdapterContext(rows=50304, chat_template="42dot"),
            enabled_adapters(["chat-template"]),
        )


def special_ids_in_llama_cpp(vocab: Vocab, path: Path) -> dict[str, Any]:
    """What llama.cpp itself makes of the special tokens."""
    import llama_cpp

    write_header(path, "llama", gguf_keys(vocab), [])
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    loaded = llama_cpp.llama_model_get_vocab(model)
    try:
        return {
            "size": llama_cpp.llama_vocab_n_tokens(loaded),
            "bos": llama_cpp.llama_vocab_bos(loaded),
            "eos": llama_cpp.llama_vocab_eos(loaded),
            "eot": llama_cpp.llama_vocab_eot(loaded),
            "padding": llama_cpp.llama_vocab_pad(loaded),
            "add_bos": llama_cpp.llama_vocab_get_add_bos(loaded),
            "ends": [index for index in range(vocab.size) if llama_cpp.llama_vocab_is_eog(loaded, index)],
        }
    finally:
        llama_cpp.llama_model_free(model)
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def test_llama_cpp_sees_what_was_adapted(tmp_path: Path) -> None:
    vocab, _ = adapt(dot42(), AdapterContext(rows=50304, names=SFT))
    seen = special_ids_in_llama_cpp(vocab, tmp_path / "42dot.gguf")
    assert seen == {
        "size": 50304,
        "bos": 50257,
        "eos": 50256,
        "eot": 50256,  # found by llama.cpp itself, so no key is written
        "padding": 50258,
        "add_bos": False,
        "ends": [50256],
    }
    vocab, _ = adapt(
        sentencepiece(special={"unknown": 0, "eos": 2}),
        AdapterContext(rows=322, config={"bos_token_id": 2, "eos_token_id": 2}),
    )
    seen = special_ids_in_llama_cpp(vocab, tmp_path / "eagle.gguf")
    assert (seen["size"], seen["bos"], seen["eos"], seen["padding"], seen["add_bos"]) == (322, 2, 2, 0, False)
    template = resolve_template("aog")
    small = byte_level(
        300, LLAMA3_SPECIALS[:10], special={"bos": 300, "eos": 301}, add_bos=True, chat_template=template
    )
    vocab, _ = adapt(small, AdapterContext(rows=310))
    seen = special_ids_in_llama_cpp(vocab, tmp_path / "aog.gguf")
    assert (seen["bos"], seen["eos"], seen["eot"], seen["ends"]) == (300, 301, 301, [301, 309])
