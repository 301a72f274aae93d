"""The chat page in front of a model that another server runs."""

from __future__ import annotations

from chats import Chat, say
from playwright.sync_api import Browser, expect
from worlds import parrot, running

from lmsmith.catalogue.remote import find_remote
from lmsmith.feedback.store import Store
from model_server import TEXT, model_server


def test_only_a_model_of_this_server_offers_to_show_tokens_and_attention(
    browser: Browser, store: Store
) -> None:
    with model_server() as behind:
        remote = {"big": find_remote(behind.address)}
        with running({"parrot": parrot()}, remote=remote, store=store) as served:
            page = Chat(served.address, store, browser).visit()
            say(page, "hi")
            expect(page.get_by_label("Answer again")).to_be_visible()
            expect(page.get_by_label("More", exact=True)).to_be_visible()
            page.evaluate("localStorage.clear()")
            page.close()
        with running({}, remote=remote, store=store) as served:
            page = Chat(served.address, store, browser).visit()
            say(page, "what is tea?")
            answer = page.locator("article.assistant").last
            expect(answer).to_contain_text(TEXT[-1].strip())
            expect(page.get_by_label("Answer again")).to_be_visible()
            expect(page.get_by_label("Good answer")).to_be_visible()
            expect(page.get_by_label("More", exact=True)).to_have_count(0)
            for context in browser.contexts:
                context.close()
