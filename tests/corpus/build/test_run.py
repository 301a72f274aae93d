"""A whole build: what is in the shards, that it is the same each time, and what runs again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus.build.conftest import Build, content, sentence
from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.corpus.finished import FinishedCorpus
from lmsmith.corpus.inspect.documents import CorpusDocuments
from lmsmith.corpus.shards import TokenShards
from lmsmith.tokenizers import Tokenizer


def test_shards_hold_the_texts_in_a_stable_order(corpus: Path, build: Build) -> None:
    record = build(corpus)
    finished = FinishedCorpus.load(corpus.parent / "out")
    finished.check()
    tokenizer = Tokenizer.load(finished.tokenizer)
    held_out = [json.loads(line)["text"] for line in finished.validation.read_text().splitlines()]

    texts: dict[str, list[str]] = {}
    for source in ("crawl", "books"):
        shards = TokenShards.load(finished.folder / source)
        index = pq.read_table(finished.folder / source / "00000/documents.parquet").to_pylist()
        for number, row in enumerate(index):
            ids = shards.tokens[shards.offsets[number] : shards.offsets[number + 1]]
            text = tokenizer.decode([int(each) for each in ids[1:-1]])
            assert len(text.encode()) == row["size"]
            texts.setdefault(source, []).append(text)
        assert record["sources"][source]["tokens"] == shards.total_tokens

    # Curated text stays, its doubles in the crawl go, and held-out text is in no shard.
    books = [sentence(n if n < 5 else 100 + n) for n in range(20)]
    crawl = [sentence(n) for n in range(5, 60)]
    assert sorted(texts["crawl"] + texts["books"] + held_out) == sorted(books + crawl)
    assert set(texts["crawl"]) <= set(crawl)
    assert 1 <= len(held_out) <= 20
    assert texts["crawl"] != sorted(texts["crawl"], key=lambda text: int(text.split()[0]))
    assert record["steps"]["exact"]["crawl"]["removed.equal to another document"] == 5


def test_workers_and_a_second_folder_change_no_byte(corpus: Path, build: Build) -> None:
    build(corpus)
    build(corpus, "workers=2", "out=other")
    assert content(corpus.parent / "out") == content(corpus.parent / "other")


def test_a_changed_setting_makes_again_what_depends_on_it(corpus: Path, build: Build) -> None:
    build(corpus)
    work = corpus.parent / "out/work"
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
    first = FinishedCorpus.load(corpus.parent / "out").folder
    build(corpus, "shards.vocabulary_size=310")
    second = FinishedCorpus.load(corpus.parent / "out").folder
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")} == before
    assert second != first
    assert not first.exists()
    record = build(corpus, "deduplicate.exact=false")
    assert (work / "read/000000-0000.parquet").stat().st_mtime_ns in before.values()
    kept = sum(about["documents"] for about in record["sources"].values())
    assert kept + record["validation_documents"] == 80


def test_a_killed_build_goes_on_to_the_same_bytes(corpus: Path, build: Build) -> None:
    """SIGKILL at five moments, one after the other, in the same folder."""
    build(corpus, "out=whole")
    out = corpus.parent / "out"
    program = f"""
import sys
from pathlib import Path
from lmsmith.core import files
count, until = 0, int(sys.argv[1])
replace = Path.replace
def counted(self, target):
    global count
    count += 1
    if count == until:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = counted
from lmsmith.core.progress import QuietProgress
from lmsmith.corpus.build.recipe import load_corpus_recipe
from lmsmith.corpus.build.run import build_corpus
from lmsmith.tokenizers import Tokenizer
build_corpus(load_corpus_recipe({str(corpus)!r}), Tokenizer.load, QuietProgress())
"""
    for until in (3, 6, 9, 12, 5):
        done = subprocess.run([sys.executable, "-c", program, str(until)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not (out / "corpus.json").exists()
    build(corpus)
    assert content(out) == content(corpus.parent / "whole")


def test_a_damaged_shard_is_named(corpus: Path, build: Build) -> None:
    build(corpus)
    finished = FinishedCorpus.load(corpus.parent / "out")
    path = finished.folder / "books/00000/tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"books/00000/tokens.npy: damaged"):
        finished.check()


def test_several_parts_are_read_as_one(tmp_path: Path) -> None:
    from lmsmith.corpus.shards import write_shards

    documents = [[n, n + 1, n + 2][: 1 + n % 3] for n in range(10)]
    write_shards(tmp_path / "one", documents, 99, 100)
    for number, part in enumerate((documents[:4], documents[4:5], [], documents[5:])):
        write_shards(tmp_path / f"many/{number:05d}", part, 99, 100)
    one, many = TokenShards.load(tmp_path / "one"), TokenShards.load(tmp_path / "many")
    assert (one.offsets == many.offsets).all()
    places = np.random.default_rng(0).permutation(one.total_tokens)
    assert (many.tokens[places] == one.tokens[places]).all()
    for start, stop in ((0, one.total_tokens), (3, 17), (5, 5), (11, 12)):
        assert (many.tokens[start:stop] == one.tokens[start:stop]).all()


def test_one_document_of_each_source_stays_for_training(corpus: Path, build: Build) -> None:
    for path in sorted((corpus.parent / "books").iterdir())[1:]:
        path.unlink()
    settings = ["shards.validation=0.999", "sources.books.weight=1", "sources.crawl.weight=1"]
    record = build(corpus, *settings)
    assert record["sources"]["books"]["documents"] == 1
    assert record["sources"]["crawl"]["documents"] >= 1
    assert record["validation_documents"] > 0
    corpus.write_text('[sources.books]\npaths = ["books"]\n[shards]\nvocabulary_size = 300')
    found = build(corpus, settings[0], "out=one")
    assert found["sources"]["books"]["documents"] == 1
    assert found["validation_documents"] == 0
    finished = FinishedCorpus.load(corpus.parent / "out")
    with pytest.raises(UserError, match="there are no tokens") as caught:
        CorpusDocuments(finished, (), "out").part_at(0)
    assert "-1" not in str(caught.value)


def test_a_budget_below_the_epochs_is_refused_early(corpus: Path, build: Build) -> None:
    epochs = ["sources.crawl.epochs=2", "sources.books.epochs=1"]
    with pytest.raises(SettingsError, match=r"mix\.tokens = 500: .*say already how much is read"):
        build(corpus, *epochs, "mix.tokens=500")
    assert not (corpus.parent / "out").exists()
    message = r"mix\.tokens = 100: the epochs of crawl take more than \d+ tokens"
    with pytest.raises(UserError, match=message):
        build(corpus, epochs[0], "mix.tokens=100")
    assert not (corpus.parent / "out/work/tokenizer").exists()
