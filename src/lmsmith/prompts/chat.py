"""A conversation as tokens: ``<|endoftext|>`` then for each message role, content, ``<|end|>``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import Message, validate_messages
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Tokens to be continued by the assistant.

    Attributes:
        tokens: from ``<|endoftext|>`` to the opening ``<|assistant|>``.
        dropped_messages: how many of the oldest messages did not fit.
    """

    tokens: list[int]
    dropped_messages: int


@dataclass(frozen=True)
class FittedConversation:
    """What of a conversation fits a context, newest turns first.

    Attributes:
        tokens: empty when nothing of use fits.
        is_target: one for each token: whether the model learns to produce it.
        dropped_messages: how many of the oldest messages did not fit.
        cut_tokens: how many tokens the newest message lost at its end, being too long by itself.
    """

    tokens: list[int]
    is_target: list[bool]
    dropped_messages: int
    cut_tokens: int


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Tokens of the whole conversation, and which of them the assistant produces.

    Targets are the assistant's content and the ``<|end|>`` after it, not its role token, which
    is given when the assistant is asked.
    """
    validate_messages([dict(message) for message in messages], "conversation")
    tokens, is_target = [tokenizer.end_of_text], [False]
    for message, content in zip(messages, _encode_contents(tokenizer, messages), strict=True):
        piece = _message_tokens(tokenizer, message["role"], content)
        tokens += piece
        is_target += _message_targets(message["role"], len(piece))
    return tokens, is_target


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
        validate_messages([dict(message) for message in messages], "prompt")
        if messages[-1]["role"] == "assistant":
            raise UserError(
                "prompt: the last message is the assistant's, so there is nothing to answer",
                "end the prompt with a user's message",
            )
    pieces = [
        _message_tokens(tokenizer, message["role"], content)
        for message, content in zip(messages, _encode_contents(tokenizer, messages), strict=True)
    ]
    opening = [tokenizer.end_of_text]
    if messages and messages[0]["role"] == "system":
        opening += pieces.pop(0)
    room = None if limit is None else limit - len(opening) - 1
    kept = len(pieces) if room is None else _newest_that_fit(pieces, room)
    if (pieces and not kept) or (room is not None and room < 0):
        needed = len(opening) + 1 + (len(pieces[-1]) if pieces else 0)
        raise UserError(
            f"prompt: the system message and the last message need {needed} tokens; "
            f"there is room for {limit}",
            "shorten them, or use a model with a longer context",
        )
    dropped = len(pieces) - kept
    tokens = opening + [token for piece in pieces[dropped:] for token in piece]
    return Prompt([*tokens, tokenizer.assistant], dropped)


def fit_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int
) -> FittedConversation:
    """`encode_conversation` within `limit` tokens: the system message and the newest turns.

    When even the newest message is too long, its end is cut, and its ``<|end|>`` with it, so that
    the model does not learn to stop in the middle. When the system message leaves no room for one
    token of content, nothing is kept.
    """
    validate_messages([dict(message) for message in messages], "conversation")
    roles = [message["role"] for message in messages]
    pieces = [
        _message_tokens(tokenizer, role, content)
        for role, content in zip(roles, _encode_contents(tokenizer, messages), strict=True)
    ]
    tokens, is_target = [tokenizer.end_of_text], [False]
    if roles[0] == "system":
        system = pieces.pop(0)
        roles.pop(0)
        tokens += system
        is_target += [False] * len(system)
    room = limit - len(tokens)
    kept = _newest_that_fit(pieces, room)
    cut_tokens = 0
    if pieces and not kept:
        if room < 2:
            return FittedConversation([], [], len(messages), 0)
        cut_tokens = len(pieces[-1]) - room
        pieces[-1] = pieces[-1][:room]
        kept = 1
    elif not pieces and room < 0:
        return FittedConversation([], [], len(messages), 0)
    dropped = len(pieces) - kept
    for role, piece in zip(roles[dropped:], pieces[dropped:], strict=True):
        tokens += piece
        is_target += _message_targets(role, len(piece))
    return FittedConversation(tokens, is_target, dropped, cut_tokens)


def split_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int
) -> list[FittedConversation]:
    """The whole conversation in pieces of at most `limit` tokens, for training on all of it.

    Each piece opens with the system message. Every message is a target in the piece it belongs
    to and in no other. A piece that would begin with the assistant's answer is given the user's
    message before it once more, where both fit. A message too long by itself is cut, as in
    `fit_conversation`. `dropped_messages` is 0 in each piece, unless the system message leaves no
    room: then the result is one empty piece.
    """
    system = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    turns = list(messages[len(system) :])
    whole = fit_conversation(tokenizer, messages, limit)
    if not turns or not whole.tokens or not (whole.dropped_messages or whole.cut_tokens):
        return [whole]
    opening, _ = encode_conversation(tokenizer, system) if system else ([tokenizer.end_of_text], [])
    lengths = [len(content) + 2 for content in _encode_contents(tokenizer, turns)]
    pieces = []
    start = 0  # of the piece's own turns
    while start < len(turns):
        repeated = _repeats_question(turns, lengths, start, limit - len(opening))
        room = limit - len(opening) - sum(lengths[start - repeated : start])
        stop = start
        while stop < len(turns) and lengths[stop] <= room:
            room -= lengths[stop]
            stop += 1
        stop = max(stop, start + 1)
        kept = [*system, *turns[start - repeated : stop]]
        pieces.append(fit_conversation(tokenizer, kept, limit))
        start = stop
    return pieces


def _repeats_question(
    turns: Sequence[Message], lengths: Sequence[int], start: int, room: int
) -> int:
    """1 if the message before `start` is the user's, is answered at `start`, and both fit."""
    answers = start > 0 and turns[start]["role"] == "assistant"
    return int(answers and lengths[start - 1] + lengths[start] <= room)


def _encode_contents(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[list[int]]:
    return [tokenizer.encode(message["content"]) for message in messages]


def _message_tokens(tokenizer: Tokenizer, role: str, content: list[int]) -> list[int]:
    return [tokenizer.role_token(role), *content, tokenizer.end_of_turn]


def _message_targets(role: str, length: int) -> list[bool]:
    """For a message of `length` tokens, the first of which is its role token."""
    return [False] + [role == "assistant"] * (length - 1)


def _newest_that_fit(pieces: Sequence[Sequence[int]], room: int) -> int:
    """How many whole pieces from the end have at most `room` tokens together."""
    for count, piece in enumerate(reversed(pieces)):
        room -= len(piece)
        if room < 0:
            return count
    return len(pieces)
