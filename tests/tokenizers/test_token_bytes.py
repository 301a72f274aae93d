"""The table agrees with Python's own UTF-8 decoder, byte by byte and token by token."""

from __future__ import annotations

import codecs
import functools
import itertools
from collections.abc import Iterable

from hypothesis import assume, given
from hypothesis import strategies as st

from lmsmith.tokenizers.token_bytes import BOUNDARY, STATES, Utf8Table, utf8_table

BYTES = utf8_table([bytes([byte]) for byte in range(256)] + [b"", b""], {256})
CONTROL, HOLE = 256, 257


def goes_on(content: bytes) -> bool:
    """Whether some bytes after these make valid UTF-8."""
    tails = (bytes(tail) for n in range(4) for tail in itertools.product(b"\x80\x90\xa0", repeat=n))
    return any(is_whole(content + tail) for tail in tails)


def state_after(table: Utf8Table, tokens: Iterable[int]) -> int:
    """The state of the text of these tokens."""
    return functools.reduce(lambda state, token: int(table.next_sv[state, token]), tokens, BOUNDARY)


def is_whole(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=7))
def test_a_byte_is_allowed_where_it_may_follow(content: bytes) -> None:
    state = BOUNDARY
    for place, byte in enumerate(content):
        before = content[:place]
        assert BYTES.allowed_sv[state, CONTROL] == is_whole(before)
        assert not BYTES.allowed_sv[state, HOLE]
        assert BYTES.allowed_sv[state, byte] == goes_on(content[: place + 1])
        if not goes_on(content[: place + 1]):
            return
        state = int(BYTES.next_sv[state, byte])


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=12), st.binary(max_size=8))
def test_tokens_of_several_bytes_do_what_their_bytes_do(pieces: list[bytes], before: bytes) -> None:
    table = utf8_table(pieces, set())
    state = state_after(BYTES, before)
    for token, piece in enumerate(pieces):
        reached, allowed = state, True
        for byte in piece:
            allowed = allowed and bool(BYTES.allowed_sv[reached, byte])
            reached = int(BYTES.next_sv[reached, byte])
        assert table.next_sv[state, token] == reached
        if allowed:
            assert table.allowed_sv[state, token]


@given(st.binary(max_size=12))
def test_the_state_after_any_bytes_is_where_a_decoder_stands(content: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(content)
    held = decoder.getstate()[0]
    assume(not (held[:1] == b"\xed" and held[1:] >= b"\xa0"))  # held too long: no character
    state = state_after(BYTES, content)
    assert (state == BOUNDARY) == (not held)
    assert state == state_after(BYTES, held)


def test_where_nothing_goes_on_control_tokens_may_come_and_without_them_all() -> None:
    pieces = [b"a", b"\xe4", b"", b""]
    with_end: Utf8Table = utf8_table(pieces, {2})
    without: Utf8Table = utf8_table(pieces, set())
    inside = state_after(with_end, [1])
    assert with_end.allowed_sv[inside].tolist() == [False, False, True, False]
    assert without.allowed_sv[inside].tolist() == [True, True, False, False]
    assert with_end.allowed_sv.any(axis=1).all()
    assert len(with_end.allowed_sv) == STATES
