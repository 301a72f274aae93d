"""What the steps removed: examples drawn by a hash, clusters of duplicates, cuts, skipped files."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from lmsmith.corpus.build.document import Removed, digest
from lmsmith.corpus.build.removed import DUPLICATES, all_removed
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.corpus.inspect.stats import drawn

EXAMPLES = 3
"""Examples of a reason, removed and kept."""

KEPT_POOL = 24
"""Documents of a source from which kept examples are taken."""

SHOWN_TOKENS = 90
"""Tokens of a kept document that are decoded for the page."""

CLUSTERS, DRAWN_CLUSTERS, MEMBERS = 6, 3, 6
"""Largest clusters, clusters drawn by a hash, and members shown of each."""

CUTS = 12
"""Cuts of a task that are shown."""

MOST_OF_A_CUT = 500
"""Characters of a cut with its context."""

SKIPPED = 60
"""Skipped files that are listed."""


@dataclass(frozen=True)
class Example:
    """A document, or a part of one, as the page shows it."""

    id: str
    source: str
    text: str
    detail: str = ""
    size: int = 0

    @property
    def marked(self) -> list[tuple[str, bool]]:
        """The text in pieces, and whether each stands between the marks ⟦ and ⟧."""
        before, _, rest = self.text.partition("⟦")
        inside, _, after = rest.partition("⟧")
        return [(before, False), (inside, True), (after, False)]


@dataclass
class Reason:
    """A reason of a step, with its examples; ``stays`` has the ids that they are duplicates of."""

    step: str
    reason: str
    count: int = 0
    bytes: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    removed: list[Example] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    kept: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Cluster:
    """Duplicates and the document that stays for them."""

    step: str
    stays: Example
    size: int
    others: tuple[Example, ...]


@dataclass
class Cut:
    """A task, and what was cut out because of it."""

    task: str
    count: int = 0
    bytes: int = 0
    first: list[Example] = field(default_factory=list)


class _Drawn:
    """The rows of the smallest hashes, whatever their order."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._heap: list[tuple[int, str, Removed]] = []

    def add(self, row: Removed) -> None:
        place = -int.from_bytes(digest("page", row.step, row.reason, row.id)[:8], "big")
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, (place, row.id, row))
        elif place > self._heap[0][0]:
            heapq.heapreplace(self._heap, (place, row.id, row))

    def rows(self) -> list[Removed]:
        return [row for *_, row in sorted(self._heap, reverse=True)]


