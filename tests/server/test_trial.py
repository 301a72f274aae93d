"""A candidate on trial: blind pairs, votes that decide, people who do not want to compare."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from worlds import HTTP, SENTENCE, Running, parrot, put_version, running

from lmsmith.catalogue import versions
from lmsmith.cli import main
from lmsmith.feedback.people import People
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.votes import votes_on
from lmsmith.server.improvements import Improvements
from lmsmith.server.trials import _decide
from lmsmith.statistics.sequential import SequentialTest

OTHER = "what 你 do"
SAYS = {SENTENCE: "ours@1", OTHER: "ours@2"}
QUICK = SequentialTest(alpha=0.4)
"""Decides after a few votes that agree."""


class House:
    """A server with a trial, on which everybody has a token."""

    def __init__(self, served: Running, store: Store, tokens: dict[str, str]) -> None:
        self.served, self.store, self.tokens = served, store, tokens

    def call(self, who: str, method: str, path: str, body: Any = None) -> Any:
        response = self.response(who, method, path, body)
        assert response.status_code in (200, 202), response.text
        return response.json()

    def response(self, who: str, method: str, path: str, body: Any = None) -> Any:
        head = {"Authorization": f"Bearer {self.tokens[who]}"}
        address = f"{self.served.address}/api/{path}"
        return HTTP.request(method, address, json=body, headers=head)

    def ask(self, who: str, text: str = "hello") -> tuple[str, int]:
        """A conversation, and its user's message."""
        talk = self.call(who, "POST", "conversations", {})["id"]
        said = {"role": "user", "content": text}
        return talk, self.call(who, "POST", f"conversations/{talk}/messages", said)["id"]

    def pair(self, who: str, talk: str, message: int, model: str = "ours") -> bool:
        path = f"conversations/{talk}/messages/{message}/pair?model={model}"
        return bool(self.call(who, "GET", path)["pair"])

    def events(self, who: str, talk: str, message: int, **body: Any) -> list[dict[str, Any]]:
        given = {"parent": message, "model": "ours", "temperature": 0.0, **body}
        text = self.response(who, "POST", f"conversations/{talk}/answers", given).text
        lines = [line.removeprefix("data: ") for line in text.split("\n")]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def both(self, who: str, talk: str, message: int) -> dict[str, dict[str, Any]]:
        """The messages of both sides."""
        return {
            side: self.events(who, talk, message, side=side)[-1]["message"]
            for side in ("left", "right")
        }

    def vote(self, who: str, winner: str, text: str = "hello") -> Any:
        """Compare the answers to a new message; ``winner`` is a version."""
        talk, message = self.ask(who, text)
        assert self.pair(who, talk, message)
        shown = self.both(who, talk, message)
        verdict = next(side for side in shown if SAYS[shown[side]["content"]] == winner)
        numbers = {side: shown[side]["id"] for side in shown}
        return self.call(who, "POST", "comparisons", {**numbers, "verdict": verdict})

    def chat(self) -> str:
        """What somebody reads who asks for one answer."""
        talk, message = self.ask("user")
        return str(self.events("user", talk, message)[-1]["message"]["content"])


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, database: str) -> Iterator[House]:
    async def uncounted(*_: object) -> None:
        """A process of its own would count."""

    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    monkeypatch.setattr(Improvements, "judged", uncounted)
    put_version("ours", 1, parrot())
    put_version("ours", 2, parrot(sentence=OTHER))
    store = Store(database)
    people = People(store)
    roles = {"user": "user", "other": "user", "labeler": "labeler", "admin": "admin"}
    tokens = {name: people.add(name, role) for name, role in roles.items()}
    with closing(store), running(words=["ours"], store=store) as served:
        yield House(served, store, tokens)


def begin(house: House, share: float = 1.0, test: SequentialTest = QUICK) -> None:
    """By a command elsewhere, then a route, which looks at once."""
    versions.set_trial("ours", 2, share, test)
    house.call("admin", "POST", "versions/ours/promote", {"version": "ours@1"})
    assert set(house.served.engine.candidates) == {"ours"}


