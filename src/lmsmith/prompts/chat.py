"""Conversations and texts as prompts: tokens to be continued, and what of them fits a context.

lmsmith's own format is ``<|endoftext|>``, then for each message role, content, ``<|end|>``. Models
from outside have a template of their own, which may write any message by any other: so a
conversation without its oldest messages is rendered again, and not cut out of the whole.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import Message, validate_messages
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Tokens up to what opens the assistant's message; the oldest messages may not have fitted."""

    tokens: list[int]
    dropped_messages: int


class PromptTooLong(UserError):
    """The system message and the last message alone are longer than the room for a prompt."""

    def __init__(self, needed: int, limit: int | None) -> None:
        super().__init__(
            f"prompt: the system message and the last message need {needed} tokens; "
            f"there is room for {limit}",
            "shorten them, or use a model with a longer context",
        )


def room_for_reply(context: int, max_new_tokens: int) -> int:
    """Tokens that a prompt leaves to its reply: a quarter of the context at most."""
    return max(1, min(max_new_tokens, context // 4))


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int | None = None
) -> Prompt:
    """Tokens that ask the assistant for the next message.

    Where they are more than `limit`, the oldest messages are dropped; the system message and the
    last one are always kept. No messages, or a system message alone, ask the assistant to begin.
    By a template, what is kept begins with a user's message, since many templates demand it.

    Args:
        limit: most tokens the prompt may have: the context less room for the reply.

    Raises:
        UserError: the last message is the assistant's, what must be kept does not fit, or the
            template refuses it.
    """
    if messages:
        validate_messages([dict(message) for message in messages], "prompt")
        if messages[-1]["role"] == "assistant":
            raise UserError(
                "prompt: the last message is the assistant's, so there is nothing to answer",
                "end the prompt with a user's message",
            )
    if not tokenizer.is_own:
        return _by_template(tokenizer, messages, limit)
    opening, turns = encode_turns(tokenizer, messages)
    room = (math.inf if limit is None else limit) - len(opening) - 1
    dropped, left = len(turns), room
    while dropped and len(turns[dropped - 1]) <= left:
        dropped -= 1
        left -= len(turns[dropped])
    if room < 0 or (turns and dropped == len(turns)):
        raise PromptTooLong(len(opening) + 1 + (len(turns[-1]) if turns else 0), limit)
    return Prompt([*opening, *chain(*turns[dropped:]), tokenizer.role_token("assistant")], dropped)


def _by_template(tokenizer: Tokenizer, messages: Sequence[Message], limit: int | None) -> Prompt:
    system, turns = split_system(messages)

    def encode(start: int) -> list[int]:
        return tokenizer.encode_chat(system + turns[start:], ask=True).tokens

    tokens = encode(0)
    if limit is None or len(tokens) <= limit:
        return Prompt(tokens, 0)
    starts = turn_starts(turns)
    fitting = bisect_left(starts, True, key=lambda start: len(encode(start)) <= limit)
    if fitting == len(starts):
        raise PromptTooLong(len(encode(starts[-1] if starts else 0)), limit)
    return Prompt(encode(starts[fitting]), starts[fitting])


def encode_turns(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[list[int]]]:
    """Messages in lmsmith's own format: end-of-text and the system message, then each turn."""
    contents = tokenizer.encode_batch([message["content"] for message in messages])
    turns = [
        [tokenizer.role_token(message["role"]), *content, tokenizer.end_of_turn]
        for message, content in zip(messages, contents, strict=True)
    ]
    opening = [tokenizer.end_of_text]
    if messages and messages[0]["role"] == "system":
        opening += turns.pop(0)
    return opening, turns


def split_system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the turns."""
    has_system = bool(messages) and messages[0]["role"] == "system"
    return list(messages[:has_system]), list(messages[has_system:])


def turn_starts(turns: Sequence[Message]) -> list[int]:
    """Where the turns that a template is given may begin: at the first, or at a user's message."""
    return [n for n, turn in enumerate(turns) if n == 0 or turn["role"] == "user"]


@dataclass(frozen=True)
class TextPrompt:
    """A text to be continued, as tokens.

    Attributes:
        tokens: never empty, unless special tokens were refused.
        start: how many of the first ones the text does not spell.
    """

    tokens: list[int]
    start: int


def encode_text_prompts(
    tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = True
) -> list[TextPrompt]:
    """Texts as prompts, with what the tokenizer's files put before a text, and nothing else.

    Args:
        add_special_tokens: without them a prompt is the text's own tokens, none for no text.
    """
    start = tokenizer.text_start if add_special_tokens else ()
    return [
        TextPrompt([*start, *tokens], len(start))
        if tokens or not add_special_tokens
        else TextPrompt(begun(tokenizer, tokens, start), len(start) or 1)
        for tokens in tokenizer.encode_batch(list(texts))
    ]


def begun(tokenizer: Tokenizer, tokens: Sequence[int], start: Sequence[int]) -> list[int]:
    """A text's tokens after ``start``; where there are none, the start of text."""
    return [*start, *tokens] or [tokenizer.start_of_text]
