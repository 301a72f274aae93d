"""What users of other pages lost: text in a cut event, answers, the page itself, old talks."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import Chat, box, say
from playwright.sync_api import Page, Route, expect
from worlds import SENTENCE

from lmsmith.feedback.store import Store

FIRST = Path(__file__).parents[1] / "feedback/first_version.sql"

CUT = """
const real = window.fetch;
window.fetch = async (...asked) => {
  const answer = await real(...asked);
  if (!asked[0].endsWith('/answers')) return answer;
  const cut = new TransformStream({
    transform: (bytes, out) => bytes.forEach((byte) => out.enqueue(Uint8Array.of(byte))),
  });
  window.cut = true;
  return new Response(answer.body.pipeThrough(cut), answer);
};
"""
"""The network gives every byte alone."""

FLOOD = """
const real = window.fetch;
const block = (number) =>
  `## Part ${number}\\n\\nSome *words* of part ${number}, `.padEnd(400, 'and more ')
  + '\\n\\n```python\\nprint(1)\\n```\\n\\n';
window.fetch = async (...asked) => {
  if (!asked[0].endsWith('/answers')) return real(...asked);
  const say = (event) => new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`);
  let number = 0;
  return new Response(new ReadableStream({
    async pull(out) {
      if (number === 600) return new Promise(() => {});
      const text = block(number++);
      for (let at = 0; at < text.length; at += 20)
        out.enqueue(say({ delta: text.slice(at, at + 20) }));
      await new Promise((done) => setTimeout(done, 5));
    },
  }));
};
window.drawn = 0;
new MutationObserver((all) => {
  for (const { addedNodes } of all)
    for (const node of addedNodes)
      if (node.nodeType === 1)
        window.drawn += node.matches('.block') + node.querySelectorAll('.block').length;
}).observe(document, { childList: true, subtree: true });
window.frames_ = [];
let last = performance.now();
const frame = (now) => {
  window.frames_.push(now - last);
  last = now;
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""
"""An answer of 250,000 characters within seconds, which does not end; what is drawn, and when."""

HOLD = """
const real = window.fetch;
let held = [];
window.hold = null;
window.release = (next = null) => {
  window.hold = next;
  const waiting = held;
  held = [];
  for (const { name, go } of waiting)
    if (next?.test(name)) held.push({ name, go });
    else go();
};
window.fetch = async (path, asked) => {
  const name = `${asked?.method ?? 'GET'} ${path}`;
  if (window.hold?.test(name)) await new Promise((go) => held.push({ name, go }));
  return real(path, asked);
};
"""
"""Requests that `window.hold` matches wait for `release()`, which may hold others from then on."""

ANSWERS, SAYING, OPENING = r"/answers$/", r"/messages$|answers$/", r"/^GET .*conversations\/.+/"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with sqlite3.connect(tmp_path / "chat.db") as connection:
        connection.executescript(FIRST.read_text(encoding="utf-8"))
    connection.close()
    made = Store(tmp_path / "chat.db")
    yield made
    made.close()


def hold(page: Page, what: str) -> None:
    page.evaluate(f"() => {{ window.hold = {what}; }}")


def release(page: Page, next_held: str = "null") -> None:
    page.evaluate(f"() => window.release({next_held})")


def begin(page: Page, text: str) -> str:
    """A conversation of one question and its answer; its path."""
    page.get_by_role("link", name="New conversation").click()
    say(page, text)
    expect(page.get_by_label("Answer again")).to_have_count(1)
    return page.evaluate("location.pathname")


def go_to(page: Page, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.locator("article.user").first).to_contain_text(name)


def test_a_network_that_cuts_every_byte_loses_no_character(chat: Chat) -> None:
    page = chat.visit(script=CUT)
    seen = page.evaluate_handle(
        """() => {
            const seen = new Set();
            new MutationObserver(() => {
                const text = document.querySelector('.writing')?.innerText.trim();
                if (text) seen.add(text);
            }).observe(document.body, {childList: true, subtree: true, characterData: true});
            return seen;
        }"""
    )
    say(page, "é 你 🙂?")
    expect(page.get_by_label("Answer again")).to_be_visible()
    assert page.evaluate("window.cut")
    assert page.locator("article.assistant .markdown").inner_text() == SENTENCE
    assert all(SENTENCE.startswith(text) for text in seen.evaluate("seen => [...seen]"))
    assert chat.messages(page)[-1].content == SENTENCE


def test_an_answer_whose_server_is_gone_stays_and_can_be_kept(chat: Chat) -> None:
    page = chat.visit()

    def break_off(route: Route) -> None:
        events = [{"answer": "x"}, {"delta": "The first "}, {"delta": "half 🙂"}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/answers", break_off)
    say(page, "go on")
    broken = page.get_by_role("alert")
    expect(broken).to_contain_text("The connection to the server broke.")
    expect(page.locator(".writing")).to_contain_text("The first half 🙂")
    assert len(chat.messages(page)) == 1
    broken.get_by_role("button", name="Save it").click()
    expect(page.locator("article.assistant")).to_contain_text("What was written is kept.")
    kept = chat.messages(page)[-1]
    assert (kept.content, kept.finish) == ("The first half 🙂", "error")
    page.reload()
    expect(page.locator("article.assistant")).to_contain_text("The first half 🙂")


def test_two_halves_that_broke_off_hide_nothing_that_is_said_after(chat: Chat) -> None:
    page = chat.visit()
    page.get_by_label("Two answers side by side").click()

    def break_off(route: Route) -> None:
        events = [{"answer": "x"}, {"delta": "half a reply"}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/answers", break_off)
    say(page, "go on")
    halves = page.locator(".writing [role=alert]")
    expect(halves).to_have_count(2)
    page.unroute("**/answers")
    page.get_by_label("Two answers side by side").click()
    halves.first.get_by_role("button", name="Save it").click()
    expect(halves).to_have_count(1)
    say(page, "and now?")
    expect(page.locator("article.assistant")).to_have_count(2)
    expect(page.locator("article.assistant").last).to_contain_text(SENTENCE)
    expect(page.locator("article.user")).to_have_count(2)
    halves.get_by_role("button", name="Let it go").click()
    expect(page.locator(".writing")).to_have_count(0)
    assert len(chat.messages(page)) == 4


def test_a_server_that_is_busy_or_gone_says_so_in_the_readers_language(chat: Chat) -> None:
    page = chat.visit(locale="zh-CN")
    busy = {"error": {"message": "8 wait", "type": "x", "param": None, "code": "queue_full"}}
    page.route("**/answers", lambda route: route.fulfill(status=429, json=busy))
    page.get_by_label("输入消息").fill("你好")
    page.keyboard.press("Enter")
    expect(page.locator(".toast.bad")).to_contain_text("服务器正忙")
    page.unroute("**/answers")
    page.get_by_role("button", name="回答这条消息").click()  # what was said is there still
    expect(page.locator("article.assistant")).to_contain_text(SENTENCE)
    page.route("**/messages", lambda route: route.abort())
    page.get_by_label("输入消息").fill("再说一句")
    page.keyboard.press("Enter")
    expect(page.locator(".toast.bad").last).to_contain_text("与服务器的连接断开了")
    expect(page.get_by_label("输入消息")).to_have_value("再说一句")


def test_a_long_answer_does_not_freeze_the_page(chat: Chat) -> None:
    page = chat.visit(script=FLOOD)
    say(page, "everything, please")
    expect(page.locator(".writing .block").nth(30)).to_be_attached()
    first = page.locator(".writing .block").first.element_handle()
    assert first is not None
    page.get_by_label("Write a message").press_sequentially("next")
    page.evaluate("node => getSelection().selectAllChildren(node)", first)
    expect(page.locator(".writing .block")).to_have_count(1800, timeout=90_000)
    # What is whole is not drawn anew, or a long answer would take longer and longer to draw.
    assert page.evaluate("window.drawn") < 2 * 1800
    times = sorted(page.evaluate("window.frames_"))
    print(f"{len(times)} frames, p95 {times[int(0.95 * len(times))]:.0f} ms, worst {times[-1]:.0f}")
    # And so it can be selected, and copied, while the rest is written.
    assert page.evaluate("node => node.isConnected", first)
    assert page.evaluate("String(getSelection())").startswith("Part 0")
    expect(page.get_by_label("Write a message")).to_have_value("next")
    assert page.locator(".writing .copy-code").count() == 600
    page.get_by_label("Stop").click()


def test_a_slip_of_the_hand_takes_no_words_away(chat: Chat) -> None:
    page = chat.visit()
    say(page, "hello")
    page.locator("article.user").hover()
    page.get_by_label("Edit", exact=True).click()
    area = page.get_by_label("Edit the message; a new branch begins here")
    area.fill("hello, with much more to say")
    page.keyboard.press("Escape")
    page.locator("article.user").hover()
    page.get_by_label("Edit", exact=True).click()
    expect(area).to_have_value("hello, with much more to say")
    page.keyboard.press("Escape")
    page.get_by_label("Bad answer").click()
    page.get_by_label("Not true").check()
    page.get_by_label("Anything else").fill("tea is not rain")
    page.mouse.click(5, 300)  # beside the window
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Bad answer").click()
    expect(page.get_by_label("Not true")).to_be_checked()
    expect(page.get_by_label("Anything else")).to_have_value("tea is not rain")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage).filter((key) => /judgement/.test(key))") == []


def test_a_conversation_of_the_first_version_is_read_and_continued(chat: Chat) -> None:
    page = chat.visit()
    page.get_by_role("link", name="雨和茶 🙂").click()
    answer = page.locator("article.assistant")
    expect(answer.first).to_contain_text("Tea alone.")
    expect(page.get_by_text("3/3")).to_be_visible()
    page.get_by_label("Previous version").click()
    expect(page.get_by_text("You wrote a better answer")).to_be_visible()
    page.get_by_label("Previous version").click()
    expect(answer.locator("strong")).to_have_text("rain")
    expect(answer.last).to_contain_text("因为茶是暖的。")
    expect(page.get_by_label("Good answer").first).to_have_attribute("aria-pressed", "true")
    say(page, "and now?")
    expect(answer.last).to_contain_text(SENTENCE)
    assert [each.parent_id for each in chat.messages(page)[-2:]] == [7, 9]


def test_copying_needs_no_secure_origin(chat: Chat) -> None:
    page = chat.visit(script="Object.defineProperty(navigator, 'clipboard', {value: undefined});")
    say(page, "hello")
    expect(page.get_by_label("Answer again")).to_be_visible()
    copied = page.evaluate_handle(
        """() => {
            const found = [];
            document.addEventListener('copy', () => found.push(String(getSelection())));
            return found;
        }"""
    )
    page.locator("article.assistant").get_by_label("Copy", exact=True).click()
    expect(page.locator(".toast")).to_contain_text("Copied")
    assert copied.evaluate("found => found") == [SENTENCE]


def test_what_is_typed_while_an_answer_is_written_stays(chat: Chat) -> None:
    page = chat.visit(script=HOLD)
    here = begin(page, "the first")
    hold(page, SAYING)
    say(page, "the second")
    box(page).fill("the third, ")  # before the server has the second
    release(page, ANSWERS)
    expect(page.get_by_label("Stop")).to_be_visible()
    expect(box(page)).to_have_value("the third, ")
    box(page).press_sequentially("and more")
    release(page)
    expect(page.get_by_label("Answer again")).to_have_count(2)
    begin(page, "elsewhere")
    page.goto(chat.address + here)
    expect(box(page)).to_have_value("the third, and more")
    said = [each.content for each in chat.messages(page) if each.role == "user"]
    assert said == ["the first", "the second"]


def test_what_was_said_is_no_draft_any_more(chat: Chat) -> None:
    page = chat.visit(script=HOLD)
    hold(page, ANSWERS)
    say(page, "the first")
    expect(page.get_by_label("Stop")).to_be_visible()
    expect(box(page)).to_have_value("")
    page.get_by_role("link", name="New conversation").click()
    expect(page.get_by_role("heading", name="What would you like to talk about?")).to_be_visible()
    expect(box(page)).to_have_value("")
    go_to(page, "the first")
    page.reload()
    page.get_by_role("button", name="Answer this").click()
    expect(page.get_by_label("Answer again")).to_have_count(1)
    hold(page, ANSWERS)
    say(page, "the second")
    expect(page.get_by_label("Stop")).to_be_visible()
    page.reload()
    expect(page.locator("article.user").last).to_contain_text("the second")
    expect(box(page)).to_have_value("")
    kept = page.evaluate("Object.keys(localStorage).filter((key) => /draft|sent/.test(key))")
    assert kept == []


def test_an_answer_elsewhere_holds_no_other_conversation_up(chat: Chat) -> None:
    page = chat.visit(script=HOLD)
    number = begin(page, "the first").rpartition("/")[2]
    hold(page, SAYING)
    say(page, "the second")
    page.get_by_role("link", name="New conversation").click()
    release(page, f"/{number}.answers/")  # it begins while another conversation is shown
    begin(page, "elsewhere")
    expect(page.locator(".writing")).to_have_count(0)
    go_to(page, "the first")  # here it is still on its way
    expect(page.locator(".writing")).to_have_count(1)
    expect(page.get_by_label("Stop")).to_be_visible()
    go_to(page, "elsewhere")
    release(page)
    me = chat.store.person("owner").id
    for _ in range(200):
        if len(chat.store.tree(me, number)) == 4:
            break
        page.wait_for_timeout(100)
    page.wait_for_timeout(300)
    expect(page.locator(".writing")).to_have_count(0)
    go_to(page, "the first")
    expect(page.get_by_label("Answer again")).to_have_count(2)
    expect(page.locator(".writing")).to_have_count(0)


def test_what_could_not_be_said_goes_back_where_it_came_from(chat: Chat) -> None:
    page = chat.visit(script=HOLD)
    begin(page, "elsewhere")
    here = begin(page, "the first")
    page.route("**/messages", lambda route: route.abort())
    hold(page, SAYING)
    say(page, "the second")
    go_to(page, "elsewhere")
    release(page)
    expect(page.locator(".toast.bad")).to_contain_text("The connection to the server broke.")
    expect(box(page)).to_have_value("")
    go_to(page, "the first")
    expect(box(page)).to_have_value("the second")
    hold(page, SAYING)
    page.keyboard.press("Enter")
    box(page).fill("and more")
    release(page)  # both are there
    expect(box(page)).to_have_value("the second\n\nand more")
    # A page that is closed before the server has it keeps it, too.
    hold(page, SAYING)
    page.keyboard.press("Enter")
    expect(box(page)).to_have_value("")
    page.goto(chat.address + here)
    expect(box(page)).to_have_value("the second\n\nand more")


def test_a_new_conversation_whose_message_is_lost_has_it_in_its_box(chat: Chat) -> None:
    page = chat.visit()
    page.route("**/messages", lambda route: route.abort())
    say(page, "hello")
    expect(page.locator(".toast.bad")).to_be_visible()
    expect(page).to_have_url(re.compile("/c/"))
    expect(box(page)).to_have_value("hello")
    page.reload()
    expect(box(page)).to_have_value("hello")
    page.get_by_role("link", name="New conversation").click()
    expect(box(page)).to_have_value("")


def test_nothing_is_said_into_a_conversation_that_is_not_there_yet(chat: Chat) -> None:
    page = chat.visit(script=HOLD)
    begin(page, "the first")
    page.get_by_role("link", name="New conversation").click()
    hold(page, OPENING)
    page.get_by_role("link", name="the first", exact=True).click()
    say(page, "the second")
    page.wait_for_timeout(300)
    expect(box(page)).to_have_value("the second")
    expect(page.get_by_label("Send")).to_be_disabled()
    # Whoever goes on does not wait for it.
    page.get_by_role("link", name="New conversation").click()
    box(page).fill("x")
    expect(page.get_by_label("Send")).to_be_enabled()
    box(page).fill("")
    page.get_by_role("link", name="the first", exact=True).click()
    release(page)
    expect(page.get_by_label("Answer again")).to_have_count(1)
    box(page).press("Enter")
    expect(page.get_by_label("Answer again")).to_have_count(2)
    messages = chat.messages(page)
    assert [each.content for each in messages[::2]] == ["the first", "the second"]
    assert [each.parent_id for each in messages] == [None, *(each.id for each in messages[:-1])]
