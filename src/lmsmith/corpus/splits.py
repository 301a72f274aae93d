"""Which split a conversation belongs to: a function of its name alone, whatever else there is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from lmsmith.corpus.cleaning import clean_text, text_key
from lmsmith.corpus.messages import Message


def split_of(name: str, fractions: Mapping[str, float]) -> str | None:
    """The split of what is called `name`, or None when it is in the rest.

    The hash of `name` is a point in [0, 1); the fractions, laid end to end in their order, are
    intervals. So splits are disjoint, and do not change when rows are added, removed or reordered.

    Args:
        fractions: split → its share, each at least 0, at most 1 in sum.
    """
    point = _point(name)
    end = 0.0
    for split, fraction in fractions.items():
        end += fraction
        if point < end:
            return split
    # Shares such as ten times 0.1 add up to a little less than the 1 they mean.
    positive = [split for split, fraction in fractions.items() if fraction > 0]
    return positive[-1] if positive and end > 1 - 1e-9 else None


def opening_key(messages: Sequence[Message]) -> str:
    """A name for all dialogues that begin alike: a hash of the first thing the user says.

    Split by it, the branches of a tree and the turns of a dialogue stay together. It ignores
    what `text_key` ignores.
    """
    said = (clean_text(each["content"]) for each in messages if each["role"] == "user")
    return text_key(next(filter(None, said), ""))


def _point(name: str) -> float:
    """A point in [0, 1), the same on every machine: 53 bits of the SHA-256 of `name`."""
    encoded = name.encode("utf-8", errors="backslashreplace")
    digest = hashlib.sha256(b"lmsmith split\0" + encoded).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
