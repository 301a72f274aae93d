"""What one request may ask for, and what everybody is told when the engine or the disk fails."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError
from worlds import HTTP, LIMITS, RANDOM, Running, running

from lmsmith.core.errors import UserError
from lmsmith.feedback import tables
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store, open_store
from lmsmith.server.guard import MAX_GROUPS
from lmsmith.server.turns import LONGEST_REST, REST, SHORT_TEXT, TextThreads

LONG = "tea " * 500_000
TALK = [{"role": "user", "content": "tea?"}]
MANY = [{"role": "user" if n % 2 else "assistant", "content": "x"} for n in range(70_001)]


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with running({"random": RANDOM}) as served:
        yield served


def post(served: Running, path: str, body: Any, token: str = "") -> httpx.Response:
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(f"{served.address}{path}", content=content, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": LONG}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/v1/completions", {"prompt": LONG}, "prompt"),
        ("/v1/completions", {"prompt": ["tea", LONG]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/api/attention", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/v1/completions", {"prompt": "a", "stop": ["x" * 1001]}, "stop"),
        ("/v1/chat/completions", {"messages": TALK, "stop": "x" * 900_000}, "stop"),
        ("/v1/completions", {"prompt": "a", "stop": [""] * 100_000}, "stop"),
        ("/v1/chat/completions", {"messages": MANY}, "messages"),
        ("/tokenize", {"messages": MANY}, "messages"),
        ("/api/attention", {"messages": MANY}, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 70_000}]},
            "messages[0].content",
        ),
        (
            "/v1/completions",
            {"prompt": "a", "logit_bias": {str(n): 1 for n in range(50_000)}},
            "logit_bias",
        ),
        (
            "/v1/completions",
            {"prompt": ["a"] * 256, "n": 8, "max_tokens": 400, "logprobs": 20},
            "logprobs",
        ),
        ("/v1/completions", {"prompt": ["a"] * 3000}, "prompt"),
        ("/v1/completions", {"prompt": [[1]] * 100_000}, "prompt"),
        ("/detokenize", {"tokens": [None] * 300_000}, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 70_000}, "tokens"),
        ("/v1/tasks/none", {"inputs": ["a"] * 100_000}, "inputs"),
    ],
)
def test_what_is_too_much_is_refused(
    plain: Running, path: str, body: dict[str, Any], param: str
) -> None:
    found = post(plain, path, body)
    assert found.status_code == 400, found.text[:500]
    assert found.json()["error"]["param"] == param
    assert len(found.content) < 2000


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/completions", "prompt"), ("/detokenize", "tokens"), ("/v1/chat/completions", "tools")],
)
@pytest.mark.parametrize("value", [b"1", b"{}", b"[]", b'""'])
def test_bodies_of_many_values_are_refused(
    plain: Running, path: str, field: str, value: bytes
) -> None:
    body = b'{"%b": [%b]}' % (field.encode(), b",".join([value] * 700_000))
    found = post(plain, path, body)
    assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("depth", [100, 900, 5_000, 100_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/imports"])
def test_deep_bodies_are_no_crash(plain: Running, path: str, depth: int) -> None:
    for opened, closed in (("[", "]"), ('{"type":', "}")):
        inner = f"{opened * depth}1{closed * depth}"
        for body in (
            f'{{"messages": [{{"role": "user", "content": [{{"type": {inner}}}]}}]}}',
            f'{{"messages": [{{"role": "user", "content": {inner}}}], "prompt": {inner}}}',
            f'{{"prompt": "a", "stop": {inner}, "logit_bias": {inner}, "tools": {inner}}}',
            f'{{"name": "a", "rows": [{{"messages": {inner}, "x": {inner}}}]}}',
        ):
            found = post(plain, path, body.encode())
            assert found.status_code in (200, 400, 413), found.text[:500]


def test_short_texts_pass_a_persons_long_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order in which texts come to the tokenizer, not the time that they take."""
    store = Store(tmp_path / "feedback.db")
    people = People(store)
    ann, bob = people.add("Ann", "user"), people.add("Bob", "user")
    with running({"random": RANDOM}, store=store) as served:
        import threading

        from lmsmith.tokenizers import Tokenizer

        encode, block, waiting = Tokenizer.encode, threading.Event(), threading.Semaphore(0)

        def slow(self: Tokenizer, text: str) -> list[int]:
            if len(text) > 20_000:
                waiting.release()
                assert block.wait(60)
            return encode(self, text)

        monkeypatch.setattr(Tokenizer, "encode", slow)
        greedy = [
            threading.Thread(
                target=post, args=(served, "/tokenize", {"prompt": LONG[:60_000]}, ann)
            )
            for _ in range(12)
        ]
        for each in greedy:
            each.start()
        assert waiting.acquire(timeout=60)
        for token in (bob, ann):  # the database answers, too
            assert post(served, "/tokenize", {"prompt": "tea"}, token).status_code == 200
            assert post(served, "/api/conversations", {"title": "tea"}, token).status_code == 200
        block.set()
        for each in greedy:
            each.join()
    store.close()


