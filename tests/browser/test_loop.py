"""The whole loop: people judge on the pages, an admin starts an improvement, people vote, and the
version is promoted or refused, and rolled back. Nothing is replaced: `lmsmith improve` runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chats import say
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import func, select
from test_label_page import House, check_access, picture
from worlds import HTTP, running

from improve.tiny_round import SMALL, make_model
from lmsmith.catalogue import versions
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, BetterAnswer, Comparison, Message, Rating
from lmsmith.server import improvements

ROLES = {"Ada": "admin", "Lee": "labeler", "Uma": "user", "Udo": "user", "Una": "user"}
KEPT = (Message, Rating, BetterAnswer, Comparison, Assignment)
DECIDED = 12
"""Votes that agree, after which a trial is decided."""
PATIENCE = 600_000
"""Milliseconds for an improvement, on a machine that has other things to do."""


REFUSES_NOTHING = (
    "gates.min_pairs=1000000",
    "gates.win_rate=0.0",
    "gates.max_kl=1e9",
    "gates.max_length_ratio=1e9",
    "gates.max_loss=1.0",
    "gates.max_trick_gain=1e9",
)
"""A model of random weights may fail any gate, and people vote on no version that is refused."""
VOTERS = ("Una", "Uma", "Udo")
"""Nobody alone decides: of many people's votes, at most 30 % are one person's."""


@dataclass
class Loop(House):
    """A server of a tiny model that has no versions yet, and the people who use it."""

    database: str = ""
    folder: Path = field(default_factory=Path)

    def call(self, who: str, method: str, path: str, body: Any = None) -> Any:
        head = {"Authorization": f"Bearer {self.tokens[who]}"}
        response = HTTP.request(method, f"{self.address}/api/{path}", json=body, headers=head)
        assert response.is_success, response.text
        lines = [line.removeprefix("data: ") for line in response.text.split("\n")]
        return json.loads([line for line in lines if line.startswith(("{", "null"))][-1])

    def ask(self, who: str, text: str) -> tuple[str, int]:
        """A conversation, and its user's message."""
        talk = self.call(who, "POST", "conversations", {})["id"]
        said = {"role": "user", "content": text}
        return talk, self.call(who, "POST", f"conversations/{talk}/messages", said)["id"]

    def answer(self, who: str, talk: str, parent: int, **given: Any) -> int:
        """The id of an answer."""
        body = {"parent": parent, "model": "ours", "max_tokens": 8, **given}
        found = self.call(who, "POST", f"conversations/{talk}/answers", body)
        return int(found["message"]["id"])

    def compare(self, who: str, text: str, prefers: str = "", **given: Any) -> Any:
        """Compare two answers to a new message; ``prefers`` is a version, or the left one wins."""
        talk, message = self.ask(who, text)
        sides = ("left", "right")
        trial = [{"side": side} for side in sides] if prefers else [{}, {}]
        both = [self.answer(who, talk, message, **given, **each) for each in trial]
        won = sides[[self.author(each) for each in both].index(prefers)] if prefers else "left"
        pair = dict(zip(sides, both, strict=True))
        return self.call(who, "POST", "comparisons", {**pair, "verdict": won})

    def author(self, message: int) -> str:
        """The version that wrote a message."""
        with self.store.session() as session:
            found = session.get(Message, message)
            return found.model if found else ""

    def last_author(self) -> str:
        with self.store.session() as session:
            written = select(Message.model).where(Message.role == "assistant")
            return session.scalar(written.order_by(Message.id.desc())) or ""

    def kept(self) -> dict[str, int]:
        """How much the store holds, by table."""
        with self.store.session() as session:
            count = {each: select(func.count()).select_from(each) for each in KEPT}
            return {each.__tablename__: session.scalar(count[each]) or 0 for each in KEPT}

    def sample(self, count: int) -> None:
        """The command that fills the labelling queue with the model's answers."""
        prompts = self.folder / "prompts.jsonl"
        rows = [{"prompt": f"Where is the cat number {n}?"} for n in range(count)]
        prompts.write_text("\n".join(map(json.dumps, rows)))
        words = ["feedback", "sample", str(self.folder / "model"), "--prompts", str(prompts)]
        words += ["--database", self.database, "--max-tokens", "8", "--quiet"]
        subprocess.run([sys.executable, "-m", "lmsmith", *words], check=True, capture_output=True)

    def rank_the_rest(self, who: str) -> None:
        """Rank everything in the queue, the shortest answer first."""
        while (task := self.call(who, "POST", "label/next", {})["task"]) is not None:
            lengths = [len(each) for each in task["responses"]]
            ranks = [1 + sorted(lengths).index(each) for each in lengths]
            dense = [1 + sorted(set(ranks)).index(each) for each in ranks]
            self.call(who, "PUT", f"label/assignments/{task['id']}", {"ranks": dense})

    def judge_more(self, comparisons: int, better: int) -> None:
        """What a person does on the chat page, by the routes that the page uses."""
        for number in range(comparisons):
            self.compare(("Uma", "Udo", "Una")[number % 3], f"What is the colour of {number}?")
        for number in range(better):
            who = ("Uma", "Udo")[number % 2]
            talk, message = self.ask(who, f"Who lives in house {number}?")
            answer = self.answer(who, talk, message)
            self.call(who, "PUT", f"messages/{answer}/rating", {"value": -1})
            content = {"content": f"Three sisters live in house {number}."}
            self.call(who, "PUT", f"messages/{answer}/better", content)