class Removals:
    """One reading of what all steps removed.

    Attributes:
        reasons: (step, reason) → figures, in the order of the rows.
        members: document that stays → its duplicates, by step.
        cuts: by task.
        skipped: files and rows that could not be read, some where they are many.
    """

    def __init__(self, corpus: FinishedCorpus) -> None:
        self.corpus = corpus
        self.reasons: dict[tuple[str, str], Reason] = {}
        self.members: dict[str, Counter[str]] = {step: Counter() for step in DUPLICATES}
        self.cuts: dict[str, Cut] = {}
        skipped = _Drawn(SKIPPED)
        examples: dict[tuple[str, str], _Drawn] = {}
        cuts: dict[str, _Drawn] = {}
        for row in all_removed(corpus):
            head, _, detail = row.reason.partition(": ")
            if row.step == "read":
                skipped.add(row)
                continue
            key = row.step, head
            reason = self.reasons.setdefault(key, Reason(*key))
            reason.count += 1
            reason.bytes += row.size
            reason.sources[row.source] += 1
            if row.step in DUPLICATES and detail:
                self.members[row.step][detail] += 1
            if head.startswith("overlap with task "):
                task = head.removeprefix("overlap with task ")
                cut = self.cuts.setdefault(task, Cut(task))
                cut.count += 1
                cut.bytes += row.size
                cuts.setdefault(task, _Drawn(CUTS)).add(row)
            else:
                examples.setdefault(key, _Drawn(EXAMPLES)).add(row)
        self.skipped = sorted(skipped.rows(), key=lambda row: row.id)
        for key, found in examples.items():
            self.reasons[key].removed = [_example(row) for row in found.rows()]
            if key[0] in DUPLICATES:
                details = (row.reason.partition(": ")[2] for row in found.rows())
                self.reasons[key].stays = list(details)
        for task, found in cuts.items():
            self.cuts[task].first = [_example(row, MOST_OF_A_CUT) for row in found.rows()]

    def clusters(self, corpus: CorpusDocuments) -> list[Cluster]:
        """The largest clusters, then some drawn by a hash."""
        chosen: dict[tuple[str, str], int] = {}
        for step, members in self.members.items():
            largest = sorted(members.items(), key=lambda each: (-each[1], each[0]))
            for id, count in largest[:CLUSTERS]:
                chosen[step, id] = count
            rest = ((digest("cluster", id), id) for id in members if (step, id) not in chosen)
            for _, id in heapq.nsmallest(DRAWN_CLUSTERS, rest):
                chosen[step, id] = members[id]
        others: dict[tuple[str, str], _Drawn] = {key: _Drawn(MEMBERS) for key in chosen}
        if chosen:
            for row in all_removed(self.corpus):
                key = row.step, row.reason.partition(": ")[2]
                if key in others:
                    others[key].add(row)
        stays = _documents(corpus, [id for _, id in chosen])
        return [
            Cluster(
                step,
                stays.get(id, Example(id, id.partition("/")[0], "", "not in the shards")),
                count + 1,
                tuple(replace(_example(row), detail="") for row in others[step, id].rows()),
            )
            for (step, id), count in chosen.items()
        ]

    def cluster_sizes(self, step: str) -> list[tuple[str, int]]:
        """Number of clusters by their number of documents."""
        bounds = ((2, 2), (3, 4), (5, 9), (10, 99), (100, 1 << 62))
        words = ("2", "3 to 4", "5 to 9", "10 to 99", "100 or more")
        sizes = Counter(self.members[step].values())
        return [
            (word, sum(number for size, number in sizes.items() if low <= size + 1 <= high))
            for word, (low, high) in zip(words, bounds, strict=True)
        ]


def add_kept_examples(corpus: CorpusDocuments, reasons: Sequence[Reason]) -> None:
    """To each reason documents that are kept.

    Those that stay for duplicates, as far as they are in the shards; else others of the sources
    that the reason removes most from.
    """
    pools = {source: list(_pool(corpus, source)) for source in corpus.finished.sources}
    everything = [each for pool in pools.values() for each in pool]
    doubles = [each for each in reasons if each.step in DUPLICATES]
    stay = _documents(corpus, [id for each in doubles for id in each.stays])
    for number, reason in enumerate(reasons):
        reason.kept = list({id: stay[id] for id in reason.stays if id in stay}.values())
        if reason.kept:
            continue
        source = reason.sources.most_common(1)[0][0] if reason.sources else ""
        pool = pools.get(source) or everything
        start = number * EXAMPLES
        count = min(EXAMPLES, len(pool), max(1, len(reason.removed)))
        reason.kept = [pool[(start + n) % len(pool)] for n in range(count)]


def _pool(corpus: CorpusDocuments, source: str) -> Iterator[Example]:
    parts = [part for part in corpus.parts if part.source == source]
    for part, number in drawn(parts, "kept examples", KEPT_POOL):
        row = part.row(number)
        text = corpus.text(part, number, SHOWN_TOKENS)
        scores = ", ".join(f"{name} {value:.3f}" for name, value in row["scores"].items())
        yield Example(row["id"], source, _shown(text), scores, row["size"])


def _documents(corpus: CorpusDocuments, ids: Sequence[str]) -> dict[str, Example]:
    """Documents of the shards, by id."""
    found = {}
    for id, (part, number) in corpus.find(ids).items():
        row = part.row(number)
        text = corpus.text(part, number, SHOWN_TOKENS)
        found[id] = Example(id, part.source, _shown(text), "", row["size"])
    return found


def _example(row: Removed, most: int = 240) -> Example:
    reason, _, detail = row.reason.partition(": ")
    if row.step in DUPLICATES:
        detail = f"stays: {detail}"
    elif detail.replace(".", "").isdigit():
        detail = f"{reason}: {detail}"
    return Example(row.id, row.source, _shown(row.excerpt, most), detail, row.size)


def _shown(text: str, most: int = 240) -> str:
    """The beginning of a text, without empty lines in a row."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines)[:most]
