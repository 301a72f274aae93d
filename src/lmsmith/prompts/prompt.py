"""Texts and conversations as prompts: tokens to be continued, and what of them fits a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Tokens to be continued by the assistant.

    Attributes:
        tokens: from ``<|endoftext|>`` to the opening ``<|assistant|>``, or what the model's own
            template writes in their place.
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


class PromptTooLong(UserError):
    """The system message and the last message alone are longer than the room for a prompt."""


def room_for_reply(context: int, max_new_tokens: int) -> int:
    """Tokens that a prompt leaves to its reply: a quarter of the context at most."""
    return max(1, min(max_new_tokens, context // 4))


def too_long(needed: int, limit: int | None) -> PromptTooLong:
    """What to raise when a prompt does not fit even without its oldest messages."""
    return PromptTooLong(
        f"prompt: the system message and the last message need {needed} tokens; "
        f"there is room for {limit}",
        "shorten them, or use a model with a longer context",
    )


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
    """A text's tokens after ``start``.

    A model goes on from a token: without any, the start of text stands there.
    """
    return [*start, *tokens] or [tokenizer.start_of_text]
