"""The chat page in Chromium on a real server: what a reader does, and what must not be lost."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from worlds import HTTP, RANDOM, SENTENCE, Running, parrot, running

from lmsmith.feedback.export import export
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Message
from lmsmith.server import pages
from lmsmith.server.engine import AsyncEngine

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("LMSMITH_CHROMIUM") or shutil.which("chromium")
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
WRITE = "textarea[aria-label='Write a message']"
NARROW: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "has_touch": True}
Open = Callable[..., Any]

if not pages.assets():
    pytest.skip("the page is not built: python hatch_build.py", allow_module_level=True)


def slowly(engine: AsyncEngine) -> None:
    """The endless parrot can be stopped in its midst, however long the page takes to do so."""
    scheduler = engine.models["endless"].scheduler
    step, steps = scheduler.step, itertools.count()

    def slow() -> Any:
        time.sleep(0.01 if next(steps) < 20 else 1.0)
        return step()

    scheduler.step = slow  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Store]]:
    store = Store(tmp_path_factory.mktemp("page") / "feedback.db")
    models = {"parrot": parrot(), "endless": parrot(for_ever=True), "random": RANDOM}
    with running(models, store=store, prepare=slowly) as served:
        yield served, store
    store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not here: apt-get install chromium, or LMSMITH_CHROMIUM=path")
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, kept: tuple[Running, Store]) -> Iterator[Open]:
    """Opens the page in a browser of its own; nothing may go wrong on it."""
    contexts, problems = [], []

    def visit(path: str = "/", address: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"locale": "en-US", **options})
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else 0)
        page.goto((address or kept[0].address) + path)
        return page

    yield visit
    for context in contexts:
        context.close()
    expected = ("401", "503")
    assert [each for each in problems if not any(code in each for code in expected)] == []


def say(page: Any, text: str, model: str = "parrot") -> None:
    page.get_by_label("Model", exact=True).select_option(model)
    page.fill(WRITE, text)
    page.keyboard.press("Enter")


def answered(page: Any, count: int = 1) -> None:
    """Wait until so many answers are shown whole."""
    playwright.expect(page.get_by_label("Answer again")).to_have_count(count)


def talk_of(page: Any) -> list[dict[str, Any]]:
    name = re.search(r"/c/(\w+)", page.url)
    assert name is not None
    address = page.url[: name.start()]
    found: list[dict[str, Any]] = HTTP.get(f"{address}/api/conversations/{name.group(1)}").json()[
        "messages"
    ]
    return found


def test_a_talk_with_stop_regenerate_edit_and_branches(visit: Open) -> None:
    page = visit()
    say(page, "count", "endless")
    playwright.expect(page.locator("article.writing")).to_have_text(re.compile(r"\S"))
    page.get_by_label("Stop").click()
    answered(page)
    assert page.get_by_text("Stopped").is_visible()
    stopped = talk_of(page)[1]
    assert stopped["finish"] == "stopped"
    page.get_by_label("Model", exact=True).select_option("parrot")
    page.get_by_label("Answer again").click()
    page.get_by_text("2/2").wait_for()
    answer = page.locator("article.assistant")
    playwright.expect(answer).to_contain_text(SENTENCE)
    answered(page)
    page.get_by_label("Previous version").click()
    page.get_by_text("1/2").wait_for()
    assert page.get_by_text("Stopped").is_visible()
    page.locator("article.user").hover()
    page.get_by_label("Edit").click()
    page.fill("textarea[aria-label^='Edit the message']", "say it")
    page.get_by_text("Send as a new branch").click()
    page.locator("article.user", has_text="say it").wait_for()
    answered(page)
    assert stopped in talk_of(page)
    assert len(talk_of(page)) == 5
    page.reload()
    page.get_by_text("say it").first.wait_for()
    page.locator("article.user").hover()
    page.get_by_label("Previous version").first.click()
    page.locator("article.user", has_text="count").wait_for()


def test_thumbs_with_a_better_answer_become_training_data(
    visit: Open, kept: tuple[Running, Store], tmp_path: Path
) -> None:
    page = visit()
    say(page, "what do you like?")
    answered(page)
    page.get_by_label("Bad answer").click()
    page.get_by_label("Not true").check()
    page.get_by_label("What would have been better?").fill("Rain, and the smell after it.")
    page.keyboard.press("Escape")  # a slip: the draft is still there
    page.get_by_label("Bad answer").click()
    assert page.get_by_label("What would have been better?").input_value().startswith("Rain")
    page.get_by_label("Not true").check()
    page.get_by_role("button", name="Save").click()
    page.get_by_text("You wrote a better answer").wait_for()
    judged = talk_of(page)[1]
    assert judged["rating"] == {"value": -1, "reasons": ["wrong"], "comment": ""}
    assert judged["better"] == "Rain, and the smell after it."
    export(kept[1], tmp_path)
    rows = (tmp_path / "conversations.jsonl").read_text().splitlines()
    assert any("the smell after it" in json.loads(row)["messages"][-1]["content"] for row in rows)


def test_a_blind_comparison(visit: Open) -> None:
    page = visit()
    page.get_by_label("Two answers side by side").click()
    page.get_by_label("Second model").select_option("random")
    page.get_by_label("Model", exact=True).select_option("parrot")
    page.get_by_label("Settings").click()
    page.get_by_label("Maximum length, in tokens").fill("12")
    page.keyboard.press("Escape")
    say(page, "and you?")
    left = page.get_by_role("button", name="A is better")
    playwright.expect(left).to_be_enabled(timeout=15_000)
    assert "random" not in page.get_by_role("region", name="Messages").inner_text()
    page.reload()  # not judged yet: still blind
    left.wait_for()
    assert "random" not in page.get_by_role("region", name="Messages").inner_text()
    left.click()
    answered(page)
    first, second = talk_of(page)[1:]
    sides = {each["settings"]["side"]: each for each in (first, second)}
    assert {first["model"], second["model"]} == {"parrot", "random"}
    verdict = {"left": sides["left"]["id"], "right": sides["right"]["id"], "verdict": "left"}
    assert first["comparisons"] == [verdict]
    assert page.get_by_text(f"A was {sides['left']['model']}").is_visible()


def test_conversations_are_found_renamed_deleted_and_called_back(visit: Open) -> None:
    page = visit()
    say(page, "umbrellas are 好 things")
    answered(page)
    page.get_by_label("More about umbrellas").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.keyboard.type("Rainy days")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Rainy days").wait_for()
    page.get_by_placeholder("Search").fill("好 thing")
    playwright.expect(page.locator("nav li a")).to_have_count(1)
    page.get_by_placeholder("Search").fill("nowhere said")
    page.get_by_text("Nothing was found").wait_for()
    page.get_by_placeholder("Search").fill("")
    page.get_by_label("More about Rainy days").click()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("link", name="Rainy days")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("link", name="Rainy days").click()
    page.locator("article.user", has_text="umbrellas").wait_for()
    with page.expect_download() as download:
        page.get_by_label("More about Rainy days").click()
        page.get_by_role("menuitem", name="Export as JSON").click()
    file = download.value.path()
    before = talk_of(page)
    page.locator("input[type=file]").set_input_files(
        {"name": "x.json", "mimeType": "application/json", "buffer": Path(file).read_bytes()}
    )
    page.get_by_text("1 imported").wait_for()
    after = talk_of(page)
    assert [each["content"] for each in after] == [each["content"] for each in before]
    assert after[0]["id"] != before[0]["id"]


def test_tokens_and_attention(visit: Open) -> None:
    page = visit()
    say(page, "hello")
    answered(page)
    page.get_by_label("More", exact=True).click()
    page.get_by_role("menuitem", name="Look at the tokens").click()
    page.locator(".token").nth(1).click()
    page.get_by_label("Read by").select_option("random")
    playwright.expect(page.locator("section ol li")).to_have_count(13)
    before = page.locator("section .share").first.inner_text()
    page.get_by_role("slider", name="Temperature").fill("0.2")
    playwright.expect(page.locator("section .share").first).not_to_have_text(before)
    page.keyboard.press("Escape")
    page.get_by_label("More", exact=True).click()
    page.get_by_role("menuitem", name="Look at the attention").click()
    page.get_by_label("Read by").select_option("random")
    page.get_by_label("Layer 2, head 3").click()
    page.get_by_role("application").press("ArrowDown")
    assert re.search(r"reads .* with \d", page.locator(".read p").first.inner_text())


@pytest.mark.parametrize(
    ("scheme", "device"), [("light", {}), ("dark", NARROW)], ids=["desktop", "phone"]
)
def test_axe_finds_nothing_serious(visit: Open, scheme: str, device: dict[str, Any]) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not here: python hatch_build.py ci")
    page = visit(color_scheme=scheme, bypass_csp=True, **device)
    say(page, "`code`, and a\n\n| table |")
    answered(page)

    def check(where: str) -> None:
        page.evaluate(AXE.read_text())
        page.wait_for_timeout(150)
        found = page.evaluate("axe.run().then((found) => found.violations)")
        bad = [
            (each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert bad == [], where

    check("a talk")
    page.get_by_label("Settings").click()
    check("settings")
    page.keyboard.press("Escape")
    page.get_by_label("Good answer").click()
    page.get_by_label("Correct").wait_for()
    check("judging")
    page.keyboard.press("Escape")
    page.get_by_label("More", exact=True).click()
    check("menu")
    page.get_by_role("menuitem", name="Look at the tokens").click()
    page.locator(".token").first.wait_for()
    check("tokens")
    page.keyboard.press("Escape")
    page.get_by_label("More", exact=True).click()
    page.get_by_role("menuitem", name="Look at the attention").click()
    page.get_by_label("Layer 1, head 1").click()
    page.get_by_role("application").wait_for()
    check("attention")


def test_chinese_phone_and_dark(visit: Open) -> None:
    page = visit(locale="zh-CN", color_scheme="dark", **NARROW)
    page.get_by_text("想聊点什么？").wait_for()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.locator("textarea").fill("你好")
    page.get_by_label("发送").tap()
    page.get_by_label("重新回答").wait_for()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert sum(int(part) for part in re.findall(r"\d+", shade)[:3]) < 150
    page.get_by_label("设置").tap()
    page.get_by_label("语言").select_option("en")
    page.get_by_label("Appearance").select_option("light")
    shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert sum(int(part) for part in re.findall(r"\d+", shade)[:3]) > 600


def test_everything_by_keyboard(visit: Open) -> None:
    page = visit()
    playwright.expect(page.locator(WRITE)).to_be_focused()
    page.keyboard.type("hi")
    page.keyboard.press("Enter")
    answered(page)
    wanted = {"Settings", "Answer again", "Good answer", "Edit", "Copy", "More"}
    reached: set[str] = set()
    for _ in range(100):
        if wanted <= reached:
            break
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText")
        )
    assert wanted <= reached


def test_a_token_is_asked_for_once(visit: Open, kept: tuple[Running, Store]) -> None:
    with running({"parrot": parrot()}, token="secret", store=kept[1]) as locked:
        page = visit(address=locked.address)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("That is not the token").wait_for()
        page.get_by_label("Token").fill("secret")
        page.get_by_role("button", name="Sign in").click()
        page.locator(WRITE).wait_for()
        assert page.evaluate("document.cookie") == ""
        context = page.context
        context.close()


def test_a_long_conversation_scrolls_and_hostile_text_stays_text(
    visit: Open, kept: tuple[Running, Store]
) -> None:
    _, store = kept
    me = store.person("owner", "admin").id
    talk = store.begin(me, "long")
    text = "<img src=x onerror=document.title='bad'> **bold** `code`\n\n- a\n- b\n"
    with store.session.begin() as session:
        parent = None
        for number in range(500):
            role = "assistant" if number % 2 else "user"
            content = text if number % 2 else f"question {number // 2}"
            message = Message(conversation_id=talk.id, parent_id=parent, role=role, content=content)
            session.add(message)
            session.flush()
            parent = message.id
    page = visit(f"/c/{talk.id}")
    answered(page, 250)
    playwright.expect(page.locator("article").last).to_be_in_viewport()
    slowest = page.evaluate(
        """async () => {
            const box = document.querySelector('.scroll');
            const times = [];
            let last = performance.now();
            for (let n = 0; n < 40; n++) {
                box.scrollTop -= 400;
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - last);
                last = performance.now();
            }
            return times.sort((a, b) => a - b)[20];
        }"""
    )
    assert slowest < 1000  # milliseconds: it did not freeze, also on a busy machine
    assert page.title() == "long · lmsmith"
    assert page.locator("article img").count() == 0


def test_the_page_is_small() -> None:
    sizes = {name: len(gzip.compress(each.body, 9)) for name, each in pages.assets().items()}
    print(f"the page: {sum(sizes.values()) / 1000:.1f} kB gzipped, in {len(sizes)} files")
    formulas = {name: size for name, size in sizes.items() if re.match("assets/(math-|Ka)", name)}
    assert sum(sizes.values()) - sum(formulas.values()) < 160_000
    first = [size for name, size in sizes.items() if re.match("index|assets/(index|Chat)", name)]
    assert len(first) == 5
    assert sum(first) < 86_000
    assert sum(formulas.values()) < 400_000


def test_the_built_page_obeys_its_policy(kept: tuple[Running, Store]) -> None:
    text = httpx.get(kept[0].address, trust_env=False).text
    assert "<style" not in text
    assert " style=" not in text
    assert text.count('<base href="/"') == 1
    text = text.replace('<base href="/"', "")
    assert re.findall(r"<script(?![^>]* src=\"\./assets/)", text) == []
    assert re.findall(r"(?:src|href)=\"(?!\./assets/)", text) == []
