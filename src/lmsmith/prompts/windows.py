"""Long conversations cut into windows that fit the context, every reply learnt exactly once."""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.corpus.messages import Message
from lmsmith.prompts.chat import fit_conversation
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
    system = [messages[0]] if messages and messages[0]["role"] == "system" else []
    turns = list(messages[len(system) :])
    lengths = [len(tokenizer.encode(turn["content"])) + 2 for turn in turns]
    overhead = 1 + sum(len(tokenizer.encode(message["content"])) + 2 for message in system)
    windows: list[tuple[list[int], list[bool]]] = []
    start = 0
    while start < len(turns):
        first, room = start, min(history, limit - overhead)
        while first > 0 and lengths[first - 1] <= room:
            first -= 1
            room -= lengths[first]
        used = overhead + sum(lengths[first:start])
        while first < start and used + lengths[start] > limit:  # a long reply needs the room
            used -= lengths[first]
            first += 1
        end = start
        while end < len(turns) and used + lengths[end] <= limit:
            used += lengths[end]
            end += 1
        end = max(end, start + 1)  # a message longer than the context is cut by fitting
        fitted = fit_conversation(tokenizer, [*system, *turns[first:end]], limit)
        learnt_from = overhead + sum(lengths[first:start])
        is_target = [
            target and position >= learnt_from for position, target in enumerate(fitted.is_target)
        ]
        if any(is_target):
            windows.append((fitted.tokens, is_target))
        start = end
    return windows
