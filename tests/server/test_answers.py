"""Answers in conversations: streamed, kept before they are acknowledged, stopped, cut off."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from worlds import CONTEXT, HTTP, LIMITS, SENTENCE, Running, parrot, running, words

from lmsmith.feedback.export import export
from lmsmith.feedback.store import Store
from lmsmith.prompts import encode_prompt
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import shutting_down


def slowly(engine: AsyncEngine) -> None:
    """Each step of the endless parrot takes a while, so that it can be stopped in its midst."""
    scheduler = engine.models["endless"].scheduler
    step = scheduler.step

    def slow() -> Any:
        time.sleep(0.005)
        return step()

    scheduler.step = slow  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Store]]:
    store = Store(tmp_path_factory.mktemp("store") / "feedback.db")
    models = {"parrot": parrot(), "endless": parrot(for_ever=True)}
    limits = replace(LIMITS, unread_seconds=1)
    with running(models, limits, store=store, prepare=slowly) as served:
        yield served, store
    store.close()


def ask(served: Running, text: str = "hello") -> tuple[str, int]:
    """A conversation, and its user's message."""
    talk = HTTP.post(f"{served.address}/api/conversations", json={}).json()["id"]
    said = {"role": "user", "content": text}
    path = f"{served.address}/api/conversations/{talk}/messages"
    return talk, HTTP.post(path, json=said).json()["id"]


def add(served: Running, talk: str, parent: int, text: str, role: str = "user") -> int:
    """One more message after another; its number."""
    path = f"{served.address}/api/conversations/{talk}/messages"
    answer = HTTP.post(path, json={"parent": parent, "role": role, "content": text})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def events(served: Running, talk: str, **body: Any) -> Iterator[dict[str, Any]]:
    return streamed("POST", f"{served.address}/api/conversations/{talk}/answers", json=body)


