"""Values come over as builtin types, and nothing else is read."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.sandbox.plain import NotPlain, Unreadable, pack, receive, send, unpack

HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
    | st.fractions(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner) | st.dictionaries(HASHABLE, inner) | st.sets(HASHABLE),
    max_leaves=12,
)


def types_of(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [type(value), *map(types_of, value)]
    if isinstance(value, dict):
        return [dict, *((types_of(key), types_of(held)) for key, held in value.items())]
    return type(value)


@given(VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    back = unpack(pack(value))
    assert back == value
    assert types_of(back) == types_of(value)


def test_edges_come_back() -> None:
    for value in (float("nan"), -0.0, float("inf")):
        assert repr(unpack(pack(value))) == repr(value)
    for number in (10**5000, -(1 << 64)):
        assert unpack(pack(number)) == number
    assert unpack(pack("\ud800")) == "\ud800"


class Equal:
    """Says that it equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [int, float, str, bytes, list, tuple, dict, set, frozenset])
def test_a_class_that_lies_arrives_as_what_it_is_made_of(kind: type) -> None:
    lying = type("Lying", (kind,), {"__eq__": lambda *_: True, "__hash__": lambda *_: 0})
    assert lying() == "anything"
    back = unpack(pack([lying()]))
    assert type(back[0]) is kind
    assert back == [kind()]


@pytest.mark.parametrize("value", [Equal(), object(), len, int, ..., Equal, open, NotImplemented])
def test_what_is_no_data_does_not_arrive(value: Any) -> None:
    for held in (value, [value], {"key": value}, (1, value)):
        with pytest.raises(NotPlain, match="no plain data"):
            pack(held)


def test_kinds_of_containers_arrive_as_builtin_ones() -> None:
    point = namedtuple("point", "x y")
    for value, expected in (
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (point(1, 2), (1, 2)),
        (range(3), range(3)),
        (bytearray(b"x"), bytearray(b"x")),
        (Decimal("0.10"), Decimal("0.10")),
        (Fraction(1, 3), Fraction(1, 3)),
    ):
        assert unpack(pack(value)) == expected
        assert type(unpack(pack(value))) is type(expected)
    for value in (map(str, [1]), {"1": 2}.keys(), (each for each in "1")):
        back = unpack(pack(value))
        assert back != ["1"]
        assert list(back) == ["1"]


@given(st.binary(max_size=40))
def test_bytes_at_random_are_a_value_or_unreadable(packed: bytes) -> None:
    with contextlib.suppress(Unreadable):
        unpack(packed)


@given(VALUES, st.data())
def test_bytes_with_an_error_are_a_value_or_unreadable(value: Any, data: st.DataObject) -> None:
    packed = bytearray(pack(value))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Unreadable):
        unpack(bytes(packed))


@pytest.mark.parametrize(
    "packed",
    [
        b"", b"N", b"N0", b"x0:", b"i1:", b"i2:zz", b"l9999999999:", b"l-1:", b"s-5:abc",
        b"s99999999999999999999:", b"l1:l1:l1:", b"d1:N0:", b"d2:l0:N0:", b"e1:l0:", b"e1:d0:",
        b"r3:N0:N0:N0:", b"r1:i3:0x1", b"f3:xyz", b"c3:1 z", b"D3:abc", b"Q3:1/0", b"N0:N0:",
        b"l100:" * 30000, b"y1:", b"f0:", b"i0:", "s١:a".encode(), b"\xff\xff",
    ],
)  # fmt: skip
def test_what_is_no_value_is_unreadable(packed: bytes) -> None:
    with pytest.raises(Unreadable):
        unpack(packed)


def test_a_list_within_lists_a_million_times_is_unreadable_not_a_crash() -> None:
    with pytest.raises(Unreadable):
        unpack(b"l1:" * 1_000_000 + b"N0:")


def test_lengths_are_bounded_before_anything_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\xff\xff\xff\xff")
    with pytest.raises(Unreadable, match="4,294,967,295 bytes"):
        receive(reader)
    send(writer, ["x", 1])
    assert receive(reader) == ["x", 1]
    os.write(writer, b"\x00\x00\x00\x05ab")
    os.close(writer)
    with pytest.raises(EOFError):
        receive(reader)
    os.close(reader)
