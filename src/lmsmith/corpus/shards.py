"""Token shards: documents as one array of ids on disk, read in place without loading it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder, require_file
from lmsmith.corpus.remote_tokens import REMOTE_FILE, RemoteFile, RemoteTokens

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

TOKENS_FILE = "tokens.npy"
OFFSETS_FILE = "offsets.npy"


MAKE_AGAIN = "Remove the folder and run the stage that made it again."


class TokenShards:
    """Documents laid end to end, each ``[*start, *tokens, end_of_text]``.

    Attributes:
        tokens: ``(total,)`` uint16 or uint32, mapped or elsewhere.
        offsets: ``(documents + 1,)`` int64; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
        files: that are mapped.
    """

    def __init__(
        self,
        tokens: Tokens | JoinedTokens | RemoteTokens,
        offsets: npt.NDArray[np.int64],
        files: Sequence[MappedFile] = (),
    ) -> None:
        self.tokens = tokens
        self.offsets = offsets
        self.files = files

    @classmethod
    def load(cls, folder: Path, fix: str = MAKE_AGAIN) -> TokenShards:
        """Map a folder that `write_shards` wrote, or a folder of such folders as one.

        In a copy of a corpus elsewhere, tokens are read there (`RemoteTokens`).

        Args:
            fix: what to do where they cannot be read.

        Raises:
            UserError: a file is missing, cut off or not what it should be.
        """
        files = [folder / name for name in (TOKENS_FILE, REMOTE_FILE)]
        if any(each.exists() for each in files) or not folder.is_dir():
            return cls._load_one(folder, fix)
        parts = [cls._load_one(place, fix) for place in sorted(folder.iterdir()) if place.is_dir()]
        if not parts:
            return cls._load_one(folder, fix)
        starts = np.cumsum([0, *(part.total_tokens for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        joined: JoinedTokens | RemoteTokens
        if remote := [
            f for part in parts if isinstance(part.tokens, RemoteTokens) for f in part.tokens.files
        ]:
            joined = RemoteTokens(remote)
        else:
            joined = JoinedTokens([part.tokens for part in parts])  # type: ignore[misc]
        mapped = [each for part in parts for each in part.files]
        return cls(joined, np.concatenate([np.zeros(1, np.int64), *offsets]), mapped)

    @classmethod
    def _load_one(cls, folder: Path, fix: str) -> TokenShards:
        tokens: Any
        files: list[MappedFile] = []
        if (folder / REMOTE_FILE).exists():
            tokens = RemoteTokens([RemoteFile.load(folder)])
        else:
            files = [MappedFile.find(folder / TOKENS_FILE)]
            tokens = _mapped(folder / TOKENS_FILE, fix)
        offsets = _mapped(folder / OFFSETS_FILE, fix)
        if (
            tokens.dtype not in (np.dtype(np.uint16), np.dtype(np.uint32))
            or offsets.dtype != np.int64
            or tokens.ndim != 1
            or offsets.ndim != 1
            or len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != len(tokens)
            or (np.diff(offsets) < 0).any()
        ):
            problem = f"{folder}: damaged token shards: {OFFSETS_FILE} does not fit {TOKENS_FILE}"
            raise UserError(problem, fix)
        return cls(tokens, np.array(offsets), files)

    def require_unchanged(self) -> None:
        """Raise UserError if somebody has written to a file since it was mapped.

        What is mapped changes with it, and a file that is cut off would end this program.
        """
        for each in self.files:
            each.require_unchanged()

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def total_tokens(self) -> int:
        """Number of tokens, the frame of each document included."""
        return int(self.offsets[-1])


@dataclass(frozen=True)
class MappedFile:
    """A file as it was when it was mapped."""

    path: Path
    inode: int
    size: int
    modified: int

    @classmethod
    def find(cls, path: Path) -> MappedFile:
        try:
            found = path.stat()
        except OSError:  # mapping it says why
            return cls(path, 0, 0, 0)
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns)

    def require_unchanged(self) -> None:
        """Raise UserError for a file that was written to.

        One that is removed or replaced stays mapped as it was.
        """
        now = MappedFile.find(self.path)
        if now.inode == self.inode and now != self:
            raise UserError(
                f"{self.path}: was written to while the run read it",
                "The same command continues once it is as it was; `--redo data` compares all files "
                "of a corpus with their checksums.",
            )


def _mapped(path: Path, fix: str) -> Any:
    """An array on disk; mapped, so that a length that the file does not have is no memory."""
    require_file(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: token shards cannot be read ({error})", fix) from error


class JoinedTokens:
    """Several arrays of tokens, read as if they were one."""

    def __init__(self, parts: Sequence[Tokens]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Tokens:
        """All tokens, in memory."""
        return np.concatenate(self._parts).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> Tokens:
        """The tokens of a slice without step, or at places."""
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self))[:2])
        numbers = np.searchsorted(self._starts, index, side="right") - 1
        found = np.empty(len(index), self.dtype)
        for number in np.unique(numbers):
            inside = numbers == number
            found[inside] = self._parts[number][index[inside] - self._starts[number]]
        return found

    def _slice(self, start: int, stop: int) -> Tokens:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        found: list[Tokens] = []
        for number in range(first, len(self._parts)):
            before = int(self._starts[number])
            if before >= stop:
                break
            found.append(self._parts[number][max(0, start - before) : stop - before])
        return np.concatenate(found) if found else np.empty(0, self.dtype)


def write_shards(
    folder: Path,
    documents: Iterable[Sequence[int]],
    end_of_text: int,
    vocabulary_size: int,
    start: Sequence[int] | None = None,
) -> TokenShards:
    """Write documents as they come, holding one at a time, and map the result.

    `folder` appears whole or not at all. A token takes 2 or 4 bytes, by `vocabulary_size`.

    Args:
        documents: token ids without frame.
        start: put before each; `end_of_text` if None.
    """
    with atomic_folder(folder) as partial:
        write_tokens(partial, documents, end_of_text, vocabulary_size, start)
    return TokenShards.load(folder)


def write_tokens(
    folder: Path,
    documents: Iterable[Sequence[int]],
    end_of_text: int,
    vocabulary_size: int,
    start: Sequence[int] | None = None,
) -> npt.NDArray[np.int64]:
    """`write_shards` into a folder that is there; returns the offsets."""
    kind = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    start = [end_of_text] if start is None else start
    lengths = [0]
    with (folder / TOKENS_FILE).open("wb") as file:
        # numpy pads the header so that the length can grow in place.
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
        begin = file.tell()
        for document in documents:
            array = np.array([*start, *document, end_of_text], kind)
            file.write(array.tobytes())
            lengths.append(len(array))
        offsets = np.cumsum(lengths, dtype=np.int64)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (int(offsets[-1]),)})
        if file.tell() != begin:
            raise AssertionError("numpy's header did not keep its size")
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / OFFSETS_FILE, offsets)
    return offsets
