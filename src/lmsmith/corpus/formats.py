"""Formats of conversations and rankings, ours and other programs', read as lists of messages.

- ours: ``messages``, as `validate_messages` accepts them;
- ShareGPT: ``conversations``, a list of ``{"from": "human" | "gpt", "value": text}``;
- Alpaca: ``instruction``, ``input`` and ``output``, with ``system`` and ``history`` where given;
- ChatGPT's data export (conversations.json): ``mapping``, a tree of messages;
- Open Assistant's trees: ``message_tree_id`` and ``prompt``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.corpus.messages import name_of_type, validate_messages, validate_prompt


def require_keys(row: Mapping[str, object], keys: Iterable[str], where: str) -> None:
    """See that a row has all of these keys."""
    for key in keys:
        if key not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise UserError(f"{where}: no {key!r} in this row; its keys are: {found}")


def text_of(row: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    """The text at a key; ``default``, where given, stands for null and for a missing key."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, not {name_of_type(value)}")
    return value


def id_of(row: Mapping[str, object], where: str) -> str:
    """The row's ``id``, text or a whole number; empty if it has none."""
    value = row.get("id")
    return str(value) if type(value) is int else text_of(row, "id", where, default="")


Ranked: TypeAlias = tuple[list[dict[str, str]], list[str], list[int]]
"""A prompt, the responses to it, and their ranks: 1 is best."""


class IrregularPair(UserError):
    """A well-formed row whose two texts are no choice between two replies to one prompt.

    Attributes:
        flaw: what is wrong, in words that follow "2 rankings".
    """

    def __init__(self, where: str, problem: str, flaw: str) -> None:
        super().__init__(f"{where}: {problem}", "fix the row or leave it out")
        self.flaw = flaw


def read_pair(row: Mapping[str, object], where: str) -> Ranked:
    """The ranking of two in a row of ``chosen`` and ``rejected``.

    Raises:
        IrregularPair: there is no prompt, or two that differ, a message is empty, both responses
            are the same, or a text does not end with the assistant's. Published data has such rows.
        UserError: the row has another form.
    """
    require_keys(row, ("chosen", "rejected"), where)
    prompt, chosen, rejected = _prompt_and_responses(row, where)
    if not all(text.strip() for text in (chosen, rejected, *(m["content"] for m in prompt))):
        raise IrregularPair(where, "a message is empty", "with an empty message")
    if chosen.strip() == rejected.strip():
        problem = "'chosen' and 'rejected' are the same"
        raise IrregularPair(where, problem, "of one response twice")
    return prompt, [chosen, rejected], [1, 2]


def _prompt_and_responses(
    row: Mapping[str, object], where: str
) -> tuple[list[dict[str, str]], str, str]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is not None:
            return validate_prompt(row["prompt"], where), chosen, rejected
        chosen, rejected = _from_transcript(chosen, where), _from_transcript(rejected, where)
    better = validate_messages(chosen, f"{where}, 'chosen'")
    worse = validate_messages(rejected, f"{where}, 'rejected'")
    if {better[-1]["role"], worse[-1]["role"]} != {"assistant"}:
        raise IrregularPair(
            where,
            "'chosen' and 'rejected' must end with the assistant's message",
            "that do not end with the assistant's message",
        )
    responses = better[-1]["content"], worse[-1]["content"]
    if len(better) == 1 and len(worse) == 1 and row.get("prompt") is not None:
        return validate_prompt(row["prompt"], where), *responses  # the messages are replies alone
    if len(better) == 1:
        raise IrregularPair(where, "there is no prompt", "without a prompt")
    if better[:-1] != worse[:-1]:
        raise IrregularPair(
            where,
            "'chosen' and 'rejected' differ before their last message",
            "whose texts differ before the last message",
        )
    return validate_prompt(better[:-1], where), *responses


def _from_transcript(text: str, where: str) -> list[dict[str, str]]:
    """Messages of ``"\\n\\nHuman: …\\n\\nAssistant: …"`` (Bai et al. 2022, hh-rlhf)."""
    names = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
    messages: list[dict[str, str]] = []
    before, *said = re.split("(\n\nHuman:|\n\nAssistant:)", "\n\n" + text.lstrip("\n"))
    if before:
        raise UserError(
            f"{where}: there is no 'prompt', and 'chosen' and 'rejected' are not conversations",
            "give 'prompt', or messages, or texts that start with 'Human:'",
        )
    for name, content in zip(said[::2], map(str.strip, said[1::2]), strict=True):
        if messages and messages[-1]["role"] == names[name]:
            messages[-1]["content"] = "\n".join(filter(None, (messages[-1]["content"], content)))
        else:
            messages.append({"role": names[name], "content": content})
    return messages


