"""Text that UTF-8 can hold: half of an emoji, as some exports write it, becomes U+FFFD."""

from __future__ import annotations

import re

_ESCAPED = re.compile(
    r"\\\\"  # a backslash of the text: what follows is no escape
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a whole pair
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def encodable(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD.

    A high and a low surrogate in a row are the character that they stand for.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def encodable_json(text: str) -> str:
    """JSON whose strings hold no lone surrogate, neither as it is nor escaped (``\\ud83d``)."""
    found = re.search(r"\\u[dD][89a-fA-F]", text)
    return encodable(_ESCAPED.sub(_kept, text) if found else text)


def _kept(match: re.Match[str]) -> str:
    return "\\ufffd" if match[1] else match[0]
