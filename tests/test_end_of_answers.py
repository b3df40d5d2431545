"""Where answers end in chat formats that are not what they seem, by the templates of the models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import vocab_material as material
from llama_material import random_llama

from kconv.converters import to_gguf
from kconv.core.gguf_file import read_header
from kconv.core.vocabulary import TokenType, Vocab
from kconv.flows.generate import generate
from kconv.flows.verify import verify
from kconv.vocab.context import AdapterContext
from kconv.vocab.end_of_turn import end_of_turn, reasoning_end, turn_end

LOOP = "{% for m in messages %}"
THINK = (
    LOOP + "{% if m.role == 'assistant' and m.reasoning_content %}<|im_start|>assistant/think\n"
    "{{ m.reasoning_content }}<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    "{% if m.role == 'assistant' %}<|endofturn|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
QWEN = LOOP + (
    "<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)
LLAMA = LOOP + (
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
EXAONE = (
    LOOP + "[|{{ m.role }}|]{{ m.content }}{% if m.role != 'user' %}[|endofturn|]{% endif %}\n{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + LOOP + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}"
    + LOOP
    + (
        "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
)
HYPERCLOVA = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|endofturn|>", "<|stop|>")


def vocab(template: str, *specials: str, eos: str = "") -> Vocab:
    tokens = ("a", "<s>", "</s>", *specials)
    types = (TokenType.NORMAL, *[TokenType.CONTROL] * (len(tokens) - 1))
    special = {"bos": 1, "eos": tokens.index(eos or "</s>")}
    return Vocab("gpt2", tokens, types, special=special, chat_template=template)


@pytest.mark.parametrize(
    ("template", "specials", "end"),
    [
        (QWEN, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        (LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
        (EXAONE, ("[|user|]", "[|assistant|]", "[|endofturn|]"), "[|endofturn|]"),
        (GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
        (MISTRAL, ("[INST]", "[/INST]"), "</s>"),
    ],
    ids=("Qwen", "Kanana, Llama 3", "EXAONE", "Gemma", "Mistral"),
)
def test_turns_end_as_the_template_says(template: str, specials: tuple[str, ...], end: str) -> None:
    given = vocab(template, *specials)
    index = turn_end(given)
    assert index is not None
    assert given.tokens[index] == end
    assert reasoning_end(given) is None


def test_hyperclova_ends_with_tokens_its_files_do_not_name() -> None:
    given = vocab(THINK, *HYPERCLOVA, eos="<|im_end|>")
    ended, notes = end_of_turn(given, AdapterContext(rows=given.size))
    assert ended.tokens[ended.special["eot"]] == "<|endofturn|>"
    assert ended.tokens[ended.special["eom"]] == "<|stop|>"
    assert any(note.warning and "llama-server returns the reasoning alone" in note.message for note in notes)
    plain = vocab(LLAMA, "<|endofturn|>", "<|stop|>")  # other models that have tokens of such names
    assert "eom" not in end_of_turn(plain, AdapterContext(rows=plain.size))[0].special


def test_several_ends_of_generation_config_are_written() -> None:
    given = vocab(LLAMA, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|other|>", "<|third|>")
    context = AdapterContext(rows=given.size, generation_config={"eos_token_id": [2, 5, 6, 7]})
    ended, notes = end_of_turn(given, context)
    assert {ended.special[role] for role in ("eos", "eot", "eom")} == {2, 5, 6}
    assert any(note.warning and "7 '<|third|>'" in note.message for note in notes)


def test_run_goes_on_behind_the_reasoning(tmp_path: Path) -> None:
    """A model that says nothing but the token: llama.cpp's own end, kconv run reads on."""
    import torch
    from safetensors.torch import load_file, save_file

    tokenizer = tmp_path / "tokenizer"
    rows = material.llama3_like(tokenizer)
    file = tokenizer / "tokenizer.json"
    spec = json.loads(file.read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] += [
        {"id": rows + at, "content": text, "special": True, **flags} for at, text in enumerate(HYPERCLOVA)
    ]
    file.write_text(json.dumps(spec), encoding="utf-8")
    (tokenizer / "chat_template.jinja").write_text(THINK, encoding="utf-8")
    folder = random_llama(tmp_path / "model", tokenizer, vocab_size=rows + len(HYPERCLOVA))
    weights = load_file(folder / "model.safetensors")
    head = torch.zeros_like(weights["lm_head.weight"])
    head[rows + 2, 0] = 50  # <|im_end|>
    weights["lm_head.weight"] = head
    weights["model.norm.weight"] = torch.zeros(64).index_fill_(0, torch.tensor([0]), 1)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = torch.zeros_like(weights[name])
    weights["model.embed_tokens.weight"][:, 0] = 5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    made = tmp_path / "out.gguf"
    to_gguf(folder, made, types=["f32"], verify=False)
    assert read_header(made).metadata["kconv.goes_on_token_id"] == rows + 2
    answer = generate(made, "안녕", tokens=4, greedy=True, threads=1)
    assert answer.ids == (rows + 2,) * 4
    assert answer.stop_reason == "length"
    assert verify(made, against=folder).parts["metadata"].verdict == "passed"