def streamed(method: str, path: str, **options: Any) -> Iterator[dict[str, Any]]:
    with HTTP.stream(method, path, **options) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def shown(served: Running, talk: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = HTTP.get(f"{served.address}/api/conversations/{talk}").json()[
        "messages"
    ]
    return found


def test_an_answer_is_kept_with_what_it_was_drawn_with(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    drawn = {"temperature": 0.5, "top_p": 0.9, "seed": 3}
    opening, *deltas, last = events(
        served, talk, parent=question, model="parrot", note={"pair": "x"}, **drawn
    )
    assert opening["answer"].startswith("answer-")
    assert "".join(each["delta"] for each in deltas) == SENTENCE
    message = last["message"]
    assert message == shown(served, talk)[1]
    assert (message["content"], message["finish"]) == (SENTENCE, "stop")
    assert (message["parent"], message["model"]) == (question, "parrot")
    assert message["settings"] == {**drawn, "pair": "x"}
    *_, cut = events(served, talk, parent=question, model="endless", max_tokens=5)
    assert cut["message"]["finish"] == "length"
    assert cut["message"]["settings"]["seed"] >= 0
    assert [each["parent"] for each in shown(served, talk)[1:]] == [question] * 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OperationalError("", {}, Exception("disk I/O error")), "database_unavailable"),
        (RuntimeError("anything else"), "internal_error"),
    ],
)
def test_an_answer_that_cannot_be_kept_ends_with_an_error(
    kept: tuple[Running, Store], monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    """Its readers are not left waiting, and the page does not take it for kept."""
    served, store = kept
    talk, question = ask(served)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(store, "add_message", fails)
    found = list(events(served, talk, parent=question, model="parrot"))
    assert found[-1]["error"]["code"] == code
    assert not any("message" in each for each in found)


def test_a_stopped_answer_is_kept_as_far_as_it_was_written(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless")
    name = next(stream)["answer"]
    written = next(stream)["delta"]
    assert HTTP.post(f"{served.address}/api/answers/{name}/stop").status_code == 200
    rest = list(stream)
    written += "".join(each.get("delta", "") for each in rest)
    assert rest[-1]["message"]["finish"] == "stopped"
    assert rest[-1]["message"]["content"] == written
    assert shown(served, talk)[1]["content"] == written
    assert HTTP.post(f"{served.address}/api/answers/{name}/stop").status_code == 404


def test_an_answer_goes_on_without_its_reader_and_is_joined_again(
    kept: tuple[Running, Store],
) -> None:
    served, _ = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless", note={"pair": "x"})
    opening, first = next(stream), next(stream)["delta"]
    stream.close()  # type: ignore[attr-defined]
    found = HTTP.get(f"{served.address}/api/conversations/{talk}").json()["answers"]
    assert found == [opening]
    assert (opening["parent"], opening["model"]) == (question, "endless")
    assert opening["note"] == {"pair": "x"}
    path = f"{served.address}/api/answers/{opening['answer']}"
    one, two = streamed("GET", path), streamed("GET", path)
    assert next(one) == next(two) == opening
    assert next(one)["delta"].startswith(first)
    time.sleep(1.2)  # it has readers, so its time does not run
    assert HTTP.post(f"{path}/stop").status_code == 200
    *deltas, last = two
    text = "".join(each["delta"] for each in deltas)
    assert last["message"]["content"] == text
    assert list(one)[-1] == last
    assert HTTP.get(path).status_code == 404
    shows = HTTP.get(f"{served.address}/api/conversations/{talk}").json()
    assert shows["answers"] == []
    assert shows["messages"][1] == last["message"]


def test_an_answer_that_nobody_comes_back_for_ends_and_is_kept(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless")
    written = [next(stream), next(stream), next(stream)][-1]["delta"]
    stream.close()  # type: ignore[attr-defined]
    scheduler = served.engine.models["endless"].scheduler
    deadline = time.monotonic() + 10
    while len(found := shown(served, talk)) < 2 or scheduler.active:  # freed at the next step
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert written in found[1]["content"]
    assert found[1]["finish"] == "stopped"


def test_an_answer_that_fails_is_kept_as_far_as_it_came(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless")
    next(stream), next(stream)
    threading.Timer(0.02, served.engine.thread.fail_all, [shutting_down()]).start()
    *_, message, error = stream
    assert error["error"]["code"] == "shutting_down"
    assert message["message"]["finish"] == "error"
    assert shown(served, talk)[1] == message["message"]


def test_mistakes(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    other, _ = ask(served)
    *_, last = events(served, talk, parent=question, model="parrot")

    def refused(name: str, **body: Any) -> int:
        path = f"{served.address}/api/conversations/{name}/answers"
        return int(HTTP.post(path, json=body).status_code)

    assert refused(other, parent=question) == 404
    assert refused(talk, parent=999_999) == 404
    assert refused(talk, parent=last["message"]["id"]) == 400
    assert refused(talk, parent=question, model="none") == 404
    assert refused(talk, parent=question, temperature=-1) == 400
    assert refused(talk, parent=question, max_tokens=0) == 400
    assert len(shown(served, talk)) == 2


def test_what_is_deleted_meanwhile_stays_deleted(kept: tuple[Running, Store]) -> None:
    served, store = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless", max_tokens=200)
    next(stream), next(stream)
    HTTP.delete(f"{served.address}/api/conversations/{talk}")
    assert list(stream)[-1] == {"message": None}
    assert talk not in [each.id for each in store.conversations(store.person("owner").id)]


def test_the_oldest_messages_are_left_out_of_what_does_not_fit(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, last = ask(served, words(150))
    for _turn in range(3):
        last = add(served, talk, last, words(30), "assistant")
        last = add(served, talk, last, words(150))
    opening, *_, told = events(served, talk, parent=last, model="parrot")
    assert opening["dropped"] == 3
    assert told["message"]["settings"]["dropped"] == 3
    assert told["message"]["content"] == SENTENCE
    talk, short = ask(served)
    opening, *_, told = events(served, talk, parent=short, model="parrot")
    assert opening["dropped"] == 0
    assert "dropped" not in told["message"]["settings"]


def test_a_turn_of_thousands_of_messages_is_tokenized_a_few_times(
    kept: tuple[Running, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, _ = kept
    rows = [{"messages": [{"id": n + 1, "parent": n or None, "role": "user", "content": "tea"}
                          for n in range(4_000)]}]  # fmt: skip
    found = HTTP.post(f"{served.address}/api/imports", json={"name": "a", "rows": rows}).json()
    talk, tries = found["conversations"][0]["id"], 0

    def counted(*given: Any) -> Any:
        nonlocal tries
        tries += 1
        return encode_prompt(*given)

    monkeypatch.setattr("lmsmith.server.api.answers.encode_prompt", counted)
    last = shown(served, talk)[-1]["id"]
    opening, *_, told = events(served, talk, parent=last, model="parrot")
    assert told["message"]["content"] == SENTENCE
    assert 4_000 - CONTEXT < opening["dropped"] < 4_000 - 1
    assert tries <= 14  # and not one for each message


def test_a_message_without_an_answer_blocks_nothing(
    kept: tuple[Running, Store], tmp_path: Any
) -> None:
    served, store = kept
    talk, long = ask(served, words(2 * CONTEXT))
    path = f"{served.address}/api/conversations/{talk}/answers"
    refused = HTTP.post(path, json={"parent": long, "model": "parrot"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    # One goes on after it, and again; what does not fit is left out, what does is read.
    more = add(served, talk, add(served, talk, long, "hello?"), "are you there?")
    opening, *_, told = events(served, talk, parent=more, model="parrot")
    assert opening["dropped"] == 1
    assert told["message"]["content"] == SENTENCE
    liked = f"{served.address}/api/messages/{told['message']['id']}/rating"
    assert HTTP.put(liked, json={"value": 1}).status_code == 200
    export(store, tmp_path, with_liked=True)
    rows = (tmp_path / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    said = json.loads(rows[-1])["messages"]
    assert [each["role"] for each in said] == ["user", "assistant"]
    assert said[0]["content"].endswith("hello?\n\nare you there?")
