"""Prompts out of conversations: the messages before a person's reply, and that reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.corpus.rows import Conversation
from lmsmith.prompts.chat import encode_prompt
from lmsmith.tokenizers import Tokenizer

LEFT_OUT = {
    "too_long": "whose last message does not fit {room} tokens or is refused by the chat template",
    "reply_length": "with a reply outside {window}",
    "empty": "without a word",
}
"""Reasons for which `select_prompts` leaves a prompt out, in words."""


@dataclass(frozen=True)
class PromptAndReply:
    """A prompt out of a conversation, and the person's reply.

    Attributes:
        id: the conversation's, and the reply's place in it.
        root: the conversation's, whichever side plays the assistant.
        prompt: the messages before the reply that fit the context.
        reply: empty where the conversation ends with the prompt.
        reply_tokens: their number, without the end of turn.
    """

    id: str
    root: str
    prompt: list[dict[str, str]]
    tokens: list[int]
    reply: str
    reply_tokens: int


def prompt_room(max_prompt_tokens: int, max_new_tokens: int, context: int) -> int:
    """Most tokens of a prompt, so that the longest reply and its end of turn fit the context too.

    Args:
        max_prompt_tokens: 0 for all that there is room for.
    """
    room = context - max_new_tokens - 1
    return min(room, max_prompt_tokens) if max_prompt_tokens else room


def select_prompts(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    room: int,
    *,
    most: int,
    per_conversation: int,
    reply_tokens: tuple[int, int] | None = None,
    counts: Counter[str] | None = None,
) -> list[PromptAndReply]:
    """Prompts evenly spread over each conversation, in an order that their ids' hash decides.

    Every message of the user is eligible, or, if ``reply_tokens`` is given, every one that the
    assistant answers with a reply of such a length. A prompt keeps the newest messages that fit.

    Args:
        room: most tokens of a prompt; a message that alone has more is left out.
        most: prompts in all.
        per_conversation: prompts of one conversation.
        reply_tokens: least and most tokens of the reply, its end of turn not counted; None where
            only the prompts are wanted.
        counts: gets the number of the user's messages (``turns``), and how many are left out for
            each reason of `LEFT_OUT`.
    """
    found: list[PromptAndReply] = []
    counts = counts if counts is not None else Counter()
    for conversation in conversations:
        messages = conversation.messages
        eligible = _eligible_turns(conversation, tokenizer, reply_tokens, counts)
        for turn, length in _evenly_spread(eligible, per_conversation):
            before = messages[:turn]
            try:
                prompt = encode_prompt(tokenizer, before, room)
            except UserError:
                counts["too_long"] += 1
                continue
            system = before[:1] if before[0]["role"] == "system" else []
            kept = [*system, *before[len(system) + prompt.dropped_messages :]]
            name, root = f"{conversation.id}#{turn}", conversation.id.removesuffix("/other-side")
            reply = messages[turn]["content"] if turn < len(messages) else ""
            found.append(PromptAndReply(name, root, kept, prompt.tokens, reply, length))
    return sorted(found, key=lambda each: (fingerprint(each.id), each.id))[:most]


def prompts_warning(counts: Counter[str], room: int, window: str = "") -> str:
    """A sentence on the prompts left out, if any; ``window`` names the lengths of replies."""
    reasons = [f"{counts[name]:,} {why}" for name, why in LEFT_OUT.items() if counts[name]]
    if not reasons:
        return ""
    left_out = sum(counts[name] for name in LEFT_OUT)
    why = ", ".join(reasons).format(room=room, window=window)
    return f"{left_out:,} of {counts['turns']:,} prompts left out: {why}"


def _eligible_turns(
    conversation: Conversation,
    tokenizer: Tokenizer,
    reply_tokens: tuple[int, int] | None,
    counts: Counter[str],
) -> list[tuple[int, int]]:
    """(place, reply tokens) of what comes after each message of the user that is a prompt."""
    messages = conversation.messages
    after = [turn for turn in range(1, len(messages) + 1) if messages[turn - 1]["role"] == "user"]
    if reply_tokens is not None:
        after = [t for t in after if t < len(messages) and messages[t]["role"] == "assistant"]
    turns = [turn for turn in after if messages[turn - 1]["content"].strip()]
    counts["turns"] += len(after)
    counts["empty"] += len(after) - len(turns)
    replies = [messages[t]["content"] if t < len(messages) else "" for t in turns]
    lengths = [len(ids) for ids in tokenizer.encode_batch(replies)]
    eligible = [
        (turn, length)
        for turn, length in zip(turns, lengths, strict=True)
        if reply_tokens is None or reply_tokens[0] <= length <= reply_tokens[1]
    ]
    counts["reply_length"] += len(turns) - len(eligible)
    return eligible


def _evenly_spread(items: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    if len(items) <= most:
        return list(items)
    return [items[int((index + 0.5) * len(items) / most)] for index in range(most)]
