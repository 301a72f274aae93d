"""The bytes that each token adds to a text, by the way its tokenizer writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.tokenizers.byte_level import written_bytes

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_STARTS = "▁"


@dataclass(frozen=True)
class Pieces:
    """What tokens are as text.

    Attributes:
        bytes_by_id: one for each id; empty for control tokens and for ids that are not used.
        drops_first_space: whether encoding puts a space before a text, which decoding takes away.
        drops_last_space: the same after a text (GPT-1, where a word's end is written).
    """

    bytes_by_id: list[bytes]
    drops_first_space: bool = False
    drops_last_space: bool = False


def read_pieces(
    description: Mapping[str, Any], vocabulary: Mapping[str, int], controls: Mapping[int, str]
) -> Pieces:
    """The pieces of a ``tokenizer.json``.

    Args:
        description: its contents.
        vocabulary: id of each token as it is written, added tokens included.
        controls: tokens that are no part of any text, by id.

    Raises:
        UserError: its decoder is of a kind that lmsmith does not know.
    """
    read, first, last = _reader(description.get("decoder"))
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added = {token["id"]: token["content"] for token in description.get("added_tokens") or []}
    for written, token in vocabulary.items():
        if token not in controls:
            table[token] = added[token].encode() if token in added else read(written)
    return Pieces(table, first, last)


def _reader(decoder: Any) -> tuple[Callable[[str], bytes], bool, bool]:
    """How to read a token; whether the first, or the last, space of a text is dropped."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {step.get("type"): step for step in steps}
    if "ByteLevel" in kinds:
        return written_bytes, False, False
    if "BPEDecoder" in kinds:
        suffix = kinds["BPEDecoder"].get("suffix") or "</w>"
        return (lambda written: written.replace(suffix, " ").encode()), False, True
    if "WordPiece" in kinds:
        prefix = kinds["WordPiece"].get("prefix") or "##"

        def word_piece(written: str) -> bytes:
            inside = written.startswith(prefix)
            return (written.removeprefix(prefix) if inside else " " + written).encode()

        return word_piece, True, False
    if kinds.keys() & {"Metaspace", "Replace"}:
        strips = "Strip" in kinds or (
            "Metaspace" in kinds and kinds["Metaspace"].get("prepend_scheme", "always") != "never"
        )
        return (_fallback_piece if "ByteFallback" in kinds else _spaced_piece), strips, False
    raise UserError(
        f"this tokenizer's decoder ({', '.join(map(str, kinds)) or 'none'}) is not one of "
        "ByteLevel, BPEDecoder, Metaspace, Replace with ByteFallback, WordPiece",
        "use a model whose tokenizer decodes in one of these ways",
    )


def _spaced_piece(written: str) -> bytes:
    return written.replace(_WORD_STARTS, " ").encode()


def _fallback_piece(written: str) -> bytes:
    """A SentencePiece token; ``<0xE4>`` is one byte."""
    byte = _BYTE.fullmatch(written)
    return bytes([int(byte[1], 16)]) if byte else _spaced_piece(written)
