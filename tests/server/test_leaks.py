"""Whatever comes from whomever: no 500, no hang, and nothing of one user's in another's hands.

Ann has secrets in everything that can be hers. Others ask every route that the server has, by ids
that are hers, theirs or nobody's, with bodies that are right, half right and nonsense. Meanwhile
she goes on talking. LMSMITH_HOSTILE=2000 makes it long.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from worlds import RANDOM, Running, running

from lmsmith.feedback.people import People
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import KINDS
from lmsmith.server.auth import COOKIE
from lmsmith.server.pages import is_open
from lmsmith.server.requests import Limits

EXAMPLES = int(os.environ.get("LMSMITH_HOSTILE", "60"))
SECRET = "xylophon"
HIDDEN = "quasarmodel"
"""A model's name, which admins see in the statistics, and labelers nowhere."""

ROLES = {"Ann": "labeler", "Bob": "user", "Lee": "labeler", "Ada": "admin"}
LIMITS = Limits(streams=8, queue=64, seconds=30, drain_seconds=5, tokens=6, samples=4)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
NO_HTTP = b"Invalid HTTP request received."
"""The answer to what is not even read as a request."""

EXPECTED = {200, 400, 401, 403, 404, 405, 413, 415, 421}


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes


def exchange(
    port: int, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes = b""
) -> Answered:
    """A request as it is written here, whatever a client would make of it."""
    lines = [f"{method} {target} HTTP/1.1", "Connection: close", f"Content-Length: {len(body)}"]
    if all(name.lower() != "host" for name, _ in headers):
        lines.append("Host: 127.0.0.1")
    lines += [f"{name}: {value}" for name, value in headers]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, found, response.read())


@dataclass
class Ids:
    """What somebody has: names in paths, numbers in paths and bodies."""

    names: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