@pytest.mark.parametrize("busy", [False, True])
def test_long_texts_rest_between_them_while_replies_are_running(busy: bool) -> None:
    async def run() -> list[float]:
        loop, rests = asyncio.get_running_loop(), list[float]()
        real = loop.call_later

        def call_later(seconds: float, work: Any, *given: Any) -> Any:
            if getattr(work, "__name__", "") == "release":
                rests.append(seconds)
                seconds = 0.0
            return real(seconds, work, *given)

        loop.call_later = call_later  # type: ignore[method-assign]
        texts, at_once, most = TextThreads(lambda: busy), 0, 0

        def work() -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            time.sleep(0.01)
            at_once -= 1

        people = [texts.run(f"person {n % 3}", SHORT_TEXT + 1, work) for n in range(9)]
        short = [texts.run("person 1", SHORT_TEXT, lambda: None) for _ in range(9)]
        await asyncio.gather(*people, *short)
        assert most == 1
        return rests

    rests = asyncio.run(run())
    assert len(rests) == 9
    assert all((REST * 0.01 <= rest <= LONGEST_REST) if busy else rest == 0 for rest in rests)


def test_a_long_conversation_is_cut_before_it_is_tokenized(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    owner = store.person("owner", "admin").id
    name, parent = store.begin(owner).id, None
    for number in range(40):
        role = "assistant" if number % 2 else "user"
        parent = store.add_message(owner, name, parent, role, "tea " * 5_000).id
    parent = store.add_message(owner, name, parent, "user", "tea?").id
    with running({"random": RANDOM}, store=store) as served:
        path = f"/api/conversations/{name}/answers"
        found = post(served, path, {"parent": parent, "max_tokens": 2})
        first = json.loads(found.text.split("\n")[0].removeprefix("data: "))
        assert first["dropped"] == 40
        long = store.add_message(owner, name, parent, "user", LONG[:900_000]).id
        found = post(served, path, {"parent": long})
        assert found.json()["error"]["code"] == "context_length_exceeded"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("lmsmith.feedback.store.MOST_MESSAGES", 42)
            body = {"role": "user", "content": "tea?", "parent": long}
            for refused in (
                post(served, f"/api/conversations/{name}/messages", body),
                post(served, path, {"parent": parent}),  # the same message answered again
            ):
                assert refused.status_code == 400
                assert "begin another one" in refused.text
    store.close()


@pytest.mark.parametrize("at", ["_drop_idle", "_cancel", "_step"])
def test_an_engine_that_ends_fails_every_request(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"random": RANDOM}) as served:
        thread = served.engine.thread
        assert HTTP.get(f"{served.address}/health").status_code == 200

        def fails(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(thread, at, fails)
        if at == "_cancel":
            thread.cancel((served.engine.thread._requests and None) or _Dummy())  # type: ignore[arg-type]
        began = time.monotonic()
        found = post(served, "/v1/chat/completions", {"messages": TALK, "max_tokens": 400})
        assert (found.status_code, found.json()["error"]["code"]) == (500, "engine_ended")
        again = post(served, "/v1/completions", {"prompt": "a"})
        assert (again.status_code, again.json()["error"]["code"]) == (500, "engine_ended")
        assert time.monotonic() - began < LIMITS.seconds
        assert HTTP.get(f"{served.address}/health").status_code == 503
        assert HTTP.get(f"{served.address}/ready").status_code == 503
        assert HTTP.get(f"{served.address}/v1/models").status_code == 200
        assert not served.engine.generations


class _Dummy:
    is_over = False


@pytest.mark.parametrize(
    ("pragma", "word"),
    [("query_only = on", "can be read but not written"), ("max_page_count = 1", "disk is full")],
)
def test_a_disk_that_fails_is_told_and_reads_go_on(tmp_path: Path, pragma: str, word: str) -> None:
    store = Store(tmp_path / "feedback.db")
    with running({"random": RANDOM}, store=store) as served:
        talk = post(served, "/api/conversations", {"title": "tea"}).json()["id"]
        path = f"/api/conversations/{talk}"
        message = {"role": "user", "content": "tea?" * 10_000}

        def break_it(connection: Any, *_: object) -> None:
            connection.execute(f"pragma {pragma}")

        event.listen(store.engine, "checkout", break_it)
        refused = post(served, f"{path}/messages", message)
        assert refused.status_code == 503
        assert word in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
        assert HTTP.get(f"{served.address}{path}").json()["messages"] == []
        assert HTTP.get(f"{served.address}/api/conversations").status_code == 200
        body = {"messages": TALK, "max_tokens": 2}
        assert post(served, "/v1/chat/completions", body).status_code == 200
        event.remove(store.engine, "checkout", break_it)
    store.close()


@pytest.mark.parametrize("word", ["database disk image is malformed", "file is not a database"])
def test_a_database_that_is_damaged_is_told(tmp_path: Path, word: str) -> None:
    store = Store(tmp_path / "feedback.db")
    with running({"random": RANDOM}, store=store) as served:

        def damaged(*_: object) -> None:
            raise DatabaseError("", {}, sqlite3.DatabaseError(word))

        event.listen(store.engine, "checkout", damaged)
        refused = post(served, "/api/conversations", {"title": "tea"})
        assert refused.status_code == 503
        assert "damaged" in refused.json()["error"]["message"]
        event.remove(store.engine, "checkout", damaged)
        assert post(served, "/api/conversations", {"title": "tea"}).status_code == 200

    def command() -> None:
        with open_store(str(tmp_path / "feedback.db")) as opened:
            event.listen(opened.engine, "checkout", damaged)
            opened.names(["Ann"])

    with pytest.raises(UserError, match=word):
        command()
    store.close()


def test_a_database_that_is_gone_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    with running({"random": RANDOM}, store=store) as served:
        assert post(served, "/api/conversations", {"title": "tea"}).status_code == 200
        (tmp_path / "feedback.db").unlink()
        refused = post(served, "/api/conversations", {"title": "tea"})
        assert refused.status_code == 503
        assert "removed or replaced" in refused.json()["error"]["message"]
        assert str(tmp_path) not in refused.text
    store.close()


def test_jumps_of_the_clock_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "feedback.db")
    people = People(store)
    token = people.add("Ann", "user")
    real_time, real_now = time.time, tables.now
    with running({"random": RANDOM}, store=store) as served:
        for years in (20, -20, 60, -50, 0):
            seconds = years * 365.25 * 86_400
            monkeypatch.setattr(time, "time", lambda s=seconds: real_time() + s)
            body = {"messages": TALK, "max_tokens": 20}
            assert post(served, "/v1/chat/completions", body, token).status_code == 200
            talk = post(served, "/api/conversations", {"title": "tea"}, token)
            assert talk.status_code == 200
            assert HTTP.get(f"{served.address}/health").status_code == 200
        assert tables.now is real_now
    store.close()


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://{host}", True),
        ("https://{host}", False),
        ("http://127.0.0.1", False),
        ("http://127.0.0.1:1", False),
        ("http://localhost:{port}", False),
        ("http://{host}.evil.example", False),
        ("http://evil@{host}", False),
        ("http://{host}/", False),
        ("ftp://{host}", False),
        ("null", False),
        ("", False),
        ("{host}", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(plain: Running, origin: str, is_own: bool) -> None:
    host = plain.address.removeprefix("http://")
    given = origin.format(host=host, port=host.rpartition(":")[2])
    found = HTTP.get(f"{plain.address}/v1/models", headers={"origin": given})
    assert found.status_code == (200 if is_own else 403)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost.", 200),
        ("LOCALHOST.:{port}", 200),
        ("[::1]", 200),
        ("[::1]:{port}", 200),
        ("localhost..", 421),
        (".", 421),
        ("", 421),
        ("::1", 421),
        ("[::1]evil.example", 421),
        ("[localhost]:80:80", 421),
        ("localhost:evil.example", 421),
        ("localhost:٨٠", 421),
    ],
)
def test_a_host_is_a_name_and_perhaps_a_port(plain: Running, host: str, status: int) -> None:
    given = host.format(port=plain.address.rpartition(":")[2])
    found = HTTP.get(f"{plain.address}/v1/models", headers={"host": given.encode()})
    assert found.status_code == status


