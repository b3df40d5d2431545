"""The chat page of ``kconv serve`` in a real browser: asked, stopped, begun anew; chats, T5 and GBST."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from test_serve import Server, served

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample

# kconv, with some time for each token: the sample answers at once, and there would be nothing to stop.
SLOW = """
import sys, time
from kconv.flows.serving import ServedModel
answer = ServedModel.answer
def slowly(self, request, show):
    def shown(text):
        time.sleep(0.1)
        show(text)
    return answer(self, request, shown)
ServedModel.answer = slowly
from kconv.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
ANSWERS = "[...document.querySelectorAll('.model')].map(each => each.innerText)"
READY = "running === null && document.querySelector('#send').innerText === 'Send'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, template in (("42dot", "42dot"), ("kebyt5", None), ("gbst-kebyt5", None)):
        options: dict[str, Any] = {"types": ["f32"], "verify": False, "chat_template": template}
        made[name] = to_gguf(write_sample(name, folder / f"{name}-small"), folder, **options).outputs[0].path
    return made


def opened(page: Page, server: Server) -> None:
    page.command("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
    page.until("document.title !== 'kconv' && typeof model === 'object' && model !== null")


def ask(page: Page, text: str) -> None:
    page.value(f"document.querySelector('#text').value = {json.dumps(text)}")
    page.value("document.querySelector('#temperature').value = '0'")
    page.value("document.querySelector('#form').requestSubmit()")


def click(page: Page, what: str) -> None:
    page.value(f"document.querySelector({json.dumps(what)}).click()")


def test_an_answer_is_stopped_made_again_and_the_chat_begun_anew(page: Page, models: dict[str, Path]) -> None:
    with served(models["42dot"], command=(sys.executable, "-c", SLOW)) as server:
        opened(page, server)
        ask(page, "서울의 명소를 알려줘.")
        page.until(f"running && {ANSWERS}[0].length > 2")
        assert page.value("document.querySelector('#send').innerText") == "Stop"
        click(page, "#send")
        page.until(READY)
        stopped = page.value(f"{ANSWERS}[0]")
        assert page.value("document.querySelector('.rate').innerText").startswith("stopped")
        assert page.value("messages.map(each => each.role)") == ["user", "assistant"]
        assert page.value("messages[1].content") == stopped

        click(page, ".again")  # the model is free again, and the same question stands there once
        page.until(f"running && {ANSWERS}[0].length > 4")
        assert page.value("document.querySelectorAll('.user').length") == 1
        click(page, "#clear")  # while it answers
        page.until(READY)
        assert page.value("[messages.length, document.querySelectorAll('.turn').length]") == [0, 0]

        ask(page, "안녕")
        page.until(f"running && {ANSWERS}.length === 1")
        assert page.value("messages.map(each => each.content)") == ["안녕"]
        click(page, "#send")
        page.until(READY)


def test_a_whole_answer_tells_how_fast_it_came(page: Page, models: dict[str, Path]) -> None:
    with served(models["42dot"], "--ctx", "64") as server:
        opened(page, server)
        ask(page, "안녕")
        page.until(f"{READY} && {ANSWERS}.length === 1")
        assert "tokens/s" in page.value("document.querySelector('.rate').innerText")
        ask(page, "가나다라 " * 200)
        page.until(f"{READY} && document.querySelectorAll('.error').length === 1")
        assert "the context has room for" in page.value("document.querySelector('.error').innerText")
        assert page.value("messages.length") == 2  # what was refused is not asked again
        server.process.kill()
        server.process.wait()
        ask(page, "거기 있어?")
        page.until(f"{READY} && document.querySelectorAll('.error').length === 2")
        assert "Is kconv serve still running?" in page.value(
            "document.querySelectorAll('.error')[1].innerText"
        )


@pytest.mark.parametrize("name", ["kebyt5", "gbst-kebyt5"])
def test_encoder_decoders_answer_each_message_by_itself(
    page: Page, models: dict[str, Path], name: str
) -> None:
    with served(models[name], "--ctx", "96") as server:
        opened(page, server)
        assert "each message is answered by itself" in page.value(
            "document.querySelector('header').innerText"
        )
        assert page.value("document.querySelector('#for-system').hidden")
        for text in ("한국의 수도는", "둘째 질문"):
            ask(page, text)
            page.until(f"{READY} && {ANSWERS}.length === messages.length / 2")
            asked = {"messages": [{"role": "user", "content": text}], "temperature": 0}
            alone = server.object("/v1/chat/completions", asked)["choices"][0]["message"]["content"]
            assert page.value("messages.at(-1).content") == alone


def test_a_key_is_asked_for_where_one_is_needed(page: Page, models: dict[str, Path]) -> None:
    with served(models["42dot"], key="geheim") as server:
        page.command("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        page.until("document.querySelector('#for-key') && !document.querySelector('#for-key').hidden")
        page.value("document.querySelector('#key').value = 'geheim'")
        page.value("document.querySelector('#for-key').requestSubmit()")
        page.until("model !== null")
    with served(models["42dot"]) as server:
        opened(page, server)
        assert page.value("document.querySelector('#for-key').hidden")


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_window(page: Page, models: dict[str, Path], width: int) -> None:
    with served(models["gbst-kebyt5"], "--ctx", "64") as server:
        page.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=640, deviceScaleFactor=1, mobile=False
        )
        opened(page, server)
        ask(page, "https://example.com/" + "a" * 300)
        page.until(READY)
        page.value("document.querySelector('#more').open = true")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("document.documentElement.scrollHeight") <= 640
        high = "[...document.querySelectorAll('button')].map(each => each.getBoundingClientRect().height)"
        assert max(page.value(high)) < 50  # one line each
        page.command("Emulation.clearDeviceMetricsOverride")