@pytest.fixture
def loop(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, recipe = make_model(tmp_path / "model"), tmp_path / "recipe.toml"
    small = [each for each in SMALL if not each.startswith("gates.min_pairs")]
    recipe.write_text("\n".join(["seed = 2017", *small, *REFUSES_NOTHING, "[data]"]))
    database = str(tmp_path / "feedback.db")
    store = Store(database)
    people = People(store)
    tokens = {name: people.add(name, role) for name, role in ROLES.items()}
    options: dict[str, Any] = {"database": database, "recipe": str(recipe)}
    with running(words=[f"ours={model}"], store=store, memory_bytes=0, **options) as served:
        yield Loop(served.address, store, tokens, browser, database, tmp_path)
        if improvements._is_locked(lock_of("ours")):  # of a test that failed
            os.kill(process_of("ours"), signal.SIGKILL)
        for context in browser.contexts:
            context.close()
    store.close()


def begin_improvement(page: Page) -> None:
    """Start it, and see that it runs."""
    page.get_by_role("button", name="Start an improvement").click()
    expect(page.get_by_role("progressbar")).to_be_visible()


def improvement_of(admin: Page) -> Any:
    return admin.get_by_role("region", name="The next version")


def verdict_of(admin: Page, word: str) -> None:
    """Wait for the verdict, and hold what the page says against the version's record."""
    expect(admin.get_by_label(f"Evidence for {word}")).to_be_visible(timeout=PATIENCE)
    made = versions.version("ours", int(word.partition("@")[2]))
    versions.verify(made)
    said = {"refused": "is refused", "not shown": "is not shown to be better",
            "passed": "passed every gate"}[made.verdict]  # fmt: skip
    expect(improvement_of(admin).get_by_role("status")).to_contain_text(f"{word} {said}")
    admin.get_by_label(f"Evidence for {word}").click()
    rows = admin.get_by_role("region", name=f"Gates of {word}").get_by_role("row")
    expect(rows).to_have_count(1 + len(made.gates))


def begin_trial(admin: Page, word: str) -> None:
    """Every message gets two answers; the round may have begun a trial of its own."""
    end = admin.get_by_role("button", name="End the trial")
    if end.count():
        end.click()
        admin.get_by_role("dialog").get_by_role("button", name="End the trial").click()
        expect(end).to_have_count(0)
    admin.get_by_label(f"Start a trial: {word}").click()
    admin.get_by_label("Share of the messages").fill("100")
    admin.keyboard.press("Enter")
    expect(admin.get_by_text("Nobody has voted yet.")).to_be_visible()


def look_again(admin: Page) -> None:
    admin.evaluate("window.dispatchEvent(new Event('focus'))")


def judge_on_the_chat_page(loop: Loop, page: Page) -> None:
    """A thumb, a better answer, and three comparisons."""
    say(page, "What do you like?")
    page.get_by_role("button", name="Good answer").click()
    page.get_by_role("dialog").get_by_text("Helpful").click()
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_label("What would have been better?").fill("Rain and tea.")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_text("You wrote a better answer")).to_be_visible()
    page.get_by_role("button", name="Two answers side by side").click()
    for name in ("A is better", "B is better", "Equally good"):
        say(page, f"What next, so that {name}?")
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    page.get_by_role("button", name="Two answers side by side").click()


def rank_on_the_labelling_page(page: Page) -> None:
    expect(page.locator(".cards fieldset")).to_have_count(4)
    for key in ("1", "2", "3", "4", "Control+Enter"):
        page.keyboard.press(key)
    expect(page.get_by_text("1 done").first).to_be_visible()


def vote(loop: Loop, page: Page, text: str, winner: str) -> None:
    """Choose blind; only the store knows which answer is the winner's."""
    say(page, text)
    button = page.get_by_role("button", name="A is better")
    expect(button).to_be_enabled()
    with loop.store.session() as session:
        written = select(Message).where(Message.role == "assistant").order_by(Message.id.desc())
        pair = {each.settings["side"]: each.model for each in session.scalars(written.limit(2))}
    assert set(pair.values()) == {"ours@1", winner} or winner == "ours@1"
    assert "ours@" not in page.locator("main").inner_text()
    letter = "A" if pair["left"] == winner else "B"
    page.get_by_role("button", name=f"{letter} is better").click()
    expect(button).to_have_count(0)


