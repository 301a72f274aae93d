"""Items that a model may have seen in training, and the score without them.

Two rules: GPT-3's n-grams of words (Brown et al. 2020, appendix C), and GPT-4's three substrings
(OpenAI 2023, appendix C).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmsmith.core.errors import UserError
from lmsmith.corpus.build.decontaminate import TaskText
from lmsmith.corpus.words import normal_words
from lmsmith.evaluation.measures import aggregate, measure_of
from lmsmith.evaluation.rows import ItemRow
from lmsmith.evaluation.run import TaskResult
from lmsmith.evaluation.tasks.data import read_data, read_items, search_path
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import DataSpec
from lmsmith.statistics.intervals import Interval

Rule = Literal["gpt3", "gpt4"]
RULES: tuple[Rule, ...] = ("gpt3", "gpt4")

SUBSTRING = 50
"""Characters of GPT-4's substrings."""
SUBSTRINGS = 3
SHORTEST, LONGEST = 8, 13
"""Words of GPT-3's n-grams."""


@dataclass(frozen=True)
class Contamination:
    """A measure on all items, on those without and on those with an overlap.

    Attributes:
        n: words of an n-gram, or characters of a substring.
        all, clean, dirty: the measure; None where there are no such items.
    """

    rule: Rule
    n: int
    measure: str
    all: Interval
    clean: Interval | None
    dirty: Interval | None
    clean_items: int
    dirty_items: int

    @property
    def headline(self) -> Interval:
        """The worse of all and clean items, as GPT-4's report has it."""
        if self.clean is None:
            return self.all
        sign = 1 if measure_of(self.measure).higher_is_better else -1
        return min((self.all, self.clean), key=lambda each: sign * each.value)

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return asdict(self) | {"headline": asdict(self.headline)}


def split_scores(
    rows: Sequence[ItemRow], measure: str, dirty: set[str], rule: Rule, n: int, seed: int = 0
) -> Contamination:
    """The measure on all rows, and on those of clean and of dirty items."""

    def of(part: Sequence[ItemRow]) -> Interval | None:
        return aggregate(part, seed=seed).get(measure) if part else None

    clean_rows = [row for row in rows if row.id not in dirty]
    dirty_rows = [row for row in rows if row.id in dirty]
    everything = of(rows)
    assert everything is not None
    clean, dirty_part = of(clean_rows), of(dirty_rows)
    counts = len(clean_rows), len(dirty_rows)
    return Contamination(rule, n, measure, everything, clean, dirty_part, *counts)


def find_overlaps(
    texts: Mapping[str, str], documents: Iterable[str], rule: Rule, seed: int = 0
) -> tuple[set[str], int]:
    """The ids of texts that a document overlaps with, and the length of the overlap."""
    if rule == "gpt3":
        n = gram_length(texts.values())
        return find_grams(texts, documents, n), n
    return find_substrings(texts, documents, seed), SUBSTRING


def gram_length(texts: Iterable[str]) -> int:
    """GPT-3's N: the 5th percentile of the texts' lengths in words, within 8 and 13."""
    lengths = [len(normal_words(text)) for text in texts]
    fifth = int(np.percentile(lengths, 5)) if lengths else LONGEST
    return max(SHORTEST, min(LONGEST, fifth))


def find_grams(texts: Mapping[str, str], documents: Iterable[str], n: int) -> set[str]:
    """Ids of texts that share n words in a row with a document; shorter ones share all theirs."""
    parts: list[tuple[str, Sequence[str]]] = []
    for name, text in texts.items():
        words = tuple(normal_words(text))
        if words:
            length = min(n, len(words))
            starts = range(len(words) - length + 1)
            parts += [(name, words[start : start + length]) for start in starts]
    return _find(parts, (tuple(normal_words(document)) for document in documents))


def find_substrings(texts: Mapping[str, str], documents: Iterable[str], seed: int = 0) -> set[str]:
    """Ids of texts of which one of three substrings of 50 characters stands in a document.

    Only letters and digits count on either side; a text shorter than that is looked for whole.
    """
    generator = np.random.default_rng(seed)
    parts: list[tuple[str, Sequence[str]]] = []
    for name, text in texts.items():
        kept = letters_and_digits(text)
        length = min(SUBSTRING, len(kept))
        if length:
            starts = generator.integers(0, len(kept) - length + 1, SUBSTRINGS).tolist()
            parts += [(name, kept[start : start + length]) for start in starts]
    return _find(parts, map(letters_and_digits, documents))


def _find(
    parts: Iterable[tuple[str, Sequence[str]]], documents: Iterable[Sequence[str]]
) -> set[str]:
    """The names of parts that are in a document; both are tuples of words, or both strings."""
    wanted: dict[int, dict[Sequence[str], set[str]]] = {}
    for name, part in parts:
        wanted.setdefault(len(part), {}).setdefault(part, set()).add(name)
    found: set[str] = set()
    for document in documents:
        for length, names in wanted.items():
            for start in range(len(document) - length + 1):
                found |= names.get(document[start : start + length], set())
    return found


def letters_and_digits(text: str) -> str:
    """The text without spaces and marks."""
    return re.sub(r"[\W_]+", "", text)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def task_texts(tasks: Sequence[str], folders: Sequence[str] = ()) -> list[TaskText]:
    """Every text of every item of some tasks or suites.

    Raises:
        UserError: no such task, or its data are nowhere.
    """
    path = search_path(folders)
    return [
        TaskText(task.name, item.id, text)
        for task in find_tasks(tasks)
        for item in read_data(task, path).items
        for text in _texts(item.fields)
    ]


def row_text(row: ItemRow) -> str:
    """An item's question and its right answer."""
    return f"{row.prompt} {row.right}".strip()


def add_contamination(
    record: Mapping[str, Any], results: Sequence[TaskResult], files: Sequence[Path]
) -> None:
    """Put each result's scores on clean and dirty items, by both rules, into the record."""

    for result, of_task in zip(results, record["results"], strict=True):
        texts = {row.id: row_text(row) for row in result.rows}
        of_task["contamination"] = []
        for rule in RULES:
            documents = itertools.chain.from_iterable(map(_file_texts, files))
            dirty, n = find_overlaps(texts, documents, rule, result.setting.seed)
            split = split_scores(result.rows, result.task.measure, dirty, rule, n)
            of_task["contamination"].append(split.as_dict())


def check_corpora(files: Sequence[Path]) -> None:
    """Raises UserError if a corpus has no text, before anything is measured."""
    for file in files:
        if not any(text.strip() for text in _file_texts(file)):
            problem = f"--contamination {file}: no text in it"
            raise UserError(problem, "name what the model was trained on")


def _file_texts(file: Path) -> Iterator[str]:
    """The text of each row, or every text that there is in it."""
    for item in read_items(file, DataSpec(file=str(file))):
        text = item.fields.get("text")
        yield text if isinstance(text, str) else "\n".join(_texts(item.fields))
