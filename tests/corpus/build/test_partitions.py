"""Partitions of a shuffle: as many as the text needs, and no byte depends on them."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from corpus.build.conftest import Build, content
from lmsmith.core.progress import QuietProgress
from lmsmith.corpus.build import local, run
from lmsmith.corpus.build.decontaminate import TaskText, task_grams
from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.corpus.inspect.difference import difference, kept_documents
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.tokenizers import Tokenizer

QUESTION = "who sent the quick brown fox over the lazy dog and the fence today"


def test_packed_files_have_the_partitions_of_their_text(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BYTES_OF_PARTITION", 1000)
    engines: list[LocalEngine] = []
    make = run.make_engine
    monkeypatch.setattr(
        run, "make_engine", lambda *given: engines.append(make(*given)) or engines[-1]
    )
    build(corpus, "out=plain")
    for path in (corpus.parent / "crawl").iterdir():
        (corpus.parent / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    for path in corpus.parent.glob("*.gz"):
        path.rename(corpus.parent / "crawl" / path.name)
    build(corpus, "sources.crawl.paths=['crawl']", "out=packed")
    assert engines[0].partitions == engines[1].partitions > 4


def test_the_number_of_partitions_changes_no_byte(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["deduplicate.near.enabled=true", "deduplicate.lines.enabled=true"]
    settings += ["quality.classifier.enabled=true", "quality.classifier.feature_bits=10"]
    settings += ["quality.classifier.pareto=0.3"]
    build(corpus, *settings, "out=one")
    monkeypatch.setattr(local, "BYTES_OF_PARTITION", 1200)
    build(corpus, *settings, "out=many")
    lookups = corpus.parent.glob("many/work/exact-doubles/*.lookup")
    assert len(list(lookups)) > 4
    assert content(corpus.parent / "one") == content(corpus.parent / "many")


def test_the_pieces_of_a_cut_have_ids_of_their_own(corpus: Path, tmp_path: Path) -> None:
    """A long text is several documents, and the first of them is cut."""
    words = [f"word{n}" for n in range(900)]
    words[70:70] = QUESTION.split()
    shutil.rmtree(tmp_path / "books")
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text(" ".join(words))
    settings = ["read.max_characters=2000", "shards.validation=0", "sources.books.curated=false"]
    grams = task_grams([TaskText("fox", "0", QUESTION)])
    recipe = load_corpus_recipe(corpus, settings)
    record = run.build_corpus(recipe, Tokenizer.load, QuietProgress(), tasks=grams)
    documents = CorpusDocuments.open(record["folder"])
    kept = kept_documents(documents)
    books = [id for id in kept if id.startswith("books/")]
    assert "books/books/a.txt/piece-2" in books
    assert "books/books/a.txt#2" in books
    assert len(books) == record["sources"]["books"]["documents"]
    total = sum(about["documents"] for about in record["sources"].values())
    assert difference(documents, documents, 0)["same"] == total == len(kept)
    FinishedCorpus.load(Path(record["folder"])).check()
