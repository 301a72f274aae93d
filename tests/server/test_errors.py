"""What is refused, and how: in the API's shape, with the right status, and nothing is harmed."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest
from worlds import CONTEXT, HTTP, RANDOM, SENTENCE, TOKENIZER, Running, running, said_by, words

from lmsmith.generation.requests import RunningSequence
from lmsmith.generation.scheduler import Scheduler
from lmsmith.server.requests import Limits
from lmsmith.server.serve import _OneLine
from lmsmith.server.stream import encoded

ASK = said_by("what do you like?")


def post(served: Running, path: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"content-type": "application/json", **options.pop("headers", {})}
    return HTTP.post(f"{served.address}{path}", content=content, headers=headers, **options)


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_errors_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-7", messages=ASK)
    assert missing.value.code == "model_not_found"
    assert "parrot, random" in missing.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="parrot", messages=said_by(words(CONTEXT)))
    assert long.value.code == "context_length_exceeded"
    assert f"maximum context length is {CONTEXT} tokens" in long.value.message
    stream = {"model": "parrot", "messages": said_by(words(CONTEXT)), "stream": True}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**stream)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="parrot", messages=ASK, temperature=-1)
    assert wrong.value.param == "temperature"


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"modalities": ["text", "audio"]}, "modalities", "only text"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"n": 17}, "n", "at most 16"),
        ({"n": 0}, "n", "greater"),
        ({"n": 9}, None, "at most 8 replies"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"logit_bias": {"tea": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "9999"),
        ({"min_p": 3}, None, "min_p"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "fractional"),
        ({"max_tokens": True}, "max_tokens", "not true"),
        ({"max_tokens": float("nan")}, "max_tokens", "finite"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
        ({"temperature": False}, "temperature", "not false"),
        ({"temperature": float("inf")}, "temperature", "finite"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"seed": 0.5}, "seed", "fractional"),
        ({"stop": [None]}, "stop", "valid string"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid list"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "king"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tools"),
        ({"messages": [*ASK, {"role": "assistant", "content": ""}]}, "messages", "assistant"),
        ({"messages": [*ASK, {"role": "system", "content": ""}]}, "messages[1].role", "first"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "image_url",
        ),
    ],
)
def test_bad_fields(served: Running, change: dict[str, Any], param: str, word: str) -> None:
    body = {"model": "parrot", "messages": ASK, **change}
    error = refused(post(served, "/v1/chat/completions", body))
    assert error["param"] == param
    assert word in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"messages": NaN}']
)
def test_bodies_that_are_no_requests(served: Running, body: bytes) -> None:
    refused(post(served, "/v1/chat/completions", body))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"{'messages': 1}", "not JSON: Expecting property name"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        ('{"messages": "你好"}'.encode("gbk"), "not UTF-8"),
        (b'{"n": ' + b"1" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b'{"n": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"model": "a\x01"}', "Invalid control character at character 12"),
    ],
)
def test_the_reason_why_a_body_is_no_request(served: Running, body: bytes, word: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        error = refused(post(served, path, body))
        assert word in error["message"]
        assert (error["param"], error["code"]) == (None, "invalid_body")


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"content-type": "text/plain"}, "'text/plain'"),
        ({"content-type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"content-type": "multipart/form-data; boundary=x"}, "application/json"),
        ({"content-type": "application/jsonl"}, "application/json"),
        ({"content-type": ""}, "no Content-Type"),
        ({"content-encoding": "gzip"}, "not compressed"),
        ({"content-encoding": "deflate, br"}, "not compressed"),
    ],
)
def test_bodies_of_other_forms_are_415(served: Running, headers: dict[str, str], word: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/api/session"):
        error = refused(post(served, path, {"messages": ASK}, headers=headers), 415)
        assert word in error["message"]
    bare = httpx.Request("POST", f"{served.address}/v1/chat/completions", content=b"{}")
    assert "no Content-Type" in refused(HTTP.send(bare), 415)["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_read_however_its_type_is_written(served: Running, kind: str) -> None:
    body, headers = {"messages": ASK, "max_tokens": 1}, {"content-type": kind}
    assert post(served, "/v1/chat/completions", body, headers=headers).status_code == 200


def test_head_is_get_without_a_body(served: Running) -> None:
    for path in ("/health", "/ready", "/", "/v1/models", "/v1/nothing", "/metrics"):
        whole, head = (call(f"{served.address}{path}") for call in (HTTP.get, HTTP.head))
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert HTTP.head(f"{served.address}/health").status_code == 200
    assert HTTP.head(f"{served.address}/v1/chat/completions").status_code == 405


def test_unknown_fields_and_nulls_are_ignored(served: Running) -> None:
    body = {
        "messages": ASK, "temperature": 0, "max_tokens": None, "n": None, "tools": [], "stop": None,
        "tool_choice": None, "reasoning_effort": "high", "store": True, "frobnicate": {"a": [1]},
        "response_format": {"type": "text"}, "logit_bias": None, "user": "me", "seed": None,
    }  # fmt: skip
    found = post(served, "/v1/chat/completions", body)  # without a model: the first one
    assert found.json()["choices"][0]["message"]["content"] == SENTENCE


def test_routes_that_are_not_there(served: Running) -> None:
    refused(HTTP.get(f"{served.address}/v1/nothing"), 404)
    refused(HTTP.get(f"{served.address}/v1/chat/completions"), 405)
    refused(HTTP.get(f"{served.address}/health", headers={"host": "evil.example"}), 421)


def test_pages_elsewhere_may_not_ask(served: Running) -> None:
    path, body = "/v1/chat/completions", {"messages": ASK, "max_tokens": 1}
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        refused(post(served, path, body, headers={"origin": origin}), 403)
    assert post(served, path, body, headers={"origin": served.address}).status_code == 200
    simple = post(served, path, body, headers={"content-type": "text/plain"})
    refused(simple, 415)  # what a form elsewhere could send without asking
    assert not any(name.startswith("access-control") for name in simple.headers)
    assert simple.headers["x-content-type-options"] == "nosniff"


def test_bodies_that_are_too_large(served: Running) -> None:
    large = b'{"messages": "' + b"x" * (5 << 20) + b'"}'
    assert refused(post(served, "/v1/chat/completions", large), 413)["code"] == "body_too_large"
    in_parts = HTTP.post(
        f"{served.address}/v1/chat/completions",
        content=(large[at : at + 65536] for at in range(0, len(large), 65536)),
        headers={"content-type": "application/json"},
    )
    refused(in_parts, 413)


def test_a_token_is_demanded_everywhere() -> None:
    with running({"random": RANDOM}, token="secret") as served:
        for path in ("/health", "/ready"):  # supervisors have no token
            assert HTTP.get(f"{served.address}{path}").json() == {"status": "ok"}
        for path in ("/v1/models", "/metrics", "/tokenizer_info", "/none"):
            for headers in ({}, {"authorization": "Bearer secrets"}, {"authorization": "secret"}):
                error = refused(HTTP.get(f"{served.address}{path}", headers=headers), 401)
                assert error["code"] == "invalid_api_key"
        url = f"{served.address}/v1"
        wrong = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["random"]


class Hangup:
    """A client that asks for a long stream by hand, and may hang up at any time."""

    def __init__(self, served: Running, *, stream: bool, ignore_eos: bool = True) -> None:
        host, _, port = served.address.removeprefix("http://").partition(":")
        body = json.dumps(
            {"model": "random", "messages": ASK, "stream": stream, "ignore_eos": ignore_eos}
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.sendall((head + body).encode())


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_slot_at_once(stream: bool) -> None:
    limits = Limits(streams=1, queue=4, seconds=30, drain_seconds=0)
    with running({"random": RANDOM}, limits) as served:
        scheduler = served.engine.models["random"].scheduler
        first = Hangup(served, stream=stream)
        wait_for(lambda: scheduler.active == 1)
        second = Hangup(served, stream=stream)
        wait_for(lambda: len(scheduler._waiting) == 1)
        second.socket.close()  # before its first token
        wait_for(lambda: len(scheduler._waiting) == 0)
        if stream:
            assert first.socket.recv(100)
        first.socket.close()
        wait_for(lambda: scheduler.active == 0)
        assert not served.engine.generations
        assert served.engine.waiting == {"random": 0}
        text = HTTP.get(f"{served.address}/metrics").text
        assert 'lmsmith_requests_cancelled_total{model="random"} 2.0' in text


def test_a_full_queue_is_429_with_retry_after() -> None:
    limits = Limits(streams=1, queue=2, seconds=30, drain_seconds=0)
    with running({"random": RANDOM}, limits) as served:
        scheduler = served.engine.models["random"].scheduler
        hanging = [Hangup(served, stream=True)]
        wait_for(lambda: scheduler.active == 1)
        for count in (1, 2):
            hanging.append(Hangup(served, stream=True))
            wait_for(lambda: len(scheduler._waiting) == count)  # noqa: B023
        assert HTTP.get(f"{served.address}/ready").status_code == 503
        response = post(served, "/v1/chat/completions", {"messages": ASK})
        assert refused(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        for each in hanging:
            each.socket.close()
        # The client comes again by itself, and is answered.
        with openai.OpenAI(base_url=f"{served.address}/v1", api_key="x", max_retries=5) as client:
            client.chat.completions.create(model="random", messages=ASK, max_tokens=2)


def test_a_request_that_takes_too_long() -> None:
    with running({"random": RANDOM}, Limits(seconds=0.02)) as served:
        body = {"messages": ASK, "ignore_eos": True}
        assert refused(post(served, "/v1/chat/completions", body), 504)["code"] == "timeout"
        wait_for(lambda: not served.engine.models["random"].scheduler.busy)


def test_a_poisoned_request_gets_500_and_the_rest_go_on(
    served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison, take = TOKENIZER.encode("🙂")[0], RunningSequence.append

    def fragile(reply: RunningSequence, token: int, log_prob: Any) -> Any:
        if token == poison and reply.settings.seed == 666:
            raise RuntimeError("what a token")
        return take(reply, token, log_prob)

    monkeypatch.setattr(RunningSequence, "append", fragile)
    body = {"messages": ASK, "temperature": 0.01, "seed": 666}
    with caplog.at_level(logging.ERROR, "lmsmith.server"):
        response = post(served, "/v1/chat/completions", body)
    assert refused(response, 500)["code"] == "internal_error"
    name = response.json()["error"]["message"].split()[-1]
    assert any(name in record.getMessage() for record in caplog.records)
    assert "what do you like" not in caplog.text
    assert "what a token" not in response.text
    # In the midst of a stream it is an event.
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="parrot", messages=ASK, temperature=0.01, seed=666, stream=True
        )
        pieces: list[str] = []
        with pytest.raises(openai.APIError, match="the server failed"):
            pieces.extend(chunk.choices[0].delta.content for chunk in stream)
        assert pieces == ["", "é", "你"]
    streamed = post(served, "/v1/chat/completions", {**body, "stream": True})
    assert streamed.text.count('data: {"error":') == 1
    assert "[DONE]" not in streamed.text
    good = post(served, "/v1/chat/completions", {**body, "seed": 1})
    assert good.json()["choices"][0]["message"]["content"] == SENTENCE


def test_a_step_that_fails_does_not_end_the_engine(
    served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Scheduler) -> Any:
        raise MemoryError("no more")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Scheduler, "_admit", broken)
        refused(post(served, "/v1/chat/completions", {"messages": ASK}), 500)
    assert HTTP.get(f"{served.address}/health").json() == {"status": "ok"}
    good = post(served, "/v1/chat/completions", {"messages": ASK, "temperature": 0})
    assert good.json()["choices"][0]["message"]["content"] == SENTENCE


def test_an_end_that_takes_too_long_cuts_streams_off_with_an_error() -> None:
    with running({"random": RANDOM}, Limits(drain_seconds=0)) as served:
        client = Hangup(served, stream=True)
        assert client.socket.recv(10)
        served.server.stop()
        rest = b""
        while part := client.socket.recv(65536):
            rest += part
        assert b'data: {"error":' in rest
        assert b"shutting_down" in rest
        client.socket.close()


def test_an_event_is_one_line_whatever_a_model_writes() -> None:
    """httpx ends lines at U+0085, U+2028 and U+2029, too."""
    said = {"delta": "a\x85b\u2028c\u2029d\n\re é 你", "\u2028": [{"\x85": "\u2029"}]}
    found = encoded(said)
    assert json.loads(found) == said
    assert len(found.decode().splitlines()) == 1
    assert "é 你".encode() in found


def test_a_log_line_is_one_line() -> None:
    record = logging.LogRecord(
        "x", logging.ERROR, "", 0, "request (%s) failed", ("/a\n2026 ERROR forged\x1b[2J\r",), None
    )
    shown = _OneLine("%(levelname)s %(message)s").format(record)
    assert len(shown.splitlines()) == 1
    assert "\x1b" not in shown
