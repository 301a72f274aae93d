"""A server under clients that come, go and hang up, for as long as it is told, and then killed.

Each client is a person with a token of their own, and does one thing after another, drawn by
chance: a talk at once or streamed, hanging up in the midst of it or before it, completions,
keeping, judging and deleting conversations, rating and ranking what the labelling queue gives.
Every answer is checked. Two things are no errors: 429 with Retry-After, and what breaks by the
final `kill -9`, which comes in the midst of all of it. Then the server is started again on the same
database, and whatever it had acknowledged must be there, and nothing that was deleted.

With ``--greedy`` there is one more client, who asks for 256 prompts, 16 replies to each and as many
tokens as the context holds, again and again (`greedy.py`). The others are measured without it and
with it, on one server: their wait for a first token may double, none of them may get a 429, and
afterwards the memory returns.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json as json_module
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from served import Server, asked, serving, tiny_model

Count = Annotated[int, tyro.conf.arg(metavar="N")]

PATIENCE = 60.0
"""Seconds after which an answer counts as none; being refused with 429 is an answer."""

GROWTH = 0.03
"""Share that the memory may grow by, from the second quarter of the time to the last."""

TASKS = 1_000
"""Tasks of each kind in the queue, each to be done by every client."""

SAMPLES = 60
"""Looks at the memory."""

WORDS = "what do you like I rain and tea said the cat é 你 🙂".split()  # noqa: SIM905


def main(
    minutes: float = 30.0,
    clients: Count = 32,
    model: str = "",
    database: str = "",
    streams: Count = 16,
    queue: Count = 8,
    seed: Count = 0,
    greedy: bool = False,
    json: bool = False,
) -> int:
    """Run clients against a server, kill it, and count errors, memory and what was lost.

    Example: python benchmarks/soak.py --minutes 30 --clients 32

    Args:
        minutes: How long.
        clients: At the same time.
        model: A name or a path; a tiny one of random weights if it is left out.
        database: A file that does not exist, or the URL of an empty one; a temporary file if it
            is left out.
        streams: Replies that the server writes together.
        queue: Requests that may wait; the others get 429.
        seed: Of what the clients do.
        greedy: Measure what one greedy client costs the others, in place of the kill: a quarter of
            the time before it, half of it beside it, and a quarter after it.
        json: Print one JSON object instead of text.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = model or str(tiny_model(Path(folder)))
        database = database or f"{folder}/soak.db"
        if greedy:
            from greedy import measured, show_greedy

            found = measured(path, database, minutes * 60, clients, streams, seed)
            print(json_module.dumps(found, indent=2)) if json else show_greedy(found)
            return 0 if found["passed"] else 1
        soak = Soak(let_in(database, clients))
        words = [
            f"m={path}", "--database", database,
            "--streams", str(streams), "--queue", str(queue), "--memory", "0" if model else "0.2",
        ]  # fmt: skip
        with serving(*words) as server:
            asyncio.run(soak.run(server, minutes * 60, seed))
        with serving(*words) as server:
            lost = asyncio.run(soak.what_is_lost(server))
    growth = grown(soak.memory)
    result = {
        "minutes": minutes,
        "clients": clients,
        "done": dict(sorted(soak.done.items())),
        "refused_429": soak.refused,
        "errors": dict(soak.errors),
        "memory_mb": [round(bytes_ / 1e6, 1) for bytes_ in soak.memory],
        "memory_growth": growth,
        "acknowledged": len(soak.kept),
        "deleted": len(soak.deleted),
        "labels": len(soak.labels),
        "lost": lost,
    }
    if json:
        print(json_module.dumps(result, indent=2))
    else:
        show(result)
    return 1 if soak.errors or lost or growth > GROWTH else 0