@dataclass
class House:
    """A server, its people, and what is Ann's."""

    served: Running
    store: Store
    tokens: dict[str, str]
    ids: dict[str, Ids]
    routes: list[tuple[str, str]]
    cookie: str = ""
    planted: object = None
    hidden: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.served.address.rpartition(":")[2])

    def ask(
        self, name: str, method: str, target: str, body: bytes = b"", kind: str = "application/json"
    ) -> Answered:
        headers = [("Content-Type", kind)] if kind else []
        if name == "Bob's browser":
            headers.append(("Cookie", f"{COOKIE}={self.cookie}"))
        elif name:
            headers.append(("Authorization", f"Bearer {self.tokens.get(name, name)}"))
        return exchange(self.port, method, target, headers, body)

    def call(self, name: str, method: str, target: str, body: Any = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        answered = self.ask(name, method, f"/api/{target}", content)
        assert answered.status == 200, answered
        return json.loads(answered.body)

    def sign_in(self) -> None:
        body = json.dumps({"token": self.tokens["Bob"]}).encode()
        answered = self.ask("", "POST", "/api/session", body)
        self.cookie = answered.headers["set-cookie"].partition("=")[2].partition(";")[0]

    def of_ann(self) -> object:
        """All that is hers and may not change."""
        ann, (talk, *_) = self.store.person("Ann").id, self.ids["Ann"].names
        tree = [(m.id, m.role, m.content, m.settings) for m in self.store.tree(ann, talk)]
        queue = Queue(self.store)
        done = [(held.id, held.answer) for held, _ in queue.done(ann)]
        draft = queue.assigned(ann, self.ids["Ann"].numbers[-1])[0]
        titles = {c.id: c.title for c in self.store.conversations(ann) if c.id == talk}
        return tree, self.store.judgements(ann, talk), done, draft.answer, draft.state, titles


def routes_of(served: Running) -> list[tuple[str, str]]:
    """(method, path) of all that the server answers, whatever is added to it later."""

    def within(routes: Sequence[Any]) -> Iterator[Any]:
        for route in routes:
            router = getattr(route, "original_router", None)  # of FastAPI's included routers
            yield from [route] if router is None else within(router.routes)

    app = served.server.config.app._app._app  # within what guards it
    found = {(method, each.path) for each in within(app.routes) for method in each.methods}
    assert ("PUT", "/api/label/assignments/{number}") in found
    return sorted(pair for pair in found if pair[0] != "HEAD")


def plant(house: House) -> None:
    """Secrets in all that can be Ann's, and something of Bob's and Lee's."""
    talk = house.call("Ann", "POST", "conversations", {"title": f"{SECRET} title"})["id"]
    ids = house.ids["Ann"] = Ids([talk])

    def say(parent: int | None, role: str, word: str) -> int:
        body = {"parent": parent, "role": role, "content": f"{SECRET} {word}"}
        body["settings"] = {"note": f"{SECRET} setting"}
        number: int = house.call("Ann", "POST", f"conversations/{talk}/messages", body)["id"]
        ids.numbers.append(number)
        return number

    asked = say(say(None, "system", "system prompt"), "user", "question")
    left, right = say(asked, "assistant", "left"), say(asked, "assistant", "right")
    thumbs = {"value": -1, "reasons": [f"{SECRET} reason"], "comment": f"{SECRET} comment"}
    house.call("Ann", "PUT", f"messages/{left}/rating", thumbs)
    house.call("Ann", "PUT", f"messages/{left}/better", {"content": f"{SECRET} better"})
    verdict = {"left": left, "right": right, "verdict": "left"}
    house.call("Ann", "POST", "comparisons", verdict)
    for kind, answer in (
        ("demonstration", {"content": f"{SECRET} demonstration"}),
        ("rating", {"score": 3, "flags": ["hallucination"], "comment": f"{SECRET} rated"}),
        ("ranking", {"ranks": [1, 0, 0, 2], "comment": f"{SECRET} draft"}),
    ):
        task = house.call("Ann", "POST", f"label/next?kind={kind}")["task"]["id"]
        part = "/draft" if kind == "ranking" else ""
        house.call("Ann", "PUT", f"label/assignments/{task}{part}", answer)
        ids.numbers.append(task)
    for name in ("Bob", "Lee"):
        own = house.call(name, "POST", "conversations", {})["id"]
        said = {"role": "user", "content": "tea?"}
        number = house.call(name, "POST", f"conversations/{own}/messages", said)["id"]
        house.ids[name] = Ids([own], [number])
    house.ids["Lee"].numbers.append(house.call("Lee", "POST", "label/next")["task"]["id"])


def fill(queue: Queue) -> None:
    gold = {"score": 2, "comment": f"{SECRET} gold"}
    for number in range(12):
        queue.add("demonstration", f"write {number}", overlap=3)
        queue.add("rating", f"rate {number}", ["a"], models=[HIDDEN], overlap=3)
        texts, models = ["a", "b", "c", "d"], [HIDDEN] * 4
        queue.add("ranking", f"rank {number}", texts, models=models, overlap=3)
    queue.add("rating", "gold", ["a"], models=[HIDDEN], gold=gold)


class AnnTalks:
    """She goes on, with secrets in her prompts, while others ask."""

    def __init__(self, house: House) -> None:
        self._house, self._over = house, threading.Event()
        self.said, self.failed = 0, list[str]()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def _talk(self) -> None:
        while not self._over.wait(0.05):
            body = {"prompt": f"{SECRET} {self.said}", "echo": True, "max_tokens": 2, "logprobs": 1}
            content = json.dumps(body).encode()
            answered = self._house.ask("Ann", "POST", "/v1/completions", content)
            if answered.status != 200 or SECRET.encode() not in answered.body:
                self.failed.append(f"{answered.status} {answered.body!r}")
            self.said += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def at_once(served: Running) -> None:
    """Let many wrong tokens come without a delay."""

    async def sleep(_: float) -> None:
        return

    served.server.config.loaded_app._authenticator._wrong._sleep = sleep


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    where: str | Path = tmp_path_factory.mktemp("store") / "feedback.db"
    if request.param == "postgresql":
        where = request.getfixturevalue("postgres").new_database()
    store = Store(where)
    people = People(store)
    tokens = {name: people.add(name, role) for name, role in ROLES.items()}
    fill(Queue(store))
    with running({"random": RANDOM}, limits=LIMITS, store=store) as served:
        at_once(served)
        made = House(served, store, tokens, {}, routes_of(served))
        plant(made)
        made.sign_in()
        made.planted = made.of_ann()
        made.hidden = [SECRET.encode(), tokens["Ann"].partition(".")[2].encode()]
        made.hidden += [each.token_hash.encode() for each in people.all() if each.token_hash]
        yield made
    store.close()


@pytest.fixture
def ann_talks(house: House) -> Iterator[None]:
    talking = AnnTalks(house)
    yield
    talking.stop()
    assert talking.failed == []
    assert talking.said > 0


def secrets_of(house: House, name: str) -> list[bytes]:
    """What may not stand in an answer to somebody."""
    return house.hidden if name == "Ada" else [*house.hidden, HIDDEN.encode()]


def check(house: House, name: str, target: str, answered: Answered) -> None:
    """As any answer must be."""
    if answered.body == NO_HTTP:
        assert answered.status == 400
        return
    path = target.partition("?")[0]
    page = is_open(path) and not path.startswith("/api/")
    expected = EXPECTED | ({503, 304} if page else set())  # the page may not be built
    assert answered.status in expected, answered
    for secret in secrets_of(house, name):
        assert secret not in answered.body, (name, target, answered)
        assert secret not in repr(answered.headers).encode()
    assert b"internal_error" not in answered.body
    if answered.status >= 400 and answered.body and "json" in answered.headers["content-type"]:
        assert set(json.loads(answered.body)["error"]) == {"message", "type", "param", "code"}
    assert answered.headers["x-content-type-options"] == "nosniff"


def wait_until(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


# Whoever guesses right


def right(numbers: Sequence[int]) -> dict[str, Any]:
    """A body that every route takes, but for whose the numbers are."""
    return {
        "title": "mine", "role": "user", "content": "mine", "parent": numbers[0], "value": 1,
        "comment": "mine", "left": numbers[0], "right": numbers[1], "verdict": "tie",
        "reason": "mine", "messages": [{"role": "user", "content": "x"}],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Bob", "Lee", "Ada", "Bob's browser", "", "wrong"])
def test_no_route_gives_or_changes_what_is_anothers(house: House, name: str) -> None:
    """Every route with an id in it, asked by each of Ann's ids, with bodies that are right."""
    ids, asked = house.ids["Ann"], 0
    # Messages and assignments have numbers of their own: one of hers may be one of theirs as well.
    mine = house.ids.get(name.split("'")[0], Ids()).numbers
    for method, path in house.routes:
        if not path.startswith("/api/") or not re.search(r"\{(name|number)\}", path):
            continue
        numbers = [n for n in ids.numbers if n not in mine]
        for each in ids.names if "{name}" in path else numbers:
            target = re.sub(r"\{\w+\}", str(each), path)
            whole = [{"score": 1}, {"ranks": [1, 2, 3, 4]}] if "assignments" in path else []
            for more in ({}, *whole):
                content = json.dumps({**right(ids.numbers[-6:]), **more}).encode()
                answered = house.ask(name, method, target, content)
                check(house, name, target, answered)
                assert answered.status in ({401} if name in ("", "wrong") else {403, 404}), target
                asked += 1
    assert asked > 50
    for target, body in [
        (f"conversations/{own}/messages", {"role": "assistant", "content": "x", "parent": number})
        for own in house.ids["Bob"].names
        for number in ids.numbers[:4]
    ] + [("comparisons", {"left": ids.numbers[2], "right": ids.numbers[3], "verdict": "tie"})]:
        answered = house.ask(name, "POST", f"/api/{target}", json.dumps(body).encode())
        check(house, name, target, answered)
        assert answered.status in ({401} if name in ("", "wrong") else {404})
    for word in (SECRET, SECRET[:4], "%", "_", ""):
        answered = house.ask(name, "GET", f"/api/conversations?search={word}")
        assert ids.names[0].encode() not in answered.body
    assert house.of_ann() == house.planted


def test_nobody_stops_or_reads_anothers_answer(house: House) -> None:
    class Pending:
        person = house.store.person("Ann").id
        generation = None  # an end of it would fail

    app = house.served.server.config.app._app._app
    app.state.answers._all["answer-1"] = (Pending(), None)
    try:
        for name in ("Bob", "Lee", "Ada", ""):
            for method, path in (("POST", "answer-1/stop"), ("GET", "answer-1")):
                answered = house.ask(name, method, f"/api/answers/{path}")
                assert answered.status == (404 if name else 401)
    finally:
        del app.state.answers._all["answer-1"]


@pytest.mark.parametrize(
    "body",
    [
        '{"role": "user", "content": "x", "settings": {"a": NaN, "b": -Infinity}}',
        '{"role": "user", "content": "x", "settings": {"a": 1e999}}',
        '{"role": "user", "content": "x", "settings": {"a": {}}}',
        '{"role": "user", "content": "x", "settings": {"a": "' + "a" * 400 + '"}}',
        '{"role": "user", "content": "x", "parent": ' + "9" * 5000 + "}",
        '{"role": "user", "content": ' + "[" * 60_000,
    ],
)
def test_what_no_database_keeps_is_refused(house: House, body: str) -> None:
    """In a talk of one's own, where all else is right."""
    target = f"/api/conversations/{house.ids['Bob'].names[0]}/messages"
    answered = house.ask("Bob", "POST", target, body.encode())
    assert answered.status == 400, answered
    check(house, "Bob", target, answered)


# Whoever guesses

_odd_texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "", "\ud800", "\x00", "é你🙂", "<|im_start|>", "<|end|>", "%", "' or 1=1 --", "a" * 3000,
        "NaN", "\u202e", "{{7*7}}", "../../etc/passwd",
    ]),
)  # fmt: skip
_odd_numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, 1, 2, -1, 2**31, 2**31 - 1, 2**53, 2**63, 10**400, 1e308]),
)
_odd = st.recursive(
    st.none() | st.booleans() | _odd_numbers | _odd_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_odd_texts, inner, max_size=3),
    max_leaves=6,
)
_words = st.sampled_from([
    "/", "/label", "/c/x", "/assets/x", "/api", "/api/", "/api/label", "//api/conversations",
    "/api/../api/conversations", "/api/conversations/%2e%2e", "/v1/models/%00", "/%ff%fe", "*",
    "/api/conversations?search=%00", "/api/conversations?search=%ff", "/v1/tasks/x",
    "/api/label/guidelines/%F0%9F%99%82", "/a?" + "b" * 9000,
    "/api/label/next?kind=ranking&kind=rating",
])  # fmt: skip
_names = st.sampled_from(["Bob", "Lee", "Ada", "Bob's browser", "", "wrong", "é.ü", "a" * 5000])
_kinds = st.sampled_from(
    ["application/json"] * 6
    + ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
    + ["application/json; charset=utf-16", "application/xml", "\xff/\xfe"]
)
_raw = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([
        b"", b"null", b"[]", b"3", b'"x"', b"{", b"[" * 60_000, b'{"a":' * 30_000, b"\xff\xfe{}",
        b'{"content": NaN}', b'{"score": 1e999, "ranks": [1e999]}', b"0" * 5000, b"9" * 9000,
        b'{"parent": ' + b"9" * 5000 + b"}", b"--x\r\nContent-Disposition: form-data\r\n\r\n",
        b'{"settings": {"a": NaN, "b": Infinity}, "role": "user", "content": "x"}',
    ]),
)  # fmt: skip


