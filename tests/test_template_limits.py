"""What a chat template decides depends on the template alone: not load, a killed process, day or chance."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import vocab_material as material
from signals_material import killing

from kconv.core.errors import ChildDied, InputError, VocabError
from kconv.core.vocabulary import TokenType, Vocab
from kconv.vocab import rendering, selection, templates
from kconv.vocab.context import AdapterContext
from kconv.vocab.end_of_turn import end_of_turn, turn_end
from kconv.vocab.generation_tags import replaced_tags, without_generation_tags
from kconv.vocab.rendering import TemplateLimit, render_all
from kconv.vocab.templates import SOME_DAY, render_chat

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
CHAT = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def vocab(template: str) -> Vocab:
    texts = ("a", "<|end|>", "<|stop|>")
    return Vocab("gpt2", texts, (TokenType.NORMAL, *[TokenType.CONTROL] * 2), chat_template=template)


def test_endless_templates_run_into_the_limit_of_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    with pytest.raises(TemplateLimit, match=r"more than 0\.2 seconds") as caught:
        render_all(ENDLESS, [{}])
    assert caught.value.exit_code == 3
    assert "--chat-template none" in str(caught.value.hint)


@pytest.mark.parametrize(
    "template",
    ["{{ 'a' * 10 ** 11 }}", "{{ '{:>99999999999}'.format(1) }}", "{{ range(99999) | list * 99999 }}"],
)
def test_memory_ends_in_the_same_error(template: str) -> None:
    with pytest.raises(InputError, match=r"memory|renders more|OverflowError") as caught:
        render_chat(template, MESSAGES)
    assert not isinstance(caught.value, VocabError) or "memory" not in caught.value.message


def test_a_limit_ends_the_conversion_instead_of_a_file_without_end_of_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    rows = material.llama3_like(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(ENDLESS)
    with pytest.raises(TemplateLimit):
        selection.select_vocab(material.model(rows), material.checkpoint(tmp_path))
    model, _ = selection.select_vocab(
        material.model(rows), material.checkpoint(tmp_path), chat_template="none"
    )
    assert model.vocab is not None
    assert model.vocab.chat_template is None


def test_the_start_of_the_process_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jinja2 that takes longer to import than any template may run."""
    slow = tmp_path / "jinja2"
    slow.mkdir()
    import jinja2

    (slow / "__init__.py").write_text(
        "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end:\n    pass\n"
        f"__path__ = {list(jinja2.__path__)!r}\n"
        f"exec(compile(open({jinja2.__file__!r}).read(), {jinja2.__file__!r}, 'exec'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    assert render_chat(CHAT, MESSAGES) == "a<|end|>b<|end|>"


def test_a_killed_process_is_no_finding_and_is_not_remembered() -> None:
    template = "{# killed #}" + CHAT
    killer = killing("kconv.vocab.template_child", 1)
    assert turn_end(vocab(template)) == 1
    killer.join()
    template = "{# killed twice #}" + CHAT
    killer = killing("kconv.vocab.template_child", 2)
    with pytest.raises(ChildDied, match="signal 9"):
        end_of_turn(vocab(template), AdapterContext(rows=3))
    killer.join()
    assert turn_end(vocab(template)) == 1


def test_neither_the_day_nor_chance_decides() -> None:
    template = "{{ strftime_now('%Y-%m-%d %H:%M') }}{{ range(99999) | random }}"
    once = render_chat(template, MESSAGES, moment=SOME_DAY)
    templates._render.cache_clear()
    assert render_chat(template, MESSAGES, moment=SOME_DAY) == once
    assert once.startswith("2023-11-14 22:13")
    assert time.strftime("%Y") in render_chat(template, MESSAGES) or time.strftime("%m-%d") == "01-01"
    by_day = CHAT.replace("<|end|>", "{{ '<|end|>' if strftime_now('%Y') == '2023' else '<|stop|>' }}")
    assert turn_end(vocab(by_day)) == 1


GENERATIONS = [
    "{% for m in messages %}x {% generation %} {{ m.content }} {% endgeneration %} y{% endfor %}",
    "{% for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n"
    "  {%- endgeneration -%}\n z {% endfor %}",
    "a\n  {% generation %}\n  {{ messages[0].content }}\n  {% endgeneration %}\nb",
    "{%+ generation +%} {{ '}}' ~ \"%}\" ~ '{% generation %}' }} {%+ endgeneration +%}",
    "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{%generation%}a{%endgeneration%}",
    "{% if '{% endgeneration %}' %}{% generation %}{% set x = {'a': {}} %}{{ x }}"
    "{% endgeneration %}{% endif %}",
]


@pytest.mark.parametrize("template", GENERATIONS)
def test_marks_for_training_are_taken_out_and_nothing_else_changes(template: str) -> None:
    import jinja2

    changed, notes = without_generation_tags(vocab(template), AdapterContext(rows=3))
    assert changed.chat_template is not None
    assert [note.name for note in notes] == ["generation-tags"]
    assert render_chat(changed.chat_template, MESSAGES) == render_chat(template, MESSAGES)
    with pytest.raises(jinja2.TemplateSyntaxError, match="generation"):
        jinja2.Environment().from_string(template)
    jinja2.Environment().from_string(changed.chat_template)


@pytest.mark.parametrize(
    "template",
    [
        CHAT,
        "{% generation %}a",
        "{% endgeneration %}a{% generation %}",
        "{{ 'generation' }}",
        "{{ '{% generation %}",
        "{# {% generation %}{% endgeneration %}",
        "{% raw %}{% generation %}{% endgeneration %}",
    ],
)
def test_broken_templates_and_others_stay_as_they_are(template: str) -> None:
    assert replaced_tags(template) == template


@pytest.mark.parametrize("piece", ["{{", "{% ", "{# ", "{{ '", "{% raw %}", "{% generation %}"])
def test_a_strangers_template_is_read_in_no_time(piece: str) -> None:
    start = time.process_time()
    replaced_tags(piece * (300_000 // len(piece)) + "generation")
    assert time.process_time() - start < 2
