"""Conversations that go on: after a full context, a reload, a broken line, in two tabs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from chats import Chat, box, say
from playwright.sync_api import Browser, Page, Route, expect
from test_label_page import check_access, picture
from worlds import CONTEXT, LIMITS, SENTENCE, parrot, running, words

from lmsmith.feedback.store import Store
from lmsmith.server.engine import AsyncEngine


def slowly(engine: AsyncEngine) -> None:
    """The endless parrot writes for some seconds."""
    scheduler = engine.models["endless"].scheduler
    step = scheduler.step

    def slow() -> Any:
        time.sleep(0.02)
        return step()

    scheduler.step = slow  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("goes-on") / "chat.db")
    yield made
    made.close()


@pytest.fixture
def chat(browser: Browser, store: Store) -> Iterator[Chat]:
    models = {"parrot": parrot(), "endless": parrot(for_ever=True)}
    with running(models, replace(LIMITS, seconds=120), slowly, store=store) as served:
        yield Chat(served.address, store, browser)
        for context in browser.contexts:
            context.close()


def second_tab(chat: Chat, page: Page) -> Page:
    other = page.context.new_page()
    other.on("pageerror", lambda error: pytest.fail(f"in the page: {error}"))
    other.goto(page.url)
    return other


def test_a_long_conversation_goes_on_without_its_oldest_messages(chat: Chat) -> None:
    page = chat.visit()
    for number in range(6):
        say(page, words(100))
        expect(page.get_by_label("Answer again")).to_have_count(number + 1)
    left_out = "longer than this model can read: its oldest messages"
    expect(page.locator("article.assistant").last).to_contain_text(left_out)
    expect(page.locator("article.assistant").first).not_to_contain_text(left_out)
    page.reload()
    expect(page.locator("article.assistant").last).to_contain_text(left_out)
    assert len(chat.messages(page)) == 12


@pytest.mark.parametrize("then", ["go on", "edit", "again"])
def test_a_message_without_an_answer_blocks_nothing(chat: Chat, then: str) -> None:
    page = chat.visit(locale="zh-CN")
    page.get_by_label("输入消息").fill(words(CONTEXT) if then != "again" else "你好")
    if then == "again":
        page.route("**/answers", lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(page.locator(".toast.bad")).to_contain_text(
        "与服务器的连接断开了" if then == "again" else "超出了这个模型能读取的长度"
    )
    page.unroute("**/answers")
    if then == "go on":
        page.get_by_label("输入消息").fill("再说一句")
        page.keyboard.press("Enter")
    elif then == "edit":
        page.get_by_label("编辑", exact=True).click()
        page.get_by_label("修改消息，将从这里开始新的分支").fill("短一点")
        page.keyboard.press("Enter")
    else:
        page.get_by_role("button", name="回答这条消息").click()
    expect(page.locator("article.assistant")).to_contain_text(SENTENCE)
    if then == "go on":
        expect(page.locator("article.user")).to_have_count(2)
        expect(page.locator("article.assistant")).to_contain_text("最早的 1 条消息没有让它读到")


def ask_slowly(page: Page, text: str = "go on", model: str = "endless") -> None:
    page.get_by_label("Model", exact=True).select_option(model)
    say(page, text)
    expect(page.locator(".writing")).to_contain_text(SENTENCE)


def longer(text: str) -> re.Pattern[str]:
    """What begins so and goes on."""
    return re.compile(re.escape(text.strip()) + ".{20,}", re.DOTALL)


def test_an_answer_goes_on_after_a_reload_and_can_be_stopped(chat: Chat) -> None:
    page = chat.visit()
    ask_slowly(page)
    before = page.locator(".writing .markdown").inner_text()
    page.reload()
    written = page.locator(".writing .markdown")
    expect(written).to_contain_text(before.strip())
    now = written.inner_text()
    expect(written).to_have_text(longer(now))
    page.get_by_label("Stop").click()
    expect(page.locator("article.assistant")).to_contain_text("Stopped")
    kept = chat.messages(page)
    assert [each.role for each in kept] == ["user", "assistant"]
    assert kept[1].content.startswith(now.strip())


def test_stopped_before_the_first_word_a_question_can_be_asked_again_or_edited(
    browser: Browser, store: Store
) -> None:
    gate = threading.Event()

    def held(engine: AsyncEngine) -> None:
        step = engine.models["parrot"].scheduler.step
        engine.models["parrot"].scheduler.step = lambda: gate.wait(60) and step()  # type: ignore[method-assign]

    with running({"parrot": parrot()}, prepare=held, store=store) as served:
        chat = Chat(served.address, store, browser)
        page = chat.visit()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        with page.expect_response("**/answers"):
            say(page, "what do you like?")
        page.get_by_label("Stop").click()
        note = page.get_by_text("Stopped before the first word", exact=True)
        expect(note.first).to_be_visible()
        expect(page.locator("article.assistant")).to_have_count(0)
        expect(page.get_by_label("Edit")).to_be_enabled()
        assert [each.role for each in chat.messages(page)] == ["user"]
        picture(page, "stopped-early")
        check_access(page)
        gate.set()
        page.get_by_role("button", name="Answer this").click()
        expect(page.locator("article.assistant")).to_contain_text(SENTENCE)
        expect(note).to_have_count(0)
        assert not [each for each in asked if each.partition("?")[0].endswith("/pair")]
        for context in browser.contexts:
            context.close()


def test_a_reload_before_the_first_word_loses_no_answer(chat: Chat) -> None:
    page = chat.visit()
    page.get_by_label("Model", exact=True).select_option("endless")
    with page.expect_response("**/answers"):
        say(page, "go on")
    page.reload()
    expect(page.locator(".writing")).to_contain_text(SENTENCE)
    page.get_by_label("Stop").click()
    expect(page.locator("article.assistant")).to_have_count(1)


CUTS = """
const real = window.fetch;
let stop = null;
window.sleep = () => stop();
window.fetch = async (path, asked) => {
  const answer = await real(path, asked);
  if (!/answers$|answers\\/[^/]*$/.test(path)) return answer;
  const reader = answer.body.getReader();
  return new Response(new ReadableStream({
    start(out) { stop = () => { reader.cancel(); out.error(new TypeError('network error')); }; },
    async pull(out) {
      const { done, value } = await reader.read();
      if (done) out.close(); else out.enqueue(value);
    },
  }), answer);
};
"""
"""`sleep()` breaks the stream that is read, as a phone does that sleeps."""


def test_a_stream_that_breaks_is_joined_again(chat: Chat) -> None:
    page = chat.visit(script=CUTS)
    ask_slowly(page)
    for _ in range(2):
        before = page.locator(".writing .markdown").inner_text().strip()
        page.evaluate("window.sleep()")
        expect(page.locator(".writing .markdown")).to_have_text(longer(before))
        expect(page.locator(".writing .markdown")).to_contain_text(before)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Stop").click()
    expect(page.locator("article.assistant")).to_contain_text("Stopped")
    assert len(chat.messages(page)) == 2


def test_two_tabs_show_each_others_turns(chat: Chat) -> None:
    page = chat.visit()
    say(page, "the first")
    expect(page.locator("article.assistant")).to_have_count(1)
    other = second_tab(chat, page)
    expect(other.locator("article.assistant")).to_have_count(1)
    ask_slowly(page, "the second")
    expect(other.locator("article.user").last).to_contain_text("the second")
    expect(other.locator(".writing")).to_contain_text(SENTENCE)  # on its way, as such
    expect(other.get_by_label("Stop")).to_be_visible()
    other.get_by_label("Stop").click()
    for each in (page, other):
        expect(each.locator("article.assistant")).to_have_count(2)
        expect(each.locator(".writing")).to_have_count(0)
    other.get_by_label("Model", exact=True).select_option("parrot")
    say(other, "the third")
    expect(page.locator("article.assistant")).to_have_count(3)
    said = [each.parent_id for each in chat.messages(page)]
    assert said == [None, *(each.id for each in chat.messages(page)[:-1])]
    other.get_by_role("link", name="New conversation").click()
    say(other, "elsewhere")
    expect(page.get_by_role("link", name="elsewhere", exact=True)).to_be_visible()


def test_a_page_that_is_looked_at_again_shows_what_was_said_elsewhere(chat: Chat) -> None:
    page = chat.visit()
    say(page, "the first")
    expect(page.locator("article.assistant")).to_have_count(1)
    me = chat.store.person("owner").id
    talk, last = page.url.rpartition("/")[2], chat.messages(page)[-1].id
    chat.store.add_message(me, talk, last, "user", "from a phone")  # no tab of this browser
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("article.user").last).to_contain_text("from a phone")
    expect(page.get_by_role("button", name="Answer this")).to_be_visible()


@pytest.mark.parametrize("where", ["new", "edit"])
def test_enter_that_ends_a_composition_sends_nothing(chat: Chat, where: str) -> None:
    page = chat.visit()
    area = box(page)
    if where == "edit":
        say(page, "hello")
        expect(page.get_by_label("Answer again")).to_be_visible()
        page.locator("article.user").hover()
        page.get_by_label("Edit", exact=True).click()
        area = page.get_by_label("Edit the message; a new branch begins here")
    area.fill("nihao")
    enter = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, %s})"
    for kind in ("isComposing: true", "keyCode: 229"):  # Chromium, Safari
        area.evaluate(f"node => node.dispatchEvent({enter % kind})")
        page.wait_for_timeout(100)
        expect(area).to_have_value("nihao")
    area.press("Shift+Enter")
    area.press_sequentially("x")
    expect(area).to_have_value("nihao\nx")
    area.press("Enter")
    expect(page.locator("article.user .said")).to_have_text("nihao\nx")
    expect(page.locator("article.assistant")).to_contain_text(SENTENCE)
    said = [each.content for each in chat.messages(page) if each.role == "user"]
    assert said == ["hello", "nihao\nx"][-len(said) :]


def test_text_from_right_to_left_stands_so(chat: Chat) -> None:
    page = chat.visit()
    arabic = "ما هو الشاي؟"
    box(page).fill(arabic)
    direction = "node => getComputedStyle(node).direction"
    assert box(page).evaluate(direction) == "rtl"
    page.keyboard.press("Enter")
    expect(page.get_by_label("Answer again")).to_be_visible()
    assert page.locator("article.user .said").evaluate(direction) == "rtl"
    me = chat.store.person("owner").id
    talk, last = page.url.rpartition("/")[2], chat.messages(page)[-1].id
    mixed = f"{arabic}\n\n1. {arabic}\n\nIn English.\n\n```python\nprint(1)\n```\n"
    asked = chat.store.add_message(me, talk, last, "user", "more")
    chat.store.add_message(me, talk, asked.id, "assistant", mixed)
    page.reload()
    blocks = page.locator("article.assistant").last.locator(".block")
    expect(blocks).to_have_count(4)
    found = blocks.evaluate_all(f"nodes => nodes.map({direction})")
    assert found == ["rtl", "rtl", "ltr", "ltr"]
    assert page.locator("article.assistant pre").evaluate(direction) == "ltr"


def test_what_is_said_and_its_answer_are_in_sight(chat: Chat) -> None:
    page = chat.visit(viewport={"width": 390, "height": 700})
    for number in range(4):
        say(page, words(90))
        expect(page.get_by_label("Answer again")).to_have_count(number + 1)
        expect(page.locator("article.assistant").last).to_be_in_viewport()
    page.locator("article.user").first.scroll_into_view_if_needed()
    expect(page.get_by_label("To the newest message")).to_be_visible()
    say(page, "and now?")
    expect(page.get_by_label("Answer again")).to_have_count(5)
    expect(page.locator("article.user").last).to_be_in_viewport()
    expect(page.locator("article.assistant").last).to_be_in_viewport()


def test_a_message_whose_connection_broke_is_not_said_twice(chat: Chat) -> None:
    page = chat.visit()
    say(page, "the first")
    expect(page.get_by_label("Answer again")).to_have_count(1)

    def arrives(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/messages", arrives)
    say(page, "the second")
    expect(page.get_by_label("Answer again")).to_have_count(2)
    expect(box(page)).to_have_value("")
    said = [each.content for each in chat.messages(page) if each.role == "user"]
    assert said == ["the first", "the second"]


@pytest.mark.parametrize("where", ["new", "old"])
def test_a_message_on_its_way_at_a_reload_is_not_said_twice(chat: Chat, where: str) -> None:
    page = chat.visit()
    if where == "old":
        say(page, "the first")
        expect(page.get_by_label("Answer again")).to_have_count(1)

    arrived = list[Route]()

    def arrives(route: Route) -> None:
        route.fetch()
        arrived.append(route)  # and the page never hears of it

    page.route("**/messages", arrives)
    say(page, "on its way")
    while not arrived:
        page.wait_for_timeout(20)
    page.reload()
    expect(page.get_by_role("button", name="Answer this")).to_be_visible()
    expect(box(page)).to_have_value("")
    page.unroute("**/messages", arrives)
    said = [each.content for each in chat.messages(page) if each.role == "user"]
    assert said.count("on its way") == 1
