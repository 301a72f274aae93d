"""Documents of a stream in groups, for functions that read many texts at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lmsmith.corpus.build.document import Document

MOST_CHARACTERS = 1 << 20


def groups(documents: Iterable[Document], most: int = MOST_CHARACTERS) -> Iterator[list[Document]]:
    """Lists of documents, in order, each of so many characters or one document more."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text) + 1
        if size >= most:
            yield group
            group, size = [], 0
    if group:
        yield group