def _fields(numbers: list[int]) -> dict[str, st.SearchStrategy[Any]]:
    """What a field may hold that is right, whoever's number it is."""
    number = st.sampled_from(numbers)
    text = st.sampled_from(["tea", "é你🙂", "\x00", "<|im_end|>"])
    ranks = st.permutations([1, 2, 2, 4]) | st.lists(st.integers(-1, 10), max_size=10)
    said = {"role": st.sampled_from(["system", "user", "assistant"]), "content": text}
    return {
        "title": text, "content": text, "comment": text, "reason": text, "prompt": text,
        "parent": number | st.none(), "left": number, "right": number, "seed": st.integers(0, 9),
        "role": said["role"], "model": st.sampled_from(["random", HIDDEN[:3]]), "value": st.just(1),
        "settings": st.dictionaries(text, text | st.integers() | st.floats(), max_size=2),
        "finish": st.sampled_from(["stop", ""]), "reasons": st.lists(text, max_size=2),
        "verdict": st.sampled_from(["left", "right", "tie", "both_bad"]),
        "temperature": st.floats(0, 2), "max_tokens": st.integers(0, 5), "stream": st.booleans(),
        "score": st.integers(0, 8), "flags": st.lists(st.just("hallucination"), max_size=2),
        "ranks": ranks, "note": st.dictionaries(text, text, max_size=2), "echo": st.booleans(),
        "messages": st.lists(st.fixed_dictionaries(said), max_size=3), "n": st.integers(1, 3),
        "layer": st.integers(0, 2), "head": st.integers(0, 4), "tokens": st.lists(number),
        "token": text, "input": text, "inputs": st.lists(text, max_size=3),
    }  # fmt: skip


