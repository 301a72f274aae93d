"""How byte-level vocabularies write bytes: GPT-2's printable stand-ins."""

from __future__ import annotations

import functools


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The inverse of the character that writes each byte.

    Bytes that print keep their character; the others are numbered from U+0100 in order
    (Radford et al. 2019).
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