@pytest.mark.parametrize("name", ["host", "origin", "authorization", "cookie", "content-type"])
def test_a_header_that_decides_is_sent_once(plain: Running, name: str) -> None:
    host, port = plain.address.removeprefix("http://").split(":")
    own = {"host": f"{host}:{port}", "origin": plain.address}.get(name, "application/json")
    for pair in ([own, "evil.example"], ["evil.example", own], [own, own]):
        lines = ["GET /v1/models HTTP/1.1", *(f"{name}: {each}" for each in pair)]
        lines += ["connection: close", *([f"host: {host}:{port}"] if name != "host" else [])]
        with socket.create_connection((host, int(port)), 20) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_a_proxy_with_a_certificate_is_named() -> None:
    with running({"random": RANDOM}, hosts=("127.0.0.1", "chat.example")) as served:
        for origin, host, status in (
            ("https://chat.example", "chat.example", 200),
            ("https://chat.example:8443", "chat.example:8443", 200),
            ("https://chat.example:8443", "chat.example", 403),
            ("http://chat.example", "chat.example", 200),
            ("https://127.0.0.1", "127.0.0.1", 403),
        ):
            headers = {"origin": origin, "host": host}
            found = HTTP.get(f"{served.address}/v1/models", headers=headers)
            assert found.status_code == status, (origin, host)


@pytest.mark.parametrize("group", ["[]", "{}", "[[[]]]", '{"a":{"a":{}}}'])
def test_lists_and_objects_of_a_body_are_counted(plain: Running, group: str) -> None:
    count = MAX_GROUPS // (group.count("[") + group.count("{"))
    for more, status in ((1, 413), (-3, 200)):
        body = f'{{"prompt": "tea", "more": [{",".join([group] * (count + more))}]}}'
        headers = {"content-type": "application/json"}
        found = HTTP.post(f"{plain.address}/tokenize", content=body, headers=headers)
        assert found.status_code == status