_TREE_ROLES = {"prompter": "user", "assistant": "assistant"}


class _Message(NamedTuple):
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
    """
    messages: list[dict[str, str]] = []
    message = _root(row, where)
    while message is not None:
        messages.append(message.as_message())
        replies = _replies(message, where)
        message = min(replies, key=lambda each: (each.rank is None, each.rank or 0), default=None)
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    name = text_of(row, "message_tree_id", where, default="")
    return (name or fingerprint(messages), messages) if messages else None


def _root(row: Mapping[str, object], where: str) -> _Message | None:
    require_keys(row, ("prompt",), where)
    return _read_message(row["prompt"], where)


def _replies(message: _Message, where: str) -> list[_Message]:
    """The replies to a message that are there."""
    read = (_read_message(reply, where) for reply in message.replies)
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
    if role not in _TREE_ROLES:
        raise UserError(
            f"{where}: the role {role!r} in a tree; expected {' or '.join(_TREE_ROLES)}"
        )
    rank, replies = value.get("rank"), value.get("replies") or []
    if rank is not None and (type(rank) is not int or rank < 0):
        raise UserError(f"{where}: 'rank' in a tree must be a whole number from 0 (the best)")
    if not isinstance(replies, list):
        raise UserError(f"{where}: 'replies' must be a list, not {name_of_type(replies)}")
    if value.get("deleted") or not text.strip():
        return None
    name = text_of(value, "message_id", where, default="")
    return _Message(name, _TREE_ROLES[role], text, rank, replies)


EXPECTED = (
    "a conversation has 'messages', or is a row of ShareGPT ('conversations'), of Alpaca "
    "('instruction', 'output'), of ChatGPT's export ('mapping') or of Open Assistant"
)

_NAMES_OF_ROLES = {
    "user": "user human prompter",
    "assistant": "assistant gpt chatgpt bot model bing bard claude ai",
    "system": "system developer",
    "tool": "tool function observation function_call function_response",
}
_ROLES = {name: role for role, names in _NAMES_OF_ROLES.items() for name in names.split()}

_TOOLS = "messages to or from tools"
_HIDDEN = "hidden messages"
_EMPTY = "empty messages"
_NOT_TEXT = "images and other parts that are no text"
_BRANCHES = "messages in branches that are not the last one shown"
_LATE_SYSTEM = "system messages that are not the first"
_NO_MESSAGE = "conversations without a message"

_Turn = tuple[str, str]
"""(role, text), where the role may be "tool"."""


def is_conversation(row: Mapping[str, object]) -> bool:
    """Whether a row is a conversation in a known form."""
    return is_tree(row) or any(form in row for form in ("messages", *_FORMS))


def messages_of(
    row: Mapping[str, object], where: str, left_out: Counter[str]
) -> list[dict[str, str]] | None:
    """The messages of a conversation in any of the known forms.

    Consecutive messages of one role are joined in the forms of others, where they are common.

    Args:
        left_out: counts, by kind, the parts that are no message of user or assistant.

    Returns:
        As `validate_messages`; None if nobody says anything in it.

    Raises:
        UserError: the row has none of these forms, or a part of another type.
    """
    if is_tree(row):
        found = best_path(row, where)
        if found is None:
            left_out[_NO_MESSAGE] += 1
        return found and found[1]
    if "messages" in row:
        return validate_messages(row["messages"], where)
    form = next((form for form in _FORMS if form in row), None)
    if form is None:
        keys = ", ".join(map(repr, row)) or "none"
        raise UserError(f"{where}: no 'messages' in this row; its keys are: {keys}", EXPECTED)
    messages = _joined(_FORMS[form](row, where, left_out), left_out)
    if not messages:
        left_out[_NO_MESSAGE] += 1
    return messages or None


def name_of(row: Mapping[str, object], where: str) -> str:
    """The conversation's own id; empty if it has none."""
    for key in ("message_tree_id", "conversation_id"):
        if isinstance(row.get(key), str):
            return text_of(row, key, where)
    return id_of(row, where)


def _joined(turns: Iterable[_Turn], left_out: Counter[str]) -> list[dict[str, str]]:
    """Messages as `validate_messages` accepts them; what cannot be one is counted."""
    messages: list[tuple[str, list[str]]] = []
    for role, text in turns:
        if role == "tool":
            left_out[_TOOLS] += 1
        elif not text.strip():
            left_out[_EMPTY] += 1
        elif role == "system" and messages:
            left_out[_LATE_SYSTEM] += 1
        elif messages and messages[-1][0] == role:
            messages[-1][1].append(text)
        else:
            messages.append((role, [text]))
    return [{"role": role, "content": "\n".join(texts)} for role, texts in messages]