def let_in(database: str, clients: int) -> list[str]:
    """The tokens of as many labelers, the first of whom is an admin, with work in their queue."""
    from lmsmith.feedback.people import People
    from lmsmith.feedback.queue import Queue
    from lmsmith.feedback.store import Store

    store = Store(database)
    people, queue = People(store), Queue(store)
    tokens = [
        people.add(f"client {number}", "labeler" if number else "admin")
        for number in range(clients)
    ]
    for number in range(TASKS):
        queue.add("rating", f"what of {number}?", [f"tea {number}"], overlap=clients)
        replies = [f"{word} {number}" for word in ("rain", "tea", "é", "🙂")]
        queue.add("ranking", f"which of {number}?", replies, overlap=clients)
    store.close()
    return tokens


def grown(memory: list[int]) -> float:
    """By what share the last quarter's median is above the second quarter's; the first warms up."""
    quarter = len(memory) // 4
    if not quarter:
        return 0.0
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    return statistics.median(late) / statistics.median(early) - 1


def show(result: dict[str, Any]) -> None:
    memory = result["memory_mb"]
    print(f"{result['minutes']:g} minutes, {result['clients']} clients")
    print("done: " + ", ".join(f"{count} {what}" for what, count in result["done"].items()))
    print(f"refused with 429 and Retry-After: {result['refused_429']}")
    print(f"errors: {result['errors'] or 'none'}")
    if memory:
        print(
            f"memory: {memory[0]} MB at first, {max(memory)} at most, {memory[-1]} at last; "
            f"last quarter over second {100 * result['memory_growth']:+.1f} %"
        )
    print(
        f"after kill -9: {result['acknowledged']} acknowledged, {result['deleted']} deleted, "
        f"{result['labels']} labels, {len(result['lost'])} lost or come back "
        f"{result['lost'][:5] or ''}"
    )


class Unexpected(Exception):
    """An answer that should not be; its text is its kind."""


@dataclass
class Soak:
    """What the clients did and saw.

    Attributes:
        tokens: of the clients.
        done: what → how often.
        errors: kind → how often.
        memory: bytes of the server, over time.
        kept: (conversation, message) → what the server acknowledged of it.
        owner: conversation → the number of the client whose it is.
        deleted: conversations that it said were gone.
        labels: (client, assignment) → the answer that it acknowledged.
        over: whether the server was killed.
    """

    tokens: list[str]
    done: collections.Counter[str] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: int = 0
    memory: list[int] = field(default_factory=list)
    kept: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    owner: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    labels: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    in_doubt: set[str] = field(default_factory=set)
    over: bool = False

    async def run(self, server: Server, seconds: float, seed: int) -> None:
        """Let them go on until the time is over, and kill the server in the midst of it."""
        tasks = [
            asyncio.create_task(Client(self, server.port, number, seed).live())
            for number in range(len(self.tokens))
        ]
        status, started = Console(stderr=True), time.monotonic()
        for look in range(SAMPLES):
            await asyncio.sleep(
                max(0.0, started + seconds * (look + 1) / SAMPLES - time.monotonic())
            )
            if server.process.poll() is not None:
                self.errors["the server ended"] += 1
                break
            self.memory.append(server.memory())
            if look % 6 == 5:
                status.print(
                    f"{(time.monotonic() - started) / 60:.1f} min: {self.done.total()} done, "
                    f"{self.memory[-1] / 1e6:.0f} MB, errors {dict(self.errors) or 'none'}"
                )
        self.over = True
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def what_is_lost(self, server: Server) -> list[str]:
        """What was acknowledged and is not there, and what was deleted and is."""
        lost = []
        shown: dict[str, dict[int, dict[str, Any]]] = {}
        for (talk, number), wanted in self.kept.items():
            if talk in self.in_doubt or talk in self.deleted:
                continue
            if talk not in shown:
                _, found = await self._seen(server, self.owner[talk], f"conversations/{talk}")
                shown[talk] = {message["id"]: message for message in found.get("messages", [])}
            message = shown[talk].get(number, {})
            if any(message.get(name) != value for name, value in wanted.items()):
                lost.append(f"{talk}/{number}: {wanted}, found {message}")
        for talk in self.deleted:
            status, _ = await self._seen(server, self.owner[talk], f"conversations/{talk}")
            if status != 404:
                lost.append(f"{talk} is back")
        for (client, number), wanted in self.labels.items():
            _, found = await self._seen(server, client, f"label/assignments/{number}")
            answer = found.get("answer", {})
            if found.get("state") != "done" or any(answer.get(k) != v for k, v in wanted.items()):
                lost.append(f"label {number} of client {client}: {wanted}, found {found}")
        return lost

    async def _seen(self, server: Server, client: int, path: str) -> tuple[int, dict[str, Any]]:
        """What the server shows a client."""
        headers = {"Authorization": f"Bearer {self.tokens[client]}"}
        async with asked(server.port, "GET", f"/api/{path}", headers=headers) as response:
            return response.status, await response.json()


