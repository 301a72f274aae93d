"""A conversation as tokens: ``<|endoftext|>`` then for each message role, content, ``<|end|>``.

Models from outside have a template of their own; `lmsmith.prompts.templated` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import Message, validate_messages
from lmsmith.prompts import templated
from lmsmith.prompts.fitted import FittedConversation, Prompt, too_long
from lmsmith.tokenizers import Tokenizer


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Tokens of the whole conversation, and which of them the assistant produces.

    Targets are the assistant's content and the ``<|end|>`` after it, not its role token, which
    is given when the assistant is asked.
    """
    _check(messages, "conversation")
    if not tokenizer.is_own:
        return templated.encode_conversation(tokenizer, messages)
    opening, turns = _encode(tokenizer, messages)
    return _joined(opening, turns)


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int | None = None
) -> Prompt:
    """Tokens that ask the assistant for the next message.

    Where they are more than `limit`, the oldest messages are dropped; the system message and the
    last one are always kept. No messages, or a system message alone, ask the assistant to begin.

    Args:
        limit: most tokens the prompt may have: the context less room for the reply.

    Raises:
        UserError: the last message is the assistant's, or what must be kept does not fit.
    """
    if messages:
        _check(messages, "prompt")
    if messages and messages[-1]["role"] == "assistant":
        raise UserError(
            "prompt: the last message is the assistant's, so there is nothing to answer",
            "end the prompt with a user's message",
        )
    if not tokenizer.is_own:
        return templated.encode_prompt(tokenizer, messages, limit)
    start = [tokenizer.end_of_text]
    opening, turns = _encode(tokenizer, messages) if messages else (start, [])
    room = None if limit is None else limit - len(opening) - 1
    kept = len(turns) if room is None else _newest_that_fit(turns, room)
    if (turns and not kept) or (room is not None and room < 0):
        needed = len(opening) + 1 + (len(turns[-1].tokens) if turns else 0)
        raise too_long(needed, limit)
    dropped = len(turns) - kept
    tokens, _ = _joined(opening, turns[dropped:])
    return Prompt([*tokens, tokenizer.assistant], dropped)


def fit_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int
) -> FittedConversation:
    """`encode_conversation` within `limit` tokens: the system message and the newest turns.

    When even the newest message is too long, its end is cut, and its ``<|end|>`` with it, so that
    the model does not learn to stop in the middle. When the system message leaves no room for one
    token of content, nothing is kept.
    """
    _check(messages, "conversation")
    if not tokenizer.is_own:
        return templated.fit_conversation(tokenizer, messages, limit)
    opening, turns = _encode(tokenizer, messages)
    return _fit(opening, turns, limit)


@dataclass(frozen=True)
class _Turn:
    """A message as tokens: its role token, its content, `<|end|>`."""

    role: str
    tokens: list[int]


def _check(messages: Sequence[Message], where: str) -> None:
    validate_messages([dict(message) for message in messages], where)


def _encode(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[_Turn]]:
    """Tokens of what opens the messages (end-of-text and system), and the turns."""
    contents = tokenizer.encode_batch([message["content"] for message in messages])
    turns = [
        _Turn(
            message["role"],
            [tokenizer.role_token(message["role"]), *content, tokenizer.end_of_turn],
        )
        for message, content in zip(messages, contents, strict=True)
    ]
    opening = [tokenizer.end_of_text]
    if turns[0].role == "system":
        opening += turns.pop(0).tokens
    return opening, turns


def _joined(opening: list[int], turns: Sequence[_Turn]) -> tuple[list[int], list[bool]]:
    """Tokens one after another, and whether each is the assistant's."""
    tokens, is_target = list(opening), [False] * len(opening)
    for turn in turns:
        tokens += turn.tokens
        is_target += [False] + [turn.role == "assistant"] * (len(turn.tokens) - 1)
    return tokens, is_target


def _fit(opening: list[int], turns: list[_Turn], limit: int) -> FittedConversation:
    room = limit - len(opening)
    if room < 0 or (turns and room < 2):  # a role token and one of content
        return FittedConversation([], [], len(turns) + (len(opening) > 1), 0)
    kept, cut_tokens = _newest_that_fit(turns, room), 0
    newest = turns[len(turns) - kept :]
    if turns and not kept:
        last = turns[-1]
        cut_tokens = len(last.tokens) - room
        newest = [_Turn(last.role, last.tokens[:room])]
    return FittedConversation(*_joined(opening, newest), len(turns) - len(newest), cut_tokens)


def _newest_that_fit(turns: Sequence[_Turn], room: int) -> int:
    """How many whole turns from the end have at most `room` tokens together."""
    for count, turn in enumerate(reversed(turns)):
        room -= len(turn.tokens)
        if room < 0:
            return count
    return len(turns)
