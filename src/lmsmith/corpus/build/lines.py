"""Lines and paragraphs that come again, in the same or another document: the first one stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lmsmith.corpus.build.document import Document, Removed, Yielded, digest, removed
from lmsmith.corpus.build.engine import Data, Engine, Key, Pair, Value

_SEPARATORS = {"lines": re.compile(r"(\n)"), "paragraphs": re.compile(r"(\n[^\S\n]*\n\s*)")}


@dataclass(frozen=True)
class LinesConfig:
    """Which parts of documents are removed where they come again."""

    enabled: bool = False
    """Remove them."""
    unit: Literal["lines", "paragraphs"] = "paragraphs"
    """What is compared, without regard to case and white space."""
    copies: Annotated[int, Meta(ge=1)] = 1
    """How many of each stay: a curated source's first, then those of the smallest ids."""
    least_characters: Annotated[int, Meta(ge=1)] = 30
    """Shorter ones are never removed: headings and lines of code come again for good reason."""


def remove_lines(engine: Engine, data: Data, config: LinesConfig, curated: tuple[str, ...]) -> Data:
    """Documents without the parts that came before.

    Args:
        data: a checkpoint.
    """
    emit = partial(part_keys, config=config)
    pairs = engine.pairs(data, f"{config.unit}-keys", emit, curated)
    again = engine.reduce(pairs, f"{config.unit}-again", partial(later_ones, copies=config.copies))
    numbers = engine.reduce(again, f"{config.unit}-numbers", all_numbers)
    lookup = engine.lookup(numbers, f"{config.unit}-removed")
    return engine.map(data, config.unit, partial(without_parts, config=config), lookup)


def parts_of(text: str, config: LinesConfig) -> list[str]:
    """Parts and separators in turn, a part first and last."""
    return _SEPARATORS[config.unit].split(text)


def part_keys(
    documents: Iterable[Document], curated: tuple[str, ...], config: LinesConfig
) -> Iterator[Pair]:
    """(hash of a part, [rank, id, its number]); rank 0 is curated."""
    for document in documents:
        rank = int(document.source not in curated)
        for number, part in enumerate(parts_of(document.text, config)[::2]):
            essence = " ".join(part.split()).casefold()
            if len(essence) >= config.least_characters:
                yield digest(essence), [rank, document.id, number]


def later_ones(_key: Key, values: Iterable[Value], copies: int) -> Iterator[Pair]:
    """(id, number) of each part but the first ones."""
    return ((id, number) for _, id, number in islice(values, copies, None))


def all_numbers(id: Key, numbers: Iterable[Value]) -> Iterable[Pair]:
    """(id, the numbers of its parts that go)."""
    return [(id, list(numbers))]


def without_parts(
    documents: Iterable[Document], gone: Any, config: LinesConfig
) -> Iterator[Yielded]:
    """The documents with the parts that stay; one of which none stays is removed."""
    for document in documents:
        if (numbers := gone.get(document.id)) is None:
            yield document
            continue
        parts = parts_of(document.text, config)
        for number in numbers:
            parts[2 * number : 2 * number + 2] = [""] * len(parts[2 * number : 2 * number + 2])
        text = "".join(parts).strip()
        if not text:
            yield removed(document, f"no {config.unit} but those of other documents")
            continue
        first = parts_of(document.text, config)[2 * numbers[0]]
        kept = msgspec.structs.replace(document, text=text)
        yield Removed(
            document.id,
            document.source,
            "",
            f"{config.unit} that came before: {len(numbers)}",
            first[:240],
            document.size - kept.size,
            document.language,
        )
        yield kept
