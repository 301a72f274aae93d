"""Tokens cannot be guessed: how long they are, how fast they are tried, and who waits for it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from worlds import HTTP, RANDOM, running

from lmsmith.core.errors import UserError
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.server import serve as module
from lmsmith.server.errors import ApiError
from lmsmith.server.token_strength import ADVICE, weakness
from lmsmith.server.wrong_tokens import (
    FREE,
    LONGEST_SECONDS,
    MOST_KNOWN,
    MOST_WAITING,
    WrongTokens,
)

RIGHT, GUESSABLE = "right", "guessable"


class Door:
    """Wrong tokens by a clock of the test's own."""

    def __init__(self) -> None:
        self.now, self.wrong = 0.0, WrongTokens()
        self.wrong._clock, self.wrong._sleep = lambda: self.now, self._sleep

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds

    async def give(self, address: str, token: str) -> str | None:
        async def at_once() -> str | None:
            return "Ann" if token == RIGHT else None

        def in_turn() -> str | None:
            return "owner" if token == GUESSABLE else None

        return await self.wrong.check(address, token, at_once, in_turn)


def test_a_right_token_is_let_in_whatever_others_try() -> None:
    async def run() -> None:
        door, waiting = Door(), asyncio.Event()

        async def sleep(seconds: float) -> None:
            await waiting.wait()

        for _ in range(FREE + 5):
            await door.give("192.0.2.1", "wrong")
        door.wrong._sleep = sleep
        guesses = [asyncio.ensure_future(door.give("192.0.2.1", f"{n}")) for n in range(500)]
        await asyncio.sleep(0.01)
        assert await door.give("192.0.2.1", RIGHT) == "Ann"
        answered = [each for each in guesses if each.done()]
        assert len(answered) == 500 - MOST_WAITING  # 429, right or wrong unknown
        assert all(isinstance(each.exception(), ApiError) for each in answered)
        waiting.set()
        await asyncio.gather(*guesses, return_exceptions=True)

    asyncio.run(run())


def test_the_delay_grows_by_address() -> None:
    async def run() -> None:
        door, moments = Door(), [0.0]
        for number in range(12):
            assert await door.give("192.0.2.1", f"guess {number}") is None
            moments.append(door.now)
        waits = [b - a for a, b in itertools.pairwise(moments)]
        assert waits[:FREE] == [0] * FREE
        assert waits[FREE:] == sorted(waits[FREE:])
        assert waits[-1] == LONGEST_SECONDS
        before = door.now
        assert await door.give("192.0.2.2", RIGHT) == "Ann"  # nobody else waits
        assert await door.give("192.0.2.3", "wrong") is None
        assert door.now == before
        assert await door.give("192.0.2.1", RIGHT) == "Ann"
        assert door.now == before
        assert await door.give("192.0.2.1", GUESSABLE) == "owner"  # late, but not locked out
        assert door.now == before + LONGEST_SECONDS
        assert await door.give("192.0.2.1", GUESSABLE) == "owner"  # known from there now
        assert door.now == before + LONGEST_SECONDS

    asyncio.run(run())


def test_a_network_of_ipv6_is_one_address() -> None:
    async def run() -> None:
        door = Door()
        for number in range(40):
            await door.give(f"2001:db8::{number + 1:x}", "wrong")
        assert door.now > 20 * LONGEST_SECONDS

    asyncio.run(run())


def test_attempts_at_once_are_tried_in_turn_or_refused() -> None:
    async def run() -> None:
        door, tried = Door(), 0

        async def never() -> None:
            await asyncio.sleep(0)

        def check() -> None:
            nonlocal tried
            tried += 1

        for _ in range(FREE):
            await door.give("192.0.2.1", "wrong")
        go_on = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await go_on.wait()

        door.wrong._sleep = sleep
        tries = [
            asyncio.ensure_future(door.wrong.check("192.0.2.1", f"guess {n}", never, check))
            for n in range(1000)
        ]
        while sum(each.done() for each in tries) < 1000 - MOST_WAITING:
            await asyncio.sleep(0.01)
        go_on.set()
        found = await asyncio.gather(*tries, return_exceptions=True)
        assert tried == MOST_WAITING
        refused = [each for each in found if isinstance(each, ApiError)]
        assert len(refused) == 1000 - MOST_WAITING
        assert refused[0].status == 429
        assert "Retry-After" in refused[0].headers

    asyncio.run(run())