def test_what_people_judge_becomes_a_version_that_they_vote_for(loop: Loop) -> None:
    uma = loop.sign_in("Uma", "/")
    judge_on_the_chat_page(loop, uma)
    loop.sample(24)
    lee = loop.sign_in("Lee", "/label")
    rank_on_the_labelling_page(lee)
    loop.rank_the_rest("Lee")
    loop.judge_more(comparisons=70, better=16)
    before = loop.kept()

    ada = loop.sign_in("Ada", "/models")
    expect(ada.get_by_text("rankings").first).to_be_visible(timeout=PATIENCE)
    begin_improvement(ada)
    picture(ada, "loop-running")
    verdict_of(ada, "ours@2")
    picture(ada, "loop-verdict")
    check_access(ada)
    assert loop.kept() == before

    begin_trial(ada, "ours@2")
    say(uma, "Hello again?")  # a page that was open before learns of the trial by an answer
    expect(uma.locator("article.assistant")).to_have_count(5)
    udo = loop.sign_in("Udo", "/")
    for number in range(2):
        vote(loop, uma, f"May I ask {number}?", "ours@2")
        vote(loop, udo, f"And may I ask {number}?", "ours@2")
    for number in range(DECIDED - 5):
        who = VOTERS[number % len(VOTERS)]
        assert loop.compare(who, f"Number {number}?", "ours@2")["trial"] == "counted"
    look_again(ada)
    expect(ada.get_by_text(f"{DECIDED - 1} votes by 3 people")).to_be_visible()
    picture(ada, "loop-votes")
    assert loop.compare("Una", "The last one?", "ours@2")["trial"] == "decided"
    look_again(ada)
    expect(ada.get_by_text("ours@2 is promoted").first).to_be_visible()
    ada.get_by_text("Promotions and votes").click()
    expect(ada.get_by_text("by people’s votes")).to_be_visible()
    picture(ada, "loop-promoted")
    say(uma, "And who are you now?")
    expect(uma.locator("article.assistant")).to_have_count(8)
    assert loop.last_author() == "ours@2"

    ada.get_by_role("button", name="Roll back").click()
    ada.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(ada.get_by_text("ours@1 is promoted").first).to_be_visible()
    say(uma, "And now?")
    expect(uma.locator("article.assistant")).to_have_count(9)
    assert loop.last_author() == "ours@1"
    assert [each.by for each in versions.lineage_of("ours").promotions] == ["Ada", "votes", "Ada"]


def lock_of(name: str) -> Path:
    return versions.folder_of(name) / ".improving/.lock"


def process_of(name: str) -> int:
    """The number of the process that improves a model."""
    return int(lock_of(name).read_text())


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_in_the_middle_an_improvement_goes_on_from_the_page(loop: Loop) -> None:
    loop.sample(24)
    loop.rank_the_rest("Lee")
    loop.judge_more(comparisons=60, better=14)
    before = loop.kept()
    ada = loop.sign_in("Ada", "/models")
    expect(ada.get_by_text("rankings").first).to_be_visible(timeout=PATIENCE)
    begin_improvement(ada)
    done = versions.folder_of("ours") / versions.NEXT / "sft/stage.json"
    wait_for(done.is_file)
    os.kill(process_of("ours"), signal.SIGKILL)

    said = improvement_of(ada).get_by_role("status")
    at = re.compile(
        "interrupted before its end, at “(Learning|Training the reward).*no judgement is"
    )
    expect(said).to_contain_text(at)
    expect(ada.get_by_role("button", name="Drop it and begin again")).to_be_visible()
    picture(ada, "loop-killed")
    check_access(ada)
    assert loop.kept() == before
    assert [each.number for each in versions.versions("ours")] == [1]
    made = done.stat().st_mtime_ns
    ada.reload()
    ada.get_by_role("button", name="Go on with the improvement").click()
    expect(ada.get_by_role("progressbar")).to_be_visible()
    verdict_of(ada, "ours@2")
    second = versions.version("ours", 2)
    assert (second.folder / "sft/stage.json").stat().st_mtime_ns == made  # not made again
    assert loop.kept() == before
    lineage = versions.lineage_of("ours")
    assert [each.version for each in lineage.promotions] == [1]
    assert [each.number for each in versions.versions("ours")] == [1, 2]
    assert not (versions.folder_of("ours") / versions.NEXT).exists()
    assert sum(second.learnt.counts.values()) > 0

    begin_trial(ada, "ours@2")
    uma = loop.sign_in("Uma", "/")
    vote(loop, uma, "May I ask?", "ours@1")
    votes = 1
    while (
        loop.compare(VOTERS[votes % len(VOTERS)], f"Number {votes}?", "ours@1")["trial"]
        == "counted"
    ):
        votes += 1
        assert votes < DECIDED
    look_again(ada)
    expect(said).to_contain_text("ours@2 is not better than ours@1 by enough: it is not promoted")
    expect(ada.get_by_role("button", name="End the trial")).to_have_count(0)
    expect(ada.get_by_text("Not preferred", exact=True)).to_be_visible()
    picture(ada, "loop-declined")
    assert versions.lineage_of("ours").promoted == 1
    say(uma, "And now?")
    expect(uma.locator("article.assistant")).to_have_count(2)
    assert loop.last_author() == "ours@1"
