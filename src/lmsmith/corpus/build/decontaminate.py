"""Removes from documents what tasks ask, by GPT-3's rule (Brown et al. 2020, appendix C).

A run of 13 words that is also in a task is removed with 200 characters on either side, which cuts
the document in pieces. Pieces of fewer than 200 characters are dropped, and so is a document that
is cut in more than 10 pieces. Runs that are in more than 10 documents are ignored: they are mostly
phrases that everybody uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, pairwise
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lmsmith.core.files import fingerprint
from lmsmith.corpus.build.document import Count, Document, Removed, Yielded, removed
from lmsmith.corpus.build.engine import Data, Engine
from lmsmith.corpus.build.groups import groups
from lmsmith.corpus.words import Hashes, Places, gram_hashes, read_words

CONTEXT = 60
"""Characters on either side of a match that the list of cuts shows; ⟦ ⟧ stand around it."""

MOST_SHOWN = 300
"""Characters of a long match that the list shows, from its beginning and its end."""

PIECE = "/piece-"
"""Before the number in a piece's id. No reader's id has it there: what comes before names a file,
in which there is none; and `#` numbers the documents of a long text."""

_TABLE_BITS = 22


@dataclass(frozen=True)
class DecontaminateConfig:
    """Settings of the removal of tasks from the corpus; the defaults are GPT-3's."""

    tasks: tuple[str, ...] = ()
    """Tasks that the corpus may not give away, by name, or files of them.
    ``lmsmith tasks ls`` lists the names."""
    data: tuple[str, ...] = ()
    """Folders of the tasks' data, relative to the recipe's; LMSMITH_DATA is searched too."""
    words: Annotated[int, Meta(ge=2, le=100)] = 13
    """Words in a row that are an overlap."""
    around: Annotated[int, Meta(ge=0)] = 200
    """Characters removed on either side of an overlap."""
    shortest: Annotated[int, Meta(ge=0)] = 200
    """Least characters of a piece that is kept."""
    most_pieces: Annotated[int, Meta(ge=1)] = 10
    """A document that is cut in more pieces is removed."""
    most_documents: Annotated[int, Meta(ge=1)] = 10
    """An overlap that is in more documents is ignored."""


@dataclass(frozen=True)
class TaskText:
    """A text of a task's item: a question, an answer, a passage."""

    task: str
    item: str
    text: str


@dataclass(frozen=True)
class TaskGrams:
    """Runs of words of tasks, sorted by hash.

    Attributes:
        key: fingerprint of the texts, for `engine.identity`.
        hashes_g: of the runs.
        item_g: number of the first item in ``items`` that each run is in.
        items: (task, item) of each item.
        short: items without a text of so many words, which the rule cannot find.
    """

    key: str
    words: int
    hashes_g: Hashes
    item_g: Places
    items: tuple[tuple[str, str], ...]
    short: int

    @cached_property
    def _table(self) -> NDArray[np.bool_]:
        """Whether a run's hash begins with these bits: few lookups are needed after it."""
        table = np.zeros(1 << _TABLE_BITS, bool)
        table[self.hashes_g >> np.uint64(64 - _TABLE_BITS)] = True
        return table

    def find(self, hashes: Hashes) -> tuple[Places, Places]:
        """Places of the hashes that are of a task, and the number of the run of each."""
        if not len(self.hashes_g):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        places = np.flatnonzero(self._table[hashes >> np.uint64(64 - _TABLE_BITS)])
        runs = np.searchsorted(self.hashes_g, hashes[places])
        runs = np.minimum(runs, len(self.hashes_g) - 1)
        right = self.hashes_g[runs] == hashes[places]
        return places[right], runs[right]


def task_grams(texts: Sequence[TaskText], words: int = 13) -> TaskGrams:
    """The runs of words of all texts of some tasks."""
    items = list(dict.fromkeys((text.task, text.item) for text in texts))
    number = {item: place for place, item in enumerate(items)}
    hashes, first_t = gram_hashes(read_words([text.text for text in texts]), words)
    of_text = np.array([number[text.task, text.item] for text in texts], np.int64)
    item_of = np.repeat(of_text, np.diff(first_t))
    unique, first = np.unique(hashes, return_index=True)
    key = fingerprint([words, [[text.task, text.item, text.text] for text in texts]])
    short = len(items) - len(np.unique(item_of))
    return TaskGrams(key, words, unique, item_of[first], tuple(items), short)


@dataclass(frozen=True)
class Match:
    """A run of words of a document that is also a task's: the run's number and its place."""

    run: int
    start: int
    end: int


def matches(texts: Sequence[str], grams: TaskGrams) -> list[list[Match]]:
    """The matches in each text, in order."""
    words = read_words(texts)
    hashes, first_gram_t = gram_hashes(words, grams.words)
    places, runs = grams.find(hashes)
    found: list[list[Match]] = [[] for _ in texts]
    texts_of = np.searchsorted(first_gram_t, places, "right") - 1
    first_word = words.first_t[texts_of] + places - first_gram_t[texts_of]
    offset = words.offset_t[texts_of]
    starts = words.starts_w[first_word] - offset
    ends = words.ends_w[first_word + grams.words - 1] - offset
    for text, *match in zip(
        *(each.tolist() for each in (texts_of, runs, starts, ends)), strict=True
    ):
        found[text].append(Match(*match))
    return found


