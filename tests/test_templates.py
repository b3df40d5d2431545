"""Chat templates: against the strings of the cards, and against the other programs that render them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kconv.core.errors import UsageError, VocabError
from kconv.core.vocabulary import TokenType, Vocab
from kconv.vocab.context import AdapterContext
from kconv.vocab.ollama import ollama_modelfile
from kconv.vocab.sampling import Sampling, recommended_sampling, sampling_metadata
from kconv.vocab.templates import FORMATS, format_of_template, render_chat, resolve_template, template_names

# 42dot_LLM example_cli.py: the system text, each earlier turn, and the question, put together.
DOT42_SYSTEM = (
    "호기심 많은 인간 (human)과 인공지능 봇 (AI bot)의 대화입니다. "
    "봇의 이름은 42dot LLM이고 포티투닷 (42dot)에서 개발했습니다. "
    "봇은 인간의 질문에 대해 친절하게 유용하고 상세한 답변을 제공합니다. "
)
FIBONACCI = "피보나치 수열이 뭐야? 그리고 피보나치 수열에 대해 파이썬 코드를 짜줘볼래?"
# The single-turn and the multi-turn example of the card of Llama-3-Ko-8B-Instruct-AOG.
AOG_SINGLE = f"""### Question:
{FIBONACCI}

### Instruction:
친절한 챗봇으로서 상대방의 요청에 최대한 자세하고 친절하게 답하자.

### Response:
"""
AOG_MULTI = f"""### Question:
{FIBONACCI}
### Response:
피보나치 수열은 …

fibonacci(6)==> 8
### Question:
더 빠른 알고리즘은 없을까?

### Instruction:
친절한 챗봇으로서 상대방의 요청에 최대한 자세하고 친절하게 답하자.

