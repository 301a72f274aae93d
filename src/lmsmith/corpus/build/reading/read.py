"""One item read: each file by its format, what cannot be read recorded and skipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from lmsmith.corpus.build.document import Count, Document, Removed, Yielded
from lmsmith.corpus.build.reading.opening import Limits, Unreadable, open_file
from lmsmith.corpus.build.reading.plan import Item, Part
from lmsmith.corpus.build.reading.rows import read_jsonl
from lmsmith.corpus.build.reading.text import pieces, read_text_file
from lmsmith.corpus.build.recipe import CorpusRecipe, ReadConfig, SourceConfig


def read_items(
    items: Iterable[Item],
    _broadcast: Any,
    *,
    sources: Mapping[str, SourceConfig],
    config: ReadConfig,
) -> Iterator[Yielded]:
    """The documents of items; a file that cannot be read is recorded."""
    limits = Limits(config.max_characters, config.max_row_mib << 20, config.max_unpacked_times)
    for item in items:
        yield from item.problems
        for part in item.parts:
            yield Count(part.source, "files")
            yield Count(part.source, "bytes_read", part.size)
            yield from read_part(part, sources[part.source], limits)


def reader(recipe: CorpusRecipe) -> partial[Iterator[Yielded]]:
    """`read_items` for the sources of a recipe."""
    return partial(read_items, sources=recipe.sources, config=recipe.read)


def read_part(part: Part, config: SourceConfig, limits: Limits) -> Iterator[Yielded]:
    """The documents of one file."""
    try:
        with open_file(part.place, limits) as file:
            if part.format == "jsonl":
                file.seek(part.start)
                rows = read_jsonl(
                    file, limits, config.text_field, config.id_field, part.line, part.stop
                )
                for number, *rest in rows:
                    yield from _of_row(part, f"{part.id}:{number}", rest, limits)
            else:
                yield from _numbered(part, part.id, "", read_text_file(file, limits))
    except Unreadable as error:
        yield Removed(part.id, part.source, "", str(error))


def _of_row(part: Part, id: str, row: list[Any], limits: Limits) -> Iterator[Yielded]:
    if isinstance(row[0], Unreadable):
        yield Removed(id, part.source, "", str(row[0]))
        return
    text, name = row
    yield from _numbered(part, id, name, pieces(iter((text,)), limits.characters))


def _numbered(part: Part, id: str, name: str, texts: Iterable[str]) -> Iterator[Document]:
    """Documents of one text: the second and later pieces have their number in the id."""
    for number, text in enumerate(texts):
        yield Document(f"{id}#{number}" if number else id, part.source, text, name)
