"""What of a conversation fits a context: a prompt, or a conversation to learn from."""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.core.errors import UserError


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
