"""Chromium, the page built, and a server to look at."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/server"), str(ROOT / "tests/browser")]

from chats import Chat  # noqa: E402
from worlds import parrot, running  # noqa: E402

from lmsmith.feedback.store import Store  # noqa: E402

CHROMIUM = (
    os.environ.get("LMSMITH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
)


expect.set_options(timeout=60_000)


def _build_if_needed() -> None:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.is_built():
        module.build()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    _build_if_needed()
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "chat.db")
    yield made
    made.close()


@pytest.fixture
def chat(browser: Browser, store: Store) -> Iterator[Chat]:
    with running({"parrot": parrot()}, store=store) as served:
        yield Chat(served.address, store, browser)
        for context in browser.contexts:
            context.close()
