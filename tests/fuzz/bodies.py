"""Bodies of the server's requests, and a server in the process that answers one."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch

from lmsmith.catalogue.reading import ReadModel
from lmsmith.catalogue.resolve import Source
from lmsmith.core.recipe import MachineConfig
from lmsmith.feedback.store import Store
from lmsmith.models.config import ModelConfig
from lmsmith.server.app import create_app
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.models import serve_models
from lmsmith.server.requests import Limits
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine
from tiny_models import TEXTS, random_decoder

TALK = [{"role": "user", "content": "hello"}]
SAMPLING = {
    "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "n": 1, "stop": ["a"], "seed": 1,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": 1.0}, "top_k": 5,
    "min_p": 0.01, "repetition_penalty": 1.1, "user": "me",
}  # fmt: skip
PARENT, ANSWER, TALK_ID = "@@parent@@", "@@answer@@", "@@talk@@"
"""In a path or body: the number of a user's message, of its answer, and the conversation's name."""

BODIES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/chat/completions", {"model": "tiny", "messages": TALK, **SAMPLING}),
    ("POST", "/v1/chat/completions", {"messages": TALK, "logprobs": True, "top_logprobs": 2}
     | {"max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}),
    ("POST", "/v1/chat/completions", {"max_tokens": 2, "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]}, *TALK]}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "hello", "logprobs": 2, "echo": True}
     | SAMPLING),
    ("POST", "/v1/completions", {"prompt": [[5, 6, 7], [8]], "max_tokens": 2}),
    ("POST", "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "ignore_eos": True}),
    ("POST", "/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("POST", "/tokenize", {"messages": TALK}),
    ("POST", "/detokenize", {"tokens": [5, 6, 7]}),
    ("POST", "/api/attention", {"messages": TALK, "layer": 0, "head": 0}),
    ("POST", "/api/conversations", {"title": "mine"}),
    ("PATCH", f"/api/conversations/{TALK_ID}", {"title": "other"}),
    ("POST", f"/api/conversations/{TALK_ID}/messages",
     {"parent": ANSWER, "role": "user", "content": "more", "settings": {"top_p": 0.5}}),
    ("POST", f"/api/conversations/{TALK_ID}/answers",
     {"parent": PARENT, "temperature": 0.5, "max_tokens": 2, "seed": 3}),
    ("PUT", f"/api/messages/{ANSWER}/rating", {"value": 1, "reasons": ["good"], "comment": "a"}),
    ("PUT", f"/api/messages/{ANSWER}/better", {"content": "better"}),
    ("POST", "/api/comparisons", {"left": ANSWER, "right": ANSWER, "verdict": "tie"}),
    ("PUT", "/api/me/settings", {"compares": True}),
    ("POST", "/api/imports", {"name": "a.jsonl", "first": 1, "rows": [
        {"messages": [*TALK, {"role": "assistant", "content": "hi"}]},
        {"title": "t", "messages": [
            {"id": 1, "parent": None, "role": "user", "content": "a"},
            {"id": 2, "parent": 1, "role": "assistant", "content": "b", "better": "c",
             "rating": {"value": -1}}]}]}),
    ("POST", "/api/label/next", {"kind": "ranking"}),
    ("PUT", "/api/label/guidelines/ranking", {"text": "Be kind.", "content": "Be kind."}),
    ("POST", "/api/versions/tiny/promote", {"number": 1, "reason": "a"}),
    ("POST", "/api/versions/tiny/trial", {"number": 1, "share": 0.5}),
    ("POST", "/api/session", {"token": "abc"}),
]  # fmt: skip

_served: dict[str, Any] = {}


def prepare(root: Path) -> None:
    """A model to serve, and an empty database, made once."""
    tokenizer = Tokenizer.train(TEXTS, 300)
    decoder = random_decoder(ModelConfig(1, 16, 2, 64, tokenizer.vocabulary_size))
    machine = resolve_machine(MachineConfig(precision="fp32", threads=1))
    read = ReadModel(decoder, tokenizer, Source("lmsmith", Path("nowhere"), "tiny"), {})
    _served["models"] = lambda: serve_models(
        {"tiny": read},
        machine=machine,
        weights="model",
        draft="",
        memory_bytes=4_000_000,
        streams=4,
    )
    root.mkdir(parents=True, exist_ok=True)
    Store(root / "empty.db").close()
    torch.set_num_threads(1)


def send(root: Path, folder: Path) -> None:
    """Put all bodies to a server; AssertionError for an answer of 500, or of another shape."""
    asyncio.run(_send(root, folder))


async def _send(root: Path, folder: Path) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(  # type: ignore[method-assign]
        record.getMessage()
        + ("".join(traceback.format_exception(*record.exc_info)) if record.exc_info else "")
    )
    log = logging.getLogger("lmsmith.server")
    log.addHandler(handler)
    shutil.copy(root / "empty.db", folder / "talk.db")
    store = Store(folder / "talk.db")
    engine = AsyncEngine(_served["models"](), Limits(streams=4, queue=64, seconds=15))
    app = create_app(engine, store)
    async with _lifespan(app):
        names = await _begun(app)
        for number, (method, path, _) in enumerate(BODIES):
            body = (folder / f"{number:02}.json").read_bytes()
            for mark, value in names.items():
                body = body.replace(f'"{mark}"'.encode(), json.dumps(value).encode())
                path = path.replace(mark, str(value))
            status, content = await _call(app, method, path, body)
            where = f"body {number:02}: {method} {path}: {status}"
            if status >= 500 and status != 503:
                raise AssertionError(f"{where} {content[:500]!r}\n{''.join(said)}")
            if status >= 400 and b'"error"' not in content:
                raise AssertionError(f"{where}, in another shape: {content[:500]!r}")
    store.close()
    log.removeHandler(handler)


async def _begun(app: Any) -> dict[str, Any]:
    """A conversation of one question and its answer."""
    _, made = await _call(app, "POST", "/api/conversations", b"{}")
    name = json.loads(made)["id"]
    place, parent, found = f"/api/conversations/{name}/messages", None, []
    for role in ("user", "assistant"):
        body = json.dumps({"role": role, "content": "hello", "parent": parent}).encode()
        _, made = await _call(app, "POST", place, body)
        parent = json.loads(made)["id"]
        found.append(parent)
    return {TALK_ID: name, PARENT: found[0], ANSWER: found[1]}


async def _call(app: Any, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers.append((b"content-length", str(len(body)).encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 80), "state": {},
    }  # fmt: skip
    status, content, waiting = 0, b"", [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def sent(message: Any) -> None:
        nonlocal status, content
        if message["type"] == "http.response.start":
            status = message["status"]
        content += message.get("body", b"")

    await app(scope, receive, sent)
    return status, content


class _lifespan:
    """Start and stop an application as a server does."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.to_app: asyncio.Queue[Any] = asyncio.Queue()
        self.from_app: asyncio.Queue[Any] = asyncio.Queue()

    async def __aenter__(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self.task = asyncio.ensure_future(self.app(scope, self.to_app.get, self.from_app.put))
        await self.to_app.put({"type": "lifespan.startup"})
        started = await self.from_app.get()
        assert started["type"] == "lifespan.startup.complete", started

    async def __aexit__(self, *_: object) -> None:
        await self.to_app.put({"type": "lifespan.shutdown"})
        await self.from_app.get()
        await self.task
