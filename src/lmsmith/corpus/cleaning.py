"""Light cleaning of text from outside, and a key that is equal for texts that are nearly so."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Literal, TypeAlias

from lmsmith.core.text import encodable

UnicodeForm: TypeAlias = Literal["none", "NFC", "NFKC"]

_LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # as str.splitlines
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


def clean_text(text: str, unicode_form: UnicodeForm = "none") -> str:
    """`text` with line ends as ``\\n``, no control characters but tab, and no outer white space.

    Vertical tabs, form feeds, NEL, U+2028 and U+2029 are line ends, too. Lone surrogates, which
    UTF-8 cannot hold, become U+FFFD.
    """
    text = _LINE_END.sub("\n", encodable(text))
    text = _CONTROL.sub("", text)
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