def remove_tasks(engine: Engine, data: Data, grams: TaskGrams, config: DecontaminateConfig) -> Data:
    """Documents without what is also in a task.

    Args:
        data: a checkpoint.
    """
    pairs = engine.pairs(data, "task-overlaps", gram_documents, grams)
    combine = partial(frequent, most=config.most_documents)
    too_frequent = engine.lookup(engine.reduce(pairs, "task-frequent", combine), "task-ignored")
    function = partial(decontaminate, config=config)
    return engine.map(data, "decontaminate", function, (grams, too_frequent))


def gram_documents(documents: Iterable[Document], grams: TaskGrams) -> Iterator[tuple[bytes, str]]:
    """Each task's run that is in a document, with the document's id: for `frequent`."""
    for group in groups(documents):
        found = matches([document.text for document in group], grams)
        for document, matched in zip(group, found, strict=True):
            for run in dict.fromkeys(match.run for match in matched):
                yield gram_key(grams, run), document.id


def gram_key(grams: TaskGrams, run: int) -> bytes:
    """A run as the key of a shuffle."""
    return int(grams.hashes_g[run]).to_bytes(8, "little")


def frequent(gram: bytes, ids: Iterable[str], most: int) -> Iterator[tuple[bytes, int]]:
    """A run with its number of documents, if that is more than `most`."""
    count = sum(1 for _ in groupby(ids))
    if count > most:
        yield gram, count


def cuts(
    size: int, matched: Sequence[Match], around: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What to remove of a text, and the pieces that stay.

    Args:
        size: characters of the text.
        matched: in order.
        around: characters removed on either side of a match.

    Returns:
        (start, end) of each removed part, and of each piece that is left, empty ones not.
    """
    parts: list[tuple[int, int]] = []
    for match in matched:
        start, end = max(0, match.start - around), min(size, match.end + around)
        if parts and start <= parts[-1][1]:
            parts[-1] = parts[-1][0], max(end, parts[-1][1])
        else:
            parts.append((start, end))
    edges = [0, *(edge for part in parts for edge in part), size]
    pieces = [(start, end) for start, end in list(pairwise(edges))[::2] if start < end]
    return parts, pieces


def decontaminate(
    documents: Iterable[Document], broadcast: tuple[TaskGrams, Any], config: DecontaminateConfig
) -> Iterator[Yielded]:
    """Documents without what is also in a task; the pieces of one are documents of their own.

    Args:
        documents: of a chunk.
        broadcast: the tasks' runs, and a lookup of those that are in too many documents.
        config: GPT-3's numbers, or others.
    """
    grams, too_frequent = broadcast
    for group in groups(documents):
        found = matches([document.text for document in group], grams)
        for document, matched in zip(group, found, strict=True):
            kept = [m for m in matched if too_frequent.get(gram_key(grams, m.run)) is None]
            if len(kept) < len(matched):
                ignored = len(matched) - len(kept)
                yield Count(document.source, "overlaps_ignored_as_frequent", ignored)
            yield from _without(document, kept, grams, config) if kept else [document]


def _without(
    document: Document, matched: Sequence[Match], grams: TaskGrams, config: DecontaminateConfig
) -> Iterator[Yielded]:
    """The pieces of a document, and what was cut out."""
    parts, pieces = cuts(len(document.text), matched, config.around)
    for start, end in parts:
        yield _cut(
            document, [each for each in matched if start <= each.start < end], grams, end - start
        )
    if len(pieces) > config.most_pieces:
        yield removed(document, f"in more than {config.most_pieces} pieces: {len(pieces)}")
        return
    long = [(start, end) for start, end in pieces if end - start >= config.shortest]
    yield Count(document.source, "pieces_too_short", len(pieces) - len(long))
    if not long:
        yield removed(document, "no piece is long enough")
    for number, (start, end) in enumerate(long, start=1):
        piece = document.text[start:end]
        yield msgspec.structs.replace(document, id=f"{document.id}{PIECE}{number}", text=piece)


def _cut(document: Document, matched: Sequence[Match], grams: TaskGrams, size: int) -> Removed:
    """What was cut, of which task, with the text around the matches."""
    task, item = grams.items[int(grams.item_g[matched[0].run])]
    reason = f"overlap with task {task}: item {item}"
    start, end = matched[0].start, matched[-1].end
    before, after = (
        document.text[max(0, start - CONTEXT) : start],
        document.text[end : end + CONTEXT],
    )
    found = document.text[start:end]
    if len(found) > MOST_SHOWN:
        found = f"{found[: MOST_SHOWN // 2]} … {found[-MOST_SHOWN // 2 :]}"
    excerpt = f"{before}⟦{found}⟧{after}"
    return Removed(document.id, document.source, "", reason, excerpt, size, document.language)
