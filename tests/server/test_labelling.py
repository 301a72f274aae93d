"""/api/label and named users: each does their own work, and nobody sees what is another's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import HTTP, RANDOM, Running, running

from lmsmith.feedback.people import People
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import KINDS

NAMES = {"Ada": "admin", "Lee": "labeler", "Li": "labeler", "Uma": "user", "Ugo": "user"}
TEXTS = ["good", "bad", "fair", "well"]


@dataclass
class House:
    """A server that knows people by name."""

    served: Running
    store: Store
    tokens: dict[str, str]

    def call(self, name: str, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        headers = {"authorization": f"Bearer {self.tokens[name]}"} if name else {}
        address = f"{self.served.address}/api/{path}"
        response = HTTP.request(method, address, json=body, headers=headers)
        assert response.status_code == status, response.text
        found = response.json()
        if status != 200:
            assert set(found["error"]) == {"message", "type", "param", "code"}
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    store = Store(tmp_path_factory.mktemp("store") / "feedback.db")
    people = People(store)
    tokens = {name: people.add(name, role) for name, role in NAMES.items()}
    queue = Queue(store)
    models = ["secret-model-a", "secret-model-b"] * 2
    queue.add("ranking", "is tea good?", TEXTS, models=models, overlap=2)
    queue.add("rating", "and rain?", ["wet"], models=["secret-model-a"])
    queue.add("demonstration", "and you?")
    with running({"random": RANDOM}, store=store) as served:
        yield House(served, store, tokens)
    store.close()


def test_labelers_rank_rate_and_write(house: House) -> None:
    guideline = {"kind": "ranking", "content": "Truth before charm. 真"}
    house.call("Lee", "PUT", "label/guidelines/ranking", guideline, 403)
    house.call("Ada", "PUT", "label/guidelines/ranking", guideline)
    assert house.call("Lee", "GET", "label/guidelines/ranking") == guideline
    for name in ("Lee", "Li"):
        found = house.call(name, "POST", "label/next?kind=ranking")
        task, progress = found["task"], found["progress"]
        assert "secret-model" not in json.dumps(found)
        assert sorted(task["responses"]) == sorted(TEXTS)
        assert progress["ranking"] == {"done": 0, "skipped": 0, "open": 1, "left": 0}
        path = f"label/assignments/{task['id']}"
        half = {"ranks": [0, 1, 0, 2], "comment": "é你🙂"}
        house.call(name, "PUT", f"{path}/draft", half)
        assert house.call(name, "POST", "label/next")["task"]["answer"] == half
        other = {"Lee": "Li", "Li": "Lee"}[name]
        for method, part, body in [
            ("GET", "", None), ("PUT", "", {"ranks": [1, 2, 3, 4]}), ("PUT", "/draft", {}),
            ("POST", "/skip", {"reason": "x"}),
        ]:  # fmt: skip
            house.call(other, method, path + part, body, 404)
        house.call(name, "PUT", path, {"ranks": [1, 1, 2]}, 400)
        house.call(name, "PUT", path, {"ranks": [2, 2, 4, 4]})
        done = house.call(name, "GET", path)
        assert (done["state"], done["answer"]["ranks"]) == ("done", [1, 1, 2, 2])
        listed = house.call(name, "GET", "label/assignments")["assignments"]
        assert [each["id"] for each in listed] == [task["id"]]
    rating = house.call("Lee", "POST", "label/next?kind=rating")["task"]["id"]
    house.call("Lee", "PUT", f"label/assignments/{rating}", {"score": 8}, 400)
    said = {"score": 6, "flags": ["hallucination"]}
    house.call("Lee", "PUT", f"label/assignments/{rating}", said)
    writing = house.call("Lee", "POST", "label/next")["task"]["id"]
    house.call("Lee", "POST", f"label/assignments/{writing}/skip", {"reason": ""}, 400)
    house.call("Lee", "POST", f"label/assignments/{writing}/skip", {"reason": "not mine"})
    assert house.call("Lee", "POST", "label/next")["task"] is None
    assert house.call("Li", "POST", "label/next")["task"]["kind"] == "demonstration"
    house.call("Li", "GET", "label/statistics", status=403)
    found = house.call("Ada", "GET", "label/statistics")
    assert [each["name"] for each in found["labelers"]] == ["Lee", "Li"]
    assert found["agreement"]["ranking"]["tasks"] == 1
    ranked = {each["model"] for each in found["leaderboard"]}
    assert ranked == {"secret-model-a", "secret-model-b"}
    assert found["ratings"][0]["scores"] == [0, 0, 0, 0, 0, 1, 0]


def test_nobody_learns_from_the_cache_what_others_have_asked(house: House) -> None:
    """Their own second turn is read from where it is new, others' words from the beginning."""
    said = [{"role": "user", "content": "tea and rain, said the cat, what do you like? " * 4}]

    def cached(name: str, messages: list[dict[str, str]]) -> tuple[int, int, str]:
        response = HTTP.post(
            f"{house.served.address}/v1/chat/completions",
            json={"messages": messages, "max_tokens": 5, "seed": 1},
            headers={"authorization": f"Bearer {house.tokens[name]}"},
        )
        found = response.json()
        usage = found["usage"]
        count = usage["prompt_tokens_details"]["cached_tokens"]
        return count, usage["total_tokens"], found["choices"][0]["message"]["content"]

    first, read, answer = cached("Uma", said)
    assert first == 0
    assert cached("Ugo", said)[0] == 0
    more = [
        {"role": "assistant", "content": answer}, {"role": "user", "content": "why? " * 20},
    ]  # fmt: skip
    assert cached("Uma", [*said, *more])[0] >= read - 10
    assert cached("Lee", [*said, *more])[0] == 0
    # Answers in conversations go the same way.
    counts = []
    for name in ("Uma", "Ugo", "Uma"):
        talk = house.call(name, "POST", "conversations", {})["id"]
        asked = {"role": "user", "content": "the cat said: I like rain and tea. " * 5}
        number = house.call(name, "POST", f"conversations/{talk}/messages", asked)["id"]
        before = house.served.engine.metrics.text()
        HTTP.post(
            f"{house.served.address}/api/conversations/{talk}/answers",
            json={"parent": number, "max_tokens": 2},
            headers={"authorization": f"Bearer {house.tokens[name]}"},
        )
        counts.append(_cached(house.served.engine.metrics.text()) - _cached(before))
        house.call(name, "DELETE", f"conversations/{talk}")
    assert counts[:2] == [0, 0]
    assert counts[2] > 16


