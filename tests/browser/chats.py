"""A chat page in a browser, and what is done on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page

from lmsmith.feedback.store import Store


@dataclass
class Chat:
    """A server, its store, and browsers that look at it."""

    address: str
    store: Store
    browser: Browser

    def visit(self, path: str = "/", script: str = "", **options: Any) -> Page:
        context = self.browser.new_context(**{"locale": "en-US", **options})
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: pytest.fail(f"in the page: {error}"))
        if script:
            page.add_init_script(script)
        page.goto(self.address + path)
        return page

    def messages(self, page: Page) -> list[Any]:
        me = self.store.person("owner").id
        return self.store.tree(me, page.url.rpartition("/")[2])


def say(page: Page, text: str) -> None:
    page.get_by_label("Write a message").fill(text)
    page.keyboard.press("Enter")


def box(page: Page) -> Locator:
    return page.get_by_label("Write a message")
