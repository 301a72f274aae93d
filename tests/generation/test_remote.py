"""Replies of another model server, as servers write them that differ from the API in details."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.client import HTTPMessage
from typing import Any

import pytest

from lmsmith.catalogue import remote
from lmsmith.catalogue.remote import Patience, RemoteError, RemoteModel, find_remote, without_key
from lmsmith.core.errors import UserError
from lmsmith.generation.remote import RemoteScheduler
from lmsmith.generation.requests import Counted, Request, TokenEvent
from lmsmith.generation.scheduler import Failed
from lmsmith.generation.settings import SamplingSettings
from model_server import KEY, ModelServer, model_server

DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def behind() -> Iterator[ModelServer]:
    with model_server() as state:
        yield state


def event(text: str, finish: str | None = None, **more: Any) -> bytes:
    content = {"choices": [{"delta": {"content": text}, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def replied(
    behind: ModelServer, *lines: bytes, kind: str = "text/event-stream"
) -> tuple[str, Counted]:
    """Text and counts. Raises RemoteError as the server's reply does."""
    behind.raw = kind, b"".join(lines)
    url = behind.address.removeprefix("openai:")
    model = RemoteModel(url, "org/big", KEY, None, Patience(2, 2, 0))
    scheduler = RemoteScheduler(model, rows=1, waits=True)
    scheduler.submit(Request(model.tokenizer.encode("abcd"), SamplingSettings(8)))
    events = []
    while scheduler.busy:
        events += scheduler.step()
    behind.raw = None
    for each in events:
        if isinstance(each, Failed):
            raise each.error
    (counted,) = [each for each in events if isinstance(each, Counted)]
    return "".join(each.text for each in events if isinstance(each, TokenEvent)), counted


@pytest.mark.parametrize(
    "lines",
    [
        [event("he"), event("llo", "stop")],  # without [DONE]
        [event("he"), event("llo", "stop"), b'data: {"choices": [], "usa'],
        [event("he", error=None), event("llo", "stop", error=None), DONE],
        [b"data:\n\n", event("hello", "stop"), b"data: \n\n", DONE],
        [b": ping\n\n", b"event: message\n", event("hello", "stop"), DONE],
    ],
)
def test_a_whole_reply_is_taken(behind: ModelServer, lines: list[bytes]) -> None:
    assert replied(behind, *lines)[0] == "hello"


def test_halves_of_a_character_are_joined_or_replaced(behind: ModelServer) -> None:
    pair = replied(behind, event("a \ud83d"), event("\ude00 b", "stop"), DONE)
    assert pair[0] == "a 😀 b"
    assert replied(behind, event("a\ud83d"), event("b\ude00"), DONE)[0] == "a\ufffdb\ufffd"
    assert replied(behind, event("a\ud83d", "stop"), DONE)[0] == "a\ufffd"
    with pytest.raises(RemoteError, match=r"failed: \ufffd$"):
        replied(behind, event("", error={"message": "\ud83d"}))


@pytest.mark.parametrize(
    "usage",
    [
        "abc",
        {"prompt_tokens": 10, "completion_tokens": -5},
        {"prompt_tokens": 10**30, "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": True},
        {"prompt_tokens": 1.5, "completion_tokens": None},
    ],
)
def test_counts_that_can_be_none_are_estimated(behind: ModelServer, usage: object) -> None:
    _, counted = replied(behind, event("a"), event("b", "stop", usage=usage), DONE)
    assert (counted.prompt, counted.new, counted.cached, counted.estimated) == (1, 2, 0, True)


def test_a_wrong_count_of_cached_tokens_is_none(behind: ModelServer) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5}
    for given, cached in ((-3, 0), (4, 4), (50, 9)):
        details = {"prompt_tokens_details": {"cached_tokens": given}}
        _, counted = replied(behind, event("a", "stop", usage=usage | details), DONE)
        assert (counted.prompt, counted.new, counted.cached) == (9, 5, cached)
        assert not counted.estimated


