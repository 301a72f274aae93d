"""Conversations as lists of messages, and the checks of those from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from lmsmith.core.errors import UserError

Message: TypeAlias = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""

ROLES = ("system", "user", "assistant")


def add_message(messages: list[dict[str, str]], role: str, content: str) -> None:
    """Append a message; consecutive ones of one role are joined by a line end."""
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += "\n" + content
    else:
        messages.append({"role": role, "content": content})


def validate_messages(messages: object, where: str) -> list[dict[str, str]]:
    """Check a conversation from outside, and return it as a plain list of messages.

    At most one system message, which is the first; then users and assistants in turn, either of
    whom may begin.

    Args:
        where: opens the error, such as ``"my.jsonl, line 3"``.

    Raises:
        UserError: naming `where`, the message (counted from 1) and what was expected.
    """
    if not isinstance(messages, list):
        raise UserError(f"{where}: 'messages' must be a list, not {name_of_type(messages)}")
    if not messages:
        raise UserError(f"{where}: 'messages' is empty")
    previous = ""
    for number, message in enumerate(messages, start=1):
        place = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{place} must be an object, not {name_of_type(message)}")
        missing = [key for key in ("role", "content") if key not in message]
        if missing:
            raise UserError(f"{place} has no {' and no '.join(map(repr, missing))}")
        unknown = [str(key) for key in message if key not in ("role", "content")]
        if unknown:
            raise UserError(
                f"{place} has the unknown key {unknown[0]!r}",
                "a message has 'role' and 'content' only",
            )
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"{place} has the role {role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"{place}: 'content' must be text, not {name_of_type(content)}")
        if role == "system" and number > 1:
            raise UserError(f"{place} is a system message; only the first may be")
        if role == previous:
            raise UserError(
                f"{place} is the second in a row by the {role}",
                "join consecutive messages of one role into one",
            )
        previous = role
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def validate_prompt(prompt: object, where: str) -> list[dict[str, str]]:
    """Check a prompt from outside: messages that end with the user's, or the text of one."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = validate_messages(prompt, f"{where}, 'prompt'")
    if messages[-1]["role"] != "user":
        raise UserError(
            f"{where}: the prompt ends with the {messages[-1]['role']}'s message",
            "a prompt must end with the user's message, which the responses answer",
        )
    return messages


def name_of_type(value: object) -> str:
    """A JSON value's type in a user's words."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    return names.get(
        type(value), "a number" if isinstance(value, int | float) else "something else"
    )