def listed(house: House) -> dict[str, Any]:
    return dict(house.call("admin", "GET", "versions")["models"][0])


def test_a_trial_begins_and_ends_by_route(house: House) -> None:
    body = {"version": "ours@2", "share": 0.25}
    found = house.call("admin", "POST", "versions/ours/trial", body)["trial"]
    assert (found["candidate"], found["share"]) == (2, 0.25)
    assert set(house.served.engine.candidates) == {"ours"}
    shown = listed(house)
    assert shown["trial"] == found
    assert shown["votes"]["votes"] == 0
    assert shown["votes"]["outcome"] == "undecided"
    ended = house.call("admin", "POST", "versions/ours/trial", {"version": None})
    assert ended == {"trial": None}
    assert house.served.engine.candidates == {}
    assert listed(house)["votes"] is None


def test_no_trial_shows_no_pair(house: House) -> None:
    talk, message = house.ask("user")
    assert not house.pair("user", talk, message)
    refused = house.response(
        "user",
        "POST",
        f"conversations/{talk}/answers",
        {"parent": message, "model": "ours", "side": "left"},
    )
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "no_pair"


def test_both_versions_answer_once_and_blind(house: House) -> None:
    begin(house)
    places = set()
    for _ in range(12):
        talk, message = house.ask("user")
        assert house.pair("user", talk, message)
        shown = house.both("user", talk, message)
        assert {each["content"] for each in shown.values()} == {SENTENCE, OTHER}
        places.add(shown["left"]["content"])
        assert house.both("user", talk, message)["left"]["content"] == shown["left"]["content"]
    assert places == {SENTENCE, OTHER}
    whole = house.response("user", "GET", f"conversations/{talk}").text
    events = json.dumps(house.events("user", talk, message, side="left"))
    for text in (whole, events):
        assert '"ours"' in text
        assert "ours@" not in text
        assert "version" not in text
    recorded = {each.model for each in house.store.tree(person(house, "user"), talk)}
    assert recorded == {"", "ours@1", "ours@2"}


def person(house: House, name: str) -> str:
    return People(house.store).named(name).id


def test_admins_see_the_version(house: House) -> None:
    begin(house)
    talk, message = house.ask("admin")
    shown = house.both("admin", talk, message)
    assert {each["version"] for each in shown.values()} == {"ours@1", "ours@2"}
    assert {each["model"] for each in shown.values()} == {"ours"}


def test_the_share_is_of_turns_and_stays(house: House) -> None:
    begin(house, 0.3)
    asked = [house.ask("user") for _ in range(60)]
    first = [house.pair("user", *each) for each in asked]
    assert 5 <= sum(first) <= 35
    assert first == [house.pair("user", *each) for each in asked]


def test_a_person_who_opted_out_sees_one_answer(house: House) -> None:
    begin(house)
    talk, message = house.ask("user")
    assert house.call("user", "GET", "me/settings") == {"compares": True}
    house.call("user", "PUT", "me/settings", {"compares": False})
    assert not house.pair("user", talk, message)
    assert house.pair("other", *house.ask("other"))
    assert house.call("user", "GET", "me/settings") == {"compares": False}
    house.call("user", "PUT", "me/settings", {"compares": True})
    assert house.pair("user", talk, message)


def test_pairs_are_ones_own(house: House) -> None:
    begin(house)
    talk, message = house.ask("user")
    path = f"conversations/{talk}/messages/{message}/pair"
    assert house.response("other", "GET", path).status_code == 404
    elsewhere, _ = house.ask("user")
    path = f"conversations/{elsewhere}/messages/{message}/pair"
    assert house.response("user", "GET", path).status_code == 404
    assert house.response("user", "GET", f"{path}?model=none").status_code == 404


def test_a_person_votes_once_on_a_prompt(house: House) -> None:
    begin(house, test=SequentialTest())
    talk, message = house.ask("user")
    shown = house.both("user", talk, message)
    body = {side: shown[side]["id"] for side in shown} | {"verdict": "tie"}
    assert house.call("user", "POST", "comparisons", body)["trial"] == "counted"
    assert not house.pair("user", talk, message)
    votes = listed(house)["votes"]
    assert (votes["votes"], votes["people"]) == (1, 1)
    assert votes["share"]["value"] == 0.5