def _target(draw: st.DrawFn, house: House, path: str) -> str:
    names = [name for ids in house.ids.values() for name in ids.names]
    numbers = [number for ids in house.ids.values() for number in ids.numbers]
    odd = ["0", "-1", "9" * 30, "1e3", "%00", "%F0%9F%99%82", "x" * 2000, "..%2f..", "", "true"]
    pools: dict[str, list[Any]] = {"{number}": numbers, "{kind}": list(KINDS)}

    def chosen(found: re.Match[str]) -> str:
        pool = pools.get(found[0], names)
        return str(draw(st.sampled_from(odd if draw(st.integers(0, 4)) == 0 else pool)))

    target = re.sub(r"\{\w+(?=(:path)?\})(:path)?\}", chosen, path)
    query = ["", "", "?search=e", "?kind=rating", "?kind=x", "?model=random", "?search=%00%ff"]
    return target + draw(st.sampled_from(query))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_hostile_requests(house: House, ann_talks: None, data: st.DataObject) -> None:
    name = data.draw(_names)
    method, path = data.draw(st.sampled_from(house.routes))
    if data.draw(st.integers(0, 9)) == 0:
        method = data.draw(st.sampled_from([*METHODS, "HEAD", "OPTIONS", "TRACE", "X", "PROPFIND"]))
    target = _target(data.draw, house, path)
    if data.draw(st.integers(0, 9)) == 0:
        target = data.draw(_words)
    if data.draw(st.integers(0, 5)) == 0:
        body = data.draw(_raw)
    else:
        fields = _fields([number for ids in house.ids.values() for number in ids.numbers])
        found = data.draw(st.fixed_dictionaries({}, optional=fields))
        for field_name in data.draw(st.lists(st.sampled_from(list(fields)), max_size=2)):
            found[field_name] = data.draw(_odd)
        body = json.dumps(found).encode("utf-8", errors="surrogatepass")
    answered = house.ask(name, method, target, body, data.draw(_kinds))
    event(f"status {answered.status}")
    check(house, name, target, answered)
    assert house.of_ann() == house.planted
    if name == "Bob's browser" and answered.status == 401:  # has signed out
        house.sign_in()


def test_nobody_is_sent_elsewhere(house: House) -> None:
    for target in ("/api/conversations/", "/health/", "/api/label/progress/", "/v1/models/"):
        answered = house.ask("Lee", "GET", target)
        assert answered.status == 404, target
        check(house, "Lee", target, answered)


def test_it_still_answers(house: House) -> None:
    assert house.ask("", "GET", "/api/session").status == 200
    assert house.call("Bob", "GET", "conversations")
    wait_until(lambda: not house.served.engine.generations)
    assert house.served.engine.thread.is_alive
