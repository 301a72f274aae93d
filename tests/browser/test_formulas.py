"""Formulas in answers: set by KaTeX, which is fetched with the first of them and not before."""

from __future__ import annotations

from pathlib import Path

import pytest
from chats import Chat, say
from playwright.sync_api import expect

ANSWER = """So \\(a^2 + b^2 = c^2\\), that is $c = \\sqrt{a^2 + b^2}$, for $5 or $10:

$$
\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}
$$

\\[ \\sum_{n=1}^{100} n = a_1 + a_2 + a_3 + a_4 + a_5 + a_6 + a_7 + a_8 + a_9 + a_{10} + a_{11}
+ a_{12} + a_{13} + a_{14} + a_{15} + a_{16} + a_{17} \\]

and $\\nothing{$ is no TeX.
"""
FRACTION = "document.querySelector('.katex .mfrac')"


@pytest.mark.parametrize("width", [1000, 390])
def test_formulas_are_set_where_there_are_any(chat: Chat, width: int, tmp_path: Path) -> None:
    page = chat.visit(viewport={"width": width, "height": 900})
    fetched, problems = list[str](), list[str]()
    page.on("request", lambda asked: fetched.append(asked.url))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    say(page, "how long is $c$?")
    expect(page.get_by_label("Answer again")).to_be_visible()
    assert not any("math" in url or "KaTeX" in url for url in fetched)
    me = chat.store.person("owner").id
    talk, last = page.url.rpartition("/")[2], chat.messages(page)[-1].id
    asked = chat.store.add_message(me, talk, last, "user", "more")
    chat.store.add_message(me, talk, asked.id, "assistant", ANSWER)
    page.reload()
    answer = page.locator("article.assistant").last
    expect(answer.locator(".katex")).to_have_count(4)
    expect(answer).to_contain_text("for $5 or $10:")
    expect(answer).to_contain_text("$\\nothing{$ is no TeX.")
    # Its style came along, and its fonts: a fraction stands in two lines, what is wide scrolls.
    page.wait_for_function(f"{FRACTION}.getBoundingClientRect().height > 18")
    page.wait_for_function("document.fonts.check('16px KaTeX_Main')")
    assert any("KaTeX_Main" in url for url in fetched)
    assert all(url.startswith(chat.address) for url in fetched)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []
    page.screenshot(path=tmp_path / "formulas.png")
