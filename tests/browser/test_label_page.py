"""The labelling pages in a real browser: by keyboard, by mouse, on a phone, in Chinese."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from worlds import RANDOM, running

from lmsmith.feedback.people import People
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
SHOTS = os.environ.get("LMSMITH_SHOTS", "")
"""A folder for pictures of the pages, for people to look at."""

NAMES = {"Ada": "admin", "Lee": "labeler", "Li": "labeler", "Uma": "user"}
MODELS = ["quickstart/sft", "quickstart/ppo"] * 2
PROMPT = "Why is the sky blue, and why is it red in the evening? Two sentences, please."
TEXTS = [
    "Air scatters blue light more than red, so blue comes to us from all over the sky. In the "
    "evening the light has come a long way through the air, and what is left of it is red.",
    "Because it reflects the sea.",
    "The sky is blue since blue light has short waves, which the air throws about. In the evening "
    "it is red since the sun is low.",
    "I like rain and tea, said the cat. I like rain and tea.",
]


@dataclass
class House:
    """A server with named people, and browsers of theirs."""

    address: str
    store: Store
    tokens: dict[str, str]
    browser: Browser

    def sign_in(self, name: str, path: str = "/label", **options: Any) -> Page:
        page = self.browser.new_context(**{"locale": "en-US", **options}).new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: pytest.fail(f"in the page: {error}"))
        page.goto(self.address + path)
        page.locator("input[type=password]").fill(self.tokens[name])
        page.keyboard.press("Enter")
        expect(page.locator("header nav, main h1").first).to_be_visible()
        return page


@pytest.fixture
def house(browser: Browser, tmp_path: Path) -> Iterator[House]:
    store = Store(tmp_path / "feedback.db")
    people = People(store)
    tokens = {name: people.add(name, role) for name, role in NAMES.items()}
    with running({"random": RANDOM}, store=store) as served:
        yield House(served.address, store, tokens, browser)
        for context in browser.contexts:
            context.close()
    store.close()


def picture(page: Page, name: str) -> None:
    if SHOTS:
        size = page.viewport_size
        assert size is not None
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": size["width"], "height": height})
        page.screenshot(path=f"{SHOTS}/{name}.png")
        page.set_viewport_size(size)


def check_access(page: Page) -> None:
    """axe finds nothing serious."""
    if not AXE.exists():
        pytest.skip("axe-core is not here: python hatch_build.py ci")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    bad = [
        (each["id"], [node["target"] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical", "moderate")
    ]
    assert bad == []


def answers(house: House, name: str) -> list[dict[str, Any]]:
    person = house.store.person(name).id
    return [assignment.answer for assignment, _ in Queue(house.store).done(person)]


def cards(page: Page) -> Locator:
    return page.locator(".cards fieldset")


def test_a_ranking_of_four_with_a_tie_by_keyboard_alone(house: House) -> None:
    queue = Queue(house.store)
    queue.add("ranking", PROMPT, TEXTS, models=MODELS, overlap=2)
    page = house.sign_in("Lee")
    expect(cards(page)).to_have_count(4)
    shown = page.locator(".cards .text").all_text_contents()
    assert sorted(shown) == sorted(TEXTS)
    assert "quickstart" not in page.content()
    wanted = {TEXTS[0]: 1, TEXTS[2]: 2, TEXTS[1]: 3, TEXTS[3]: 3}
    for text in shown[:3]:
        page.keyboard.press(str(wanted[text]))
    # Back up, and down again: a rank is taken away and given anew.
    for key in ("ArrowUp", "0", str(wanted[shown[2]]), str(wanted[shown[3]])):
        page.keyboard.press(key)
    expect(page.locator("footer [role=status]")).to_have_text("Draft saved")
    picture(page, "ranking")
    check_access(page)
    page.reload()
    expect(page.locator(".chip")).to_have_count(4)
    checked = page.locator(".cards input:checked")
    assert [int(each.input_value()) for each in checked.all()] == [wanted[text] for text in shown]
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Nothing is left to do.")).to_be_visible()
    assert answers(house, "Lee") == [{"comment": "", "ranks": [1, 3, 2, 3]}]


def test_letters_are_dragged_to_their_ranks(house: House) -> None:
    Queue(house.store).add("ranking", PROMPT, TEXTS)
    page = house.sign_in("Lee")
    expect(cards(page)).to_have_count(4)
    shown = page.locator(".cards .text").all_text_contents()
    page.mouse.move(5, 5)

    def drag(letter: str, rank: int) -> None:
        chip = page.locator(".chip", has_text=letter).bounding_box()
        place = page.locator(f'[data-place="{rank}"]').bounding_box()
        assert chip is not None
        assert place is not None
        page.mouse.move(chip["x"] + 10, chip["y"] + 10)
        page.mouse.down()
        page.mouse.move(place["x"] + 90, place["y"] + 20, steps=5)
        page.mouse.up()

    for letter, rank in (("A", 1), ("B", 2), ("C", 2), ("D", 4), ("A", 3)):
        drag(letter, rank)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Nothing is left to do.")).to_be_visible()
    (answer,) = answers(house, "Lee")
    by_text = dict(zip(TEXTS, answer["ranks"], strict=True))
    assert [by_text[text] for text in shown] == [2, 1, 1, 3]
    # It can be changed after.
    page.get_by_role("button", name="Change it").click()
    expect(page.get_by_text("You are changing")).to_be_visible()
    page.keyboard.press("1")
    page.get_by_role("button", name="Save the change").click()
    expect(page.get_by_text("Nothing is left to do.")).to_be_visible()
    by_text = dict(zip(TEXTS, answers(house, "Lee")[0]["ranks"], strict=True))
    assert [by_text[text] for text in shown] == [1, 1, 1, 2]


def test_a_change_of_what_is_done_is_kept_until_it_is_saved_or_left(house: House) -> None:
    queue = Queue(house.store)
    queue.add("demonstration", "write about tea")
    queue.add("rating", PROMPT, [TEXTS[3]], models=["m"])
    page = house.sign_in("Lee")
    field = page.get_by_label("Your answer")
    changing = page.get_by_text("You are changing")
    page.get_by_role("button", name="Write", exact=True).click()

    def change(text: str) -> None:
        field.fill(text)
        page.keyboard.press("Control+Enter")
        page.get_by_role("button", name="Change it").last.click()
        expect(changing).to_be_visible()

    change("Tea is warm.")
    field.fill("Tea is warm, and rain is wet.")
    page.reload()
    expect(changing).to_be_visible()
    expect(field).to_have_value("Tea is warm, and rain is wet.")
    page.get_by_role("button", name="Rate", exact=True).click()
    expect(page.locator(".scores")).to_be_visible()
    page.get_by_role("button", name="Write", exact=True).click()
    expect(field).to_have_value("Tea is warm, and rain is wet.")
    # On the same browser, another labeler sees nothing of it.
    lee = page.context.cookies()
    page.context.clear_cookies()
    page.reload()
    page.locator("input[type=password]").fill(house.tokens["Li"])
    page.keyboard.press("Enter")
    expect(page.get_by_text("0 done").first).to_be_visible()
    expect(changing).to_have_count(0)
    page.context.add_cookies(lee)  # type: ignore[arg-type]
    page.reload()
    expect(field).to_have_value("Tea is warm, and rain is wet.")
    page.get_by_role("button", name="Leave it as it was").click()
    expect(page.locator(".scores")).to_be_visible()
    page.reload()
    expect(page.locator(".scores")).to_be_visible()
    assert answers(house, "Lee") == [{"content": "Tea is warm."}]
    page.keyboard.press("3")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="Change it").click()
    expect(changing).to_be_visible()
    page.keyboard.press("5")
    page.reload()
    expect(page.locator(".scores input:checked")).to_have_value("5")
    page.get_by_role("button", name="Save the change").click()
    expect(page.get_by_text("Nothing is left to do.")).to_be_visible()
    assert answers(house, "Lee")[0]["score"] == 5
    assert page.evaluate("Object.keys(localStorage).filter((key) => /draft|fix/.test(key))") == []


def test_a_rating_and_a_demonstration_on_a_phone_in_chinese(house: House) -> None:
    queue = Queue(house.store)
    queue.add("rating", PROMPT, [TEXTS[3]], models=["m"])
    queue.add("demonstration", [{"role": "system", "content": "Be brief."},
                                {"role": "user", "content": PROMPT}])  # fmt: skip
    phone = {"viewport": {"width": 375, "height": 740}, "locale": "zh-CN", "color_scheme": "dark"}
    page = house.sign_in("Lee", **phone)
    expect(page.get_by_text("给这个回答评分")).to_be_visible()
    page.keyboard.press("2")
    page.get_by_text("编造内容").click()
    expect(page.get_by_text("草稿已保存")).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375
    picture(page, "rating-phone-zh")
    check_access(page)
    page.get_by_role("button", name="提交").click()
    expect(page.get_by_text("写出你能写的最好的回答")).to_be_visible()
    page.get_by_role("button", name="提交").click()
    expect(page.get_by_text("请先写出回答。")).to_be_visible()
    page.get_by_label("你的回答").fill("因为空气散射蓝光。")
    picture(page, "demonstration-phone-zh")
    check_access(page)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("所有任务都已完成。")).to_be_visible()
    written, rated = answers(house, "Lee")
    assert written == {"content": "因为空气散射蓝光。"}
    assert rated == {"score": 2, "flags": ["hallucination"], "comment": ""}


def test_two_labelers_do_not_see_each_other_and_users_see_no_task(house: House) -> None:
    queue = Queue(house.store)
    queue.add("demonstration", "write about tea", overlap=2)
    lee, li = house.sign_in("Lee"), house.sign_in("Li")
    field = lee.get_by_label("Your answer")
    field.fill("Lee’s own draft")
    expect(lee.get_by_text("Draft saved")).to_be_visible()
    li.reload()
    expect(li.get_by_label("Your answer")).to_have_value("")
    assert "Lee’s" not in li.content()
    status = li.evaluate("fetch('/api/label/assignments/1').then((answer) => answer.status)")
    assert status == 404
    talk = lee.evaluate(
        "fetch('/api/conversations', {method: 'POST', body: '{}', headers: "
        "{'Content-Type': 'application/json'}}).then((a) => a.json()).then((talk) => talk.id)"
    )
    seen = f"fetch('/api/conversations/' + {talk!r}).then((answer) => answer.status)"
    assert lee.evaluate(seen) == 200
    assert li.evaluate(seen) == 404
    # The lost connection keeps the draft in the browser, and a reload brings it back.
    lee.route("**/draft", lambda route: route.abort())
    field.fill("Lee’s own draft, longer")
    expect(lee.get_by_text("Draft kept in this browser")).to_be_visible()
    lee.unroute("**/draft")
    lee.reload()
    expect(lee.get_by_label("Your answer")).to_have_value("Lee’s own draft, longer")
    expect(lee.get_by_text("Draft saved")).to_be_visible()
    li.get_by_role("button", name="Skip").click()
    li.get_by_role("button", name="I do not know the subject").click()
    expect(li.get_by_text("Nothing is left to do.")).to_be_visible()
    uma = house.sign_in("Uma")
    expect(uma.get_by_text("Labelling is for labelers.")).to_be_visible()
    uma.get_by_role("link", name="To the chat").click()
    expect(uma.get_by_label("Write a message")).to_be_visible()
    expect(uma.get_by_role("link", name="Labelling")).to_have_count(0)
    uma.get_by_role("button", name="Sign out").click()
    expect(uma.locator("input[type=password]")).to_be_visible()


def test_an_admin_sees_what_came_of_it_and_writes_the_guidelines(house: House) -> None:
    queue = Queue(house.store)
    for number in range(12):
        queue.add("ranking", f"{PROMPT} {number}", TEXTS, models=MODELS, overlap=3)
        queue.add("rating", f"{PROMPT} {number}", [TEXTS[number % 4]], models=[MODELS[number % 2]],
                  overlap=2)  # fmt: skip
        queue.add("demonstration", f"{PROMPT} {number}")
    queue.add("ranking", "gold", TEXTS, gold={"ranks": [1, 3, 2, 4]})
    queue.add("rating", "gold", [TEXTS[1]], gold={"score": 2})
    for place, name in enumerate(("Lee", "Li")):
        person = house.store.person(name).id
        for number in range(20 - 5 * place):
            held = queue.next(person, ("ranking", "rating")[number % 2])
            if held is None:
                continue
            ranks = [[1, 3, 2, 4], [1, 3, 1, 3], [2, 4, 1, 3]][(number + place) % 3]
            said = {"ranks": [ranks[each] for each in held[0].shown]}
            score = 2 + (number * 3 + place) % 5
            flags = ["hallucination"] if score < 4 else ["satisfies_constraint"]
            queue.submit(person, held[0].id, said | {"score": score, "flags": flags})
    page = house.sign_in("Ada", "/label/statistics")
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    expect(page.get_by_text("quickstart/ppo").first).to_be_visible()
    expect(page.get_by_role("row", name="Lee")).to_be_visible()
    expect(page.get_by_role("img", name="95")).to_have_count(6)
    picture(page, "statistics")
    check_access(page)
    page.set_viewport_size({"width": 375, "height": 740})
    picture(page, "statistics-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.set_viewport_size({"width": 1200, "height": 800})
    page.get_by_role("link", name="Tasks").click()
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.get_by_label("Your answer")).to_be_visible()
    page.get_by_role("button", name="Edit the guidelines").click()
    page.get_by_role("textbox", name="Guidelines").fill("Say it kindly.\n- First this\n- Then that")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Then that")).to_be_visible()
    picture(page, "demonstration")
    assert queue.guideline("demonstration").startswith("Say it kindly.")


@pytest.mark.parametrize(
    ("locale", "there", "back"),
    [("en-US", "Labelling", "Chat"), ("zh-CN", "标注", "对话")],
    ids=["English", "Chinese"],
)
def test_the_chat_and_the_labelling_pages_lead_to_each_other(
    house: House, locale: str, there: str, back: str
) -> None:
    """By keyboard, and the message that is being typed is still there after."""
    Queue(house.store).add("demonstration", PROMPT)
    page = house.sign_in("Lee", "/", locale=locale)
    page.locator("main textarea").fill("half a thou")

    def tab_to(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText?.trim()") == name:
                return
        pytest.fail(f"Tab does not reach {name}")

    tab_to(there)
    page.keyboard.press("Enter")
    expect(page.locator("#demonstration")).to_be_focused()
    assert page.url.endswith("/label")
    page.locator("body").click(position={"x": 1, "y": 1})
    tab_to(back)
    page.keyboard.press("Enter")
    expect(page.locator("main textarea")).to_have_value("half a thou")
    page.go_back()
    expect(page.locator("#demonstration")).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.get_by_role("link", name=back, exact=True)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= min(width, 360)
