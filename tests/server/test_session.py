"""Signing in: a token once, then a cookie; and what is shown to whom."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import RANDOM, Running, running

from lmsmith.server.session import COOKIE, SECONDS, Sessions, session_cookie


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with running({"random": RANDOM}, token="secret") as served:
        yield served


@pytest.fixture
def browser(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.address, trust_env=False) as client:
        yield client


def test_a_token_gives_a_cookie_that_opens_the_api_until_it_is_given_back(
    browser: httpx.Client,
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
    browser.delete("/api/session")
    assert browser.get("/v1/models").status_code == 401


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


def test_a_session_ends_and_is_bound_to_its_token() -> None:
    now = 1000.0
    sessions = Sessions("a", lambda: now)
    cookie = sessions.begin()
    assert sessions.is_open(cookie)
    assert Sessions("a", lambda: now).is_open(cookie)
    assert not Sessions("b", lambda: now).is_open(cookie)
    now += SECONDS
    assert not sessions.is_open(cookie)


@given(st.text(max_size=100))
def test_no_other_cookie_is_open(cookie: str) -> None:
    sessions = Sessions("a", lambda: 1000.0)
    assert not sessions.is_open(cookie)
    end, _, signature = sessions.begin().partition(".")
    assert not sessions.is_open(f"{end}0.{signature}")
    session_cookie(cookie)


def test_the_session_is_found_among_other_cookies() -> None:
    assert session_cookie(f"a=1; {COOKIE}=2.x; b=3") == "2.x"
    assert session_cookie("a=1") == ""
