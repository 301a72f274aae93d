"""A small OpenAI-compatible server for tests, which fails in the ways that a test names."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loopback import JSONHandler, serving

KEY = "sk-secret-0123456789"
TEXT = ["I like", " rain é你", "🙂\n", " and tea"]
"""Pieces of every reply."""


class ModelServer:
    """What it is asked, and how it answers the next requests.

    Attributes:
        failures: for each of the next requests to write: (status, headers, body).
        ends: how a stream ends: ``done``, ``cut``, ``silent``, ``error``, ``json``.
        raw: type and content of the next replies, where they are given.
        pause: seconds before each piece.
        bodies: of requests to write.
        listed: in place of the list of models.
        hung_up: is set when a client has left in the middle of a stream.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.models: list[dict[str, Any]] = [{"id": "org/big", "max_model_len": 2048}]
        self.failures: list[tuple[int, dict[str, str], Any]] = []
        self.ends, self.pause, self.usage, self.key = "done", 0.0, True, ""
        self.text = TEXT
        self.raw: tuple[str, bytes] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.listed: dict[str, Any] = {}
        self.hung_up = threading.Event()


@contextmanager
def model_server() -> Iterator[ModelServer]:
    class Handler(JSONHandler):
        def refused(self) -> bool:
            given = self.headers.get("Authorization", "")
            if state.key and given != f"Bearer {state.key}":
                said = f"Incorrect API key provided: {given}"
                self.send({"error": {"message": said, "code": "invalid_api_key"}}, 401)
                return True
            return False

        def do_GET(self) -> None:
            if not self.refused():
                self.send(state.listed or {"object": "list", "data": state.models})

        def do_POST(self) -> None:
            body = self.body()
            if self.refused():
                return
            state.bodies.append(body)
            state.paths.append(self.path)
            if state.failures:
                status, headers, content = state.failures.pop(0)
                self.send(content, status, headers)
                return
            if state.raw is not None:
                kind, content = state.raw
                self.send(content, headers={"Content-Type": kind})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self.stream("messages" in body)
            except OSError:
                state.hung_up.set()
            self.close_connection = True

        def event(self, data: bytes) -> None:
            line = b"data: " + data + b"\n\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            self.wfile.flush()

        def stream(self, is_chat: bool) -> None:
            for number, piece in enumerate(state.text):
                time.sleep(state.pause)
                if number == 2 and state.ends != "done":
                    break
                part = {"delta": {"content": piece}} if is_chat else {"text": piece}
                self.event(json.dumps({"choices": [{"index": 0, **part}]}).encode())
            if state.ends == "cut":
                return
            if state.ends == "silent":
                time.sleep(1.5)
                return
            if state.ends == "json":
                self.event(b'{"choices": [')
            if state.ends == "error":
                self.event(json.dumps({"error": {"message": f"no memory; {KEY}"}}).encode())
            last = {"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}
            self.event(json.dumps({"choices": [last]}).encode())
            if state.usage:
                counts = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
                self.event(json.dumps({"choices": [], "usage": counts}).encode())
            self.event(b"[DONE]")
            self.wfile.write(b"0\r\n\r\n")

    with serving(Handler) as url:
        state = ModelServer(f"openai:{url}/v1")
        yield state
