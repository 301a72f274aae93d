"""Long conversations cut into windows that fit the context, every reply learnt exactly once."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.corpus.messages import Message
from lmsmith.prompts import templated
from lmsmith.tokenizers import Tokenizer


def conversation_windows(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int, history: int
) -> list[tuple[list[int], list[bool]]]:
    """Token windows of a conversation, each with its targets.

    A window ends at the last message that fits beside up to ``history`` tokens of earlier
    messages, which are repeated there without loss; the system message opens every window. So
    each of the assistant's messages is a target in one window, with what came before it in sight.

    Args:
        limit: most tokens of a window (the context).
        history: most tokens of earlier messages repeated at a window's start.

    Returns:
        Pairs of tokens and is_target; windows in which nothing is a target are left out.
    """
    if not tokenizer.is_own:
        return templated.conversation_windows(tokenizer, messages, limit, history)
    opening = [tokenizer.end_of_text]
    contents = tokenizer.encode_batch([message["content"] for message in messages])
    pieces = [
        [tokenizer.role_token(message["role"]), *content, tokenizer.end_of_turn]
        for message, content in zip(messages, contents, strict=True)
    ]
    learnt = [message["role"] == "assistant" for message in messages]
    if messages and messages[0]["role"] == "system":
        opening += pieces.pop(0)
        learnt.pop(0)
    windows: list[tuple[list[int], list[bool]]] = []
    start = 0
    while start < len(pieces):
        room = limit - len(opening)
        first, left = start, min(history, room - len(pieces[start]))
        while first > 0 and len(pieces[first - 1]) <= left:
            first -= 1
            left -= len(pieces[first])
        tokens = [*opening, *(token for piece in pieces[first:start] for token in piece)]
        is_target = [False] * len(tokens)
        end = start
        while end < len(pieces) and (end == start or len(tokens) + len(pieces[end]) <= limit):
            tokens += pieces[end]
            is_target += [False, *[learnt[end]] * (len(pieces[end]) - 1)]
            end += 1
        if any(is_target[:limit]):  # a message longer than the context loses its end
            windows.append((tokens[:limit], is_target[:limit]))
        start = end
    return windows