@pytest.mark.parametrize(
    ("lines", "kind", "problem"),
    [
        ([b'{"choices": [{"message": {"content": "a"}}]}'], "application/json", "no event stream"),
        ([b"<html>\n<p>hi</p>\n</html>"], "text/html", r"no event stream \(text/html\)"),
        ([event("he")], "text/event-stream", "before it was whole"),
        ([event("he", "abort"), DONE], "text/event-stream", "finish_reason: abort"),
        ([b'data: {"object": "error", "message": "no memory"}\n\n', DONE], "", "no memory"),
        ([b'{"error": {"message": "no memory"}}'], "application/json", "failed: no memory"),
        ([b'{\n "error": "no\\nmemory"\n}\n'], "text/plain", "failed: no.memory"),
        ([b'{"error": {"message": "no such", "code": 404}}'], "application/json", "status 404"),
        ([event("a" * (8 << 20), "stop"), DONE], "text/event-stream", "over 8 MiB at a time"),
        ([b"<p>\n" * (3 << 20)], "text/html", "over 8 MiB at a time"),
    ],
)
def test_what_is_no_whole_reply_is_named(
    behind: ModelServer, lines: list[bytes], kind: str, problem: str
) -> None:
    with pytest.raises(RemoteError, match=problem):
        replied(behind, *lines, kind=kind)


def test_a_long_retry_after_is_bounded(behind: ModelServer) -> None:
    behind.failures.append((429, {"Retry-After": "9" * 5000}, {}))
    with pytest.raises(RemoteError, match="too many requests") as raised:
        replied(behind, DONE)
    assert raised.value.retry_after == 86_400


@pytest.mark.parametrize(
    ("given", "date", "seconds"),
    [
        ("Mon, 30 Nov 2026 16:02:00 GMT", "Mon, 30 Nov 2026 16:00:10 GMT", 110),
        ("Mon Nov 30 16:02:00 2026", "Monday, 30-Nov-26 16:01:59 GMT", 1),  # the two older forms
        ("Mon, 30 Nov 2026 15:00:00 GMT", "Mon, 30 Nov 2026 16:00:00 GMT", 0),
        ("Mon, 30 Nov 2027 16:00:00 GMT", "Mon, 30 Nov 2026 16:00:00 GMT", 86_400),
        (" 7 ", "", 7),
        ("soon", "Mon, 30 Nov 2026 16:00:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date_of_the_servers_clock(
    given: str, date: str, seconds: int
) -> None:
    headers = HTTPMessage()
    headers["Retry-After"], headers["Date"] = given, date
    assert remote._retry_after(headers) == seconds


def test_a_date_to_try_again_is_waited_for(behind: ModelServer) -> None:
    behind.failures.append((429, {"Retry-After": formatdate(time.time() + 100, usegmt=True)}, {}))
    with pytest.raises(RemoteError, match="too many requests") as raised:
        replied(behind, DONE)
    assert 97 <= raised.value.retry_after <= 100


def test_an_event_may_be_long(behind: ModelServer) -> None:
    assert len(replied(behind, event("é" * (1 << 20), "stop"), DONE)[0]) == 1 << 20


def test_a_list_of_models_that_is_an_error_is_named(
    behind: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "listed", {"error": {"message": "the licence has ended"}})
    with pytest.raises(UserError, match="failed: the licence has ended"):
        find_remote(behind.address)


@pytest.mark.parametrize("key", ["sk-secret\r", "sk-secret-ł", "sk secret", "sk-secret\n"])
def test_a_key_that_no_header_holds_is_named_and_not_shown(
    behind: ModelServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY: the key has a space") as raised:
        find_remote(behind.address)
    assert "secret" not in str(raised.value)
    url = behind.address.removeprefix("openai:")
    scheduler = RemoteScheduler(RemoteModel(url, "org/big", f"{key}\r\nł"), rows=1, waits=True)
    scheduler.submit(Request([5], SamplingSettings(8)))
    events = [each for _ in range(2) for each in scheduler.step()]
    assert "cannot be sent" in str(error := events[-1].error)  # type: ignore[union-attr]
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/v 1", "http://ü..x/v1", "http://[x/v1", "http://a b/v1", "http://h/é"],
)
def test_an_address_that_cannot_be_asked_is_named(url: str) -> None:
    with pytest.raises(UserError, match="no address of a model server") as raised:
        find_remote(f"openai:{url}")
    assert url in str(raised.value)


def test_no_message_shows_a_part_of_the_key(behind: ModelServer) -> None:
    for said in (KEY, f"in {KEY[:12]}", f"{KEY[5:]}{KEY[:8]}"):
        with pytest.raises(RemoteError, match="…") as raised:
            replied(behind, event("", error={"message": said}))
        text = str(raised.value)
        assert not any(KEY[at : at + 8] in text for at in range(len(KEY) - 7))
    assert without_key("in sk-SECRETSECR now", "sk-SECRETSECRET0123") == "in … now"
    assert without_key("EMPTY is kept: EMPT", "EMPTY") == "… is kept: EMPT"
    assert without_key("as it is", "") == "as it is"
