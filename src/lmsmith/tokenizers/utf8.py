"""Which tokens may follow a text so that its bytes stay valid UTF-8: one table a tokenizer."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
    """What each token does in each state.

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
    """The table of a vocabulary.

    Args:
        pieces: the bytes of each token; empty for control tokens and ids without a token.
        controls: ids of control tokens.
    """
    allowed_sv = np.zeros((STATES, len(pieces)), dtype=np.bool_)
    next_sv = np.zeros((STATES, len(pieces)), dtype=np.uint8)
    is_control_v = np.zeros(len(pieces), dtype=np.bool_)
    is_token_v = np.zeros(len(pieces), dtype=np.bool_)
    for token, piece in enumerate(pieces):
        is_control_v[token] = not piece and token in controls
        is_token_v[token] = bool(piece) or is_control_v[token]
        if _is_text(piece):
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


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(state: int, piece: bytes) -> tuple[bool, int]:
    """Whether the bytes may follow in a state, and the state after them."""
    valid = True
    for byte in piece:
        after = _step(state, byte)
        if after is None:
            valid = False
            after = None if state == BOUNDARY else _step(BOUNDARY, byte)
        state = BOUNDARY if after is None else after
    return valid, state


def _step(state: int, byte: int) -> int | None:
    return next((to for (low, high), to in _STEPS[state] if low <= byte <= high), None)
