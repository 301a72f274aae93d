"""Documents and bytes through the steps, by source; time and memory of each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.report import numbers

STEPS: dict[str, tuple[str, str]] = {
    "read": ("Read", "a text that is too long becomes several documents"),
    "clean": ("Clean", "broken encodings, control characters and boilerplate lines"),
    "language": ("Language", "identified, and other languages removed where the recipe says so"),
    "personal": ("Personal data", "masked, and counted"),
    "harmful": ("Harmful words", "documents with too many of them removed"),
    "harmful-score": ("Harmful text", "documents that a classifier calls harmful removed"),
    "gopher": ("Gopher's rules", "length, symbols and repetition of documents"),
    "c4": ("C4's rules", "lines that are no sentences, and what is left of pages without them"),
    "score": ("Score", "the classifier's probability that a document is curated"),
    "quality": ("Quality", "a draw by the score, as GPT-3's"),
    "exact": ("Equal documents", "one of each stays"),
    "lines": ("Repeated lines", "the first of each stays"),
    "paragraphs": ("Repeated paragraphs", "the first of each stays"),
    "near-duplicates": ("Near-duplicates", "one of each cluster stays"),
    "decontaminate": ("Tasks", "text that is also in a task is cut out, which parts documents"),
}
"""Title of each step, and what it does."""

OPERATIONS = {
    "ids": "read",
    "exact": "exact",
    "lines": "lines",
    "paragraphs": "paragraphs",
    "near": "near-duplicates",
    "task": "decontaminate",
}
"""Step of a shuffle, by the first word of the shuffle's name."""

COLOURS = ("pretrain", "sft", "reward", "ppo", "human", "judge")
"""Colours of the sources on the page; the last is that of all others."""


@dataclass(frozen=True)
class Amount:
    """Documents and bytes of a source after a step."""

    source: str
    colour: str
    documents_in: int
    documents: int
    bytes_in: int
    bytes: int
    share: float


@dataclass(frozen=True)
class FlowRow:
    """A step of the flow.

    Attributes:
        amounts: by source, in the recipe's order; shares are of all bytes that were read.
        removed: reasons with their numbers, the most frequent first.
    """

    step: str
    title: str
    about: str
    amounts: tuple[Amount, ...]
    removed: tuple[tuple[str, int], ...]

    @property
    def documents_in(self) -> int:
        return sum(each.documents_in for each in self.amounts)

    @property
    def documents(self) -> int:
        return sum(each.documents for each in self.amounts)

    @property
    def bytes_in(self) -> int:
        return sum(each.bytes_in for each in self.amounts)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.amounts)

    @property
    def changes(self) -> bool:
        """Whether the step removed or changed anything."""
        counts = self.documents_in, self.bytes_in
        return counts != (self.documents, self.bytes) or self.step == "read"


def title_of(step: str) -> str:
    """A step as the page names it."""
    return STEPS.get(step, (step.capitalize(), ""))[0]


def source_colours(sources: Sequence[str]) -> dict[str, str]:
    """A colour of the page for each source."""
    return {name: COLOURS[min(n, len(COLOURS) - 1)] for n, name in enumerate(sources)}


def flow(record: Mapping[str, Any]) -> list[FlowRow]:
    """A row for each step that ran."""
    sources = list(record["recipe"]["sources"])
    colours = source_colours(sources)
    steps = record["steps"]
    most = max(_whole(steps, "bytes_out"), _whole(steps, "bytes_in"), 1)
    rows = []
    for step, found in steps.items():
        amounts = []
        for source in sources:
            counts = found.get(source, {})
            size = int(counts.get("bytes_out", 0))
            amounts.append(
                Amount(
                    source,
                    colours[source],
                    int(counts.get("documents_in", 0)),
                    int(counts.get("documents_out", 0)),
                    int(counts.get("bytes_in", 0)),
                    size,
                    size / most,
                )
            )
        title, about = STEPS.get(step, (step.capitalize(), ""))
        if step == "read":
            about = f"{_files(found)}; {about}"
        rows.append(FlowRow(step, title, about, tuple(amounts), _reasons(found)))
    return rows


def _files(found: Mapping[str, Mapping[str, float]]) -> str:
    files = sum(int(counts.get("files", 0)) for counts in found.values())
    size = sum(counts.get("bytes_read", 0) for counts in found.values())
    return f"{files:,} files, {numbers.size(size)}"


def _whole(steps: Mapping[str, Any], name: str) -> int:
    """The most bytes that any step has."""
    sums = (sum(counts.get(name, 0) for counts in found.values()) for found in steps.values())
    return int(max(sums, default=0))


def _reasons(found: Mapping[str, Mapping[str, float]]) -> tuple[tuple[str, int], ...]:
    counted: Counter[str] = Counter()
    for counts in found.values():
        for name, value in counts.items():
            if name.startswith("removed."):
                counted[name.removeprefix("removed.")] += int(value)
    return tuple(counted.most_common())


def counted(record: Mapping[str, Any], step: str, prefix: str) -> dict[str, Counter[str]]:
    """Counts of a step whose name begins so: rest of the name → source → value."""
    found: dict[str, Counter[str]] = {}
    for source, counts in record["steps"].get(step, {}).items():
        for name, value in counts.items():
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), Counter())[source] += int(value)
    return dict(sorted(found.items(), key=lambda each: (-each[1].total(), each[0])))


@dataclass(frozen=True)
class Effort:
    """Time and memory of a step, as texts."""

    title: str
    worker: str
    speed: str
    shuffles: str
    memory: str


def efforts(rows: Sequence[FlowRow], build: Mapping[str, Any]) -> list[Effort]:
    """Worker time of each step's functions, wall time of its shuffles, memory of its checkpoint."""
    stages, shuffles = build["stages"], _shuffles(build.get("operations", {}))
    found = []
    for row in rows:
        about = stages.get(row.step, {})
        seconds = about.get("seconds")
        size = row.bytes_in or row.bytes
        speed = size / seconds / 1e6 if seconds and size else None
        peak = about.get("peak_memory_bytes")
        took = shuffles.get(row.step)
        found.append(
            Effort(
                row.title,
                numbers.duration(seconds),
                f"{numbers.number(speed)}{numbers.NBSP}MB/s" if speed else "",
                numbers.duration(took) if took else "",
                numbers.size(peak) if peak else "",
            )
        )
    return found


def _shuffles(operations: Mapping[str, float]) -> dict[str, float]:
    """Wall time of a step's shuffles."""
    found: dict[str, float] = {}
    for name, seconds in operations.items():
        begin, dash, _ = name.partition("-")
        if dash and begin in OPERATIONS:
            step = OPERATIONS[begin]
            found[step] = found.get(step, 0.0) + seconds
    return found