### Response:
"""

Message = dict[str, str]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


CHATS: dict[str, list[Message]] = {
    "question": [user("안녕하세요?")],
    "system": [system("너는 시인이다."), user("봄\n노래")],
    "empty system": [system(""), user("안녕")],
    "turns": [user("하나"), bot("둘"), user("셋")],
    "long": [system("짧게"), user(" a "), bot(" b"), user("c"), bot("d\n"), user("{{ e }}")],
    "answered": [user("하나"), bot("둘")],
}


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        ("42dot", CHATS["question"], f"{DOT42_SYSTEM}<human>: 안녕하세요? <bot>:"),
        ("42dot", CHATS["system"], "너는 시인이다. <human>: 봄\n노래 <bot>:"),
        ("42dot", CHATS["empty system"], "<human>: 안녕 <bot>:"),
        ("42dot", CHATS["turns"], f"{DOT42_SYSTEM}<human>: 하나 <bot>: 둘</e><human>: 셋 <bot>:"),
        ("aog", [user(FIBONACCI)], f"<b>{AOG_SINGLE}"),
        (
            "aog",
            [
                user(FIBONACCI),
                bot("피보나치 수열은 …\n\nfibonacci(6)==> 8"),
                user("더 빠른 알고리즘은 없을까?"),
            ],
            f"<b>{AOG_MULTI}",
        ),
        (
            "aog",
            CHATS["system"],
            "<b>### Question:\n봄\n노래\n\n### Instruction:\n너는 시인이다.\n\n### Response:\n",
        ),
        ("aog", CHATS["empty system"], "<b>### Question:\n안녕\n\n### Response:\n"),
    ],
)
def test_prompts_are_those_of_the_cards(name: str, messages: list[Message], expected: str) -> None:
    template = resolve_template(name)
    assert template is not None
    assert render_chat(template, messages, bos_token="<b>", eos_token="</e>") == expected


@pytest.mark.parametrize("name", [found.name for found in FORMATS])
@pytest.mark.parametrize("generate", [True, False])
def test_other_renderers_agree(name: str, generate: bool) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    from transformers.utils.chat_template_utils import render_jinja_template

    template = resolve_template(name)
    assert template is not None
    variables: dict[str, Any] = {
        "bos_token": "<b>",
        "eos_token": "</e>",
        "add_generation_prompt": generate,
    }
    formatter = Jinja2ChatFormatter(
        template, eos_token="</e>", bos_token="<b>", add_generation_prompt=generate
    )
    texts, _ = render_jinja_template(list(CHATS.values()), chat_template=template, **variables)
    for messages, theirs in zip(CHATS.values(), texts, strict=True):
        assert render_chat(template, messages, **variables) == theirs
        assert formatter(messages=messages).prompt == theirs  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [found.name for found in FORMATS])
def test_unknown_roles_are_refused(name: str) -> None:
    template = resolve_template(name)
    assert template is not None
    with pytest.raises(VocabError, match="roles system, user and assistant"):
        render_chat(template, [user("a"), {"role": "tool", "content": "b"}])


def test_formats_carry_the_system_text_of_their_template() -> None:
    for prompt_format in FORMATS:
        assert f"'{prompt_format.system}'" in prompt_format.template
        assert format_of_template(prompt_format.template) is prompt_format
    assert format_of_template("{{ messages }}") is None


def test_templates_by_name_and_file(tmp_path: Path) -> None:
    assert resolve_template("NONE") is None
    assert resolve_template("42DOT") == resolve_template("42dot")
    assert set(template_names()) == {"42dot", "aog", "none"}
    file = tmp_path / "my.jinja"
    file.write_bytes("\ufeff{{ bos_token }}\r\n질문\n".encode())
    assert resolve_template(str(file)) == "{{ bos_token }}\n질문"
    with pytest.raises(UsageError, match="unknown chat template '43dot'") as caught:
        resolve_template("43dot")
    assert caught.value.hint is not None
    assert "42dot, aog, none" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\n{% if messages %}\nb", "line 1|line 2|line 3"),
        (b"a\n{{ messages | nonsense }}", "line 2.*nonsense"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"x" * (256 << 10) + b"y", "at most 262144"),
        (b"{{ " + b"(" * 9000 + b"1" + b")" * 9000 + b" }}", "RecursionError"),
    ],
)
def test_bad_template_files(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "bad.jinja"
    file.write_bytes(content)
    with pytest.raises(VocabError, match=says) as caught:
        resolve_template(str(file))
    assert str(file) in caught.value.message


def test_a_folder_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(VocabError, match="folder"):
        resolve_template(str(tmp_path))


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe|no attribute"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "renders more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("\n\n{{ raise_exception('처음부터') }}", "line 3: TemplateError: 처음부터"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_hostile_templates_end_in_an_error(template: str, says: str) -> None:
    with pytest.raises(VocabError, match=says):
        render_chat(template, [user("안녕")])


def test_what_templates_of_the_hub_use_works() -> None:
    template = (
        "{%- generation %}{{ {'가': [1]} | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ tools is none }}{{ nothing }}"
    )
    assert render_chat(template, [user("a"), user("b")]) == '{"가": [1]}a4True'


def tokens(*texts: str) -> Vocab:
    return Vocab("gpt2", texts, (TokenType.CONTROL,) * len(texts), chat_template=None)


DOT42_TOKENS = ("<|endoftext|>", "<||bos||>", "<||pad||>", "<||unk||>")


def test_recommended_sampling() -> None:
    dot42 = recommended_sampling(AdapterContext(rows=4), tokens(*DOT42_TOKENS))
    assert dot42 is not None
    assert (dot42.temperature, dot42.top_p, dot42.top_k, dot42.repeat_penalty) == (0.5, 0.95, 20, 1.2)
    assert dot42.max_tokens == 512
    assert sampling_metadata(dot42) == {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.95,
        "general.sampling.penalty_repeat": 1.2,
    }
    for name, key, value in (
        ("etri-lirs/eagle-3b-preview", "top_p", 0.9),
        ("etri-lirs/egpt-3b-preview", "top_p", 0.9),
        ("kakaobrain/kogpt", "temperature", 0.8),
    ):
        card = recommended_sampling(AdapterContext(rows=1, names={"Hub cache": name}), tokens("a"))
        assert card is not None
        assert getattr(card, key) == value
    assert recommended_sampling(AdapterContext(rows=1, names={"folder": "TinyLlama"}), tokens("a")) is None
    assert sampling_metadata(None) == {}


def test_the_checkpoints_own_sampling_wins() -> None:
    generation = {
        "temperature": 0.7,
        "top_k": True,
        "top_p": 7,
        "repetition_penalty": float("nan"),
        "min_p": "0.1",
    }
    context = AdapterContext(rows=4, generation_config=generation)
    sampling = recommended_sampling(context, tokens(*DOT42_TOKENS))
    assert sampling is not None
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.7, 20, 0.95, None)
    assert sampling.source.startswith("generation_config.json")
    greedy = AdapterContext(rows=1, generation_config={"do_sample": False, "temperature": 0.7})
    assert recommended_sampling(greedy, tokens("a")) is None


def test_stops_come_with_the_prompt_format() -> None:
    template = resolve_template("aog")
    vocab = Vocab("gpt2", ("a",), (TokenType.NORMAL,), chat_template=template)
    sampling = recommended_sampling(AdapterContext(rows=1), vocab)
    assert sampling is not None
    assert sampling.stop == ("### Question:",)


def test_modelfiles() -> None:
    sampling = Sampling(
        "card", temperature=0.5, top_k=20, repeat_penalty=1.2, max_tokens=512, stop=("<human>:",)
    )
    text = ollama_modelfile("42dot-Q4_0.gguf", resolve_template("42dot"), sampling)
    assert text.startswith('FROM ./42dot-Q4_0.gguf\nTEMPLATE """')
    assert f'SYSTEM """{DOT42_SYSTEM.strip()}"""' in text
    assert text.endswith(
        "PARAMETER temperature 0.5\nPARAMETER top_k 20\nPARAMETER repeat_penalty 1.2\n"
        'PARAMETER num_predict 512\nPARAMETER stop "<human>:"\n'
    )
    llama3 = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    assert 'PARAMETER stop "<|eot_id|>"' in ollama_modelfile("a.gguf", llama3, None)
    other = ollama_modelfile("a.gguf", llama3.replace("{{ bos_token }}", "Today is Monday."), None)
    assert "TEMPLATE " not in other.replace("as a TEMPLATE", "")
    assert 'TEMPLATE """{{ .Prompt }}"""' in ollama_modelfile("a.gguf", None, None)
    with pytest.raises(UsageError):
        ollama_modelfile("a\nPARAMETER x", None, None)
