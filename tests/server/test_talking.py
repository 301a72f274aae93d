"""Answers in conversations: streamed, kept before they are acknowledged, stopped, cut off."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from worlds import HTTP, SENTENCE, Running, parrot, running

from lmsmith.feedback.store import Store
from lmsmith.server.answering import Serving
from lmsmith.server.errors import shutting_down


def slowly(serving: Serving) -> None:
    """Each step of the endless parrot takes a while, so that it can be stopped in its midst."""
    scheduler = serving.models["endless"].scheduler
    step = scheduler.step

    def slow() -> Any:
        time.sleep(0.005)
        return step()

    scheduler.step = slow  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Store]]:
    store = Store(tmp_path_factory.mktemp("store") / "feedback.db")
    models = {"parrot": parrot(), "endless": parrot(for_ever=True)}
    with running(models, store=store, prepare=slowly) as served:
        yield served, store
    store.close()


def ask(served: Running, text: str = "hello") -> tuple[str, int]:
    """A conversation, and its user's message."""
    talk = HTTP.post(f"{served.address}/api/conversations", json={}).json()["id"]
    said = {"role": "user", "content": text}
    path = f"{served.address}/api/conversations/{talk}/messages"
    return talk, HTTP.post(path, json=said).json()["id"]


def events(served: Running, talk: str, **body: Any) -> Iterator[dict[str, Any]]:
    path = f"{served.address}/api/conversations/{talk}/answers"
    with HTTP.stream("POST", path, json=body) as response:
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


def test_a_reader_who_hangs_up_finds_what_was_written(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless")
    written = [next(stream), next(stream), next(stream)][-1]["delta"]
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while len(found := shown(served, talk)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert written in found[1]["content"]
    assert found[1]["finish"] == "stopped"
    assert served.serving.models["endless"].scheduler.active == 0


def test_an_answer_that_fails_is_kept_as_far_as_it_came(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless")
    next(stream), next(stream)
    threading.Timer(0.02, served.serving.worker.fail_all, [shutting_down()]).start()
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
    long, longest = ask(served, "tea " * 600)
    assert refused(long, parent=longest) == 400
    assert len(shown(served, talk)) == 2


def test_what_is_deleted_meanwhile_stays_deleted(kept: tuple[Running, Store]) -> None:
    served, store = kept
    talk, question = ask(served)
    stream = events(served, talk, parent=question, model="endless", max_tokens=200)
    next(stream), next(stream)
    HTTP.delete(f"{served.address}/api/conversations/{talk}")
    assert list(stream)[-1] == {"message": None}
    assert talk not in [each.id for each in store.conversations(store.person("owner").id)]
