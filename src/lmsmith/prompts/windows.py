"""Long conversations cut into windows that fit the context, every reply learnt at most once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmsmith.corpus.messages import Message
from lmsmith.prompts import templated
from lmsmith.tokenizers import Tokenizer


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
        return templated.conversation_windows(tokenizer, messages, limit, history, counts)
    counts = counts if counts is not None else Counter()
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
