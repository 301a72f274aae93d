"""A conversation as tokens: ``<|endoftext|>`` then for each message role, content, ``<|end|>``.

Models from outside have a template of their own; `lmsmith.prompts.template` writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import Message, validate_messages
from lmsmith.prompts import template
from lmsmith.prompts.prompt import FittedConversation, Prompt, too_long
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
        return template.encode_conversation(tokenizer, messages)
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
        return template.encode_prompt(tokenizer, messages, limit)
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
        return template.fit_conversation(tokenizer, messages, limit)
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


def conversation_windows(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    limit: int,
    history: int,
    counts: Counter[str] | None = None,
) -> list[tuple[list[int], list[bool]]]:
    """Token windows of a conversation, each with its targets.

    A window ends at the last message that fits beside up to ``history`` tokens of earlier
    messages, which are repeated there without loss; the system message opens every window. So
    each of the assistant's messages is a target in one window, with what came before it in sight.
    The message it answers is repeated whatever its length, and the reply loses its end if need be;
    a reply beside which that message does not fit is left out.

    Args:
        limit: most tokens of a window (the context).
        history: most tokens of earlier messages repeated at a window's start.
        counts: gets the numbers of replies that are cut (``replies_cut``), that are left out for
            want of room for what they answer (``replies_without_question``), and that a template
            does not write (``replies_not_written``).

    Returns:
        Pairs of tokens and is_target; windows in which nothing is a target are left out.
    """
    if not tokenizer.is_own:
        return template.conversation_windows(tokenizer, messages, limit, history, counts)
    counts = counts if counts is not None else Counter()
    if not messages:
        return []
    opening, turns = _encode(tokenizer, messages)
    pieces = [turn.tokens for turn in turns]
    learnt = [turn.role == "assistant" for turn in turns]
    windows: list[tuple[list[int], list[bool]]] = []
    start = 0
    while start < len(pieces):
        room = limit - len(opening)
        first, left = start, min(history, room - len(pieces[start]))
        while first > 0 and len(pieces[first - 1]) <= left:
            first -= 1
            left -= len(pieces[first])
        if learnt[start] and first == start > 0:
            if room - len(pieces[start - 1]) < 2:  # the reply's role token and one of content
                counts["replies_without_question"] += 1
                start += 1
                continue
            first = start - 1
        tokens = [*opening, *(token for piece in pieces[first:start] for token in piece)]
        is_target = [False] * len(tokens)
        end = start
        while end < len(pieces) and (end == start or len(tokens) + len(pieces[end]) <= limit):
            tokens += pieces[end]
            is_target += [False, *[learnt[end]] * (len(pieces[end]) - 1)]
            end += 1
        if any(is_target[:limit]):  # a message longer than the context loses its end
            windows.append((tokens[:limit], is_target[:limit]))
            counts["replies_cut"] += any(is_target[limit:])
        elif learnt[start]:
            counts["replies_without_question"] += 1
        start = end
    return windows
