"""How much longer a tokenizer from outside makes a text before it looks for tokens in it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from lmsmith.core.errors import UserError

MOST_GROWTH = 256
"""Most characters that all steps together may make of one."""

MOST_STEPS = 256
"""Each reads the whole text; published tokenizers have up to ten."""

_FIX = "fetch the model's files again"

_BY_BYTES, _AROUND, _BEFORE, _COMPATIBLE = 4, 3, 2, 18
"""Characters that become of one: its bytes, spaces around it, one before it, and those of U+FDFA
in Unicode's compatibility forms."""


def text_growth(*steps: Mapping[str, Any] | None) -> float:
    """Most characters that a normaliser and a pre-tokenizer make of one.

    Raises:
        UserError: they are too many steps, or make a text too long; or a normaliser's table of
            characters is damaged.
    """
    growth, composed = 1.0, False
    for count, step in enumerate(_all_steps(steps), start=1):
        if step.get("type") in ("NFKC", "NFKD"):
            growth *= _COMPATIBLE if composed else 1.0  # once, only rare characters grow
            composed = True
        growth *= _growth(step)
        if growth > MOST_GROWTH or count > MOST_STEPS:
            raise UserError("the tokenizer's normaliser makes texts too long, or too slowly", _FIX)
    return growth


def _all_steps(steps: tuple[object, ...]) -> Iterator[Mapping[str, Any]]:
    """The steps, and those within them."""
    left = list(reversed(steps))
    while left:
        step = left.pop()
        if isinstance(step, Mapping):
            yield step
            for name in ("normalizers", "pretokenizers"):
                below = step.get(name)
                left += reversed(below) if isinstance(below, list) else []


def _growth(step: Mapping[str, Any]) -> float:
    kind = step.get("type")
    content, before = step.get("content"), step.get("prepend")
    if kind == "Replace" and isinstance(content, str):
        pattern = step.get("pattern")
        text = pattern.get("String") if isinstance(pattern, Mapping) else pattern
        return (
            max(1.0, len(content) / len(text))
            if isinstance(text, str) and text
            else (1.0 + len(content))
        )
    if kind == "Prepend" and isinstance(before, str):
        return 1.0 + len(before)
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap"))
    return {"ByteLevel": _BY_BYTES, "BertNormalizer": _AROUND, "Metaspace": _BEFORE}.get(
        str(kind), 1.0
    )


def _longest_replacement(table: object) -> float:
    """Characters of the longest text that SentencePiece's table of characters puts for one.

    The table is a trie, its length in bytes before it, and then texts that NULs end.
    """
    try:
        content = base64.b64decode(table if isinstance(table, str) else "", validate=True)
        length = int.from_bytes(content[:4], "little")
        texts = content[4 + length :].decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the normaliser's table cannot be read ({error})", _FIX) from error
    if len(content) < 4 + length or length % 4:
        raise UserError(
            f"the normaliser's table has {len(content):,} bytes, too few for a trie of {length:,}",
            _FIX,
        )
    return float(max(map(len, texts.split("\0"))) or 1)
