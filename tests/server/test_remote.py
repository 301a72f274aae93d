"""A server in front of another model server, which may fail in every way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2 as httpx
import pytest
from worlds import HTTP, LIMITS, Running, parrot, running

from lmsmith.catalogue.remote import Call, Cancelled, Patience, find_remote, split_remote
from lmsmith.core.errors import UserError
from model_server import KEY, TEXT, ModelServer, model_server

PATIENT = Patience(connect=2, read=0.5, retries=2, wait=0.02)
WHOLE = "".join(TEXT)
ASKED = [{"role": "system", "content": "Be é."}, {"role": "user", "content": "tea <|end|>?"}]


@pytest.fixture(scope="module")
def behind() -> Iterator[ModelServer]:
    with model_server() as state:
        yield state


@pytest.fixture(scope="module")
def front(behind: ModelServer) -> Iterator[Running]:
    with running({}, remote={"big": find_remote(behind.address, PATIENT)}) as found:
        yield found


@pytest.fixture(autouse=True)
def _calm(behind: ModelServer) -> None:
    behind.ends, behind.pause, behind.usage, behind.key = "done", 0.0, True, ""
    behind.failures.clear()
    behind.bodies.clear()
    behind.hung_up.clear()


def chat(front: Running, **body: Any) -> httpx.Response:
    return HTTP.post(f"{front.address}/v1/chat/completions", json={"messages": ASKED, **body})


def streamed(front: Running, **body: Any) -> list[Any]:
    lines = chat(front, stream=True, **body).text.split("\n\n")
    return [each.removeprefix("data: ") for each in lines if each]


def test_chat_sends_the_messages_and_settings_and_passes_the_text(
    front: Running, behind: ModelServer
) -> None:
    found = chat(front, max_tokens=30, temperature=0.5, seed=7, stop=["x"]).json()
    assert found["choices"][0]["message"]["content"] == WHOLE
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["prompt_tokens"] == 11
    assert found["usage"]["completion_tokens"] == 7
    assert "estimated" not in found["usage"]
    (body,) = behind.bodies
    assert body["messages"] == ASKED
    assert body["model"] == "org/big"
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (30, 0.5, 7)
    assert body["stop"] == ["x"]
    assert "top_k" not in body


def test_counts_are_marked_where_the_server_gives_none(front: Running, behind: ModelServer) -> None:
    behind.usage = False
    found = chat(front).json()["usage"]
    assert found["estimated"] is True
    assert found["completion_tokens"] == len(TEXT)
    assert "max_tokens" not in behind.bodies[0]


def test_samples_have_seeds_of_their_own(front: Running, behind: ModelServer) -> None:
    found = chat(front, n=3, seed=5).json()
    assert [each["message"]["content"] for each in found["choices"]] == [WHOLE] * 3
    assert {each["seed"] for each in behind.bodies} == {5, 6, 7}
    assert found["usage"]["completion_tokens"] == 21
    assert found["usage"]["prompt_tokens"] == 11


def test_a_text_is_continued(front: Running, behind: ModelServer) -> None:
    found = HTTP.post(f"{front.address}/v1/completions", json={"prompt": "é 你", "echo": True})
    assert found.json()["choices"][0]["text"] == "é 你" + WHOLE
    assert behind.bodies[0]["prompt"] == "é 你"
    assert behind.paths[-1] == "/v1/completions"


@pytest.mark.parametrize("status", [502, 503])
def test_a_failure_at_the_start_is_tried_again(
    front: Running, behind: ModelServer, status: int
) -> None:
    behind.failures += [(status, {}, b"<html>")] * 2
    assert chat(front).json()["choices"][0]["message"]["content"] == WHOLE
    assert len(behind.bodies) == 3
    behind.failures += [(status, {}, b"<html>")] * 3
    failed = chat(front)
    assert failed.status_code == 502
    assert failed.json()["error"]["code"] == "upstream_failed"


def test_too_many_requests_wait_as_long_as_the_server_says(
    front: Running, behind: ModelServer
) -> None:
    behind.failures.append((429, {"Retry-After": "1"}, {}))
    started = time.monotonic()
    assert chat(front).status_code == 200
    assert time.monotonic() - started >= 1
    behind.failures.append((429, {"Retry-After": "120"}, {}))
    failed = chat(front)
    assert (failed.status_code, failed.headers["Retry-After"]) == (429, "120")


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("cut", "upstream_cut"),
        ("silent", "upstream_timeout"),
        ("json", "upstream_invalid"),
        ("error", "upstream_error"),
    ],
)
def test_a_stream_that_fails_keeps_its_text_and_ends_with_an_error(
    front: Running, behind: ModelServer, ends: str, code: str
) -> None:
    behind.ends = ends
    *events, last = [json.loads(each) for each in streamed(front)]
    text = "".join(each["choices"][0]["delta"].get("content", "") for each in events)
    assert text == "".join(TEXT[:2])
    assert last["error"]["code"] == code
    assert len(behind.bodies) == 1  # never tried again


def test_the_chat_page_keeps_the_text_of_a_reply_that_was_cut(
    front: Running, behind: ModelServer
) -> None:
    api = f"{front.address}/api/conversations"
    made = HTTP.post(api, json={"title": "t"}).json()["id"]
    sent = {"content": "hi", "role": "user"}
    message = HTTP.post(f"{api}/{made}/messages", json=sent).json()
    behind.ends = "cut"
    answered = HTTP.post(f"{api}/{made}/answers", json={"parent": message["id"]})
    events = [json.loads(each[6:]) for each in answered.text.split("\n\n") if each]
    assert events[-1]["error"]["code"] == "upstream_cut"
    (kept,) = [each["message"] for each in events if each.get("message")]
    assert (kept["content"], kept["model"]) == ("".join(TEXT[:2]), "big")


def test_a_client_that_hangs_up_ends_the_request_behind(behind: ModelServer) -> None:
    behind.pause = 2.0
    body = {"messages": ASKED, "stream": True}
    with running({}, remote={"big": find_remote(behind.address)}) as front:
        scheduler = front.engine.models["big"].scheduler
        with HTTP.stream("POST", f"{front.address}/v1/chat/completions", json=body) as reply:
            pieces = reply.iter_raw()  # kept: the end of an iterator is a hang-up
            next(pieces)
            _wait_until(lambda: bool(behind.bodies))
            assert scheduler.active == 1
        _wait_until(lambda: scheduler.active == 0)
        assert behind.hung_up.wait(30)


def test_a_call_that_is_cancelled_before_it_begins_is_never_sent(behind: ModelServer) -> None:
    call = Call(find_remote(behind.address, PATIENT), "/chat/completions", {"messages": ASKED})
    call.cancel()
    with pytest.raises(Cancelled):
        list(call.events())
    assert not behind.bodies


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wrong_key_is_a_502_that_does_not_show_it(behind: ModelServer) -> None:
    wrong = replace(find_remote(behind.address, PATIENT), key="sk-wrong-key")
    with running({}, remote={"big": wrong}) as front:
        behind.key = KEY
        failed = chat(front)
        behind.key = ""
        said = {"error": {"message": "the key sk-wrong-key has no money", "code": 402}}
        behind.failures.append((402, {}, said))
        poor = chat(front)
    assert failed.status_code == poor.status_code == 502
    assert failed.json()["error"]["code"] == "upstream_key"
    assert "has no money" in poor.text
    assert "sk-wrong-key" not in failed.text + poor.text


def test_a_prompt_that_is_too_long_for_the_server_is_a_400(
    front: Running, behind: ModelServer
) -> None:
    said = "This model's maximum context length is 2048 tokens. Please reduce the length"
    behind.failures.append((400, {}, {"error": {"message": said, "code": 400}}))
    failed = chat(front)
    assert failed.status_code == 400
    assert failed.json()["error"]["code"] == "context_length_exceeded"
    assert "2048" in failed.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": ASKED, "logprobs": True}),
        ("/v1/chat/completions", {"messages": ASKED, "logit_bias": {"5": 1}}),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": [5, 6]}),
        ("/tokenize", {"prompt": "a"}),
        ("/api/attention", {"messages": ASKED}),
    ],
)
def test_what_another_server_cannot_give_is_refused(
    front: Running, path: str, body: dict[str, Any]
) -> None:
    failed = HTTP.post(front.address + path, json=body)
    assert failed.status_code == 400
    assert "another server" in failed.json()["error"]["message"]


def test_no_user_gives_an_address(front: Running, behind: ModelServer) -> None:
    failed = chat(front, model=behind.address)
    assert failed.status_code == 404
    assert not behind.bodies


def test_the_list_of_models_says_which_are_behind_another_server(front: Running) -> None:
    (row,) = HTTP.get(f"{front.address}/v1/models").json()["data"]
    assert (row["id"], row["max_model_len"], row["remote"]) == ("big", 2048, True)
    assert HTTP.get(f"{front.address}/metrics").status_code == 200


def test_a_server_that_is_gone_is_a_502(front: Running) -> None:
    with model_server() as gone:
        model = find_remote(gone.address, PATIENT)
    with running({}, remote={"gone": model}) as front:
        failed = chat(front)
    assert failed.status_code == 502
    assert failed.json()["error"]["code"] == "upstream_unreachable"


def test_one_server_in_front_of_another_says_the_same() -> None:
    with running({"parrot": parrot()}, LIMITS) as real:
        words = [f"mine=openai:{real.address}/v1#parrot"]
        local, remote = split_remote(words)
        assert local == []
        with running({}, remote=remote) as front:
            direct, through = (
                HTTP.post(
                    f"{each.address}/v1/chat/completions",
                    json={"messages": ASKED, "temperature": 0},
                ).json()
                for each in (real, front)
            )
    assert through["choices"][0]["message"] == direct["choices"][0]["message"]
    assert through["choices"][0]["message"]["content"]
    assert through["usage"]["total_tokens"] == direct["usage"]["total_tokens"]


def test_the_start_names_what_is_wrong(
    behind: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem(word: str) -> str:
        with pytest.raises(UserError) as caught:
            find_remote(word, PATIENT)
        return str(caught.value)

    assert "it has: org/big" in problem(f"{behind.address}#small")
    assert "address of a model server" in problem("openai:ftp://x/v1")
    assert "OPENAI_API_KEY" in problem("openai:http://me:secret@127.0.0.1:1/v1")
    assert "secret" not in problem("openai:http://me:secret@127.0.0.1:1/v1")
    assert "cannot be reached" in problem("openai:http://127.0.0.1:1/v1")
    behind.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    assert "refuses the key" in (said := problem(behind.address))
    assert "sk-wrong" not in said
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert find_remote(behind.address).model == "org/big"
    assert KEY not in repr(find_remote(behind.address))
