"""The documents of a finished corpus in their order, and their tokens and texts.

Positions count tokens over all shards of ``corpus.json``, in its order; a document's tokens have a
frame: what begins a document, and the end of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lmsmith.core.errors import UserError, needs_extra, refusing_damage
from lmsmith.core.files import is_remote, read_jsonl
from lmsmith.core.progress import LineProgress
from lmsmith.corpus.build.shards import INDEX_FILE
from lmsmith.corpus.finished import BUILD_AGAIN, FinishedCorpus
from lmsmith.corpus.remote import kept_copy
from lmsmith.corpus.shards import TokenShards
from lmsmith.tokenizers import Tokenizer


@dataclass(frozen=True)
class Part:
    """A folder of shards.

    Attributes:
        start: position of its first token in the corpus, or in the source that is read.
        tokens: (tokens) ids, mapped.
        offsets: (documents + 1) where each document begins.
    """

    source: str
    folder: Path
    start: int
    tokens: Any
    offsets: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + int(self.offsets[-1])

    def document_at(self, position: int) -> int:
        """Number of the document that a position of the corpus is in."""
        return int(np.searchsorted(self.offsets, position - self.start, "right")) - 1

    def ids(self, number: int) -> list[int]:
        """Tokens of a document, with its frame."""
        found: list[int] = self.tokens[self.offsets[number] : self.offsets[number + 1]].tolist()
        return found

    @cached_property
    def _index(self) -> Any:
        with needs_extra("corpus"):
            import pyarrow.parquet as pq
        with refusing_damage(self.folder / INDEX_FILE, BUILD_AGAIN):
            return pq.ParquetFile(self.folder / INDEX_FILE)

    def columns(self, *names: str) -> Iterator[list[Any]]:
        """Rows of some columns of the index, in order."""
        for batch in self._index.iter_batches(columns=list(names)):
            yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)

    def row(self, number: int) -> dict[str, Any]:
        """A document's row of the index: id, name, language, scores, bytes and hash."""
        before = 0
        for group in range(self._index.num_row_groups):
            rows = self._index.metadata.row_group(group).num_rows
            if number < before + rows:
                found = self._index.read_row_group(group).slice(number - before, 1).to_pylist()[0]
                return {**found, "scores": msgspec.json.decode(found["scores"])}
            before += rows
        raise IndexError(number)


@dataclass(frozen=True)
class HeldOut(Part):
    """The held-out documents of a source, tokenized as the shards are; no position is theirs."""

    rows: tuple[dict[str, str], ...] = ()

    def row(self, number: int) -> dict[str, Any]:
        """A document's id and source."""
        return {"id": self.rows[number]["id"], "name": ""}


@dataclass(frozen=True)
class CorpusDocuments:
    """A finished corpus, or one source of it; ``place`` is its folder or address."""

    finished: FinishedCorpus
    parts: tuple[Part, ...]
    place: str

    @classmethod
    def open(cls, place: str | Path, source: str = "") -> CorpusDocuments:
        """Map the shards of a finished corpus.

        Args:
            place: ``out`` of its recipe; of an address, the index is kept in the user's cache.
            source: read only this one.

        Raises:
            UserError: no finished corpus, no such source, or damaged shards.
        """
        remote = is_remote(str(place))
        folder = kept_copy(str(place), LineProgress()) if remote else Path(place)
        finished = FinishedCorpus.load(folder)
        if source and source not in finished.sources:
            known = ", ".join(finished.sources)
            raise UserError(f"--source {source}: no such source", f"The sources: {known}.")
        parts, start = [], 0
        with refusing_damage(folder, BUILD_AGAIN):
            for each in finished.record["parts"]:
                if source not in ("", each["source"]):
                    continue
                part = finished.folder / each["folder"]
                try:
                    shards = TokenShards.load(part)
                except UserError as error:
                    raise UserError(error.problem, BUILD_AGAIN) from error
                parts.append(Part(each["source"], part, start, shards.tokens, shards.offsets))
                start += shards.total_tokens
        named = str(place) if remote else str(finished.folder.parent)
        return cls(finished, tuple(parts), named)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the shards."""
        return Tokenizer.load(self.finished.tokenizer)

    @cached_property
    def held_out(self) -> tuple[HeldOut, ...]:
        """The held-out documents of each source that is read."""
        found: dict[str, list[dict[str, str]]] = {part.source: [] for part in self.parts}
        with refusing_damage(self.finished.validation, BUILD_AGAIN):
            for _, row in read_jsonl(self.finished.validation):
                if (source := str(row["source"])) in found:
                    found[source].append({"id": str(row["id"]), "text": str(row["text"])})
        return tuple(self._tokenized(source, rows) for source, rows in found.items() if rows)

    def _tokenized(self, source: str, rows: list[dict[str, str]]) -> HeldOut:
        start, end = self.tokenizer.document_start, self.tokenizer.end_of_text
        encoded = self.tokenizer.encode_batch([row["text"] for row in rows])
        documents = [np.array([*start, *ids, end], np.int64) for ids in encoded]
        offsets = np.cumsum([0, *map(len, documents)])
        folder = self.finished.folder
        return HeldOut(source, folder, 0, np.concatenate(documents), offsets, tuple(rows))

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.parts[-1].end if self.parts else 0

    def part_at(self, position: int) -> Part:
        """The part that a position is in.

        Raises:
            UserError: the position is outside.
        """
        if not self.tokens:
            raise UserError(f"{self.place}: there are no tokens", "Build it from more documents.")
        if not 0 <= position < self.tokens:
            last = self.tokens - 1
            problem = f"position {position:,} is outside the corpus"
            raise UserError(problem, f"Name one from 0 to {last:,}.")
        return next(part for part in self.parts if position < part.end)

    def text(self, part: Part, number: int, most: int | None = None) -> str:
        """The text of a document, or what its first ``most`` tokens decode to."""
        ids = part.ids(number)
        if most is not None and len(ids) > most:
            return self.tokenizer.decode(ids[:most]).rstrip("\ufffd")
        return self.tokenizer.decode(ids)

    def find(self, ids: Sequence[str]) -> dict[str, tuple[Part, int]]:
        """Where documents are; those that are not in the shards are left out."""
        wanted, found = set(ids), {}
        for part in self.parts:
            numbered: Mapping[str, int] = {id: n for n, (id,) in enumerate(part.columns("id"))}
            for id in wanted & numbered.keys():
                found[id] = part, numbered[id]
        return found