def _sharegpt(row: Mapping[str, object], where: str, left_out: Counter[str]) -> Iterator[_Turn]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise UserError(f"{where}: 'conversations' must be a list, not {name_of_type(turns)}")
    if row.get("system"):
        yield "system", text_of(row, "system", where)
    for number, turn in enumerate(turns, start=1):
        place = f"{where}: message {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{place} must be an object, not {name_of_type(turn)}")
        speaker, said = ("from", "value") if "from" in turn else ("role", "content")
        require_keys(turn, (speaker, said), place)
        yield _role(turn[speaker], place), text_of(turn, said, place, default="")


def _alpaca(row: Mapping[str, object], where: str, left_out: Counter[str]) -> Iterator[_Turn]:
    require_keys(row, ("output",), where)
    if row.get("system"):
        yield "system", text_of(row, "system", where)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise UserError(f"{where}: 'history' must be a list, not {name_of_type(history)}")
    for pair in history:
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise UserError(f"{where}: 'history' must be a list of [instruction, output]")
        yield "user", pair[0]
        yield "assistant", pair[1]
    asked = (text_of(row, key, where, default="") for key in ("instruction", "input"))
    yield "user", "\n\n".join(text for text in asked if text.strip())
    yield "assistant", text_of(row, "output", where, default="")


def _chatgpt(row: Mapping[str, object], where: str, left_out: Counter[str]) -> Iterator[_Turn]:
    """The messages from the tree's root to ``current_node``, which ChatGPT showed last."""
    nodes = row["mapping"]
    if not isinstance(nodes, dict) or not all(
        isinstance(node, dict) and isinstance(node.get("parent"), str | None)
        for node in nodes.values()
    ):
        raise UserError(f"{where}: 'mapping' must be an object of objects, each with its 'parent'")
    name = row.get("current_node")
    if not isinstance(name, str) or name not in nodes:
        name = _last_leaf(nodes)
    path: dict[str | None, None] = {}  # from the last message to the first
    while name in nodes and name not in path:
        path[name] = None
        name = nodes[name].get("parent")
    left_out[_BRANCHES] += sum(
        node.get("message") is not None for name, node in nodes.items() if name not in path
    )
    for name in reversed(path):
        message = nodes[name].get("message")
        if message is not None:
            yield from _chatgpt_message(message, f"{where}, message {name}", left_out)


def _last_leaf(nodes: Mapping[str, Mapping[str, object]]) -> str | None:
    """The last of the nodes that none follows; there is one unless the tree is empty."""
    parents = {node.get("parent") for node in nodes.values()}
    return next((name for name in reversed(list(nodes)) if name not in parents), None)


def _chatgpt_message(message: object, place: str, left_out: Counter[str]) -> Iterator[_Turn]:
    if not isinstance(message, dict):
        raise UserError(f"{place} must be an object, not {name_of_type(message)}")
    author, content = message.get("author"), message.get("content")
    if content is None:
        left_out[_EMPTY] += 1
        return
    if not isinstance(author, dict) or not isinstance(content, dict):
        raise UserError(f"{place}: 'author' and 'content' must be objects")
    about = message.get("metadata")
    hidden = isinstance(about, dict) and about.get("is_visually_hidden_from_conversation")
    parts = content.get("parts")
    parts = [content.get("text") or ""] if parts is None else parts
    if not isinstance(parts, list):
        raise UserError(f"{place}: 'parts' must be a list, not {name_of_type(parts)}")
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]  # speech
    text = "\n".join(part for part in texts if isinstance(part, str)).strip()
    # Roles beside these are ChatGPT's own, such as its critic.
    role = _ROLES.get(str(author.get("role")).casefold(), "tool")
    if role == "system" and not text:
        return  # every conversation begins with an empty one
    if hidden or role == "system":
        left_out[_HIDDEN] += 1
    elif role == "tool" or message.get("recipient") not in ("all", None):
        yield "tool", text
    elif content.get("content_type") not in ("text", "multimodal_text", None):
        left_out[_HIDDEN] += 1  # thoughts, custom instructions, results of code
    else:
        no_text = sum(not isinstance(part, str) for part in texts)
        left_out[_NOT_TEXT] += no_text
        if text or not no_text:
            yield role, text


def _role(name: object, place: str) -> str:
    role = _ROLES.get(name.casefold()) if isinstance(name, str) else None
    if role is None:
        raise UserError(f"{place} is from {name!r}; expected one of {', '.join(_ROLES)}")
    return role


_FORMS = {"mapping": _chatgpt, "conversations": _sharegpt, "instruction": _alpaca}
