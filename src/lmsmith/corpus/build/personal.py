"""Personal data masked: addresses, numbers that a check digit confirms, and secret keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from lmsmith.corpus.build.document import Count, Document, Yielded

Kind: TypeAlias = Literal["mail", "phone", "iban", "card", "key"]

KINDS: tuple[Kind, ...] = ("key", "mail", "iban", "card", "phone")
"""In the order in which they are looked for."""


@dataclass(frozen=True)
class PersonalConfig:
    """Personal data that is masked."""

    mask: tuple[Kind, ...] = ()
    """What is replaced by its kind in brackets, such as ``[mail]``: mail, phone, iban and card
    (numbers with a right check digit), key (secrets of services, private keys)."""


_MAIL = (
    r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}\b"
)
_IBAN = r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
_CARD = (
    r"(?<![\d.])[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\d.]\d|\d)"
    r"|(?<![\d.])3[47]\d{2}[ -]?\d{6}[ -]?\d{5}(?!\d)"
)
_PHONE = (
    r"(?<![A-Za-z0-9_.+/-])(?<!\d )(?:"
    r"(?:\+|00)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +44 20 …
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}"  # (206) 555-0123
    r"|(?:1[ .-])?[2-9]\d{2}[.-]\d{3}[.-]\d{4}"  # 206-555-0123
    r"|1[3-9]\d(?:[ -]?\d{4}){2}"  # a Chinese mobile
    r"|0\d{2,3}-\d{7,8}"  # 010-12345678
    r")(?![A-Za-z0-9_/-]|\.\d)"
)
_KEY = (
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----.{0,8000}?-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{50,}\b"
    r"|\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{32,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{20,}"
    r"|\bAIza[0-9A-Za-z_-]{35}\b"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"
)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_is_valid(text: str) -> bool:
    """Whether the two check digits fit the rest (ISO 7064, MOD 97-10)."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(each, 36)) for each in moved)) % 97 == 1


def _card_is_valid(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _phone_is_likely(text: str) -> bool:
    return 8 <= sum(each.isdigit() for each in text) <= 15


_RULES: dict[Kind, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "key": (re.compile(_KEY, re.DOTALL), lambda _text: True),
    "mail": (re.compile(_MAIL), lambda _text: True),
    "iban": (re.compile(_IBAN), iban_is_valid),
    "card": (re.compile(_CARD), _card_is_valid),
    "phone": (re.compile(_PHONE), _phone_is_likely),
}


_DIGITS = re.compile(r"\d[\d ().-]{6,}\d")
_KEY_BEGINS = (
    "PRIVATE KEY-",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "sk-",
    "xox",
    "AIza",
    "eyJ",
)

_HINTS: dict[Kind, Callable[[str], object]] = {
    "key": lambda text: any(begin in text for begin in _KEY_BEGINS),
    "mail": lambda text: "@" in text,
    "iban": lambda text: re.search(r"[A-Z]{2}\d\d", text),
    "card": _DIGITS.search,
    "phone": _DIGITS.search,
}
"""Whether a text can hold such a thing at all: most hold none, and the rules take longer."""


def mask(
    documents: Iterable[Document], _broadcast: Any, *, config: PersonalConfig
) -> Iterator[Yielded]:
    """Replace personal data in each text, and count it by kind."""
    for each in documents:
        text, counts = masked(each.text, config.mask)
        for kind, count in counts.items():
            yield Count(each.source, f"personal.{kind}", count)
        yield msgspec.structs.replace(each, text=text) if counts else each


def masked(text: str, kinds: Iterable[Kind]) -> tuple[str, Counter[Kind]]:
    """The text with placeholders, and how many there are of each kind."""
    counts: Counter[Kind] = Counter()
    chosen = set(kinds)
    for kind in KINDS:
        if kind not in chosen or not _HINTS[kind](text):
            continue
        pattern, valid = _RULES[kind]

        def replaced(
            match: re.Match[str], kind: Kind = kind, valid: Callable[[str], bool] = valid
        ) -> str:
            if not valid(match[0]):
                return match[0]
            counts[kind] += 1
            return f"[{kind}]"

        text = pattern.sub(replaced, text)
    return text, counts