def _cached(text: bytes) -> float:
    """The counter of tokens that were not read again."""
    (line,) = [
        line for line in text.decode().splitlines()
        if "cached" in line and "total" in line and not line.startswith("#")
    ]  # fmt: skip
    return float(line.split()[-1])


def test_users_do_not_label(house: House) -> None:
    for method, path, body in [
        ("POST", "label/next", None), ("GET", "label/progress", None),
        ("GET", "label/assignments", None), ("GET", "label/assignments/1", None),
        ("PUT", "label/assignments/1", {"score": 1}), ("GET", "label/guidelines/rating", None),
        ("GET", "label/statistics", None),
    ]:  # fmt: skip
        house.call("Uma", method, path, body, 403)


def test_how_much_everybody_asks_is_for_admins(house: House) -> None:
    for name, status in [("Ada", 200), ("Lee", 403), ("Uma", 403)]:
        headers = {"authorization": f"Bearer {house.tokens[name]}"}
        response = HTTP.get(f"{house.served.address}/metrics", headers=headers)
        assert response.status_code == status
        assert ("lmsmith" in response.text) == (status == 200)


def test_nobody_sees_anothers_conversations(house: House) -> None:
    talk = house.call("Uma", "POST", "conversations", {"title": "mine"})["id"]
    said = {"role": "user", "content": "a secret"}
    number = house.call("Uma", "POST", f"conversations/{talk}/messages", said)["id"]
    answer = {"role": "assistant", "content": "hush", "parent": number}
    answer_number = house.call("Uma", "POST", f"conversations/{talk}/messages", answer)["id"]
    for other in ("Ugo", "Lee", "Ada"):
        assert house.call(other, "GET", "conversations")["conversations"] == []
        assert house.call(other, "GET", "conversations?search=secret")["conversations"] == []
        for method, path, body in [
            ("GET", f"conversations/{talk}", None), ("DELETE", f"conversations/{talk}", None),
            ("PATCH", f"conversations/{talk}", {"title": "x"}),
            ("POST", f"conversations/{talk}/messages", said),
            ("PUT", f"messages/{answer_number}/rating", {"value": 1}),
            ("PUT", f"messages/{answer_number}/better", {"content": "x"}),
        ]:  # fmt: skip
            house.call(other, method, path, body, 404)
    assert len(house.call("Uma", "GET", "conversations")["conversations"]) == 1


