"""Lines and paragraphs that come again, through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from built_corpus import after
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.lines import LinesConfig, remove_lines

Texts: TypeAlias = dict[str, str]

NOTICE = "All rights reserved; do not copy this page."
PARAGRAPHS = LinesConfig(unit="paragraphs")
LONG = "first of {}, which is long enough to count"
OTHER = "Subscribe to our newsletter, and never miss a thing."


def kept(folder: Path, documents: list[Document], config: LinesConfig, chunks: int = 2) -> Texts:
    step = lambda engine, data: remove_lines(engine, data, config, ("books",))  # noqa: E731
    return after(folder, documents, step, chunks).texts


def test_the_first_of_equal_parts_stays_curated_before_others(tmp_path: Path) -> None:
    documents = [
        Document("a", "crawl", f"{LONG.format('a')}\n{NOTICE}\n\nshort\n\nshort"),
        Document("b", "crawl", f"{LONG.format('b')}\n\n{OTHER}\n{OTHER}\nshort"),
        Document("c", "crawl", f"  {NOTICE.upper()}\n{OTHER}"),
        Document("z", "books", f"{OTHER} \n\nfirst of z"),
    ]
    for chunks in (1, 3):
        lines = kept(tmp_path / f"l{chunks}", documents, LinesConfig(unit="lines"), chunks)
        assert lines == {
            "a": documents[0].text,
            "b": LONG.format("b") + "\n\nshort",
            "z": documents[3].text,
        }
        two = kept(tmp_path / f"t{chunks}", documents, LinesConfig(unit="lines", copies=2), chunks)
        assert two["c"] == documents[2].text.split("\n")[0].strip()
        assert two["b"].count(OTHER) == 1
        paragraphs = kept(tmp_path / f"p{chunks}", documents, PARAGRAPHS, chunks)
        assert paragraphs == {document.id: document.text for document in documents}


def test_a_paragraph_goes_with_the_empty_line_after_it(tmp_path: Path) -> None:
    same = "The same paragraph,\nof two lines that are long enough."
    documents = [
        Document("a", "crawl", f"one\n\n{same}\n \ntwo"),
        Document("b", "crawl", f"one\n\n{same}\n \ntwo\n\nthree"),
    ]
    assert kept(tmp_path, documents, LinesConfig()) == {
        "a": documents[0].text,
        "b": "one\n\ntwo\n\nthree",
    }
