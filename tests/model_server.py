"""A small OpenAI-compatible server for tests, which fails in the ways that a test names."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"
TEXT = ["I like", " rain é你", "🙂\n", " and tea"]
"""Pieces of every reply."""


class ModelServer:
    """What it is asked, and how it answers the next requests.

    Attributes:
        failures: for each of the next requests to write: (status, headers, body).
        ends: how a stream ends: ``done``, ``cut``, ``silent``, ``error``, ``json``.
        pause: seconds before each piece.
        bodies: of requests to write.
        hung_up: is set when a client has left in the middle of a stream.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.models: list[dict[str, Any]] = [{"id": "org/big", "max_model_len": 2048}]
        self.failures: list[tuple[int, dict[str, str], Any]] = []
        self.ends, self.pause, self.usage, self.key = "done", 0.0, True, ""
        self.text = TEXT
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.hung_up = threading.Event()


@contextmanager
def model_server() -> Iterator[ModelServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refused(self) -> bool:
            given = self.headers.get("Authorization", "")
            if state.key and given != f"Bearer {state.key}":
                said = f"Incorrect API key provided: {given}"
                self.send(401, {"error": {"message": said, "code": "invalid_api_key"}})
                return True
            return False

        def do_GET(self) -> None:
            if not self.refused():
                self.send(200, {"object": "list", "data": state.models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.refused():
                return
            state.bodies.append(body)
            state.paths.append(self.path)
            if state.failures:
                status, headers, content = state.failures.pop(0)
                self.send(status, content, headers)
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

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state = ModelServer(f"openai:http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
