"""Values come over as builtin types, and nothing else is read."""

from __future__ import annotations

import contextlib
import datetime
import enum
import os
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import ItemsView, KeysView
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.sandbox.plain import (
    _TIMES,
    DEPTH,
    NotPlain,
    Unreadable,
    pack,
    receive,
    send,
    unpack,
)

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


class Kind(enum.Enum):
    ONE = 1


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


TIME = datetime.time(1, 2, 3, 4, datetime.timezone(datetime.timedelta(hours=-3)))
DAY = datetime.date(2020, 2, 29)
KINDS = [
    Counter("aab"), OrderedDict(b=1, a=2), defaultdict(list, a=[1]), deque([1, 2], 5), deque(),
    array("d", [1.5, -0.0]), array("b"), DAY, datetime.datetime.combine(DAY, TIME), TIME,
    datetime.timedelta(-1, 5, 7), datetime.UTC, datetime.datetime(1, 1, 1),
    {1: 2, 3: 4}.keys(), {1: 2}.items(),
]  # fmt: skip


@pytest.mark.parametrize("value", KINDS)
def test_values_of_the_standard_library_arrive_as_they_were(value: Any) -> None:
    back = unpack(pack([value]))[0]
    assert back == value
    assert type(back) is type(value)
    for fact in ("maxlen", "default_factory", "typecode", "tzinfo"):
        assert getattr(back, fact, None) == getattr(value, fact, None)
    if isinstance(value, OrderedDict):
        assert list(back) == list(value)
    assert list(unpack(pack({1: [2]}.values()))) == [[2]]


FINAL = KeysView | ItemsView | datetime.timezone


@pytest.mark.parametrize("value", [each for each in KINDS if not isinstance(each, FINAL)])
def test_a_subclass_of_one_that_lies_arrives_as_what_it_is_made_of(value: Any) -> None:
    kind = type(value)
    lying = type("Lying", (kind,), {"__eq__": lambda *_: True, "__hash__": lambda *_: 0})
    if issubclass(kind, datetime.date | datetime.time | datetime.timedelta):
        made = lying(*(getattr(value, part) for part in _TIMES[kind.__name__]))
    elif kind is array:
        made = lying(value.typecode, value)
    elif kind is defaultdict:
        made = lying(list, value)
    else:
        made = lying(value)
    assert made == "anything"
    back = unpack(pack(made))
    assert type(back) is kind
    assert back == value
    assert back != "anything"


def test_what_no_tests_need_does_not_arrive() -> None:
    class Zone(datetime.tzinfo):
        pass

    for value in (datetime.datetime(1, 1, 1, tzinfo=Zone()), Path("x"), UUID(int=1), Kind.ONE):
        with pytest.raises(NotPlain, match="no plain data"):
            pack(value)
    assert unpack(pack(defaultdict(lambda: 1, a=2))).default_factory is None


def test_iterators_stay_where_they_are_if_they_have_a_number() -> None:
    kept: list[Any] = []

    def keep(iterator: Any) -> int:
        kept.append(iterator)
        return len(kept) - 1

    sent = pack([count(), (each for each in "ab"), [1]], keep)
    assert unpack(sent, lambda number, generator: (number, generator)) == [
        (0, False),
        (1, True),
        [1],
    ]
    assert next(kept[0]) == 0
    with pytest.raises(Unreadable):
        unpack(sent)


def test_values_within_each_other_are_bounded() -> None:
    value: Any = 1
    for _ in range(DEPTH - 2):
        value = [value]
    back = unpack(pack(value))
    while isinstance(back, list):
        (back,) = back
    assert back == 1
    for circle in ([], {}):
        (circle.append(circle) if isinstance(circle, list) else circle.update(a=circle))
        with pytest.raises(NotPlain, match="within each other"):
            pack(circle)
    for letter in (b"l", b"t", b"v", b"y", b"q"):  # ends without a crash
        inner = b"N0:" if letter == b"q" else b""
        size = b"2:" if inner else b"1:"
        assert unpack((letter + size + inner) * (DEPTH - 1) + b"N0:") is not None
    shared: Any = "x" * 1000
    for _ in range(40):
        shared = [shared, shared]
    with pytest.raises(NotPlain, match="more than 4,194,304 bytes"):
        pack(shared)


def test_kinds_of_containers_arrive_as_builtin_ones() -> None:
    point = namedtuple("point", "x y")
    for value, expected in (
        (point(1, 2), (1, 2)),
        (range(3), range(3)),
        (bytearray(b"x"), bytearray(b"x")),
        (Decimal("0.10"), Decimal("0.10")),
        (Fraction(1, 3), Fraction(1, 3)),
    ):
        assert unpack(pack(value)) == expected
        assert type(unpack(pack(value))) is type(expected)
    for value in (map(str, [1]), (each for each in "1")):
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
        b"l100:" * 30000, b"W1:s4:date", b"W2:s4:dateb4:\x07\xe4\x01\x01", b"W1:s3:now",
        b"W2:s8:timezonei3:0x1", b"W4:s4:datei3:0x1i3:0xdi3:0x1", b"W0:", b"W1:l0:", b"A0:",
        b"A3:u\xff\xff", b"A2:dx", b"A1:\xff", b"q1:i4:-0x1", b"q0:", b"g1:s4:eval", b"O1:N0:",
        b"k1:l0:", b"m1:N0:", b"G1:0", b"Y1:0", b"Y1:x", b"y1:", b"f0:", b"i0:",
        "s١:a".encode(), b"\xff\xff",
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