def test_whoever_has_no_token_or_no_longer_has_is_not_let_in(house: House) -> None:
    house.call("", "GET", "conversations", status=401)
    people = People(house.store)
    house.tokens["Eve"] = people.add("Eve", "user")
    house.call("Eve", "GET", "conversations")
    with httpx.Client(base_url=house.served.address, trust_env=False) as browser:
        answer = browser.post("/api/session", json={"token": house.tokens["Eve"]})
        assert answer.json() == {
            "signed_in": True, "needs_token": True, "name": "Eve", "role": "user",
        }  # fmt: skip
        assert "httponly" in answer.headers["set-cookie"].lower()
        cookie = dict(browser.cookies)
        assert browser.get("/api/conversations").status_code == 200
        browser.delete("/api/session")
        browser.cookies.update(cookie)  # kept by whoever copied it
        assert browser.get("/api/conversations").status_code == 401
        browser.cookies.clear()  # else it goes beside the next one, as no browser sends it
        browser.post("/api/session", json={"token": house.tokens["Eve"]})
        token = people.renew("Eve")
        assert browser.get("/api/conversations").status_code == 401
        house.call("Eve", "GET", "conversations", status=401)
        browser.post("/api/session", json={"token": token})
        assert browser.get("/api/conversations").status_code == 200
        people.remove("Eve")
        assert browser.get("/api/conversations").status_code == 401
    for token in ("x", ".", "x.y", house.tokens["Uma"][:-1], house.tokens["Uma"] + "a", "é.ü"):
        headers = {"authorization": f"Bearer {token}".encode()}
        answer = HTTP.get(f"{house.served.address}/v1/models", headers=headers)
        assert answer.status_code == 401


def test_the_first_user_closes_a_server_that_was_open(tmp_path: Any) -> None:
    store = Store(tmp_path / "feedback.db")
    with running({"random": RANDOM}, store=store) as served:
        authenticator = served.server.config.app._authenticator
        authenticator._clock = lambda: now
        now = 0.0
        assert httpx.get(f"{served.address}/v1/models", trust_env=False).status_code == 200
        People(store).add("Ann", "user")
        now = 2.0
        assert httpx.get(f"{served.address}/v1/models", trust_env=False).status_code == 401
    store.close()


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_bodies = st.dictionaries(
    st.sampled_from(["content", "score", "flags", "ranks", "comment", "reason"]), _values
)
_paths = st.sampled_from(
    [("POST", "next"), ("POST", "next?kind=x"), ("GET", "assignments/0"), ("PUT", "assignments/1")]
    + [("PUT", "assignments/1/draft"), ("POST", "assignments/1/skip"), ("GET", "guidelines/x")]
    + [("PUT", f"guidelines/{kind}") for kind in KINDS]
    + [("PUT", "assignments/99999999999"), ("PUT", "assignments/x/draft")]
)


@settings(max_examples=int(os.environ.get("LMSMITH_HOSTILE", "60")), deadline=None)
@given(st.sampled_from([*NAMES, ""]), _paths, _bodies)
def test_hostile_labelers(house: House, name: str, path: tuple[str, str], body: Any) -> None:
    headers = {"content-type": "application/json"}
    if name:
        headers["authorization"] = f"Bearer {house.tokens[name]}"
    answer = HTTP.request(
        path[0],
        f"{house.served.address}/api/label/{path[1]}",
        content=json.dumps(body).encode("utf-8", errors="surrogatepass"),
        headers=headers,
    )
    assert answer.status_code in (200, 400, 401, 403, 404), answer.text
    assert (answer.status_code == 401) == (not name)
    assert "secret-model" not in answer.text


def test_an_empty_queue_names_the_command_that_fills_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "my data.db")
    tokens = {name: People(store).add(name, NAMES[name]) for name in ("Ada", "Lee")}
    with running({"random": RANDOM}, store=store) as served:
        house = House(served, store, tokens)
        command = house.call("Ada", "POST", "label/next")["fill"]
        assert command == (
            "lmsmith feedback sample tiny --prompts prompts.jsonl --answers 4 "
            f"--database '{tmp_path / 'my data.db'}'"
        )
        assert "fill" not in house.call("Lee", "POST", "label/next")
        Queue(store).add("demonstration", "and you?")
        assert "fill" not in house.call("Ada", "POST", "label/next")
    store.close()
