"""Cleans text and conversations from outside, and drops duplicates."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from lmsmith.core.text import encodable
from lmsmith.corpus.messages import Message, add_message
from lmsmith.corpus.rows import Conversation

UnicodeForm: TypeAlias = Literal["none", "NFC", "NFKC"]

_LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # as str.splitlines
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


def clean_text(text: str, unicode_form: UnicodeForm = "none") -> str:
    """`text` with line ends as ``\\n``, no control characters but tab, and no outer white space.

    Vertical tabs, form feeds, NEL, U+2028 and U+2029 are line ends, too. Lone surrogates, which
    UTF-8 cannot hold, become U+FFFD.
    """
    text = _CONTROL.sub("", _LINE_END.sub("\n", encodable(text)))
    if unicode_form != "none":
        text = unicodedata.normalize(unicode_form, text)
    return text.strip()


def text_key(text: str) -> str:
    """A hash that ignores case, width, punctuation and white space.

    Text without any letter or digit is hashed as it is, so that different emoji stay different.
    """
    folded = encodable(unicodedata.normalize("NFKC", text).casefold())
    essence = _NOT_ALPHANUMERIC.sub("", folded) or folded
    return hashlib.sha256(essence.encode("utf-8")).hexdigest()[:32]


def same_text(one: str, other: str) -> bool:
    """Whether two replies differ in nothing but case and white space."""
    return one.casefold().split() == other.casefold().split()


def clean_conversations(
    conversations: Iterable[Conversation], unicode_form: UnicodeForm, counts: Counter[str]
) -> Iterator[Conversation]:
    """Clean every message; drop the empty ones, and join what then are neighbours of one role."""
    for conversation in conversations:
        messages = clean_messages(conversation.messages, unicode_form, counts)
        yield Conversation(conversation.id, messages)


def clean_messages(
    messages: Iterable[Message], unicode_form: UnicodeForm, counts: Counter[str]
) -> list[dict[str, str]]:
    """Messages without the empty ones, neighbours of one role joined."""
    cleaned: list[dict[str, str]] = []
    for message in messages:
        content = clean_text(message["content"], unicode_form)
        if not content:
            counts["dropped.empty_messages"] += 1
        else:
            add_message(cleaned, message["role"], content)
    return cleaned


def drop_without_exchange(
    conversations: Iterable[Conversation], min_turns: int, counts: Counter[str]
) -> Iterator[Conversation]:
    """Keep conversations of both roles and of at least `min_turns` turns."""
    for conversation in conversations:
        turns = conversation.turns()
        if len({turn["role"] for turn in turns}) < 2:
            counts["dropped.one_sided"] += 1
        elif len(turns) < min_turns:
            counts["dropped.too_few_turns"] += 1
        else:
            yield conversation


def drop_duplicates(
    conversations: Iterable[Conversation], counts: Counter[str]
) -> tuple[list[Conversation], set[str]]:
    """Keep the smallest id of conversations with nearly the same text, whatever the roles.

    So what is kept, and with it the split, does not depend on the order of reading.

    Returns:
        The conversations in their order, and the keys of their texts.
    """
    read = [
        (text_key("\n".join(turn["content"] for turn in conversation.turns())), conversation)
        for conversation in conversations
    ]
    smallest: dict[str, Conversation] = {}
    for key, conversation in read:
        if key not in smallest or conversation.id < smallest[key].id:
            smallest[key] = conversation
    kept = [conversation for key, conversation in read if smallest[key] is conversation]
    counts["dropped.duplicates"] = len(read) - len(kept)
    return kept, set(smallest)


def other_side(conversation: Conversation) -> Conversation | None:
    """The conversation with user and assistant exchanged, from the user's first message on.

    None if nothing of the assistant's is left, or if a system message says who is who.
    """
    exchanged = {"user": "assistant", "assistant": "user"}
    start = conversation.messages[0]["role"] == "user"  # exchanged, the assistant's
    messages = conversation.messages[start:]
    if conversation.messages[0]["role"] == "system" or len(messages) < 2:
        return None
    return Conversation(
        f"{conversation.id}/other-side",
        [{**message, "role": exchanged[message["role"]]} for message in messages],
    )


_CONVERSATIONS = {
    "dropped.one_sided": "without a message of both user and assistant",
    "dropped.too_few_turns": "with fewer than {min_turns} turns (data.min_turns)",
    "dropped.duplicates": "with the text of another",
}
_BEST = {
    "dropped.contained": "that another begins with",
    "dropped.empty_best_response": "whose best response is empty",
}
_DOCUMENTS = {
    "dropped.empty_documents": "empty",
    "dropped.duplicate_documents": "with the text of another, or of a conversation",
}


def left_out_warnings(counts: Mapping[str, int], min_turns: int) -> Iterator[str]:
    """A sentence for each kind of row of which some were left out: how many, and why."""
    kinds = (
        ("conversations", counts["conversations.read"], _CONVERSATIONS),
        ("documents", counts["documents.read"], _DOCUMENTS),
        ("rankings' best responses", counts["rankings.read"] - counts["rankings.left_out"], _BEST),
    )
    for kind, read, reasons in kinds:
        found = {why: counts[name] for name, why in reasons.items() if counts[name]}
        if found:
            why = ", ".join(f"{count:,} {words}" for words, count in found.items())
            total = f"{sum(found.values()):,} of {read:,} {kind} left out: "
            yield total + why.format(min_turns=min_turns)
    if empty := counts["dropped.empty_messages"]:
        yield f"{empty:,} empty messages left out of conversations"


def why_none_is_left(sources: str, counts: Mapping[str, int], min_turns: int) -> tuple[str, str]:
    """The problem that no conversation is left, and what to do about the most frequent reason."""
    if not counts["conversations.read"]:
        return f"{sources}: no conversations in it", "Add conversations."
    one_sided, short = counts["dropped.one_sided"], counts["dropped.too_few_turns"]
    problem = (
        f"{sources}: none of {counts['conversations.read']} conversations is left: {one_sided} "
        f"have one side only, {short} fewer than {min_turns} turns"
    )
    if short > one_sided:
        return problem, f"Lower data.min_turns (it is {min_turns}), or add conversations."
    fix = "A conversation needs a message with the role user and one with the role assistant"
    return problem, f"{fix}: check the roles and texts of the rows."


def empty_splits_warning(empty: Collection[str], shares: Mapping[str, float], rows: int) -> str:
    """That some splits have no conversation, and how many it takes."""
    needed = sum(share > 0 for share in shares.values())
    return (
        f"no conversation for {', '.join(empty)}: there are {rows:,}, and each of {needed} splits "
        f"needs one. Add conversations, or set the shares in data.splits to 0"
    )
