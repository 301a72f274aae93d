"""Prompts out of conversations: what was said before a person's reply, and that reply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.corpus.rows import Conversation
from lmsmith.prompts.chat import encode_prompt
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class PromptAndReply:
    """A prompt out of a conversation, and what the person replied.

    Attributes:
        id: the conversation's, and the reply's place in it.
        root: the conversation's, whichever side plays the assistant.
        prompt: the messages before the reply that fit the context.
        tokens: of the prompt.
        reply: the person's.
        reply_tokens: of the reply, its end of turn not counted.
    """

    id: str
    root: str
    prompt: list[dict[str, str]]
    tokens: list[int]
    reply: str
    reply_tokens: int


def row_tokens(maximum_prompt: int, maximum_reply: int, context: int) -> int:
    """Most tokens of a prompt, a reply and its end of turn; all of the context if there is no
    ``maximum_prompt`` (0)."""
    return min(context, maximum_prompt + maximum_reply + 1) if maximum_prompt else context


def select_prompts(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    limit: int,
    *,
    most: int,
    per_conversation: int,
    minimum_tokens: int,
    maximum_tokens: int,
) -> list[PromptAndReply]:
    """Prompts evenly spread over each conversation, in an order that their ids' hash decides.

    Every turn of the assistant that answers the user, with a reply of the allowed length, is
    eligible. A prompt keeps the newest messages that leave room for the longest reply; a turn
    whose last message alone does not fit is left out.

    Args:
        limit: most tokens of a prompt, the longest reply and its end of turn.
        most: prompts in all.
        per_conversation: prompts of one conversation.
        minimum_tokens, maximum_tokens: of the reply, its end of turn not counted.
    """
    found: list[PromptAndReply] = []
    for conversation in conversations:
        eligible = _eligible_turns(conversation, tokenizer, minimum_tokens, maximum_tokens)
        for turn, length in _evenly_spread(eligible, per_conversation):
            before = conversation.messages[:turn]
            try:
                prompt = encode_prompt(tokenizer, before, limit - maximum_tokens - 1)
            except UserError:
                continue
            system = before[:1] if before[0]["role"] == "system" else []
            kept = [*system, *before[len(system) + prompt.dropped_messages :]]
            reply = conversation.messages[turn]["content"]
            found.append(
                PromptAndReply(
                    f"{conversation.id}#{turn}",
                    conversation.id.removesuffix("/other-side"),
                    kept,
                    prompt.tokens,
                    reply,
                    length,
                )
            )
    return sorted(found, key=lambda each: (fingerprint(each.id), each.id))[:most]


def _eligible_turns(
    conversation: Conversation, tokenizer: Tokenizer, minimum_tokens: int, maximum_tokens: int
) -> list[tuple[int, int]]:
    """(place, reply tokens) of the assistant's messages that may be a candidate."""
    messages = conversation.messages
    turns = [
        turn
        for turn in range(1, len(messages))
        if messages[turn]["role"] == "assistant" and messages[turn - 1]["role"] == "user"
    ]
    lengths = [len(ids) for ids in tokenizer.encode_batch([messages[t]["content"] for t in turns])]
    return [
        (turn, length)
        for turn, length in zip(turns, lengths, strict=True)
        if minimum_tokens <= length <= maximum_tokens
    ]


def _evenly_spread(items: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    if len(items) <= most:
        return list(items)
    return [items[int((index + 0.5) * len(items) / most)] for index in range(most)]