def test_votes_promote_the_better_version(house: House) -> None:
    begin(house)
    found = [house.vote("user", "ours@2").get("trial")]
    while found[-1] == "counted":
        found.append(house.vote("other", "ours@2").get("trial"))
        assert len(found) < 12
    assert found[-1] == "decided"
    promotion = versions.lineage_of("ours").promotions[-1]
    assert (promotion.version, promotion.by) == (2, "votes")
    assert f"{len(found)} votes of 2 people" in promotion.reason
    assert versions.lineage_of("ours").trial is None
    assert house.served.engine.models["ours"].recorded == "ours@2"
    assert house.served.engine.candidates == {}
    assert house.chat() == OTHER


def test_votes_end_the_trial_of_a_worse_version(
    house: House, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(house)
    found = [house.vote("user", "ours@1").get("trial")]
    while found[-1] == "counted":
        found.append(house.vote("other", "ours@1").get("trial"))
        assert len(found) < 12
    assert found[-1] == "decided"
    assert versions.lineage_of("ours").trial is None
    assert versions.promoted("ours").number == 1
    assert house.chat() == SENTENCE
    (refusal,) = listed(house)["refusals"]
    assert (refusal["candidate"], refusal["current"], refusal["outcome"]) == (2, 1, "futile")
    assert f"{len(found)} votes of 2 people, 0.0% for ours@2" in refusal["reason"]
    assert main(["models", "lineage", "ours", "--database", database]) == 0
    assert "votes did not promote 2 instead of 1 (futile): " in capsys.readouterr().out


def test_labelers_compare_messages_that_people_sent(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str
) -> None:
    """A command of its own writes both versions' answers; the rankings are votes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    begun: list[subprocess.Popen[bytes]] = []

    def run(_: Improvements, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        words += ["--database", database]
        begun.append(subprocess.Popen([sys.executable, "-m", "lmsmith", *words], **options))
        return begun[-1]

    monkeypatch.setattr(Improvements, "_run", run)
    asked = ("what do you like?", "and rain?")
    for text in asked:
        house.ask("user", text)
    body = {"version": "ours@2", "share": 0.0, "labelled": 5}
    many = house.response("admin", "POST", "versions/ours/trial", body | {"labelled": 9999})
    assert many.status_code == 400
    house.call("admin", "POST", "versions/ours/trial", body)
    assert begun[0].wait(120) == 0, (tmp_path / "versions/ours/labelled.log").read_text()
    for _ in asked:
        held = house.call("labeler", "POST", "label/next?kind=ranking")["task"]
        assert held["prompt"][0]["content"] in asked
        house.call("labeler", "PUT", f"label/assignments/{held['id']}", {"ranks": [1, 2]})
    votes = listed(house)["votes"]
    assert (votes["votes"], votes["people"]) == (2, 1)


def test_a_ranking_of_the_queue_is_a_vote(house: House) -> None:
    begin(house)
    queue = Queue(house.store)
    for number in range(12):
        prompt = f"say something {number}"
        queue.add("ranking", prompt, [OTHER, SENTENCE], models=["ours@2", "ours@1"])
    for number in range(12):
        who = ("labeler", "admin")[number % 2]  # nobody decides alone
        held = house.call(who, "POST", "label/next?kind=ranking")["task"]
        ranks = [1 if text == OTHER else 2 for text in held["responses"]]
        house.call(who, "PUT", f"label/assignments/{held['id']}", {"ranks": ranks})
        if versions.lineage_of("ours").trial is None:
            break
    assert versions.promoted("ours").number == 2
    assert house.chat() == OTHER


def test_a_vote_after_the_candidate_was_promoted_is_a_judgement(house: House) -> None:
    begin(house)
    talk, message = house.ask("user")
    shown = house.both("user", talk, message)
    house.call("admin", "POST", "versions/ours/promote", {"version": "ours@2"})
    body = {side: shown[side]["id"] for side in shown} | {"verdict": "left"}
    assert house.call("user", "POST", "comparisons", body)["trial"] == "ended"
    assert votes_on(house.store, "ours@2", "ours@1").people == 1
    assert versions.promoted("ours").number == 2
    assert len(versions.lineage_of("ours").promotions) == 2


def test_half_a_pair_of_a_candidate_that_was_promoted_is_said_to_be_over(house: House) -> None:
    begin(house)
    talk, message = house.ask("user")
    left = house.events("user", talk, message, side="left")[-1]["message"]
    house.call("admin", "POST", "versions/ours/promote", {"version": "ours@2"})
    body = {"parent": message, "model": "ours", "side": "right"}
    refused = house.response("user", "POST", f"conversations/{talk}/answers", body)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "no_pair"
    assert "ask for one answer, without side" in refused.json()["error"]["message"]
    one = house.events("user", talk, message)[-1]["message"]
    assert one["content"] == OTHER
    body = {"left": left["id"], "right": one["id"], "verdict": "tie"}
    assert house.call("user", "POST", "comparisons", body).get("trial") in ("ended", None)


def test_the_votes_on_a_pair_whose_conversation_is_gone(house: House) -> None:
    begin(house, test=SequentialTest())
    talk, message = house.ask("user")
    shown = house.both("user", talk, message)
    body = {side: shown[side]["id"] for side in shown} | {"verdict": "left"}
    house.call("user", "POST", "comparisons", body)
    assert listed(house)["votes"]["votes"] == 1
    assert house.response("user", "DELETE", f"conversations/{talk}").status_code < 300
    refused = house.response("user", "POST", "comparisons", body)
    assert refused.status_code == 404
    assert "there is no message" in refused.json()["error"]["message"]
    assert listed(house)["votes"]["votes"] == 0
    assert house.call("admin", "GET", "versions/ours/feedback")["rows"] == []


def test_votes_that_are_all_equal_end_the_trial(house: House) -> None:
    begin(house, test=SequentialTest(max_votes=3))
    found = []
    for number in range(3):
        talk, message = house.ask("user", f"question {number}")
        shown = house.both("user", talk, message)
        body = {side: shown[side]["id"] for side in shown} | {"verdict": "tie"}
        found.append(house.call("user", "POST", "comparisons", body)["trial"])
    assert found == ["counted", "counted", "decided"]
    assert versions.lineage_of("ours").trial is None
    assert versions.promoted("ours").number == 1
    assert house.served.engine.candidates == {}


def test_a_candidate_that_vanished_is_not_promoted(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    begin(house)
    shutil.rmtree(versions.version("ours", 2).path)
    for number in range(6):
        assert house.vote(("user", "other")[number % 2], "ours@2")["trial"] == "counted"
    assert versions.promoted("ours").number == 1
    assert "the votes decide nothing: " in listed(house)["problem"]
    assert "not the files of which ours@2 was made" in listed(house)["problem"]
    assert house.chat() == SENTENCE
    said = [each for each in caplog.messages if "the votes decide nothing" in each]
    assert said
    house.call("admin", "POST", "versions/ours/trial", {"version": None})
    assert versions.lineage_of("ours").trial is None


def test_votes_of_before_a_kill_are_counted(house: House) -> None:
    """They are in the database, and the next look at the lineage decides."""
    begin(house, test=SequentialTest())
    for number in range(8):
        house.vote(("user", "other")[number % 2], "ours@2")
    assert versions.promoted("ours").number == 1
    begin_again = versions.set_trial("ours", 2, 1.0, QUICK)
    assert begin_again.trial is not None
    house.call("admin", "POST", "versions/ours/promote", {"version": "ours@1"})
    assert versions.promoted("ours").number == 2


def test_nobody_votes_with_words_of_their_own(house: House) -> None:
    begin(house)
    talk, message = house.ask("user")
    numbers = [
        house.call(
            "user",
            "POST",
            f"conversations/{talk}/messages",
            {"parent": message, "role": "assistant", "content": "x", "model": f"ours@{number}"},
        )["id"]
        for number in (1, 2)
    ]
    body = {"left": numbers[0], "right": numbers[1], "verdict": "right"}
    assert "trial" not in house.call("user", "POST", "comparisons", body)
    assert votes_on(house.store, "ours@2", "ours@1").people == 0


def test_a_vote_does_not_promote_over_a_version_that_it_was_not_held_against(
    house: House,
) -> None:
    put_version("ours", 3, parrot())
    versions.promote("ours", 3, "me")
    with pytest.raises(Exception, match="ours@3 was promoted meanwhile"):
        versions.promote("ours", 2, "votes", instead_of=1)
    assert versions.promoted("ours").number == 3


def test_votes_promote_nothing_after_an_admin_ends_the_trial(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = versions.set_trial("ours", 2, 1.0, QUICK).trial
    assert trial is not None
    for name in ("user", "other"):
        person = house.store.person(f"voter {name}").id
        for _ in range(5):
            talk = house.store.begin(person).id
            asked = house.store.add_message(person, talk, None, "user", "hello").id
            left, right = (
                house.store.add_message(person, talk, asked, "assistant", word, model=word).id
                for word in ("ours@2", "ours@1")
            )
            house.store.compare(person, left, right, "left")
    verify = versions.verify

    def slow(found: versions.Version) -> None:
        versions.end_trial("ours")
        verify(found)

    monkeypatch.setattr(versions, "verify", slow)
    _decide(house.store, "ours", trial)
    assert versions.lineage_of("ours").promoted == 1


def test_feedback_stands_with_its_conversation(house: House) -> None:
    begin(house, test=SequentialTest())
    talk, message = house.ask("user", "which drink?")
    answer = house.events("user", talk, message)[-1]["message"]["id"]
    rating = {"value": -1, "reasons": ["dull"], "comment": "no"}
    house.call("user", "PUT", f"messages/{answer}/rating", rating)
    house.call("user", "PUT", f"messages/{answer}/better", {"content": "Tea!"})
    house.vote("other", "ours@2", "which weather?")
    Queue(house.store).add("ranking", "rank", ["a", "b"], models=["ours@2", "other"])
    held = house.call("labeler", "POST", "label/next?kind=ranking")["task"]
    house.call("labeler", "PUT", f"label/assignments/{held['id']}", {"ranks": [1, 2]})
    found = house.call("admin", "GET", "versions/ours/feedback")
    assert found["next"] is None
    kinds = [(each["kind"], each["person"]) for each in found["rows"]]
    assert kinds == [
        ("ranking", "labeler"),
        ("comparison", "other"),
        ("better_answer", "user"),
        ("thumb", "user"),
    ]
    thumb, compared = found["rows"][3], found["rows"][1]
    assert thumb["messages"] == [{"role": "user", "content": "which drink?"}]
    assert (thumb["response"], thumb["verdict"]) == (SENTENCE, "down")
    assert (thumb["version"], thumb["comment"]) == ("ours@1", "no")
    assert compared["messages"] == [{"role": "user", "content": "which weather?"}]
    assert {compared["version"], compared["other"]["version"]} == {"ours@1", "ours@2"}


def test_feedback_comes_in_pages(house: House) -> None:
    for number in range(45):
        talk, message = house.ask("user", f"question {number}")
        said = {"parent": message, "role": "assistant", "content": "x", "model": "ours"}
        answer = house.call("user", "POST", f"conversations/{talk}/messages", said)["id"]
        house.call("user", "PUT", f"messages/{answer}/rating", {"value": 1})
    rows: list[dict[str, Any]] = []
    after, pages = "", 0
    while after is not None:
        query = f"?before={after}" if after else ""
        found = house.call("admin", "GET", f"versions/ours/feedback{query}")
        rows, after, pages = [*rows, *found["rows"]], found["next"], pages + 1
    said = [each["messages"][0]["content"] for each in rows]
    assert said == [f"question {number}" for number in reversed(range(45))]
    assert pages == 3
    refused = house.response("admin", "GET", "versions/ours/feedback?before=x")
    assert refused.status_code == 400
