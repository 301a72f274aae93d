"""Plain data between two processes that do not trust each other, in a form of its own.

Values of the builtin types arrive as exactly those types, whatever the other side sends: an
object whose class says that it equals everything arrives as the number, text or list it is made
of. What can be iterated over arrives as an iterator; anything else does not arrive.

A value is a letter, a decimal size, a colon, then as many bytes or values as the size says. JSON
has no tuples, sets and bytes, and takes longer to import than the sandbox to start.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST = 4 << 20
"""Most bytes of a message."""
DIGITS = 10
"""Most digits of a size."""

_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_GROUPS: dict[bytes, type[Any]] = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset}
_NUMBERS = {b"D": ("decimal", "Decimal"), b"Q": ("fractions", "Fraction")}


class Unreadable(ValueError):
    """The other side sent something that is no message."""


class NotPlain(TypeError):
    """A value that cannot be sent."""


def send(descriptor: int, value: object) -> None:
    """Write a value.

    Raises:
        NotPlain: it is, or holds, something else than builtin data, or is longer than `MOST`.
        RecursionError: it is nested too deep.
        OSError: the other side is gone.
    """
    write(descriptor, pack(value))


def write(descriptor: int, packed: bytes) -> None:
    """Write what `pack` made."""
    if len(packed) > MOST:
        raise NotPlain(f"{len(packed):,} bytes are more than {MOST:,}")
    whole = memoryview(len(packed).to_bytes(4, "big") + packed)
    while whole:
        whole = whole[os.write(descriptor, whole) :]


def receive(descriptor: int, most: int = MOST, wait: Callable[[], None] | None = None) -> Any:
    """Read a value of at most ``most`` bytes; ``wait`` is called before each read.

    Raises:
        EOFError: there is none, or not all of it.
        Unreadable: it is longer, or no value.
    """
    size = int.from_bytes(_exactly(descriptor, 4, wait), "big")
    if size > most:
        raise Unreadable(f"an answer of {size:,} bytes")
    return unpack(_exactly(descriptor, size, wait))


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


def pack(value: Any) -> bytes:
    """A value's bytes; a subclass counts as what it is made of."""
    parts: list[bytes] = []
    _pack(value, parts)
    return b"".join(parts)


def _pack(value: Any, parts: list[bytes]) -> None:
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
        pairs = dict.items(value)
        return _add_group(parts, b"d", [part for pair in pairs for part in pair])
    for letter, kind in _GROUPS.items():
        if isinstance(value, kind):
            return _add_group(parts, letter, list(kind.__iter__(value)))
    for letter, (module, name) in _NUMBERS.items():
        # Not imported for the sake of asking: nothing is one where nobody has.
        if module in sys.modules and isinstance(value, getattr(sys.modules[module], name)):
            return _add(parts, letter, str(value).encode())
    if hasattr(type(value), "__iter__"):
        return _add_group(parts, b"y", list(value))
    raise NotPlain(f"a {type(value).__name__} is no plain data")


def _add(parts: list[bytes], letter: bytes, body: bytes) -> None:
    parts += [letter, b"%d:" % len(body), body]


def _add_group(parts: list[bytes], letter: bytes, values: list[Any] | tuple[Any, ...]) -> None:
    parts += [letter, b"%d:" % len(values)]
    for value in values:
        _pack(value, parts)


def unpack(packed: bytes) -> Any:
    """The value that `pack` made bytes of; builtin types alone.

    Raises:
        Unreadable: `pack` makes no such thing.
    """
    try:
        value, end = _unpack(packed, 0)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Unreadable("an answer that is no plain data") from error
    if end != len(packed):
        raise Unreadable("an answer that is more than a value")
    return value


def _unpack(packed: bytes, start: int) -> tuple[Any, int]:
    """The value that begins at ``start``, and where it ends."""
    letter = packed[start : start + 1]
    colon = packed.index(b":", start + 1, start + 2 + DIGITS)
    size, begin = int(packed[start + 1 : colon]), colon + 1
    if not 0 <= size <= len(packed) - begin:
        raise ValueError("a size beyond the message")
    if letter in b"ltezdry":
        values, end = [], begin
        for _ in range(size):
            value, end = _unpack(packed, end)
            values.append(value)
        return _group(letter, values), end
    end = begin + size
    return _single(letter, packed[begin:end]), end


def _group(letter: bytes, values: list[Any]) -> Any:
    if letter == b"d":
        pairs = iter(values)
        return dict(zip(pairs, pairs, strict=True))
    if letter == b"r":
        start, stop, step = values
        return range(start, stop, step)
    return iter(values) if letter == b"y" else _GROUPS[letter](values)


def _single(letter: bytes, body: bytes) -> Any:
    if letter in _CONSTANTS:
        return _CONSTANTS[letter]
    if letter == b"b":
        return body
    if letter == b"a":
        return bytearray(body)
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
