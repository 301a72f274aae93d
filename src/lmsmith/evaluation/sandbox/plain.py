"""Plain data between two processes that do not trust each other, in a form of its own.

Values are made again here, as exactly the types of this module, whatever the other side
sends: an object whose class says that it equals everything arrives as the number, text or list
it is made of. What can be iterated over arrives as an iterator; anything else does not arrive.

A value is a letter, a decimal size, a colon, then as many bytes or values as the size says. JSON
has no tuples, sets and bytes, and takes longer to import than the sandbox to start.
"""

from __future__ import annotations

import os
import sys
from types import GeneratorType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Handle = Callable[[Any], int | None]

MOST = 4 << 20
"""Most bytes of a message."""
DIGITS = 10
"""Most digits of a size."""

DEPTH = 5000
"""Most values within each other."""

_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_BUILTIN: dict[bytes, type[Any]] = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset}
_NUMBERS = {b"D": ("decimal", "Decimal"), b"Q": ("fractions", "Fraction")}
_VIEWS = {b"k": type({}.keys()), b"v": type({}.values()), b"m": type({}.items())}
_DICTS = {b"O": "OrderedDict", b"K": "Counter", b"g": "defaultdict"}
_MADE = {"int": int, "float": float, "str": str, "list": list, "dict": dict, "set": set}
"""Functions by which a defaultdict may make missing values, by name."""
_TIMES = {
    "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo"),
    "date": ("year", "month", "day"),
    "time": ("hour", "minute", "second", "microsecond", "tzinfo"),
    "timedelta": ("days", "seconds", "microseconds"),
}
"""Classes of the module datetime, each before those it is one of, and what they are made of."""
_ARRAYS = "bBhHiIlLqQfd"
"""The kinds of array.array whose every bytes are values."""
_GROUPS = b"ltezdrykvmOKgqW"


class Unreadable(ValueError):
    """The other side sent something that is no message."""


class NotPlain(TypeError):
    """A value that cannot be sent."""


def send(descriptor: int, value: object, handle: Handle | None = None) -> None:
    """Write a value; see `pack`.

    Raises:
        NotPlain: it is, or holds, something else than plain data, or is too long or too deep.
        OSError: the other side is gone.
    """
    write(descriptor, pack(value, handle))


def write(descriptor: int, packed: bytes) -> None:
    """Write what `pack` made."""
    whole = memoryview(len(packed).to_bytes(4, "big") + packed)
    while whole:
        whole = whole[os.write(descriptor, whole) :]


def receive(
    descriptor: int,
    most: int = MOST,
    wait: Callable[[], None] | None = None,
    iterator: Callable[[int, bool], Any] | None = None,
) -> Any:
    """Read a value of at most ``most`` bytes; ``wait`` is called before each read.

    Raises:
        EOFError: there is none, or not all of it.
        Unreadable: it is longer, or no value.
    """
    size = int.from_bytes(_exactly(descriptor, 4, wait), "big")
    if size > most:
        raise Unreadable(f"an answer of {size:,} bytes")
    return unpack(_exactly(descriptor, size, wait), iterator)


