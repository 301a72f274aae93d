"""The page below a path, as behind a proxy: chatting, links, going back, a reload."""

from __future__ import annotations

from chats import Chat, box, say
from playwright.sync_api import Browser, expect
from worlds import SENTENCE, parrot, running

from lmsmith.feedback.store import Store


def test_the_page_lives_below_a_path(browser: Browser, store: Store) -> None:
    with running({"parrot": parrot()}, store=store, root_path="/chat") as served:
        chat = Chat(served.address, store, browser)
        page = chat.visit("/chat")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        say(page, "tea?")
        expect(page.get_by_text(SENTENCE)).to_be_visible()
        page.wait_for_url("**/chat/c/*")
        talk = page.url
        page.reload()
        expect(page.get_by_text(SENTENCE)).to_be_visible()
        page.get_by_role("link", name="Label").first.click()
        page.wait_for_url("**/chat/label")
        page.go_back()
        assert page.url == talk
        expect(page.get_by_text(SENTENCE)).to_be_visible()
        expect(box(page)).to_be_visible()
        assert asked
        assert [url for url in asked if not url.startswith(f"{served.address}/chat")] == []
        for context in browser.contexts:
            context.close()
