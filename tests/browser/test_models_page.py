"""The Models page and blind pairs of a trial: on a real server, and on answers of its routes that
take hours to come about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chats import Chat, say
from playwright.sync_api import Browser, Page, Request, Route, expect
from test_label_page import check_access, picture
from worlds import HTTP, SENTENCE, parrot, put_version, running

from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import Gate, Learnt, Promotion, Trial, Version
from lmsmith.feedback.store import Store
from lmsmith.server.improvements import Improvements
from lmsmith.statistics.sequential import SequentialTest, decide

DAY = "2026-11-2{}T10:00:00+00:00"
GATES = (
    Gate("reward_above_rules", "passed", 0.061, 0.012, 0.11, 0.0,
         "right in 61.3% of 180 held-out pairs; the longer is right in 50.2%, the likelier in "
         "55.2%"),
    Gate("win_rate", "passed", 0.583, 0.521, 0.644, 0.5, "on 200 held-out prompts, by the judge"),
    Gate("win_rate_equal_length", "passed", 0.566, 0.503, 0.629, 0.5,
         "on 200 held-out prompts, by the judge, at equal length"),
    Gate("kl", "passed", 4.1, 3.8, 4.5, 30.0, "nats from the current version, a response"),
    Gate("length", "passed", 1.12, 1.05, 1.2, 1.5, "41.2 tokens, the current version 36.8"),
    Gate("ended", "passed", -0.01, -0.04, 0.02, 0.05, "97.0% of the answers, once 96.0%"),
    Gate("trick_flattery", "passed", 0.04, -0.02, 0.1, 0.25,
         "gain in reward, in its standard deviations"),
    Gate("safety", "not shown", reason="gates.safety names none"),
)  # fmt: skip
BAD = (
    Gate("win_rate", "failed", 0.482, 0.41, 0.551, 0.5, "on 200 held-out prompts, by the judge"),
    Gate("kl", "failed", 41.0, 38.5, 43.7, 30.0, "nats from the current version, a response"),
    *GATES[4:],
)


def version(number: int, parent: int, verdict: Any, gates: tuple[Gate, ...]) -> dict[str, Any]:
    counts = {"demonstrations": 42, "reward/train": 610, "judge/train": 190, "held_out/test": 180,
              "prompts": 1204, "reward/thumbs": 77}  # fmt: skip
    learnt = Learnt("0", counts, ("a", "b", "c"), DAY.format(number)) if parent else Learnt()
    parents = (parent,) if parent else ()
    made = Version("ours", number, "model", "0", "smollm2-135m", DAY.format(number), parents,
                   learnt, verdict, gates)  # fmt: skip
    return made.as_dict()


def plain(record: Any) -> Any:
    """As it comes out of JSON."""
    return json.loads(json.dumps(record, default=vars))


def ours() -> dict[str, Any]:
    """Two promoted versions, a refused one and one on trial."""
    votes = decide([1.0, 0.0, 1.0, 0.5, 1.0, 0.0] * 9, SequentialTest())
    return {
        "name": "ours",
        "promoted": "ours@2",
        "served": "ours@2",
        "problem": "",
        "versions": [
            version(1, 0, "first", ()),
            version(2, 1, "passed", GATES),
            version(3, 2, "refused", BAD),
            version(4, 2, "passed", GATES),
        ],
        "promotions": plain(
            [
                Promotion(1, "first", "Ada", "from smollm2-135m", DAY.format(1)),
                Promotion(2, "promote", "votes", "better: 171 votes of 12 people", DAY.format(2)),
            ]
        ),
        "trial": plain(Trial(4, 0.1, SequentialTest(), DAY.format(4))),
        "votes": plain(
            {"votes": votes.votes, "people": 7, "waiting": 3, "share": votes.share,
             "e_value": votes.e_value, "outcome": votes.outcome}
        ),
        "judged": {
            "counts": {"ranking": 12, "comparison": 57, "better_answer": 4, "demonstration": 2,
                       "thumb": 31, "prompt": 240, "regeneration": 9, "edit": 3},
            "people": {"Ada": 60, "Lee": 46},
            "new": 106,
            "agreement": {"value": 0.73, "low": 0.66, "high": 0.8},
            "pairs": 81,
            "duplicates": 2,
            "bursts": {"Lee": 34},
            "too_little": ["81 compared pairs are few: about 119 more, and the reward model can "
                           "be told from chance",
                           "6 demonstrations and better answers: SFT needs 8, and is left out"],
        },
        "improvement": None,
    }  # fmt: skip


def judgement(number: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": f"thumb-{number}",
        "kind": "thumb",
        "created": DAY.format(5),
        "person": "Lee",
        "version": "ours@2",
        "messages": [
            {"role": "user", "content": "What do you like?"},
            {"role": "assistant", "content": "Rain and tea."},
            {"role": "user", "content": f"Question {number}: why?"},
        ],
        "response": f"Answer {number}: because it is **warm**.",
        "verdict": "down",
        "reasons": ["wrong"],
        "comment": "Tea is warm, rain is not.",
    }
    if number == 1:
        other = {"version": "ours@1", "response": "It is what it is."}
        found |= {"kind": "comparison", "verdict": "left", "other": other, "reasons": []}
    return found


@dataclass
class Routes:
    """The answers of `/api/versions`, and what the page has asked for."""

    model: dict[str, Any] = field(default_factory=ours)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def answer(self, route: Route, request: Request) -> None:
        path = request.url.partition("/api/versions")[2]
        if request.method == "POST":
            self.asked.append((path, request.post_data_json))
        route.fulfill(json=self.change(path, request))

    def change(self, path: str, request: Request) -> Any:
        model, last = self.model, path.rpartition("/")[2]
        if path == "":
            return {"models": [model]}
        if last.startswith("feedback"):
            first = 1 if "before" not in path else 21
            following = "moment~thumb-20" if first == 1 else None
            return {"rows": [judgement(first + place) for place in range(20)], "next": following}
        if last == "improve" and request.method == "GET":
            improvement = model["improvement"]
            improvement["done"] += 4
            if improvement["done"] >= 10:
                model["versions"].append(version(5, 2, "not shown", GATES[3:]))
                improvement |= {"state": "done", "version": "ours@5"}
            return improvement
        if last == "improve":
            log = ["data: 106 judgements", "reward: 40/200 steps, 3 min left"]
            model["improvement"] = {"state": "running", "stage": "reward", "done": 1, "total": 10,
                                    "eta_seconds": 200.0, "log": log, "version": None}  # fmt: skip
            return {"state": "running"}
        if last == "trial":
            model["trial"] = None
            return {"trial": None}
        numbers = {"promote": 4, "rollback": 1}
        action = Promotion(numbers[last], last, "Ada", "", DAY.format(5))  # type: ignore[arg-type]
        model["promotions"].append(plain(action))
        model |= {"trial": None, "promoted": f"ours@{action.version}"}
        model["served"] = model["promoted"]
        return {"promoted": model["promoted"]}


def visit(chat: Chat, routes: Routes, **options: Any) -> Page:
    page = chat.visit(**options)
    page.route(re.compile("/api/versions"), routes.answer)
    if options.get("viewport", {}).get("width", 1280) < 600:
        page.get_by_label("Show conversations").click()
    page.get_by_role("link", name=re.compile("Models|模型")).click()
    expect(page.get_by_role("heading", name="ours", exact=True)).to_be_visible()
    return page


def test_versions_are_shown_with_their_evidence_and_changed_once_confirmed(chat: Chat) -> None:
    routes = Routes()
    page = visit(chat, routes, viewport={"width": 1200, "height": 900})
    versions = page.get_by_role("list", name="Versions of ours").locator("> li")
    expect(versions).to_have_text([re.compile(f"^ *ours@{n}") for n in (4, 3, 2, 1)])
    expect(versions.nth(1)).to_contain_text("Refused")
    page.get_by_label("Evidence for ours@3").click()
    gates = page.get_by_role("region", name="Gates of ours@3")
    row = gates.get_by_role("row", name="KL from the current version")
    expect(row).to_contain_text("Failed")
    expect(row).to_contain_text("38.5 to 43.7")
    expect(row).to_contain_text("≤ 30")
    expect(page.get_by_text("54 votes by 7 people")).to_be_visible()
    expect(page.get_by_text("3 more are above one person’s share")).to_be_visible()
    check_access(page)
    picture(page, "models")

    # Nothing changes until it is confirmed.
    page.get_by_label("Promote: ours@4").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_label("Promote: ours@4")).to_be_focused()
    page.keyboard.press("Enter")
    picture(page, "models-promote")
    page.get_by_label("Why?").fill("I like it")
    page.keyboard.press("Enter")
    expect(page.get_by_text("ours@4 is promoted").first).to_be_visible()
    expect(page.get_by_role("button", name="End the trial")).to_have_count(0)
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("ours@1 is promoted").first).to_be_visible()
    expect(page.get_by_label("Start a trial: ours@3")).to_have_count(0)  # its gates refuse it
    page.get_by_label("Start a trial: ours@2").click()
    page.get_by_label("Share of the messages").fill("25")
    page.get_by_label("Messages that labelers compare").fill("40")
    picture(page, "models-trial")
    page.get_by_role("dialog").get_by_role("button", name="Start a trial").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert routes.asked == [
        ("/ours/promote", {"version": "ours@4", "reason": "I like it"}),
        ("/ours/rollback", {"reason": ""}),
        ("/ours/trial", {"version": "ours@2", "share": 0.25, "labelled": 40}),
    ]


def test_an_improvement_is_started_and_followed(chat: Chat) -> None:
    routes = Routes()
    page = visit(chat, routes, viewport={"width": 390, "height": 844})
    start = page.get_by_role("button", name="Start an improvement")
    expect(start).to_be_disabled()
    expect(page.get_by_text("about 119 more")).to_be_visible()
    picture(page, "models-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Go on with few judgements").check()
    start.click()
    expect(page.get_by_role("progressbar", name="Training the reward model")).to_be_visible()
    expect(page.get_by_text("about 3 minutes left")).to_be_visible()
    picture(page, "models-running-phone")
    expect(page.get_by_text("ours@5 is not shown to be better")).to_be_visible()
    expect(page.get_by_label("Evidence for ours@5")).to_be_visible()
    assert routes.asked == [("/ours/improve", {"force": True})]
    check_access(page)


def test_feedback_is_read_with_its_conversation_a_page_at_a_time(chat: Chat) -> None:
    page = visit(chat, Routes())
    page.get_by_text("Feedback on ours").click()
    rows = page.locator("details ol > li", has=page.locator(".answer"))
    expect(rows).to_have_count(20)
    expect(rows.first).to_contain_text("A is better")
    expect(rows.nth(1)).to_contain_text("Not true · Tea is warm, rain is not.")
    expect(rows.nth(1).get_by_text("Rain and tea.")).to_be_hidden()
    rows.nth(1).get_by_text("The conversation before (2 messages)").click()
    expect(rows.nth(1).get_by_text("Rain and tea.")).to_be_visible()
    picture(page, "models-feedback")
    page.get_by_role("button", name="Show older feedback").click()
    expect(rows).to_have_count(40)
    expect(rows.nth(20)).to_be_focused()
    expect(page.get_by_role("button", name="Show older feedback")).to_have_count(0)
    check_access(page)


def test_the_models_page_in_chinese(chat: Chat) -> None:
    page = visit(chat, Routes(), locale="zh-CN", viewport={"width": 1200, "height": 900})
    expect(page.get_by_text("比较过的回答对只有 81 个")).to_be_visible()
    page.get_by_label("ours@3 的依据").click()
    expect(page.get_by_role("row", name="对当前版本的胜率")).to_contain_text("未通过")
    picture(page, "models-chinese")
    text = page.locator("main").inner_text()
    assert re.findall(r"[A-Za-z]{4,} [a-z]{2,}", text) == [], "not translated"


OTHER = "what 你 do"
"""What the second version says."""


@pytest.fixture
def house(
    browser: Browser, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Chat]:
    """A server of two versions, the first of which is promoted."""

    async def counted(*_: object) -> dict[str, Any]:
        """A process of its own would count."""
        return ours()["judged"] | {"people": {}}

    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    monkeypatch.setattr(Improvements, "judged", counted)
    put_version("ours", 1, parrot())
    put_version("ours", 2, parrot(sentence=OTHER))
    with running(words=["ours"], store=store) as served:
        yield Chat(served.address, store, browser)
        for context in browser.contexts:
            context.close()


def test_a_candidate_is_tried_promoted_and_rolled_back(house: Chat) -> None:
    admin = house.visit()
    admin.get_by_role("link", name="Models").click()
    tree = admin.get_by_role("list", name="Versions of ours").locator("> li")
    expect(tree).to_have_count(2)
    admin.get_by_label("Start a trial: ours@2").click()
    admin.get_by_label("Share of the messages").fill("100")
    admin.keyboard.press("Enter")
    expect(admin.get_by_text("Nobody has voted yet.")).to_be_visible()

    page = house.visit()
    say(page, "what do you like?")
    better = page.get_by_role("button", name="A is better")
    expect(better).to_be_enabled()
    sides = page.locator(".side").all_inner_texts()
    assert sorted(text.partition("\n")[2].strip() for text in sides) == sorted([SENTENCE, OTHER])
    assert "ours@" not in page.locator("main").inner_text()
    if OTHER not in sides[0]:
        better = page.get_by_role("button", name="B is better")
    better.click()
    expect(page.locator("article.assistant")).to_contain_text(OTHER)
    expect(page.get_by_text("Thank you, your choice counts.")).to_be_visible()

    admin.evaluate("window.dispatchEvent(new Event('focus'))")  # looked at again
    expect(admin.get_by_text("One vote so far.")).to_be_visible()
    admin.get_by_text("Feedback on ours").click()
    expect(admin.get_by_text("what do you like?")).to_be_visible()
    for word in ("ours@1", "ours@2"):
        expect(admin.locator("h4", has_text=word)).to_have_count(1)
    admin.get_by_label("Promote: ours@2").click()
    admin.get_by_label("Why?").fill("People like it")
    admin.keyboard.press("Enter")
    expect(admin.get_by_text("ours@2 is promoted").first).to_be_visible()
    expect(admin.get_by_text("Nobody has voted yet.")).to_have_count(0)
    assert versions.lineage_of("ours").promotions[-1].reason == "People like it"

    say(page, "and now?")
    expect(page.locator("article.assistant")).to_have_count(2)
    expect(page.locator("article.assistant").last).to_contain_text(OTHER)
    admin.get_by_role("button", name="Roll back").click()
    admin.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(admin.get_by_text("ours@1 is promoted").first).to_be_visible()
    say(page, "and again?")
    expect(page.locator("article.assistant")).to_have_count(3)
    expect(page.locator("article.assistant").last).to_contain_text(SENTENCE)


@pytest.mark.parametrize(("width", "locale"), [(1200, "en-US"), (390, "zh-CN")])
def test_a_blind_pair_goes_on_with_the_better_answer(house: Chat, width: int, locale: str) -> None:
    body = {"version": "ours@2", "share": 1.0}
    HTTP.post(f"{house.address}/api/versions/ours/trial", json=body).raise_for_status()
    page = house.visit(viewport={"width": width, "height": 800}, locale=locale)
    chinese = locale == "zh-CN"
    write = page.get_by_label("输入消息" if chinese else "Write a message")
    pair = page.get_by_role("region", name="并排比较" if chinese else "Side by side")
    better = page.get_by_role("button", name="B 更好" if chinese else "B is better")

    write.fill("hello")
    page.keyboard.press("Enter")
    expect(better).to_be_enabled()
    sides = page.locator(".side")
    for place, letter in enumerate("AB"):
        expect(sides.nth(place)).to_have_text(re.compile(f"{letter}.*({SENTENCE}|{OTHER})"))
    right = sides.nth(1).locator(".markdown").inner_text()
    one, other = (sides.nth(place).bounding_box() for place in (0, 1))
    assert one is not None
    assert other is not None
    assert (one["x"] == other["x"]) == (width < 600)  # stacked on a phone
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture(page, f"pair-{width}")
    check_access(page)
    page.get_by_role("button", name="不再比较" if chinese else "Stop comparing").click()
    stopped = "可以在设置中更改" if chinese else "You can change this in"
    expect(page.get_by_text(stopped)).to_be_visible()
    page.reload()  # not judged yet: still a pair
    expect(better).to_be_enabled()
    better.click()
    expect(page.locator("article.assistant")).to_have_text(re.compile(re.escape(right.strip())))
    expect(page.get_by_role("region", name="消息" if chinese else "Messages")).to_be_focused()

    write.fill("and now?")  # who has stopped gets one answer
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant")).to_have_count(2)
    expect(pair).to_have_count(0)
    page.get_by_label("设置" if chinese else "Settings").click()
    expect(page.get_by_role("checkbox")).not_to_be_checked()
    picture(page, f"pair-settings-{width}")
    page.get_by_role("checkbox").check()
    page.keyboard.press("Escape")
    write.fill("and then?")
    page.keyboard.press("Enter")
    expect(pair).to_be_visible()
    me = house.store.person("owner").id
    judged = house.store.judgements(me, page.url.rpartition("/")[2]).values()
    assert {each["verdict"] for found in judged for each in found["comparisons"]} == {"right"}
