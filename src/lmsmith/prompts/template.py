"""Conversations by a model's own template, which may write any message by any other.

So a conversation without its oldest messages is written anew, and not cut out of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from lmsmith.corpus.messages import Message
from lmsmith.prompts.prompt import FittedConversation, Prompt, too_long
from lmsmith.tokenizers import EncodedChat, Tokenizer


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Tokens of the whole conversation, and which of them the assistant produces.

    Targets are the assistant's content and the token that ends the turn.
    """
    encoded = _ended(tokenizer, messages)
    return encoded.tokens, [author >= 0 for author in encoded.authors]


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int | None = None
) -> Prompt:
    """Tokens that ask the assistant for the next message, within ``limit``.

    Where they are more, the oldest messages are dropped, up to one of the user's, since many
    templates demand that the user begins; the system message and the last one are kept.

    Raises:
        UserError: what must be kept does not fit, or the template refuses it.
    """

    def encode(kept: Sequence[Message]) -> list[int]:
        return tokenizer.encode_chat(kept, ask=True).tokens

    tokens = encode(messages)
    if limit is None or len(tokens) <= limit:
        return Prompt(tokens, 0)
    system, turns = _parted(messages)
    starts = _starts(turns)
    first = _first_that_fits(starts, lambda start: len(encode(system + turns[start:])) <= limit)
    if first is None:
        last = starts[-1] if starts else 0
        raise too_long(len(encode(system + turns[last:])), limit)
    return Prompt(encode(system + turns[first:]), first)


def fit_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], limit: int
) -> FittedConversation:
    """`encode_conversation` within ``limit`` tokens: the system message and the newest turns.

    When even the newest do not fit, their end is cut; nothing is kept if no target is left of
    an assistant's message.
    """

    def encode(start: int) -> EncodedChat:
        return _ended(tokenizer, system + turns[start:])

    system, turns = _parted(messages)
    starts = _starts(turns)
    first = _first_that_fits(starts, lambda start: len(encode(start).tokens) <= limit)
    kept = first if first is not None else starts[-1]
    encoded = encode(kept)
    tokens, is_target = encoded.tokens[:limit], [n >= 0 for n in encoded.authors[:limit]]
    if first is None and not any(is_target):
        return FittedConversation([], [], len(messages), 0)
    return FittedConversation(tokens, is_target, kept, len(encoded.tokens) - len(tokens))


def conversation_windows(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    limit: int,
    history: int,
    counts: Counter[str] | None = None,
) -> list[tuple[list[int], list[bool]]]:
    """`lmsmith.prompts.chat.conversation_windows` for a template.

    Where the template ends no reply but the last, every reply has a window of its own: in one
    with others, only the last would be seen to end.
    """
    counts = counts if counts is not None else Counter()
    whole = _ended(tokenizer, messages)
    replies = {n for n, message in enumerate(messages) if message["role"] == "assistant"}
    counts["replies_not_written"] += len(replies - set(whole.authors))
    alone = not _all_end(tokenizer, whole)
    if len(whole.tokens) <= limit and not alone:
        is_target = [author >= 0 for author in whole.authors]
        return [(whole.tokens, is_target)] if any(is_target) else []
    system, turns = _parted(messages)
    lengths = [len(ids) for ids in tokenizer.encode_batch([t["content"] for t in turns])]
    starts = _starts(turns)
    windows: list[tuple[list[int], list[bool]]] = []
    start = 0
    while start < len(turns):
        last = len(turns)
        if alone:
            last = next((n for n in range(start, last) if len(system) + n in replies), last - 1) + 1
        first = _first_with_history(starts, lengths, start, history)
        encoded, end = _longest_window(tokenizer, system, turns[:last], first, start, limit)
        if end == start:  # too long with its history: without it, and cut
            first = max((s for s in starts if s <= start), default=0)
            encoded, end = _longest_window(tokenizer, system, turns[:last], first, start, limit)
            end = max(end, start + 1)
            if not encoded.tokens:
                encoded = _ended(tokenizer, system + turns[first:end])
        from_message = len(system) + start - first
        is_target = [author >= from_message for author in encoded.authors[:limit]]
        if any(is_target):
            windows.append((encoded.tokens[:limit], is_target))
            counts["replies_cut"] += any(a >= from_message for a in encoded.authors[limit:])
        elif any(author >= from_message for author in encoded.authors):
            counts["replies_without_question"] += 1
        start = end
    return windows


def _ended(tokenizer: Tokenizer, messages: Sequence[Message]) -> EncodedChat:
    """The conversation, with an end of turn after a last reply where the template writes none."""
    encoded = tokenizer.encode_chat(messages, ask=False)
    last = len(messages) - 1
    if last not in encoded.authors:
        return encoded
    end = len(encoded.authors) - encoded.authors[::-1].index(last)
    if encoded.tokens[end - 1] in tokenizer.stop_tokens:
        return encoded
    return EncodedChat(
        [*encoded.tokens[:end], tokenizer.end_of_turn], [*encoded.authors[:end], last]
    )


def _all_end(tokenizer: Tokenizer, encoded: EncodedChat) -> bool:
    """Whether every reply ends with a token at which one ends when the model writes it."""
    finals = {author: token for token, author in zip(encoded.tokens, encoded.authors, strict=True)}
    return all(token in tokenizer.stop_tokens for n, token in finals.items() if n >= 0)


def _longest_window(
    tokenizer: Tokenizer,
    system: list[Message],
    turns: list[Message],
    first: int,
    start: int,
    limit: int,
) -> tuple[EncodedChat, int]:
    """Turns from ``first`` to the last that fits; nothing and ``start`` if not one does."""
    best, end = EncodedChat([], []), start
    while end < len(turns):
        longer = _ended(tokenizer, system + turns[first : end + 1])
        if len(longer.tokens) > limit:
            break
        best, end = longer, end + 1
    return best, end


def _first_with_history(
    starts: Sequence[int], lengths: Sequence[int], start: int, history: int
) -> int:
    """The oldest turn of which a window may begin: ``history`` tokens of content before."""
    allowed = [s for s in starts if s <= start and sum(lengths[s:start]) <= history]
    nearest = max((s for s in starts if s <= start), default=0)
    return min(allowed, default=nearest)


def _parted(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    has_system = bool(messages) and messages[0]["role"] == "system"
    return list(messages[:has_system]), list(messages[has_system:])


def _starts(turns: Sequence[Message]) -> list[int]:
    """Where the turns that are kept may begin: all of them, or from a user's message on."""
    return [n for n, turn in enumerate(turns) if n == 0 or turn["role"] == "user"]


def _first_that_fits(starts: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first of the starts from which on all fit, by bisection: later is shorter."""
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    return starts[low] if low < len(starts) else None
