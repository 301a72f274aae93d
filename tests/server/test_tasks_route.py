"""/v1/tasks: a task of one's own over HTTP: as `lmsmith tasks run`; nobody is harmed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from worlds import CONTEXT, HTTP, RANDOM, TOKENIZER, Running, read, running, words

from lmsmith.catalogue.resolve import Source
from lmsmith.cli import main
from lmsmith.core.paths import tasks_folder
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.functions import TextFunction
from lmsmith.evaluation.model import make_evaluated_model
from lmsmith.evaluation.tasks.data import read_data
from lmsmith.evaluation.tasks.shipped import user_tasks
from lmsmith.generation.scheduler import Scheduler
from lmsmith.models.folder import save_model
from lmsmith.server.requests import Limits
from lmsmith.training.machine import resolve_machine

LABELS = ["rain", "some tea", "the cat, it said", "é你"]
TEXTS = ["I like tea", "what do you like? é你🙂", "", "rain rain rain", "<|endoftext|> cat"]


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tasks of the owner's own: with labels, with many labels, and one that writes."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    rows = [{"input": f"what {n}? I like {label}", "label": label} for n, label in
            enumerate(LABELS * 3)]  # fmt: skip
    add("kind", rows, "What {{ is }} it of?")
    many = [{"input": f"a {n}", "label": f"l{n}"} for n in range(21)]
    add("many", many, "Which?")
    add("writes", [{"input": "a", "output": "tea"}, {"input": "b", "output": "rain"}], "Say it.")
    return tmp_path / "tasks"


def add(name: str, rows: list[dict[str, str]], about: str) -> None:
    file = Path(f"{name}.jsonl")
    file = user_folder() / f"{name}-given.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["tasks", "add", name, about, str(file)]) == 0


def user_folder() -> Path:
    return tasks_folder().parent / "given"


def post(served: Running, name: str, body: Any, **options: Any) -> httpx.Response:
    headers = {"content-type": "application/json", **options.pop("headers", {})}
    url = f"{served.address}/v1/tasks/{name}"
    return HTTP.post(url, content=json.dumps(body), headers=headers, **options)


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.002)


def expected(name: str, texts: list[str]) -> list[dict[str, Any]]:
    """What the task gives by itself, on the same weights, in float32."""
    machine = resolve_machine(MachineConfig(precision="fp32"))
    task = user_tasks()[name]
    subject = make_subject_of_random(machine)
    return TextFunction(subject, task, read_data(task, [Path()]).items)(texts)


def make_subject_of_random(machine: Any) -> Any:
    folder = user_folder() / "model"
    save_model(folder, RANDOM, TOKENIZER, {})
    return make_evaluated_model(
        replace(read(RANDOM), source=Source("lmsmith", folder, "random")), machine
    )


@pytest.mark.parametrize("name", ["kind", "many"])
def test_labels_have_the_probabilities_of_task_run(served: Running, name: str) -> None:
    found = post(served, name, {"model": "random", "inputs": TEXTS})
    assert found.status_code == 200, found.text
    shown = found.json()
    assert (shown["object"], shown["task"], shown["model"]) == ("task.results", name, "random")
    for ours, theirs in zip(shown["results"], expected(name, TEXTS), strict=True):
        assert ours["input"] == theirs["input"]
        assert list(ours["probabilities"]) == list(theirs["probabilities"])
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-4)
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == ours["probabilities"][ours["label"]]
    # One text alone is the same; what its examples are has been read already.
    alone = post(served, name, {"model": "random", "input": TEXTS[1]}).json()
    (row,) = alone["results"]
    assert row["probabilities"] == pytest.approx(shown["results"][1]["probabilities"], abs=1e-4)
    assert alone["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert shown["usage"]["prompt_tokens_details"]["cached_tokens"] > 4 * 100


def test_a_line_is_written_as_task_run_writes_it(served: Running) -> None:
    found = post(served, "writes", {"model": "random", "inputs": TEXTS}).json()
    assert found["results"] == expected("writes", TEXTS)
    assert {"input", "output"} == set(found["results"][0])


def test_the_list_of_tasks(served: Running) -> None:
    found = HTTP.get(f"{served.address}/v1/tasks").json()
    assert [(each["id"], each["kind"]) for each in found["data"]] == [
        ("kind", "multiple_choice"),
        ("many", "multiple_choice"),
        ("writes", "free_form"),
    ]
    assert found["data"][0]["about"] == "What {{ is }} it of?"


@pytest.mark.parametrize(
    ("name", "body", "status", "param", "word"),
    [
        ("none", {"input": "x"}, 404, "task", "there is: kind, many, writes"),
        ("../../etc/passwd", {"input": "x"}, 404, None, ""),
        ("lambada", {"input": "x"}, 404, "task", "no task 'lambada'"),
        ("kind", {"input": "x", "model": "gpt-7"}, 404, "model", "gpt-7"),
        ("kind", {}, 400, "input", "either input"),
        ("kind", {"input": "x", "inputs": ["x"]}, 400, "input", "either input"),
        ("kind", {"inputs": []}, 400, "inputs", "at least 1"),
        ("kind", {"inputs": ["x", 3]}, 400, "inputs[1]", "string"),
        ("kind", {"input": ["x"]}, 400, "input", "string"),
        ("kind", {"inputs": ["x"] * 257}, 400, "inputs", "at most 256"),
        ("kind", {"input": words(CONTEXT)}, 400, "input", "context of 512"),
        ("kind", {"inputs": ["x", words(CONTEXT)]}, 400, "inputs[1]", "context of 512"),
        ("writes", {"input": words(CONTEXT - 40)}, 400, "input", "context of 512"),
    ],
)
def test_what_is_refused(
    served: Running, name: str, body: Any, status: int, param: str | None, word: str
) -> None:
    error = refused(post(served, name, body), status)
    assert error["param"] == param
    assert word in error["message"]
    wait_for(lambda: not served.engine.generations)
    assert served.engine.waiting == {"parrot": 0, "random": 0}


def test_a_task_that_cannot_be_read_is_the_servers_fault(
    served: Running, tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tasks / "kind.jsonl").unlink()
    error = refused(post(served, "kind", {"input": "x"}), 500)
    assert error["code"] == "task_unreadable"
    assert str(tasks) not in error["message"]
    assert str(tasks) in caplog.text
    (tasks / "kind.toml").write_text("what?")
    refused(HTTP.get(f"{served.address}/v1/tasks"), 500)


def test_a_task_of_two_passes_is_refused(served: Running, tasks: Path) -> None:
    text = (tasks / "writes.toml").read_text()
    changed = text.replace("[answer]", '[answer]\nreason = "Think."\nextraction = "So?"')
    assert changed != text
    (tasks / "writes.toml").write_text(changed)
    error = refused(post(served, "writes", {"input": "x"}), 400)
    assert error["code"] == "unsupported_task"


def test_token_and_length_of_the_body_are_as_elsewhere(served: Running) -> None:
    assert refused(post(served, "kind", {"input": "x" * (5 << 20)}), 413)
    with running({"random": RANDOM}, token="secret") as guarded:
        assert refused(post(guarded, "kind", {"input": "x"}), 401)
        assert refused(HTTP.get(f"{guarded.address}/v1/tasks"), 401)
        allowed = post(guarded, "kind", {"input": "x"}, headers={"authorization": "Bearer secret"})
        assert allowed.status_code == 200


class Hangup:
    """A client that asks by hand, and may hang up at any time."""

    def __init__(self, served: Running, path: str, body: Any) -> None:
        host, _, port = served.address.removeprefix("http://").partition(":")
        content = json.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.sendall((head + content).encode())


def chat(served: Running) -> Hangup:
    body = {"messages": [{"role": "user", "content": "tea"}], "stream": True, "ignore_eos": True}
    return Hangup(served, "/v1/chat/completions", {"model": "random", **body})


def test_who_hangs_up_stops_the_work() -> None:
    limits = Limits(streams=4, queue=300, seconds=60)
    with running({"random": RANDOM}, limits) as served:
        scheduler = served.engine.models["random"].scheduler
        submitted = 0
        submit = scheduler.submit

        def counted(request: Any) -> int:
            nonlocal submitted
            submitted += 1
            return submit(request)

        scheduler.submit = counted  # type: ignore[method-assign]
        client = Hangup(served, "/v1/tasks/kind", {"inputs": ["what is it?"] * 250})
        wait_for(lambda: submitted >= 3)
        client.socket.close()
        wait_for(lambda: scheduler.active == 0 and not served.engine.generations)
        seen = submitted
        assert seen < 240
        time.sleep(0.2)
        assert submitted == seen
        assert served.engine.waiting == {"random": 0}
        text = HTTP.get(f"{served.address}/metrics").text
        assert 'lmsmith_requests_cancelled_total{model="random"} 1.0' in text


def test_a_full_queue_is_429_but_not_in_the_midst() -> None:
    limits = Limits(streams=1, queue=1, seconds=60, drain_seconds=0)
    with running({"random": RANDOM}, limits) as served:
        scheduler = served.engine.models["random"].scheduler
        waiting = served.engine.waiting
        hanging = [chat(served)]
        wait_for(lambda: scheduler.active == 1 and waiting["random"] == 0)
        hanging.append(chat(served))
        wait_for(lambda: waiting["random"] == 1)
        response = post(served, "kind", {"input": "x"})
        assert refused(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        for each in hanging:
            each.socket.close()
        wait_for(lambda: scheduler.active == 0)
        # One that was let in is finished, whoever waits meanwhile.
        asked: list[bool] = []

        def full(_: str, person: str = "") -> bool:
            asked.append(True)
            return len(asked) > 1

        served.engine.is_full = full  # type: ignore[method-assign]
        found = post(served, "kind", {"inputs": ["x"] * 3})
        assert found.status_code == 200, found.text
        assert len(found.json()["results"]) == 3
        assert asked == [True]


def test_time_and_the_end_of_the_server() -> None:
    with running({"random": RANDOM}, Limits(streams=4, seconds=0.3)) as served:
        assert refused(post(served, "many", {"inputs": ["x"] * 250}), 504)["code"] == "timeout"
        wait_for(lambda: not served.engine.models["random"].scheduler.busy)
        served.engine.draining = True
        assert refused(post(served, "kind", {"input": "x"}), 503)["code"] == "shutting_down"


def test_streams_go_on_between_the_pieces(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step reads more of a task's texts than of any prompt: 256 tokens beside a reply."""
    longest: list[int] = []
    scheduler, step = served.engine.models["random"].scheduler, Scheduler._chunks

    def seen(self: Scheduler) -> Any:
        beside, pieces = bool(self._decoding), step(self)
        if beside:
            longest.append(sum(len(tokens) for _, (_, tokens) in pieces))
        return pieces

    monkeypatch.setattr(Scheduler, "_chunks", seen)
    talking = chat(served)
    wait_for(lambda: scheduler.active == 1)
    found = post(served, "kind", {"model": "random", "inputs": [words(60)] * 8})
    assert found.status_code == 200
    assert 0 < max(longest) <= 256 + 128
    talking.socket.close()
