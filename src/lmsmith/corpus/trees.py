"""Open Assistant's conversation trees (Köpf et al. 2023): replies to one message, ranked by people.

A row holds ``message_tree_id`` and ``prompt``, the first message. A message is ``{"text": …,
"role": "prompter" | "assistant", "rank": 0 is best, "replies": [messages], "message_id": …}``.
Messages that were deleted, or say nothing, are left out with all that follows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.corpus.fields import require_keys, text_of
from lmsmith.corpus.messages import name_of_type
from lmsmith.corpus.pairs import Ranked

ROLES = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class _Message:
    id: str
    role: str
    text: str
    rank: int | None
    replies: list[object]

    def as_message(self) -> dict[str, str]:
        return {"role": self.role, "content": self.text}


def is_tree(row: Mapping[str, object]) -> bool:
    """Whether a row is one of Open Assistant's trees."""
    return "message_tree_id" in row


def tree_rankings(row: Mapping[str, object], where: str) -> Iterator[tuple[str, Ranked]]:
    """(id, ranking) of each message of a prompter that two or more ranked replies answer.

    The prompt is the path from the root to that message; replies without a rank are left out.

    Raises:
        UserError: the row is not such a tree.
    """
    root = _root(row, where)
    waiting: list[tuple[_Message, list[dict[str, str]]]] = [(root, [])] if root else []
    while waiting:
        message, before = waiting.pop()
        path = [*before, message.as_message()]
        replies = _replies(message, where)
        ranked = [(reply.text, reply.rank + 1) for reply in replies if reply.rank is not None]
        if message.role == "user" and len(ranked) >= 2:
            texts, ranks = [text for text, _ in ranked], [rank for _, rank in ranked]
            yield message.id or fingerprint(path), (path, texts, ranks)
        waiting += [(reply, path) for reply in reversed(replies)]


def best_path(row: Mapping[str, object], where: str) -> tuple[str, list[dict[str, str]]] | None:
    """(id, messages) of the conversation along the best reply to every message.

    Of replies that nobody ranked the first counts as the best. The assistant has the last word;
    None if it has none.

    Raises:
        UserError: the row is not such a tree.
    """
    messages: list[dict[str, str]] = []
    message = _root(row, where)
    while message is not None:
        messages.append(message.as_message())
        message = min(
            _replies(message, where),
            key=lambda reply: (reply.rank is None, reply.rank or 0),
            default=None,
        )
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    name = text_of(row, "message_tree_id", where, default="")
    return (name or fingerprint(messages), messages) if messages else None


def _root(row: Mapping[str, object], where: str) -> _Message | None:
    require_keys(row, ("prompt",), where)
    return _read_message(row["prompt"], where)


def _replies(message: _Message, where: str) -> list[_Message]:
    """The replies to a message that are there."""
    read = [_read_message(reply, where) for reply in message.replies]
    replies = [reply for reply in read if reply is not None]
    for reply in replies:
        if reply.role == message.role:
            raise UserError(f"{where}: two messages in a row by the {reply.role} in this tree")
    return replies


def _read_message(value: object, where: str) -> _Message | None:
    """A message, checked; None if it was deleted or says nothing."""
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: a message of this tree must be an object, not {name_of_type(value)}"
        )
    require_keys(value, ("text", "role"), f"{where}, a message of the tree")
    text, role = text_of(value, "text", where), text_of(value, "role", where)
    if role not in ROLES:
        raise UserError(f"{where}: the role {role!r} in a tree; expected {' or '.join(ROLES)}")
    rank, replies = value.get("rank"), value.get("replies") or []
    if rank is not None and (type(rank) is not int or rank < 0):
        raise UserError(f"{where}: 'rank' in a tree must be a whole number from 0 (the best)")
    if not isinstance(replies, list):
        raise UserError(f"{where}: 'replies' must be a list, not {name_of_type(replies)}")
    if value.get("deleted") or not text.strip():
        return None
    name = text_of(value, "message_id", where, default="")
    return _Message(name, ROLES[role], text, rank, replies)
