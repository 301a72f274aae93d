"""Whether a server's token can be guessed: words, dates, keyboards and patterns are not random.

zxcvbn (Wheeler, USENIX Security 2016) finds the cheapest way to build a token of such parts.
Whoever quotes a poem is not found out by any list, so most of a token must be characters that
belong to none of them, of two kinds.
"""

from __future__ import annotations

import re

SHORTEST_TOKEN = 16

LEAST_GUESSES = 13.0
"""Decimal logarithm of an attacker's guesses, by zxcvbn's estimate."""

LEAST_RANDOM = 11
"""Characters that belong to no word, date, keyboard's row, sequence or repetition."""

LEAST_OF_KIND = 3
"""Characters of the second most frequent kind: small letters, capitals or digits."""

LONGEST_READ = 72
"""Characters that are looked at: zxcvbn's time grows with the square."""

ADVICE = 'make a random one: python -c "import secrets; print(secrets.token_urlsafe(24))"'

_KINDS = ("[a-z]", "[A-Z]", "[0-9]")


def weakness(token: str) -> str:
    """Why a token can be guessed; empty if it looks random."""
    if len(token) < SHORTEST_TOKEN:
        return f"it has {len(token)} characters, and {SHORTEST_TOKEN} is the least"
    token = token[:LONGEST_READ]
    if sorted(len(re.findall(kind, token)) for kind in _KINDS)[1] < LEAST_OF_KIND:
        return "it is of one kind of characters; a random one has small letters, capitals, digits"
    # Words with and without the signs and capitals between them.
    for each in (token, re.sub(r"[\W_]", "", token.lower())):
        guesses, random = _estimate(each)
        if guesses < LEAST_GUESSES or random < LEAST_RANDOM:
            return "it is made of words, dates or patterns, so that it can be guessed"
    return ""


def _estimate(token: str) -> tuple[float, int]:
    """Logarithm of the guesses, and the number of characters that have to be tried out."""
    from zxcvbn import zxcvbn

    found = zxcvbn(token, user_inputs=["lmsmith", "token"], max_length=LONGEST_READ)
    parts = found["sequence"]
    return float(found["guesses_log10"]), sum(
        len(part["token"]) for part in parts if part["pattern"] == "bruteforce"
    )
