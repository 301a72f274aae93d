"""The split of a conversation: a function of its name, unless a split would be empty."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lmsmith.corpus.cleaning import clean_text, text_key
from lmsmith.corpus.messages import Message
from lmsmith.corpus.rows import Document


def split_of(name: str, fractions: Mapping[str, float]) -> str | None:
    """The split of `name`, or None when it is in the rest.

    The hash of `name` is a point in [0, 1); the fractions, laid end to end in their order, are
    intervals. So splits are disjoint, and do not change when rows are added, removed or reordered.

    Args:
        fractions: split → its share, each at least 0, at most 1 in sum.
    """
    point, end = _point(name), 0.0
    for split, fraction in fractions.items():
        end += fraction
        if point < end:
            return split
    # Shares such as ten times 0.1 add up to a little less than the 1 they mean.
    positive = [split for split, fraction in fractions.items() if fraction > 0]
    return positive[-1] if positive and end > 1 - 1e-9 else None


def assign_splits(
    names: Iterable[str], fractions: Mapping[str, float], filled: Sequence[str | None]
) -> dict[str, str | None]:
    """The split of each name by `split_of`; an empty split gets a name of the fullest one.

    The fullest gives its last only to a split that is needed more.

    Args:
        filled: the splits that are not to be empty, the most needed first; None is the rest. A
            split without a share stays empty.
    """
    members: dict[str | None, list[str]] = {split: [] for split in (*fractions, None)}
    for name in dict.fromkeys(names):
        members[split_of(name, fractions)].append(name)
    rank = {split: place for place, split in enumerate(filled)}
    least_needed_first = sorted(members, key=lambda split: rank.get(split, len(rank)), reverse=True)
    for split in filled:
        if members[split] or (split is not None and not fractions[split]):
            continue
        donor = max(least_needed_first, key=lambda each: len(members[each]))
        given = members[donor]
        if len(given) > 1 or (given and rank.get(donor, len(rank)) > rank[split]):
            given.remove(moved := min(given, key=lambda name: _point(f"{name} {split}")))
            members[split].append(moved)
    return {name: split for split, inside in members.items() for name in inside}


MIN_HELD_OUT = 100
"""Characters: a shorter text does not measure a model."""


def hold_out_text(
    documents: dict[str, list[Document]], shares: Mapping[str, float], whole: str
) -> Iterator[str]:
    """Give each part that should have text and has none the end of the longest document.

    Where there is no text for training, the longest document of a part is for training.

    Args:
        documents: part → its documents; the part "" is for training. They are changed.
        shares: the share of each part that is held out.
        whole: the source whose documents are not cut.

    Yields:
        What was done, a sentence each.
    """

    def longest_of(found: Iterable[Document]) -> Document | None:
        return max(found, key=lambda each: len(each.text), default=None)

    if not documents[""]:
        part = max(documents, key=lambda name: len(documents[name]))
        if (longest := longest_of(documents[part])) is not None:
            documents[part].remove(longest)
            documents[""].append(longest)
            yield f"{longest.id} is for training, though it fell into {part}: all the text did"
    for part, share in shares.items():
        if documents[part] or share == 0:
            continue
        candidates = [each for each in documents[""] if each.source != whole]
        size = max(MIN_HELD_OUT, round(share * sum(len(each.text) for each in candidates)))
        if (longest := longest_of(candidates)) is None:
            continue
        if len(longest.text) < 4 * MIN_HELD_OUT:
            yield f"no text for {part}: it takes a document of {4 * MIN_HELD_OUT} characters"
            continue
        head, tail = _cut_end(longest.text, min(size, len(longest.text) // 4))
        documents[""][documents[""].index(longest)] = replace(longest, text=head)
        documents[part].append(Document(f"{longest.id}/{part}", tail, longest.source))
        gets = f"the last {len(tail):,} characters of {longest.id}"
        yield f"no document fell into {part}; it gets {gets}"


def _cut_end(text: str, size: int) -> tuple[str, str]:
    """A text in two, the second about `size` characters long; between lines or words if it can."""
    place = len(text) - size
    marks = (text.find(mark, place, place + size // 2) for mark in ("\n", " "))
    place = next((mark for mark in marks if mark > 0), place)
    return text[:place].rstrip(), text[place:].lstrip()


def opening_key(messages: Sequence[Message]) -> str:
    """The `text_key` of the user's first message: a dialogue's branches and turns share it."""
    said = (clean_text(each["content"]) for each in messages if each["role"] == "user")
    return text_key(next(filter(None, said), ""))


def _point(name: str) -> float:
    """A point in [0, 1), the same on every machine: 53 bits of the SHA-256 of `name`."""
    encoded = name.encode("utf-8", errors="backslashreplace")
    digest = hashlib.sha256(b"lmsmith split\0" + encoded).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