def _exactly(descriptor: int, size: int, wait: Callable[[], None] | None) -> bytes:
    parts = []
    while size:
        if wait is not None:
            wait()
        part = os.read(descriptor, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def pack(value: Any, handle: Handle | None = None, most: int = MOST) -> bytes:
    """A value's bytes; a subclass counts as what it is made of.

    Args:
        handle: gives the number by which the other side knows an iterator; one without a number is
            read to its end.

    Raises:
        NotPlain: it is, or holds, something else than plain data, or is too long or too deep.
    """
    parts: list[bytes] = []
    stack = [iter((value,))]
    size = 0
    while stack:
        begun = len(parts)
        for each in stack[-1]:
            inner = _pack(each, parts, handle)
            if inner is not None:
                stack.append(iter(inner))
                break
        else:
            stack.pop()
        size += sum(map(len, parts[begun:]))
        if size > most:
            raise NotPlain(f"more than {most:,} bytes")
        if len(stack) > DEPTH:
            raise NotPlain(f"more than {DEPTH:,} values within each other")
    return b"".join(parts)


def _pack(value: Any, parts: list[bytes], handle: Handle | None) -> Sequence[Any] | None:
    """Add a value's own bytes; the values that follow if it is a group."""
    for letter, constant in _CONSTANTS.items():
        if value is constant:
            return _add(parts, letter, b"")
    if isinstance(value, str):
        return _add(parts, b"s", str.encode(value, "utf-8", "surrogatepass"))
    if isinstance(value, int):
        return _add(parts, b"i", hex(int.__int__(value)).encode())
    if isinstance(value, float):
        return _add(parts, b"f", float.hex(value).encode())
    if isinstance(value, complex):
        return _add(parts, b"c", f"{value.real.hex()} {value.imag.hex()}".encode())
    if isinstance(value, bytes):
        return _add(parts, b"b", bytes(value))
    if isinstance(value, bytearray):
        return _add(parts, b"a", bytes(value))
    if isinstance(value, range):
        return _add_group(parts, b"r", (value.start, value.stop, value.step))
    if isinstance(value, dict):
        return _pack_dict(value, parts)
    for letter, kind in (*_BUILTIN.items(), *_VIEWS.items()):
        if isinstance(value, kind):
            return _add_group(parts, letter, list(kind.__iter__(value)))
    for letter, (module, name) in _NUMBERS.items():
        if _is(value, module, name):
            return _add(parts, letter, str(value).encode())
    if _is(value, "collections", "deque"):
        return _add_group(parts, b"q", [value.maxlen, *value])
    if _is(value, "array", "array") and value.typecode in _ARRAYS:
        return _add(parts, b"A", value.typecode.encode() + value.tobytes())
    for name, fields in _TIMES.items():
        if _is(value, "datetime", name):
            return _add_group(parts, b"W", [name, *(getattr(value, field) for field in fields)])
    if _is(value, "datetime", "timezone"):
        return _add_group(parts, b"W", ["timezone", value.utcoffset(None)])
    if any("__iter__" in vars(kind) for kind in type(value).__mro__):  # not in its metaclass
        iterator = iter(value)
        if handle is not None and (number := handle(iterator)) is not None:
            letter = b"G" if isinstance(iterator, GeneratorType) else b"Y"
            return _add(parts, letter, b"%d" % number)
        return _add_group(parts, b"y", list(iterator))
    raise NotPlain(f"a {type(value).__name__} is no plain data")


def _is(value: object, module: str, name: str) -> bool:
    # Not imported for the sake of asking: nothing is one where nobody has.
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _pack_dict(value: dict[Any, Any], parts: list[bytes]) -> Sequence[Any]:
    pairs = [part for pair in dict.items(value) for part in pair]
    for letter, name in _DICTS.items():
        if _is(value, "collections", name):
            if letter == b"g":
                made = [name for name, kind in _MADE.items() if kind is value.default_factory]  # type: ignore[attr-defined]
                pairs = [made[0] if made else None, *pairs]
            return _add_group(parts, letter, pairs)
    return _add_group(parts, b"d", pairs)


def _add(parts: list[bytes], letter: bytes, body: bytes) -> Sequence[Any] | None:
    """Add a value that is no group; nothing belongs to it."""
    parts += [letter, b"%d:" % len(body), body]
    return None


def _add_group(parts: list[bytes], letter: bytes, values: Sequence[Any]) -> Sequence[Any]:
    parts += [letter, b"%d:" % len(values)]
    return values


def unpack(packed: bytes, iterator: Callable[[int, bool], Any] | None = None) -> Any:
    """The value that `pack` made bytes of; types of the standard library alone.

    Args:
        iterator: gives the iterator of a number, or the generator if the second argument says so.

    Raises:
        Unreadable: `pack` makes no such thing.
    """
    try:
        value, end = _unpack(packed, iterator)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Unreadable("an answer that is no plain data") from error
    if end != len(packed):
        raise Unreadable("an answer that is more than a value")
    return value


def _unpack(packed: bytes, iterator: Callable[[int, bool], Any] | None) -> tuple[Any, int]:
    """The first value, and where it ends."""
    groups: list[tuple[bytes, int, list[Any]]] = []
    end = 0
    while True:
        letter = packed[end : end + 1]
        colon = packed.index(b":", end + 1, end + 2 + DIGITS)
        size, end = int(packed[end + 1 : colon]), colon + 1
        if not 0 <= size <= len(packed) - end or len(groups) > DEPTH:
            raise ValueError("a size beyond the message")
        if letter in _GROUPS:
            groups.append((letter, size, []))
        else:
            body, end = packed[end : end + size], end + size
            if letter in b"GY" and iterator is not None:
                value = iterator(int(body), letter == b"G")
            else:
                value = _single(letter, body)
            if not groups:
                return value, end
            groups[-1][2].append(value)
        while len(groups[-1][2]) == groups[-1][1]:
            letter, _, values = groups.pop()
            value = _group(letter, values)
            if not groups:
                return value, end
            groups[-1][2].append(value)


def _group(letter: bytes, values: list[Any]) -> Any:
    if letter in _BUILTIN:
        return _BUILTIN[letter](values)
    if letter == b"r":
        start, stop, step = values
        return range(start, stop, step)
    if letter == b"y":
        return iter(values)
    if letter == b"k":
        return dict.fromkeys(values).keys()
    if letter == b"v":
        return dict(enumerate(values)).values()
    if letter == b"m":
        return dict(values).items()
    if letter == b"W":
        return _time(*values)
    import collections

    if letter == b"q":
        most, *held = values
        return collections.deque(held, most)
    made = values.pop(0) if letter == b"g" else None
    pairs = iter(values)
    whole = dict(zip(pairs, pairs, strict=True))
    if letter == b"d":
        return whole
    if letter == b"g":
        return collections.defaultdict(None if made is None else _MADE[made], whole)
    return collections.Counter(whole) if letter == b"K" else collections.OrderedDict(whole)


def _time(name: str, *values: Any) -> Any:
    """A value of the module datetime; nothing but numbers and time zones makes one."""
    import datetime

    if name == "timezone":
        return datetime.timezone(*values)
    if len(values) != len(_TIMES[name]):
        raise ValueError("parts of a time")
    return getattr(datetime, name)(*values)


def _single(letter: bytes, body: bytes) -> Any:
    if letter in _CONSTANTS:
        return _CONSTANTS[letter]
    if letter == b"b":
        return body
    if letter == b"a":
        return bytearray(body)
    if letter == b"A":
        return _array(body[:1].decode(), body[1:])
    text = body.decode("utf-8", "surrogatepass")
    if letter == b"s":
        return text
    if letter == b"i":
        return int(text, 16)
    if letter == b"f":
        return float.fromhex(text)
    if letter == b"c":
        real, imaginary = map(float.fromhex, text.split(" "))
        return complex(real, imaginary)
    module, name = _NUMBERS[letter]
    return getattr(__import__(module), name)(text)


def _array(kind: str, body: bytes) -> Any:
    import array

    if not kind or kind not in _ARRAYS:
        raise ValueError("a kind of array")
    made = array.array(kind)
    made.frombytes(body)
    return made
