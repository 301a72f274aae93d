"""lmsmith serve as a process: it says where it is, drains when it is told to end, and exits 0."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from lmsmith import cli
from lmsmith.core.files import write_jsonl
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Message
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer

pytest.importorskip("fastapi")
SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer.train(["hello there, how are you?"] * 4, 300)
    decoder = Decoder(ModelConfig(1, 16, 2, 2000, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(0))
    save_model(folder, decoder, tokenizer, {})
    return folder


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The process, once it is ready, and what it has said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lmsmith", "serve", *words],
        env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "LMSMITH_TOKEN": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "is ready" in line:
                break
        yield process, said
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_sigterm_finishes_what_was_begun(model: Path) -> None:
    words = ["one=" + str(model), str(model), "--port", "0", "--memory", "0.1"]
    with serving(*words) as (process, said):
        told = r"one: context 2,000, weights \d+ kB, cache [45]\d\.\d MB \("
        assert re.match(told, said[0]), said[0]
        assert said[1].startswith("tiny: ")
        address = said[-1].split("/v1")[0]
        with urllib.request.urlopen(f"{address}/v1/models") as response:
            assert [each["id"] for each in json.load(response)["data"]] == ["one", "tiny"]
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": True,
                           "ignore_eos": True, "max_tokens": 300}).encode()  # fmt: skip
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=120) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            received = client.recv(100)
            process.send_signal(signal.SIGTERM)
            while part := client.recv(65536):
                received += part
        assert b"data: [DONE]" in received
        assert b'"finish_reason":"length"' in received
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_address_that_is_printed_can_be_opened(model: Path, host: str, tmp_path: Path) -> None:
    token = "Pq7-vN2xT9_kLw4ZsB"
    words = ("--port", "0", "--host", host, "--token", token, "--database", str(tmp_path / "x.db"))
    with serving(str(model), *words) as (_, said):
        address = said[-1].split("/v1")[0]
        assert host not in address.replace("[::1]", "")
        assert f"the chat page is at {address}" in "".join(said) or "not built" in "".join(said)
        with urllib.request.urlopen(f"{address}/health") as response:
            assert response.status == 200


def test_the_first_user_does_not_lock_the_owner_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = str(tmp_path / "my data.db")
    users = ["--database", database, "--json"]

    def call(path: str, token: str = "", **body: object) -> Any:
        asked = urllib.request.Request(
            f"{address}/api/{path}",
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(asked) as response:
            return json.load(response)

    with serving(str(model), "--port", "0", "--database", database) as (_, said):
        address = said[-1].split("/v1")[0]
        talk = call("conversations", title="mine")["id"]
        assert cli.main(["users", "add", "Ann", "--role", "labeler", *users]) == 0
        made = json.loads(capsys.readouterr().out)
        time.sleep(1.1)  # the server looks again
        assert call("session") == {"signed_in": False, "needs_token": True}
        assert call("session", made["token"])["role"] == "labeler"
        assert call("session", made["owner_token"])["role"] == "admin"
        (found,) = call("conversations", made["owner_token"])["conversations"]
        assert found["id"] == talk
        assert call("label/statistics", made["owner_token"])["tasks"]
        assert cli.main(["users", "add", "Bob", *users]) == 0
        assert "owner_token" not in json.loads(capsys.readouterr().out)
    assert cli.main(["users", "rm", "owner", "--database", database]) == 0
    advice = f"lmsmith users add owner --role admin --database '{database}'"
    assert advice in capsys.readouterr().out
    with serving(str(model), "--port", "0", "--database", database) as (_, said):
        assert f"no admin can sign in; make one: {advice}\n" in said


def test_what_was_acknowledged_survives_a_kill(model: Path, database: str) -> None:
    """Four clients write; the server is killed as soon as twenty messages are acknowledged."""
    kept: list[tuple[str, int, str]] = []

    def call(address: str, path: str, body: dict[str, object]) -> dict[str, Any]:
        asked = urllib.request.Request(
            f"{address}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def write(address: str, name: int) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the kill
            talk = call(address, "conversations", {})["id"]
            for number in range(1000):
                body = {"role": "user", "content": f"é {name} {number}"}
                made = call(address, f"conversations/{talk}/messages", body)
                kept.append((talk, made["id"], f"é {name} {number}"))

    with serving(str(model), "--port", "0", "--database", database) as (process, said):
        address = said[-1].split("/v1")[0]
        threads = [threading.Thread(target=write, args=(address, name)) for name in range(4)]
        for thread in threads:
            thread.start()
        while len(kept) < 20:
            assert any(thread.is_alive() for thread in threads)
            time.sleep(0.001)
        process.kill()
        for thread in threads:
            thread.join()
    store = Store(database)
    with store.session() as session:
        there = {(m.conversation_id, m.id, m.content) for m in session.scalars(select(Message))}
    store.close()
    assert set(kept) <= there
    assert len(there) <= len(kept) + 4  # of each client at most one that was on its way


class Labeler:
    """Somebody who judges without end, and notes what the server has acknowledged.

    Attributes:
        said: what → what was last said of it, and last acknowledged.
    """

    def __init__(self, address: str, token: str, number: int) -> None:
        self._address, self._token, self._number = address, token, number
        self.said: dict[str, list[object]] = {}
        self.acknowledged = 0

    def call(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        asked = urllib.request.Request(
            f"{self._address}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:  # which is an OSError, and no kill
            raise AssertionError(f"{path}: {error.code} {error.read()!r}") from None

    def _keep(
        self, what: str, value: object, method: str, path: str, body: dict[str, object]
    ) -> None:
        before = self.said.get(what, [None])[-1]
        self.said[what] = [before, value]
        self.call(method, path, body)
        self.said[what] = [value]
        self.acknowledged += 1

    def live(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the kill
            for turn in itertools.count():
                self._judge(turn, f"é {self._number} {turn}")
                self._talk(turn, f"talk {self._number} {turn}")

    def _judge(self, turn: int, word: str) -> None:
        kind = ("demonstration", "rating", "ranking")[turn % 3]
        task = self.call("POST", f"label/next?kind={kind}")["task"]["id"]
        path = f"label/assignments/{task}"
        self.said.setdefault(path, [["open", None]])
        half: dict[str, object] = (
            {"content": word} if kind == "demonstration" else {"comment": word}
        )
        self._keep(path, ["open", word], "PUT", f"{path}/draft", half)
        if turn % 4 == 3:
            self._keep(path, ["skipped", word], "POST", f"{path}/skip", {"reason": word})
            return
        whole: dict[str, dict[str, object]] = {
            "demonstration": {"content": word + "!"},
            "rating": {"score": 1 + turn % 7, "comment": word + "!"},
            "ranking": {"ranks": [2, 1, 3, 2], "comment": word + "!"},
        }
        self._keep(path, ["done", word + "!"], "PUT", path, whole[kind])

    def _talk(self, turn: int, word: str) -> None:
        talk = self.call("POST", "conversations", {})["id"]
        path = f"conversations/{talk}/messages"
        asked = self.call("POST", path, {"role": "user", "content": word})["id"]
        left, right = (
            self.call("POST", path, {"role": "assistant", "content": each, "parent": asked})["id"]
            for each in ("left", "right")
        )
        for what, method, name, body in (
            ("rating", "PUT", f"messages/{left}/rating", {"value": 1, "comment": word}),
            ("better", "PUT", f"messages/{left}/better", {"content": word}),
            ("verdict", "POST", "comparisons", {"left": left, "right": right, "verdict": "tie"}),
        ):
            self._keep(f"{talk} {left} {what}", word, method, name, body)

    def lost(self) -> list[str]:
        """What was acknowledged and is not there."""
        lost = []
        for what, wanted in self.said.items():
            if what.startswith("label/"):
                found = self.call("GET", what)
                answer = found["answer"]
                word = answer.get("content") or answer.get("comment")
                there = [found["state"], found["reason"] if found["state"] == "skipped" else word]
            else:
                talk, message, part = what.split()
                messages = self.call("GET", f"conversations/{talk}")["messages"]
                (judged,) = (each for each in messages if each["id"] == int(message))
                there = {
                    "rating": judged.get("rating", {}).get("comment"),
                    "better": judged.get("better"),
                    "verdict": messages[0]["content"] if judged.get("comparisons") else None,
                }[part]
            if there not in wanted:
                lost.append(f"{what}: {wanted}, found {there}")
        return lost


def test_labels_that_were_acknowledged_survive_a_kill(
    model: Path, database: str, tmp_path: Path
) -> None:
    """Four labelers draft, submit, skip, rate, compare and rewrite; the server is killed in the
    midst of it and started again."""
    store = Store(database)
    tokens = [People(store).add(f"labeler {number}", "labeler") for number in range(4)]
    prompts = [{"prompt": f"question {number}"} for number in range(100)]
    rows = [
        {**prompt, **more}
        for prompt in prompts
        for more in ({}, {"responses": ["a"]}, {"responses": ["a", "b", "c", "d"]})
    ]
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    import_file(store, tmp_path / "tasks.jsonl", person="import", overlap=2)
    store.close()
    words = (str(model), "--port", "0", "--database", database)
    with serving(*words) as (process, said):
        address = said[-1].split("/v1")[0]
        people = [Labeler(address, token, number) for number, token in enumerate(tokens)]
        threads = [threading.Thread(target=each.live) for each in people]
        for thread in threads:
            thread.start()
        while min(each.acknowledged for each in people) < 20:
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.001)
        process.kill()
        for thread in threads:
            thread.join()
    with serving(*words) as (_, said):
        for each in people:
            each._address = said[-1].split("/v1")[0]
            assert len(each.said) > 10
            assert each.lost() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{model}", "--host", "0.0.0.0"], "LMSMITH_TOKEN"),
        (["{model}", "{model}"], "two models are called tiny"),
        (["nothing-like-this"], "nothing-like-this"),
        (["{model}", "--streams", "0"], "streams"),
        (["{model}", "--memory", "0.0001"], "no room for tiny"),
        (["{model}", "--port", "99999"], "no such port"),
        (["{model}", "--port", "{taken}"], "cannot listen"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("LMSMITH_TOKEN", raising=False)
    if "--port" not in words:
        words = [*words, "--port", "0"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        words = [word.format(model=model, taken=taken) for word in words]
        assert cli.main(["serve", *words]) == 2
    assert message in capsys.readouterr().err
