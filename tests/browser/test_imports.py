"""Files of other programs on the page: each conversation once, and what is left out is said."""

from __future__ import annotations

import json
from typing import Any

from chats import Chat
from playwright.sync_api import Page, expect

TALK: dict[str, Any] = {
    "title": "来自别处",
    "current_node": "b",
    "mapping": {
        "r": {"parent": None, "message": None},
        "a": {
            "parent": "r",
            "message": {"author": {"role": "user"}, "content": {"parts": ["你好"]}},
        },
        "t": {
            "parent": "a",
            "message": {"author": {"role": "tool"}, "content": {"parts": ["found"]}},
        },
        "b": {
            "parent": "t",
            "message": {"author": {"role": "assistant"}, "content": {"parts": ["您好！"]}},
        },
    },
}
SHARED = {
    "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi there"}]
}
ALPACA = {"instruction": "Say yes.", "input": "", "output": "yes, with pleasure"}


def bring(page: Page, name: str, text: str) -> None:
    file = {"name": name, "mimeType": "application/json", "buffer": text.encode()}
    page.locator("input[type=file]").set_input_files(file)


def test_files_of_others_are_imported_once(chat: Chat) -> None:
    page = chat.visit()
    bring(page, "conversations.json", json.dumps([TALK]))
    toast = page.locator(".toast").last
    expect(toast).to_contain_text("1 imported.")
    expect(toast).to_contain_text("Left out: 1 × messages to or from tools.")
    expect(page.locator("article.assistant")).to_contain_text("您好！")
    bring(page, "rows.jsonl", f"{json.dumps(SHARED)}\n{json.dumps(ALPACA)}\n")
    expect(toast).to_contain_text("2 imported.")
    bring(page, "alpaca.json", json.dumps([ALPACA, TALK]))
    expect(toast).to_contain_text("0 imported. Already there: 2.")
    expect(page.locator("nav li")).to_have_count(3)
    page.get_by_role("link", name="Say yes.").click()
    expect(page.locator("article.assistant")).to_contain_text("yes, with pleasure")


def test_what_cannot_be_imported_is_said_in_the_readers_language(chat: Chat) -> None:
    page = chat.visit(locale="zh-CN")
    bring(page, "rows.jsonl", f"{json.dumps(ALPACA)}\nno json\n")
    expect(page.locator(".toast.bad").last).to_contain_text("文件没有全部导入：第 2 行不是 JSON")
    bring(page, "rows.jsonl", f'{json.dumps(ALPACA)}\n{{"text": "x"}}\n')
    expect(page.locator(".toast.bad").last).to_contain_text("rows.jsonl, conversation 2")
    expect(page.locator("nav li a")).to_have_count(0)


def test_a_conversation_that_is_too_long_keeps_no_other_out(chat: Chat) -> None:
    page = chat.visit()
    long = {**ALPACA, "output": "x" * 5_000_000}
    after = {**ALPACA, "instruction": "Say no."}
    bring(page, "rows.json", json.dumps([ALPACA, long, after]))
    toast = page.locator(".toast").last
    expect(toast).to_contain_text("2 imported. Left out: 1 × conversations that are longer than")
    expect(page.locator("nav li")).to_have_count(2)


def test_a_file_that_is_no_text_is_named(chat: Chat) -> None:
    page = chat.visit()
    bring(page, "chatgpt.json", "PK\x03\x04")
    expect(page.locator(".toast.bad").last).to_contain_text("it is a zip file; unpack it")
    file = {"name": "a.json", "mimeType": "", "buffer": json.dumps(ALPACA).encode() + b"\xe9"}
    page.locator("input[type=file]").set_input_files(file)
    expect(page.locator(".toast.bad").last).to_contain_text("not text in UTF-8")
