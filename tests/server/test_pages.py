"""The page is given to everybody, with a strict policy; its parts are kept by browsers."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from worlds import RANDOM, Running, running

from lmsmith.server import pages


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    (folder / "assets").mkdir()
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    (folder / "assets/index-abc.js").write_text("export const x = 1;" * 50)
    return folder


@pytest.fixture
def address(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    found = pages.assets(built)
    monkeypatch.setattr(pages, "assets", lambda: found)
    with running({"random": RANDOM}, token="secret") as served:
        yield served.address


def test_the_page_needs_no_token_and_allows_nothing_from_elsewhere(address: str) -> None:
    for path in ("/", "/c/abc", "/label", "/label/rank", "/models"):
        answer = httpx.get(address + path, trust_env=False)
        assert answer.status_code == 200
        assert "<title>page" in answer.text
        policy = answer.headers["content-security-policy"]
        assert answer.headers["content-security-policy"].count("default-src") == 1
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["cache-control"] == "no-cache"
    assert httpx.get(f"{address}/api/conversations", trust_env=False).status_code == 401
    assert httpx.get(f"{address}/metrics", trust_env=False).status_code == 401


def test_parts_are_kept_for_ever_and_the_page_is_asked_after(address: str) -> None:
    part = httpx.get(f"{address}/assets/index-abc.js", trust_env=False)
    assert part.headers["cache-control"] == pages.FOREVER
    assert part.headers["content-type"].startswith("text/javascript")
    assert part.headers["content-encoding"] == "gzip"
    assert part.text.startswith("export")
    first = httpx.get(address, trust_env=False)
    again = httpx.get(address, headers={"if-none-match": first.headers["etag"]}, trust_env=False)
    assert (again.status_code, again.content) == (304, b"")
    plain = httpx.get(address, headers={"accept-encoding": "identity"}, trust_env=False)
    assert "content-encoding" not in plain.headers
    assert plain.text == first.text


def test_nothing_else_is_reached(address: str) -> None:
    for path in ("/assets/none.js", "/assets/..%2findex.html", "/assets/%2e%2e/guard.py"):
        assert httpx.get(address + path, trust_env=False).status_code in (401, 404)


def test_a_page_that_is_not_built_says_how(served: Running, tmp_path: Path) -> None:
    assert pages.assets(tmp_path) == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "assets", lambda: {})
        answer = httpx.get(served.address, trust_env=False)
    assert answer.status_code == 503
    assert "python hatch_build.py" in answer.text


def test_what_is_packed_is_what_was_read(built: Path) -> None:
    for asset in pages.assets(built).values():
        assert gzip.decompress(asset.packed) == asset.body
