"""A text as a prompt: the one rule for what stands before its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.tokenizers import Tokenizer


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
