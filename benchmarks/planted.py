"""A corpus made from a seed in which everything that a builder should find is known.

Words are drawn from a vocabulary by Zipf's law. Of every hundred documents some are exact
duplicates, near-duplicates of a known Jaccard similarity, junk of a kind, or hold a task's item.

    python benchmarks/planted.py FILE.jsonl MEGABYTES
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
"""Words of the shingles whose Jaccard similarity is known."""
SIMILARITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
JUNK = {
    "hash signs": "# ",
    "duplicate lines": "click here to read more of this\n",
    "alphabetic words": "4711 ",
}
"""Rule of Gopher → what a text that breaks it is filled with."""
ITEMS = 500
ITEM_WORDS = 40


@dataclass
class Planted:
    """What is hidden in the corpus; documents are named by their id.

    Attributes:
        exact: (original, copy) with the same text.
        near: (original, copy, Jaccard similarity of their shingles).
        junk: id → the rule that it breaks.
        contaminated: id → number of the task's item in it.
        items: texts of the task.
    """

    documents: int = 0
    size: int = 0
    exact: list[tuple[str, str]] = field(default_factory=list)
    near: list[tuple[str, str, float]] = field(default_factory=list)
    junk: dict[str, str] = field(default_factory=dict)
    contaminated: dict[str, int] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)


class Writer:
    """Draws texts from a vocabulary."""

    def __init__(self, seed: int, vocabulary: int = 50_000) -> None:
        letters = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.vocabulary = [
            "".join(letters.choices("etaoinshrdlucmfwypvbgkjqxz", k=letters.randrange(2, 10)))
            for _ in range(vocabulary)
        ]
        shares = 1 / np.arange(10, vocabulary + 10)
        self._until = np.cumsum(shares / shares.sum())
        self._fresh = 0

    def words(self, count: int) -> NDArray[np.int64]:
        """Numbers of words, drawn by Zipf's law."""
        drawn = np.searchsorted(self._until, self.numbers.random(count))
        return np.minimum(drawn, len(self.vocabulary) - 1)

    def fresh(self) -> str:
        """A word that comes nowhere else."""
        self._fresh += 1
        return f"new{self._fresh}word"

    def strings(self, words: NDArray[np.int64]) -> list[str]:
        """The words themselves."""
        return [self.vocabulary[word] for word in words.tolist()]


def text_of(words: list[str]) -> str:
    """Words as sentences of fifteen and paragraphs of five sentences."""
    sentences = [" ".join(words[i : i + 15]).capitalize() + "." for i in range(0, len(words), 15)]
    paragraphs = [" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5)]
    return "\n\n".join(paragraphs)


def near_duplicate(words: list[str], similarity: float, writer: Writer) -> tuple[list[str], float]:
    """The words with some replaced, so far apart that each changes five shingles; and the Jaccard.

    Of S different shingles, r words change 5 r, so that J = (S - 5 r) / (S + 5 r).
    """
    shingles = len({tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)})
    places = range(SHINGLE, len(words) - SHINGLE, SHINGLE)
    most = shingles * (1 - similarity) / (SHINGLE * (1 + similarity))
    replaced = min(len(places), int(most))
    copy = list(words)
    for place in writer.numbers.permutation(len(places))[:replaced].tolist():
        copy[places[place]] = writer.fresh()
    changed = SHINGLE * replaced
    return copy, (shingles - changed) / (shingles + changed)


def plant(path: Path, megabytes: float, seed: int, items: Sequence[str] = ()) -> Planted:
    """Write JSONL of about so many megabytes, with ids and texts, and say what is in it.

    Args:
        path: of the file.
        megabytes: of text.
        seed: of all that is drawn.
        items: texts of a task to plant; drawn as all else if there are none.
    """
    writer, draw = Writer(seed), random.Random(seed)
    drawn = [" ".join(writer.strings(writer.words(ITEM_WORDS))) for _ in range(ITEMS)]
    planted = Planted(items=list(items) or drawn)
    with path.open("wb") as file:
        while planted.size < megabytes * 1e6:
            for text in _texts(writer, draw, planted):
                row = {"id": f"{planted.documents:07d}", "text": text}
                file.write(msgspec.json.encode(row) + b"\n")
                planted.documents += 1
                planted.size += len(text)
    return planted


def _texts(writer: Writer, draw: random.Random, planted: Planted) -> Iterator[str]:
    """A document, and perhaps its copy; what is special about them is written down."""
    words = writer.strings(writer.words(draw.randrange(200, 800)))
    kind = draw.randrange(100)
    name, copy = f"{planted.documents:07d}", f"{planted.documents + 1:07d}"
    if kind < 4:
        planted.junk[name] = draw.choice(list(JUNK))
        yield f"{text_of(words[:60])}\n{JUNK[planted.junk[name]] * 100}"
    elif kind < 6:
        planted.contaminated[name] = draw.randrange(len(planted.items))
        item, middle = planted.items[planted.contaminated[name]], len(words) // 2
        yield f"{text_of(words[:middle])} {item} {text_of(words[middle:])}"
    else:
        yield text_of(words)
        if kind < 11:
            planted.exact.append((name, copy))
            yield text_of(words)
        elif kind < 26:
            changed, jaccard = near_duplicate(words, draw.choice(SIMILARITIES), writer)
            planted.near.append((name, copy, jaccard))
            yield text_of(changed)


if __name__ == "__main__":
    print(f"{plant(Path(sys.argv[1]), float(sys.argv[2]), seed=0).documents:,} documents")
