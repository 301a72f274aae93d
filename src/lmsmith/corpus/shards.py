"""Token shards: documents as one array of ids on disk, read in place without loading it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder, require_file

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

TOKENS_FILE = "tokens.npy"
OFFSETS_FILE = "offsets.npy"


class TokenShards:
    """Documents laid end to end, each ``[*start, *tokens, end_of_text]``.

    Attributes:
        tokens: ``(total,)`` uint16 or uint32.
        offsets: ``(documents + 1,)`` int64; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(self, tokens: Tokens, offsets: npt.NDArray[np.int64]) -> None:
        self.tokens = tokens
        self.offsets = offsets

    @classmethod
    def load(cls, folder: Path) -> TokenShards:
        """Map a folder that `write_shards` wrote.

        Raises:
            UserError: a file is missing, cut off or not what it should be.
        """
        fix = "Remove the folder and run the stage that made it again."
        try:
            for name in (TOKENS_FILE, OFFSETS_FILE):
                require_file(folder / name)
            # Mapped, so that a length that the file does not have is no memory.
            tokens = np.load(folder / TOKENS_FILE, mmap_mode="r", allow_pickle=False)
            offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder}: token shards cannot be read ({error})", fix) from error
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
            raise UserError(f"{folder}: token shards are damaged", fix)
        return cls(tokens, np.array(offsets))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def total_tokens(self) -> int:
        """Number of tokens, the frame of each document included."""
        return int(self.offsets[-1])


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
    kind = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    start = [end_of_text] if start is None else start
    with atomic_folder(folder) as partial:
        offsets = [0]
        with (partial / TOKENS_FILE).open("wb") as file:
            # numpy pads the header so that the length can grow in place.
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
            begin = file.tell()
            for document in documents:
                array = np.array([*start, *document, end_of_text], kind)
                file.write(array.tobytes())
                offsets.append(offsets[-1] + len(array))
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (offsets[-1],)})
            if file.tell() != begin:
                raise AssertionError("numpy's header did not keep its size")
            file.flush()
            os.fsync(file.fileno())
        np.save(partial / OFFSETS_FILE, np.array(offsets, dtype=np.int64))
    return TokenShards.load(folder)