def test_the_first_attempts_at_once_are_no_way_around() -> None:
    async def run() -> None:
        door = Door()
        found = await asyncio.gather(*(door.give("192.0.2.1", f"guess {n}") for n in range(50)))
        assert found == [None] * 50
        assert door.now > 30 * LONGEST_SECONDS

    asyncio.run(run())


def test_what_is_remembered_is_bounded() -> None:
    async def run() -> None:
        door = Door()
        for number in range(MOST_KNOWN + 500):
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            await door.give(address, GUESSABLE if number % 2 else "wrong")
        assert len(door.wrong._attempts) <= MOST_KNOWN
        assert len(door.wrong._right) <= MOST_KNOWN

    asyncio.run(run())


def test_a_jump_of_the_clock_changes_no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, slept = WrongTokens(), list[float]()

    async def run() -> None:
        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        async def check() -> None:
            return None

        wrong._sleep = sleep  # type: ignore[assignment]
        for number in range(6):
            jump = 10.0**9 if number % 2 else -(10.0**9)
            monkeypatch.setattr(time, "time", lambda jump=jump: jump)
            await wrong.check("192.0.2.1", f"guess {number}", check)

    asyncio.run(run())
    assert slept == sorted(slept)
    assert len(slept) == 6 - FREE


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_weak_token_is_refused_where_others_reach_it(
    host: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = str(tmp_path / "x.db")
    with pytest.raises(UserError, match="weak") as refused:
        module.serve(["nothing"], host=host, token="a", database=database)
    monkeypatch.setenv("LMSMITH_TOKEN", "1234")
    with pytest.raises(UserError, match="weak"):
        module.serve(["nothing"], host=host, database=database)
    assert ADVICE in str(refused.value)
    code = ADVICE.split('"')[1]
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not weakness(made.stdout.strip())


def test_guesses_over_http_become_slow_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    token = secrets.token_urlsafe(24)
    with running({"random": RANDOM}, token=token) as served:
        good = {"authorization": f"Bearer {token}"}
        assert HTTP.get(f"{served.address}/v1/models", headers=good).status_code == 200
        for number in range(FREE):
            wrong = {"authorization": f"Bearer guess{number}"}
            assert HTTP.get(f"{served.address}/v1/models", headers=wrong).status_code == 401
        asked = list[float]()

        async def sleep(seconds: float) -> None:
            asked.append(seconds)

        served.server.config.loaded_app._authenticator._wrong._sleep = sleep
        for number in range(3):
            body = {"token": f"other{number}"}
            assert HTTP.post(f"{served.address}/api/session", json=body).status_code == 401
        assert asked == [0.25, 0.5, 1.0]
        assert HTTP.get(f"{served.address}/v1/models", headers=good).status_code == 200
        assert asked == [0.25, 0.5, 1.0]
    lines = [each.getMessage() for each in caplog.records if "wrong token" in each.getMessage()]
    assert len(lines) == FREE + 3
    assert "127.0.0.1" in lines[0]
    assert "guess" not in caplog.text


@pytest.mark.parametrize("weak", [False, True])
def test_a_new_token_gets_in_while_others_guess(tmp_path: Path, weak: bool) -> None:
    """Nothing was right from this address before; 40 guesses wait or were refused."""
    store = Store(tmp_path / "feedback.db")
    ann = People(store).add("Ann", "user")
    server = "a" if weak else secrets.token_urlsafe(24)
    with running({"random": RANDOM}, store=store, token=server) as served:
        authenticator = served.server.config.loaded_app._authenticator
        authenticator._is_random = not weak
        address = f"{served.address}/v1/models"

        def guess(number: int) -> int:
            wrong = {"authorization": f"Bearer x{number}"}
            return HTTP.get(address, headers=wrong, timeout=60).status_code

        with ThreadPoolExecutor(40) as pool:
            guesses = [pool.submit(guess, number) for number in range(40)]
            while authenticator._wrong._attempts.get("127.0.0.1") is None or (
                authenticator._wrong._attempts["127.0.0.1"].waiting < MOST_WAITING
            ):
                time.sleep(0.01)
            for token in (ann, *([] if weak else [server])):
                good = {"authorization": f"Bearer {token}"}
                assert HTTP.get(address, headers=good).status_code == 200
                body = {"token": token}
                found = HTTP.post(f"{served.address}/api/session", json=body)
                assert found.status_code == 200
            assert any(not each.done() for each in guesses)

            async def sleep(seconds: float) -> None:
                pass

            authenticator._wrong._sleep = sleep
        assert {each.result() for each in guesses} <= {401, 429}
    store.close()
