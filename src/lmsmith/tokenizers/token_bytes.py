"""The bytes that each token adds to a text, and which tokens keep a text valid UTF-8."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lmsmith.core.errors import UserError


@functools.cache
def byte_of_character() -> dict[str, int]:
    """Byte of each character that writes one (Radford et al. 2019).

    Bytes that print keep their character; the others are numbered from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def written_bytes(written: str) -> bytes:
    """The bytes that a byte-level token stands for; a token not so written is its UTF-8."""
    table = byte_of_character()
    try:
        return bytes([table[character] for character in written])
    except KeyError:
        return written.encode()


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_STARTS = "▁"


def read_pieces(
    description: Mapping[str, Any], vocabulary: Mapping[str, int], controls: Mapping[int, str]
) -> tuple[list[bytes], bool, bool]:
    """The bytes of each id of a ``tokenizer.json``, and which outer spaces decoding drops.

    Args:
        vocabulary: id of each token as it is written, added tokens included.
        controls: tokens that are no part of any text, by id.

    Returns:
        Bytes, empty for control tokens and ids that are not used; whether encoding puts a space
        before a text, which decoding takes away; the same after a text (GPT-1 writes word ends).

    Raises:
        UserError: its decoder is of a kind that lmsmith does not know.
    """
    read, first, last = _reader(description.get("decoder"))
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added = {token["id"]: token["content"] for token in description.get("added_tokens") or []}
    for written, token in vocabulary.items():
        if token not in controls:
            table[token] = added[token].encode() if token in added else read(written)
    return table, first, last


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


BOUNDARY: Final = 0
"""State of a text whose last character is whole."""

_TAIL: Final = (0x80, 0xBF)

_STEPS: Final = (
    (((0x00, 0x7F), 0), ((0xC2, 0xDF), 1), ((0xE1, 0xEC), 2), ((0xEE, 0xEF), 2), ((0xF1, 0xF3), 3),
     ((0xE0, 0xE0), 4), ((0xED, 0xED), 5), ((0xF0, 0xF0), 6), ((0xF4, 0xF4), 7)),
    ((_TAIL, 0),),
    ((_TAIL, 1),),
    ((_TAIL, 2),),
    (((0xA0, 0xBF), 1),),
    (((0x80, 0x9F), 1),),
    (((0x90, 0xBF), 2),),
    (((0x80, 0x8F), 2),),
)  # fmt: skip
"""The bytes that may follow in each state, as ranges, with the state that they lead to: RFC 3629,
section 4. States 1 to 3 want so many bytes more; 4 to 7 stand after E0, ED, F0 and F4."""

STATES: Final = len(_STEPS)

LONGEST: Final = 4
"""Bytes of the longest character; so many of the last tokens decide a text's state."""


@dataclass(frozen=True)
class Utf8Table:
    """The effect of each token in each state.

    Attributes:
        allowed_sv: bool (states, vocabulary): whether it may be drawn. Control tokens may at a
            character's end alone, ids without a token never. Where nothing goes on (a vocabulary
            without all bytes), control tokens may, else every token.
        next_sv: uint8: the state after it; after bytes that cannot follow, decoding starts again.
        is_token_v: bool: whether the id has a token.
    """

    allowed_sv: NDArray[np.bool_]
    next_sv: NDArray[np.uint8]
    is_token_v: NDArray[np.bool_]


def utf8_table(pieces: Sequence[bytes], controls: Container[int]) -> Utf8Table:
    """The table of a vocabulary; pieces are empty for control tokens and ids without a token."""
    allowed_sv = np.zeros((STATES, len(pieces)), dtype=np.bool_)
    next_sv = np.zeros((STATES, len(pieces)), dtype=np.uint8)
    is_control_v = np.zeros(len(pieces), dtype=np.bool_)
    is_token_v = np.zeros(len(pieces), dtype=np.bool_)
    for token, piece in enumerate(pieces):
        is_control_v[token] = not piece and token in controls
        is_token_v[token] = bool(piece) or is_control_v[token]
        if piece.decode(errors="ignore").encode() == piece:
            allowed_sv[BOUNDARY, token] = is_token_v[token]
            continue
        goes_on = _TAIL[0] <= piece[0] <= _TAIL[1]
        for state in range(STATES) if goes_on else (BOUNDARY,):
            allowed_sv[state, token], next_sv[state, token] = _read(state, piece)
        if not goes_on:  # a character's beginning: wherever it stands, it begins again there
            next_sv[:, token] = next_sv[BOUNDARY, token]
    for state in range(STATES):
        if not allowed_sv[state].any():
            allowed_sv[state] = is_control_v if is_control_v.any() else is_token_v
    return Utf8Table(allowed_sv, next_sv, is_token_v)


def _read(state: int, piece: bytes) -> tuple[bool, int]:
    """Whether the bytes may follow in a state, and the state after them."""
    valid = True
    for byte in piece:
        after = _step(state, byte)
        if after is None:
            valid = False
            after = _step(BOUNDARY, byte) or BOUNDARY
        state = after
    return valid, state


def _step(state: int, byte: int) -> int | None:
    return next((to for (low, high), to in _STEPS[state] if low <= byte <= high), None)
