"""What the data stage left out, and how little there is, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

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
