"""Files opened as bytes: local or by fsspec, unpacked, and no more of them than is reasonable."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmsmith.core.errors import needs_extra
from lmsmith.core.files import is_remote

ALWAYS_UNPACKED = 1 << 26
"""Bytes that any packed file may unpack to."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Unreadable(Exception):
    """Why a file, or the rest of it, is not read: ``reason`` or ``reason: details``."""


@dataclass(frozen=True)
class Limits:
    """How much of a file is read.

    Attributes:
        characters: of a document; a longer text is cut into several.
        row_bytes: of a row; a longer one is skipped.
        times: a packed file may unpack to so many times its size.
    """

    characters: int
    row_bytes: int
    times: int


@contextlib.contextmanager
def open_file(place: str, limits: Limits) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if they are gzip's or Zstandard's.

    Where a packed file is damaged or too large, it seems to end; the reason is raised after the
    block, so that nothing before that place is lost.

    Raises:
        Unreadable: it cannot be opened, read or unpacked.
    """
    try:
        with contextlib.ExitStack() as stack:
            file, unpacked = _unpacked(stack, _opened(stack, place), limits)
            yield file
            if unpacked is not None and unpacked.fault is not None:
                raise unpacked.fault
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error


def beginning(file: BinaryIO) -> bytes:
    """The first bytes of a file that was just opened; it is read from its begin afterwards."""
    if isinstance(file, io.BufferedReader):
        return file.peek(4096)[:4096]
    found = file.read(4096)
    file.seek(0)
    return found


def _opened(stack: contextlib.ExitStack, place: str) -> BinaryIO:
    if not is_remote(place):
        return stack.enter_context(Path(place).open("rb"))
    with needs_extra("corpus"):
        import fsspec
    return cast(BinaryIO, stack.enter_context(fsspec.open(place, "rb")))


def _unpacked(
    stack: contextlib.ExitStack, file: BinaryIO, limits: Limits
) -> tuple[BinaryIO, _Unpacked | None]:
    begin = file.read(4)
    file.seek(0)
    if not begin.startswith((_GZIP, _ZSTD)):
        return file, None
    size = file.seek(0, 2)
    file.seek(0)
    inner: Any
    if begin.startswith(_GZIP):
        inner = stack.enter_context(gzip.GzipFile(fileobj=file))
    else:
        with needs_extra("corpus"):
            import zstandard
        inner = _Frames(file, zstandard.ZstdDecompressor())
    most = max(ALWAYS_UNPACKED, limits.times * size)
    unpacked = _Unpacked(inner, most, f"unpacks to more than {limits.times} times its size")
    return cast(BinaryIO, io.BufferedReader(unpacked, 1 << 18)), unpacked


class _Frames:
    """What the frames of a zstd file unpack to. Unlike zstandard's own reader it tells a file that
    was cut off from one that ends."""

    _PIECE = 4096  # packed bytes read at a time: they may unpack to many

    def __init__(self, file: BinaryIO, packer: Any) -> None:
        self._file, self._packer = file, packer
        self._frame: Any = None
        self._packed, self._ready = b"", b""

    def read1(self, size: int) -> bytes:
        """At most so many bytes; none at the end.

        Raises:
            EOFError: the last frame does not end.
        """
        while not self._ready:
            self._packed = self._packed or self._file.read(self._PIECE)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame: it was cut off")
                return b""
            if self._frame is None:
                self._frame = self._packer.decompressobj()
            self._ready, self._packed = self._frame.decompress(self._packed), b""
            if self._frame.eof:
                self._frame, self._packed = None, self._frame.unused_data
        found, self._ready = self._ready[:size], self._ready[size:]
        return found


class _Unpacked(io.RawIOBase):
    """What a packed file unpacks to, up to so many bytes or to a fault, which is kept."""

    def __init__(self, inner: Any, most: int, too_large: str) -> None:
        self._inner, self._left, self._too_large = inner, most, too_large
        self.fault: Unreadable | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.fault is not None:
            return 0
        try:
            content = self._inner.read1(len(buffer))
        except Exception as error:  # of gzip, zlib and zstandard, each its own kinds
            self.fault = Unreadable(f"the compressed file is damaged: {error}")
            return 0
        self._left -= len(content)
        if self._left < 0:
            self.fault = Unreadable(self._too_large)
            return 0
        buffer[: len(content)] = content
        return len(content)
