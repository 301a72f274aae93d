"""Tokens of a corpus in object storage: ranges of its files, read as batches need them.

A batch's documents come from all over a corpus, and each takes a few kilobytes. So what is read is
ranges, all of a batch at once, and no file is copied.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import read_json, write_json

REMOTE_FILE = "tokens.json"
"""Stands for a part's tokens in a folder that `lmsmith.corpus.remote` copied."""

WAITS = (1.0, 4.0, 15.0)
"""Seconds before a read is tried again."""

HEADER_BYTES = 4096
"""More than the header of a .npy file of one dimension takes."""


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of tokens elsewhere.

    Attributes:
        url: of the file.
        begin: bytes before its first token.
        tokens: how many it has.
        kind: NumPy's name of their type, such as ``<u2``.
    """

    url: str
    begin: int
    tokens: int
    kind: str

    @classmethod
    def load(cls, folder: Path) -> RemoteFile:
        """Read the `REMOTE_FILE` of a part's folder."""
        return msgspec.convert(read_json(folder / REMOTE_FILE), cls)

    def save(self, folder: Path) -> None:
        """Write it into a part's folder."""
        write_json(folder / REMOTE_FILE, msgspec.to_builtins(self))


class RemoteTokens:
    """Files of tokens elsewhere, read as if they were one array.

    Args:
        files: of one type.
    """

    def __init__(self, files: Sequence[RemoteFile]) -> None:
        self.files = files
        self.dtype: np.dtype[Any] = np.dtype(files[0].kind)
        self.ndim = 1
        self._starts = np.cumsum([0, *(each.tokens for each in files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All tokens, in memory."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The tokens of a slice without step, or at places; places in sequence are one read.

        Raises:
            UserError: the storage does not answer, or gives too little.
        """
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            inner = self._starts[(self._starts > start) & (self._starts < stop)]
            first, last = np.append(start, inner), np.append(inner, max(start, stop))
        else:
            number = np.searchsorted(self._starts, index, side="right") - 1
            breaks = np.flatnonzero((np.diff(index) != 1) | (np.diff(number) != 0))
            first = index[np.append(0, breaks + 1)] if len(index) else index
            last = index[np.append(breaks, len(index) - 1)] + 1 if len(index) else index
        return self._read(first, last)

    def _read(self, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Runs of tokens, each in one file, one after another."""
        wanted = np.flatnonzero(last > first)
        if not len(wanted):
            return np.empty(0, self.dtype)
        first, last, size = first[wanted], last[wanted], self.dtype.itemsize
        number = np.searchsorted(self._starts, first, side="right") - 1
        begin = np.array([each.begin for each in self.files])[number] - size * self._starts[number]
        urls = [self.files[each].url for each in number]
        ranges = [(begin + size * place).tolist() for place in (first, last)]
        return np.frombuffer(b"".join(read_ranges(urls, *ranges)), self.dtype)


def read_ranges(urls: Sequence[str], starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """Bytes of files, all asked for at once; what fails is tried again.

    Raises:
        UserError: a file is not there or too short, or its storage does not answer.
    """
    with needs_extra("corpus"):
        from fsspec.core import url_to_fs
    again = "the same command continues, once it can be read"
    for wait in (*WAITS, None):
        try:
            system, _ = url_to_fs(urls[0])
            paths = [system._strip_protocol(url) for url in urls]
            found: list[bytes] = system.cat_ranges(
                paths, list(starts), list(stops), on_error="raise"
            )
            break
        except FileNotFoundError as error:
            raise UserError(f"{error}: no such file in the storage", again) from error
        except Exception as error:  # each storage's package has errors of its own
            if wait is None:
                raise UserError(f"{urls[0]}: cannot be read ({error})", again) from error
            time.sleep(wait)
    for url, start, stop, given in zip(urls, starts, stops, found, strict=True):
        if len(given) != stop - start:
            raise UserError(f"{url}: ends before byte {stop:,}: it is cut off", again)
    return found


def find_file(url: str) -> RemoteFile:
    """Look at a file of tokens.

    Raises:
        UserError: it is not there, no array of tokens, or shorter than its header says.
    """
    import io

    with needs_extra("corpus"):
        from fsspec.core import url_to_fs
    try:
        system, path = url_to_fs(url)
        size = int(system.info(path)["size"])
        header = io.BytesIO(system.cat_file(path, 0, min(size, HEADER_BYTES)))
        np.lib.format.read_magic(header)
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: no tokens can be read ({error})", "Check the address.") from error
    begin = header.tell()
    if len(shape) != 1 or size != begin + shape[0] * dtype.itemsize:
        raise UserError(f"{url}: it is cut off", "Copy the corpus to the storage again.")
    return RemoteFile(url, begin, shape[0], dtype.str)