class Client:
    """Somebody who does one thing after another."""

    def __init__(self, soak: Soak, port: int, number: int, seed: int) -> None:
        self._soak, self._port, self._number = soak, port, number
        self._source = random.Random(seed * 1000 + number)
        self._headers = {"Authorization": f"Bearer {soak.tokens[number]}"}

    async def live(self) -> None:
        ways: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (3, self.whole_answer), (4, self.stream), (3, self.hang_up_in_a_stream),
            (2, self.hang_up_before), (2, self.completions), (3, self.keep), (1, self.delete),
            (2, self.label), (1, self.look),
        ]  # fmt: skip
        weights, actions = zip(*ways, strict=True)
        while not self._soak.over:
            action = self._source.choices(actions, weights)[0]
            try:
                async with asyncio.timeout(PATIENCE) as self._patience:
                    await action()
                self._count(self._soak.done, action.__name__)
            except Unexpected as error:
                self._count(self._soak.errors, f"{action.__name__}: {error}")
            except TimeoutError:
                self._count(self._soak.errors, f"{action.__name__}: no answer")
            except (OSError, EOFError, ValueError, KeyError) as error:
                self._count(self._soak.errors, f"{action.__name__}: {type(error).__name__} {error}")
            await asyncio.sleep(self._source.expovariate(20))

    def _count(self, counter: collections.Counter[str], what: str) -> None:
        if not self._soak.over:
            counter[what] += 1

    def _words(self, most: int) -> str:
        return " ".join(self._source.choices(WORDS, k=self._source.randint(1, most)))

    def _question(self, **more: Any) -> dict[str, Any]:
        # Many begin alike, so that what is kept of a conversation is used again.
        said = f"{WORDS[self._source.randrange(3)]} " * 40 + self._words(60)
        return {
            "messages": [{"role": "user", "content": said}],
            "max_tokens": self._source.randint(1, 40), **more,
        }  # fmt: skip

    @contextlib.asynccontextmanager
    async def _asked(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of status 200; 429 is waited for."""
        while True:
            async with asked(self._port, method, path, body, self._headers) as response:
                if response.status == 200:
                    yield response
                    return
                error = (await response.json())["error"]
                if response.status != 429 or "retry-after" not in response.headers:
                    raise Unexpected(f"{response.status} {error['code']}")
                self._soak.refused += 1
            await asyncio.sleep(self._source.uniform(0.05, 1))
            self._patience.reschedule(asyncio.get_running_loop().time() + PATIENCE)

    async def _json(self, method: str, path: str, body: Any = None) -> Any:
        async with self._asked(method, path, body) as response:
            return await response.json()

    async def whole_answer(self) -> None:
        found = await self._json("POST", "/v1/chat/completions", self._question(n=2))
        if len(found["choices"]) != 2 or not all(c["finish_reason"] for c in found["choices"]):
            raise Unexpected("not whole")

    async def stream(self) -> None:
        body = self._question(stream=True, stream_options={"include_usage": True})
        finish, last = None, {}
        async with self._asked("POST", "/v1/chat/completions", body) as response:
            async for event in response.events():
                if event is None:
                    if finish is None or not last.get("usage"):
                        raise Unexpected("a stream without its end or usage")
                    return
                if "error" in event:
                    raise Unexpected(f"in the stream: {event['error']['code']}")
                last = event
                for choice in event["choices"]:
                    finish = choice["finish_reason"] or finish
        raise Unexpected("a stream without [DONE]")

    async def hang_up_in_a_stream(self) -> None:
        body = self._question(stream=True, ignore_eos=True)
        left = self._source.randint(1, 10)
        async with self._asked("POST", "/v1/chat/completions", body) as response:
            async for event in response.events():
                left -= 1
                if event is None or left == 0:
                    return

    async def hang_up_before(self) -> None:
        body = self._question(stream=self._source.random() < 0.5, ignore_eos=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._source.uniform(0, 0.05)):
                path = "/v1/chat/completions"
                async with asked(self._port, "POST", path, body, self._headers):
                    pass

    async def completions(self) -> None:
        prompts = [self._words(30) for _ in range(self._source.randint(1, 4))]
        body = {"prompt": prompts, "max_tokens": 5, "echo": True, "logprobs": 1}
        found = await self._json("POST", "/v1/completions", body)
        echoed = [
            choice["text"].startswith(p)
            for choice, p in zip(found["choices"], prompts, strict=True)
        ]
        if not all(echoed) or len(echoed) != len(prompts):
            raise Unexpected("another's completions")

    async def keep(self) -> None:
        """A talk of some turns in the database, with judgements."""
        talk = (await self._json("POST", "/api/conversations", {"title": self._words(5)}))["id"]
        self._soak.owner[talk] = self._number
        parent = None
        for turn in range(2 * self._source.randint(1, 3)):
            role = "assistant" if turn % 2 else "user"
            body = {"role": role, "parent": parent, "content": self._words(40)}
            path = f"/api/conversations/{talk}/messages"
            parent = int((await self._json("POST", path, body))["id"])
            self._soak.kept[talk, parent] = {"role": role, "content": body["content"]}
            if role == "assistant":
                await self._judge(talk, parent)

    async def _judge(self, talk: str, message: int) -> None:
        kept = self._soak.kept[talk, message]
        better = self._words(20)
        await self._json("PUT", f"/api/messages/{message}/better", {"content": better})
        kept["better"] = better
        rating = {"value": self._source.choice([-1, 1]), "reasons": [], "comment": self._words(3)}
        await self._json("PUT", f"/api/messages/{message}/rating", rating)
        kept["rating"] = rating

    async def delete(self) -> None:
        """One of the talks that this client kept."""
        talks = [
            talk
            for talk, owner in self._soak.owner.items()
            if owner == self._number and talk not in self._soak.in_doubt
        ]
        if talks:
            talk = self._source.choice(talks)
            self._soak.in_doubt.add(talk)  # until it is acknowledged
            await self._json("DELETE", f"/api/conversations/{talk}")
            self._soak.deleted.add(talk)

    async def label(self) -> None:
        """The next task of the queue: a draft at times, then the answer, or it is skipped."""
        task = (await self._json("POST", "/api/label/next"))["task"]
        if task is None:
            return
        path = f"/api/label/assignments/{task['id']}"
        comment = self._words(5)
        if task["kind"] == "ranking":
            drawn = [self._source.randrange(4) for _ in task["responses"]]
            order = sorted(set(drawn))
            said: dict[str, Any] = {"ranks": [order.index(rank) + 1 for rank in drawn]}
        else:
            said = {"score": self._source.randint(1, 7)}
        said["comment"] = comment
        if self._source.random() < 0.3:
            await self._json("PUT", f"{path}/draft", said)
        if self._source.random() < 0.1:
            await self._json("POST", f"{path}/skip", {"reason": comment})
            return
        await self._json("PUT", path, said)
        self._soak.labels[self._number, task["id"]] = said

    async def look(self) -> None:
        await self._json("GET", "/v1/models")
        found = await self._json("POST", "/tokenize", {"prompt": self._words(20)})
        if found["count"] != len(found["tokens"]):
            raise Unexpected("a wrong count")
        for path in ("/health",) if self._number else ("/health", "/metrics"):
            async with self._asked("GET", path) as response:
                await response.body()


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
