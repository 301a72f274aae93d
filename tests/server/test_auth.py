"""Signing in: a token once, then a cookie; and what is shown to whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from worlds import RANDOM, Running, running

from lmsmith.core.errors import UserError
from lmsmith.feedback import people as feedback_people
from lmsmith.feedback import tables
from lmsmith.feedback.people import SESSION_DAYS, People
from lmsmith.feedback.store import Store
from lmsmith.server.auth import (
    COOKIE,
    Authenticator,
    Visitor,
    session_cookie,
)
from lmsmith.server.wrong_tokens import LOOKING_UP


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server that asks for a token."""
    with running({"random": RANDOM}, token="secret") as served:
        yield served


@pytest.fixture
def browser(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.address, trust_env=False) as client:
        yield client


def test_a_token_gives_a_cookie_that_opens_the_api_until_it_is_given_back(
    locked: Running, browser: httpx.Client
) -> None:
    shown = browser.get("/api/session").json()
    assert shown == {"signed_in": False, "needs_token": True}
    assert browser.get("/v1/models").status_code == 401
    answer = browser.post("/api/session", json={"token": "secret"})
    assert answer.json()["signed_in"]
    said = answer.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert "secret" not in said
    assert browser.get("/v1/models").status_code == 200
    assert browser.get("/api/session").json()["signed_in"]
    copied, other = dict(browser.cookies), httpx.Client(base_url=locked.address, trust_env=False)
    other.post("/api/session", json={"token": "secret"})
    browser.delete("/api/session")
    assert browser.get("/v1/models").status_code == 401
    browser.cookies.update(copied)  # kept by whoever copied it
    assert browser.get("/v1/models").status_code == 401
    assert not browser.get("/api/session").json()["signed_in"]
    assert other.get("/v1/models").status_code == 200  # signed out of one browser alone
    other.close()


def test_a_wrong_token_gives_nothing(browser: httpx.Client) -> None:
    for token in ("", "Secret", "secret ", "\ud800"):
        body = f'{{"token": "{token}"}}' if token != "\ud800" else '{"token": "\\ud800"}'
        answer = browser.post(
            "/api/session", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code in (400, 401)
        assert "set-cookie" not in answer.headers
    wrong = {"authorization": "Bearer wrong"}
    browser.post("/api/session", json={"token": "secret"})
    assert browser.get("/v1/models", headers=wrong).status_code == 401


def test_another_page_cannot_sign_in(browser: httpx.Client) -> None:
    answer = browser.post(
        "/api/session", json={"token": "secret"}, headers={"origin": "http://elsewhere.example"}
    )
    assert answer.status_code == 403


def test_without_a_token_everybody_is_in(served: Running) -> None:
    shown = httpx.get(f"{served.address}/api/session", trust_env=False).json()
    assert shown == {
        "signed_in": True, "needs_token": False, "name": "owner", "role": "admin",
    }  # fmt: skip


def test_a_session_ends_when_its_time_is_over_or_when_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "feedback.db")
    people, ann = People(store), store.person("Ann").id
    cookie, other = people.open_session(ann), people.open_session(ann)
    assert people.by_session(cookie)
    people.close_session(other)
    assert not people.by_session(other)
    assert people.by_session(cookie)
    later = tables.now() + timedelta(days=SESSION_DAYS)
    monkeypatch.setattr(feedback_people, "now", lambda: later)
    assert not people.by_session(cookie)
    store.close()


def _asked(authenticator: Authenticator, cookie: str) -> Visitor | None:
    return asyncio.run(authenticator.authenticate(Headers({"cookie": f"{COOKIE}={cookie}"}), ""))


def _cookie(authenticator: Authenticator, token: str) -> str:
    found = asyncio.run(authenticator.sign_in(token, ""))
    assert found is not None
    return found[0]


def test_cookies_of_one_address_have_few_turns_at_the_database(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    authenticator, at_once, most = Authenticator("a", store), 0, 0

    def by_session(cookie: str, token: str = "") -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1

    async def guess(address: str) -> None:
        wrong = Headers({"cookie": f"{COOKIE}=a.b"})
        await asyncio.gather(
            *(authenticator.authenticate(wrong, address) for _ in range(9)),
            *(authenticator.sign_out(wrong, address) for _ in range(9)),
        )

    authenticator._people.by_session = by_session  # type: ignore[method-assign,assignment]
    asyncio.run(guess("192.0.2.1"))
    assert most == LOOKING_UP
    store.close()


def test_the_owners_session_is_bound_to_the_servers_token(tmp_path: Path) -> None:
    """It outlives the server, ends with its token, and opens nothing once there is none."""
    store = Store(tmp_path / "feedback.db")
    cookie = _cookie(Authenticator("a", store), "a")
    assert _asked(Authenticator("a", store), cookie) == Visitor()
    assert _asked(Authenticator("b", store), cookie) is None
    People(store).add("Ann", "user")
    assert _asked(Authenticator("", store), cookie) is None
    assert _asked(Authenticator("a", store), cookie) == Visitor()
    asyncio.run(Authenticator("a", store).sign_out(Headers({"cookie": f"{COOKIE}={cookie}"}), ""))
    assert _asked(Authenticator("a", store), cookie) is None
    store.close()


def test_nobody_slips_in_while_it_is_looked_whether_there_are_people(tmp_path: Path) -> None:
    """The first requests of a server come together, and all of them wait for the answer."""
    store = Store(tmp_path / "feedback.db")
    People(store).add("Ann", "user")
    authenticator = Authenticator("", store)

    async def together() -> list[Visitor | None]:
        return await asyncio.gather(
            *(authenticator.authenticate(Headers({}), "") for _ in range(8))
        )

    assert asyncio.run(together()) == [None] * 8
    store.close()


def test_a_house_that_is_open_gives_no_cookie_that_would_open_it_later(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    assert _cookie(Authenticator("", store), "") == ""
    store.close()


def test_a_persons_sessions_end_with_their_role_their_token_or_themselves(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.db")
    people, authenticator = People(store), Authenticator("", store)
    tokens = {name: people.add(name, "user") for name in ("Ann", "Bob", "Cleo", "Dan")}
    cookies = {name: _cookie(authenticator, token) for name, token in tokens.items()}
    people.change("Ann", "labeler")
    people.renew("Bob")
    people.remove("Cleo")
    found = {name: _asked(authenticator, cookie) for name, cookie in cookies.items()}
    assert [name for name, visitor in found.items() if visitor is not None] == ["Dan"]
    visitor = _asked(authenticator, _cookie(authenticator, tokens["Ann"]))
    assert visitor is not None
    assert visitor.role == "labeler"
    with pytest.raises(UserError, match="role"):
        people.change("Ann", "king")
    store.close()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    store = Store(tmp_path_factory.mktemp("store") / "feedback.db")
    yield People(store)
    store.close()


@given(st.text(max_size=100))
def test_no_other_cookie_is_open(people: People, cookie: str) -> None:
    opened = people.open_session(people.store.person("Ann").id)
    assert not people.by_session(cookie)
    assert not people.by_session(opened[:-1] + cookie[:3] + ".")
    session_cookie(cookie)


def test_the_session_is_found_among_other_cookies() -> None:
    assert session_cookie(f"a=1; {COOKIE}=2.x; b=3") == "2.x"
    assert session_cookie("a=1") == ""


def test_a_cookie_full_of_escapes_is_read_in_one_pass() -> None:
    """The time of http.cookies grew with the square of the length: seconds for a header."""
    header = f'{COOKIE}="' + "\\" * 31_000 + '"'
    assert session_cookie(header) == header.partition("=")[2]
