"""The number that a text says, exactly, however it is written."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_ALIKE = {
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u2018\u2019"), "'"),
    0x066B: ".", 0xFF0E: ".", 0x066C: ",", 0x2044: "/", 0xFF0F: "/", 0xFF1A: ":",
}  # fmt: skip
"""Minus signs, apostrophes and marks inside numbers of other scripts → ours."""

_SUPERSCRIPTS = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")

SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12,
    "万亿": 12, "萬億": 12, "万": 4, "萬": 4, "亿": 8, "億": 8,
}  # fmt: skip
"""Words after a number → the zeros that they stand for."""

_MINUS_AND_SPACE = re.compile(r"(?<![\w)\]])(?<![\w)\]]\s)\u2212\s(?=\d)")
"""The minus of mathematics, which begins no list, may stand off its number, but after nothing."""

_FREE = r"(?<![A-Za-z0-9)\]])"
"""Where a minus is a sign: not after a letter, a digit, or what is in brackets."""

_NUMBER = re.compile(
    rf"""
    (?P<minus>
        {_FREE}-\s?[A-Za-z]{{0,3}}[$]\s?  |  {_FREE}-(?=[.\d])
      | \b(?:minus|negative)\s+[$]?(?=[.\d])  |  [负負]  |  零下
    )?
    (?:
        (?:(?P<units>\d{{1,300}})\s)?
        (?P<top>\d{{1,300}})\s?/\s?(?P<bottom>0*[1-9]\d{{0,300}})(?![\d/]|[.]\d)
      | 10\s?(?:\^|\*\*)\s?\{{?(?P<alone>[+-]?\d{{1,3}})(?!\d)
      |
        (?:
            (?P<whole>
                [1-9]\d{{0,2}}(?P<mark>[, '_])\d{{3}}(?:(?P=mark)\d{{3}})*(?!\d)
              | [1-9]\d?(?:,\d\d)+,\d{{3}}(?!\d)
              | [1-9]\d{{0,2}}(?:[.]\d{{3}})+(?=,\d{{1,2}}(?!\d))
              | [1-9]\d{{0,2}}(?:[.]\d{{3}}){{2,}}(?!\d|[.]\d)
              | \d+
            )
            (?:[.](?P<part>\d+)|,(?P<comma>\d+)(?![\d,]))?
          | (?<![\w.])[.](?P<point>\d+)
        )
        (?:e(?P<exponent>[+-]?\d{{1,3}})(?![a-z\d])
          | \s?(?:[x×*·]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[+-]?\d{{1,3}})(?!\d)
        )?
    )
    (?:\s?(?P<scale>{"|".join(SCALES)}))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Thousands are parted by commas, spaces, apostrophes, underscores or (more than once, or before a
decimal comma) points; a comma before other than three digits is a decimal one."""


def plain_characters(text: str) -> str:
    """A text with wide letters, digits of all scripts, spaces and minus signs as ASCII has them.

    Characters without a width of their own, such as marks of direction, are left out.
    """
    whole = unicodedata.normalize("NFC", text)
    return "".join(map(_plain_character, whole)).translate(_ALIKE)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if category in ("Zs", "Cf"):
        return " " if category == "Zs" else ""
    wide = unicodedata.decomposition(character).startswith(("<wide>", "<narrow>"))
    if wide and category.startswith("L"):
        return unicodedata.normalize("NFKC", character)
    return character


def normalise_number(text: str) -> str:
    """The text's first number in its shortest form, exactly; empty if there is none.

    A fraction without an end is ``1/3``. Signs of currencies and of per cent do not count.
    """
    found = _NUMBER.search(_plain_numbers(text))
    if found is None:
        return ""
    zeros = SCALES[found["scale"].lower()] if found["scale"] else 0
    if found["bottom"]:
        value = Fraction(int(found["top"]), int(found["bottom"])) + int(found["units"] or 0)
        shortest = _shortest_fraction(value * 10**zeros)
    else:
        whole = "1" if found["alone"] else re.sub(r"\D", "", found["whole"] or "")
        rest = found["part"] or found["comma"] or found["point"] or ""
        exponent = int(found["exponent"] or found["power"] or found["alone"] or 0)
        shortest = _shortest_decimal(whole, rest, exponent + zeros)
    return f"-{shortest}" if found["minus"] and shortest != "0" else shortest


def _plain_numbers(text: str) -> str:
    """Currencies as $, fractions and powers in a line, LaTeX's as others write them."""
    parts: list[str] = []
    for character in text:
        if unicodedata.category(character) == "Sc":
            character = "$"
        elif unicodedata.decomposition(character).startswith("<fraction>"):
            gap = " " if parts and parts[-1].isdecimal() else ""
            character = gap + unicodedata.normalize("NFKC", character)
        parts.append(character)
    text = _MINUS_AND_SPACE.sub("-", "".join(parts))
    text = plain_characters(text)
    text = re.sub("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: f"^{power[0].translate(_SUPERSCRIPTS)}", text)
    text = re.sub(r"(?<=\d)，(?=\d{3}(?!\d))", ",", text)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("\\$", "$")
    text = re.sub(r"(?<=\d)(?=\\[dt]?frac)", " ", text)
    return re.sub(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text)


def _shortest_decimal(whole: str, rest: str, exponent: int) -> str:
    """Digits before and after the point, and zeros more, without those that mean nothing.

    By the digits themselves, since a model may write more than Python makes a number of.
    """
    digits, point = whole + rest, len(whole) + exponent
    if point < 0:
        digits, point = "0" * -point + digits, 0
    digits = digits.ljust(point, "0")
    before, after = digits[:point].lstrip("0") or "0", digits[point:].rstrip("0")
    return f"{before}.{after}" if after else before


def _shortest_fraction(value: Fraction) -> str:
    """A decimal where it ends, else numerator and denominator in lowest terms."""
    left, places = value.denominator, {2: 0, 5: 0}
    for prime in places:
        while left % prime == 0:
            left //= prime
            places[prime] += 1
    if left > 1:
        return f"{value.numerator}/{value.denominator}"
    count = max(places.values())
    return _shortest_decimal(str(value.numerator * 10**count // value.denominator), "", -count)
