"""/api: a talk is kept as a tree, judged, exported, and deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worlds import HTTP, RANDOM, Running, running

from lmsmith.feedback.export import export
from lmsmith.feedback.store import Store


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Store]]:
    store = Store(tmp_path_factory.mktemp("store") / "feedback.db")
    with running({"random": RANDOM}, store=store) as served:
        yield served, store
    store.close()


def call(served: Running, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    response = HTTP.request(method, f"{served.address}/api/{path}", json=body)
    assert response.status_code == status, response.text
    found = response.json()
    if status != 200:
        assert set(found["error"]) == {"message", "type", "param", "code"}
    return found


HALF = "half \ud83d"


def halved(body: Any, escaped: bool) -> bytes:
    """JSON with half of an emoji, escaped or as it is."""
    text = json.dumps(body, ensure_ascii=escaped)
    assert (r"\ud83d" in text) == escaped
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "conversations", {"title": HALF}),
        ("PATCH", "conversations/TALK", {"title": HALF}),
        ("POST", "conversations/TALK/messages", {"role": "user", "content": HALF, "model": HALF}),
        (
            "POST",
            "conversations/TALK/messages",
            {"role": "user", "content": "a", "settings": {HALF: HALF}, HALF: [HALF]},
        ),
        (
            "PUT",
            "messages/1/rating",
            {"value": -1, "reasons": [HALF], "comment": HALF},
        ),
        ("PUT", "messages/1/better", {"content": HALF}),
    ],
)
def test_half_an_emoji_is_kept_as_the_replacement_character(
    kept: tuple[Running, Store], tmp_path: Path, method: str, path: str, body: Any, escaped: bool
) -> None:
    served, store = kept
    talk = call(served, "POST", "conversations", {"title": "halves"})["id"]
    said = {"parent": None, "role": "user", "content": "a"}
    asked = call(served, "POST", f"conversations/{talk}/messages", said)["id"]
    answer = {"parent": asked, "role": "assistant", "content": "b", "model": "random"}
    number = call(served, "POST", f"conversations/{talk}/messages", answer)["id"]
    place = path.replace("TALK", talk).replace("/1/", f"/{number}/")
    response = HTTP.request(
        method,
        f"{served.address}/api/{place}",
        content=halved(body, escaped),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 200, response.text
    shown = HTTP.get(f"{served.address}/api/conversations/{talk}")
    assert shown.status_code == 200
    listed = HTTP.get(f"{served.address}/api/conversations").text
    if body != {"title": "a"} and "settings" not in body:
        assert "half \ufffd" in shown.text + listed
    export(store, tmp_path)
    call(served, "DELETE", f"conversations/{talk}")


def test_a_talk_is_kept_judged_exported_and_deleted(
    kept: tuple[Running, Store], tmp_path: Path
) -> None:
    served, store = kept
    talk = call(served, "POST", "conversations", {"title": "drinks"})["id"]

    def say(parent: int | None, role: str, content: str, **more: Any) -> int:
        body = {"parent": parent, "role": role, "content": content, **more}
        number: int = call(served, "POST", f"conversations/{talk}/messages", body)["id"]
        return number

    question = say(None, "user", "tea? 你好")
    left = say(question, "assistant", "yes", model="random", settings={"seed": 3}, finish="stop")
    right = say(question, "assistant", "no", model="random")
    call(served, "PUT", f"messages/{left}/rating", {"value": -1, "reasons": ["too short"]})
    call(served, "PUT", f"messages/{left}/better", {"content": "yes, I like tea"})
    verdict = {"left": left, "right": right, "verdict": "left"}
    assert call(served, "POST", "comparisons", verdict) == verdict
    shown = call(served, "GET", f"conversations/{talk}")["messages"]
    assert [(m["id"], m["parent"]) for m in shown] == [
        (question, None), (left, question), (right, question),
    ]  # fmt: skip
    assert shown[1]["rating"] == {"value": -1, "reasons": ["too short"], "comment": ""}
    assert shown[1]["better"] == "yes, I like tea"
    assert shown[1]["settings"] == {"seed": 3}
    assert shown[1]["created"].endswith("+00:00")
    assert "rating" not in shown[2]
    call(served, "PATCH", f"conversations/{talk}", {"title": "hot drinks"})
    (listed,) = call(served, "GET", "conversations?search=你好")["conversations"]
    assert listed["title"] == "hot drinks"
    assert call(served, "GET", "conversations?search=coffee")["conversations"] == []
    counts = export(store, tmp_path / "out")
    assert (counts["conversations.jsonl"], counts["rankings.jsonl"]) == (1, 2)
    assert call(served, "DELETE", f"conversations/{talk}") == {"deleted": talk}
    call(served, "GET", f"conversations/{talk}", status=404)
    assert export(store, tmp_path / "out")["rankings.jsonl"] == 0


def test_mistakes(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    talk = call(served, "POST", "conversations", {})["id"]
    path = f"conversations/{talk}/messages"
    question = call(served, "POST", path, {"role": "user", "content": "x"})["id"]
    call(served, "POST", path, {"role": "system", "content": "x", "parent": question}, 400)
    call(served, "POST", path, {"role": "king", "content": "x"}, 400)
    call(served, "POST", path, {"role": "user", "content": "x", "parent": 10**30}, 400)
    call(served, "POST", path, {"role": "user", "content": "x", "parent": 999}, 404)
    call(served, "POST", "conversations/none/messages", {"role": "user", "content": "x"}, 404)
    call(served, "PUT", f"messages/{question}/rating", {"value": 1}, 400)
    call(served, "PUT", "messages/999/rating", {"value": 1}, 404)
    call(served, "PUT", "messages/x/rating", {"value": 1}, 400)
    call(served, "PUT", f"messages/{question}/rating", {"value": 2}, 400)
    call(served, "POST", "comparisons", {"left": 1, "right": 1, "verdict": "tie"}, 400)
    call(served, "PATCH", "conversations/none", {"title": "x"}, 404)
    call(served, "DELETE", "conversations/none", status=404)


FORGED = "m\nbest 100 %\r\x1b[2J\u202e\u200f\u2028\x85"


def test_names_and_titles_are_one_line_and_no_commands(kept: tuple[Running, Store]) -> None:
    served, _ = kept
    made = call(served, "POST", "conversations", {"title": FORGED})
    renamed = call(served, "PATCH", f"conversations/{made['id']}", {"title": FORGED})
    path = f"conversations/{made['id']}/messages"
    asked = call(served, "POST", path, {"role": "user", "content": "a\nb"})
    body = {"role": "assistant", "content": FORGED, "model": FORGED, "parent": asked["id"]}
    answer = call(served, "POST", path, body | {"settings": {FORGED: FORGED}})
    row = {"title": FORGED, "messages": [{**asked}, {**answer, "rating": None}]}
    found = call(served, "POST", "imports", {"name": FORGED, "rows": [row]})
    title = found["conversations"][0]["title"]
    rated = {"value": 1, "reasons": [FORGED]}
    call(served, "PUT", f"messages/{answer['id']}/rating", rated)
    listed = call(served, "GET", f"conversations/{made['id']}")["messages"][1]
    names = [made["title"], renamed["title"], title, answer["model"], *answer["settings"]]
    for name in (*names, *answer["settings"].values(), *listed["rating"]["reasons"]):
        assert name.startswith("m\ufffdbest 100 %")
        assert not set(name) & set("\n\r\x1b\u202e\u200f\u2028\x85")
    assert answer["content"] == FORGED  # what was said stays as it is
    raw = HTTP.get(f"{served.address}/api/conversations/{made['id']}").content.decode()
    assert len(raw.splitlines()) == 1
