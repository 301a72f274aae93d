"""A second build: it reads nothing of the first, and makes again what is damaged."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from corpus.build.conftest import save_random_classifier
from lmsmith.catalogue import registry
from lmsmith.catalogue.registry import Record
from lmsmith.cli import main
from lmsmith.core.config import SettingsError
from lmsmith.core.errors import UserError
from lmsmith.corpora import build_corpus
from lmsmith.corpus.build import run
from lmsmith.corpus.build.removed import all_removed
from lmsmith.corpus.finished import FinishedCorpus

Build = Callable[..., dict[str, Any]]


def test_a_build_does_not_read_its_own_folder(corpus: Path, build: Build) -> None:
    settings = ["sources.crawl.paths=['crawl']", "out=crawl/built"]
    first = build(corpus, *settings)
    again = build(corpus, *settings)
    assert again["sources"]["crawl"] == first["sources"]["crawl"]


def test_a_source_inside_of_the_result_is_refused(corpus: Path, build: Build) -> None:
    with pytest.raises(UserError, match=r"crawl: the folder has files that no build"):
        build(corpus, "sources.crawl.paths=['crawl']", "out=crawl")
    build(corpus)
    with pytest.raises(UserError, match=r"sources\.crawl: out: lies in .*out"):
        build(corpus, "sources.crawl.paths=['out']")
    assert len(list((corpus.parent / "crawl").glob("*.jsonl"))) == 2


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_shards_are_made_again(corpus: Path, build: Build, damage: str) -> None:
    record = build(corpus)
    part = Path(record["folder"]) / record["shards"] / "crawl/00000"
    expected = (part / "tokens.npy").read_bytes()
    if damage == "cut":
        (part / "tokens.npy").write_bytes(expected[:-8])
    else:
        shutil.rmtree(part)
    build(corpus)
    assert (part / "tokens.npy").read_bytes() == expected


def test_a_zstd_file_that_is_cut_off_is_counted(corpus: Path, build: Build) -> None:
    text = "\n".join(f"line {number} of {number * number}" for number in range(40_000)).encode()
    packed = zstandard.compress(text)
    books = corpus.parent / "books"
    (books / "cut.txt.zst").write_bytes(packed[: len(packed) // 2])
    (books / "two.txt.zst").write_bytes(
        zstandard.compress(b"The first frame, ") + zstandard.compress(b"and the second.")
    )
    record = build(corpus, "sources.books.paths=['books/*']")
    removed = all_removed(FinishedCorpus.load(Path(record["folder"])))
    reasons = {row.id: row.reason for row in removed if row.id.endswith(".zst")}
    assert list(reasons) == ["books/books/cut.txt.zst"]
    assert "cut off" in reasons["books/books/cut.txt.zst"]


def test_sources_of_which_nothing_is_read_are_refused(corpus: Path, build: Build) -> None:
    with pytest.raises(SettingsError, match="every weight or number of epochs is 0"):
        build(corpus, "sources.crawl.epochs=0", "sources.books.epochs=0")


def test_a_full_disk_is_named_by_the_corpus(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run._Build, "run", full)
    with pytest.raises(UserError, match=rf"{corpus.parent}/out: the disk is full"):
        build(corpus)


def test_a_folder_that_cannot_be_made_is_a_message(corpus: Path, build: Build) -> None:
    with pytest.raises(UserError, match="/proc/x: no folder can be made there"):
        build(corpus, "out=/proc/x")


def test_messages_name_the_setting_and_the_link(
    corpus: Path, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting in ("shards.tokenizer=nowhere", "harmful.classifier=nothing"):
        assert main(["corpus", "build", str(corpus), "--set", setting]) == 2
        assert f"lmsmith: {setting.partition('=')[0]}: no" in capsys.readouterr().err
    (corpus.parent / "out").symlink_to("nothing")
    with pytest.raises(UserError, match=r"out is a link to nothing, which does not exist"):
        build(corpus)
    assert main(["corpus", "build", str(corpus), "--set", f"out={corpus}", "--dry-run"]) == 2
    assert "a file, no folder" in capsys.readouterr().err


def test_the_tokenizer_of_a_run_and_of_a_registered_model(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(corpus.parent / "home"))
    save_random_classifier(corpus.parent / "run/model")
    with registry.registering("tiny") as partial:
        save_random_classifier(partial / "model")
        registry.write_record(partial, Record("tiny", "hf", "model", "", "ab", 3, registry.now()))
    expected = (corpus.parent / "run/model/tokenizer.json").read_bytes()
    for name in ("run", "tiny"):
        settings = [f"out={name}-out", f"shards.tokenizer={name}"]
        built = build_corpus(str(corpus), set=settings, quiet=True)
        folder = built.folder / built.record["shards"]
        assert (folder / "tokenizer/tokenizer.json").read_bytes() == expected


def test_a_file_that_could_not_be_read_is_tried_again(
    corpus: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is away while the files are read, and unchanged afterwards."""
    book, away = corpus.parent / "books/07.txt", corpus.parent / "07.txt"
    make_items = run.make_items

    def moved(*given: Any) -> Any:
        items = make_items(*given)
        book.rename(away)
        return items

    settings = ["sources.books.paths=['books/*']", "deduplicate.exact=false"]
    for _ in range(2):
        monkeypatch.setattr(run, "make_items", moved)
        record = build(corpus, *settings)
        away.rename(book)
        assert record["steps"]["read"]["books"]["documents_out"] == 19
        assert record["steps"]["read"]["books"]["removed.cannot be read"] == 1
        shards = record["shards"]
    monkeypatch.setattr(run, "make_items", make_items)
    record = build(corpus, *settings)
    assert record["steps"]["read"]["books"]["documents_out"] == 20
    assert record["shards"] != shards
    reasons = [row.reason for row in all_removed(FinishedCorpus.load(Path(record["folder"])))]
    assert not [reason for reason in reasons if "cannot be read" in reason]


def test_a_new_weight_makes_nothing_again(corpus: Path, build: Build) -> None:
    settings = ["deduplicate.lines.enabled=true"]

    def written() -> dict[str, int]:
        files = (corpus.parent / "out").rglob("*")
        return {
            str(path): path.stat().st_mtime_ns
            for path in files
            if path.is_file() and path.suffix in (".parquet", ".npy", ".lookup", ".pairs")
            if not path.name.startswith("removed")
        }

    build(corpus, *settings)
    before = written()
    record = build(corpus, *settings, "sources.crawl.epochs=2")
    assert written() == before
    assert record["mixture"][0]["epochs"] == 2
    build(corpus, *settings, "sources.crawl.curated=true")
    after = written()
    of_reading = {path for path in before if "/work/read/" in path}
    assert of_reading
    assert {path: after[path] for path in of_reading} == {path: before[path] for path in of_reading}
    assert after != before


def test_a_chunk_that_was_removed_is_made_again(corpus: Path, build: Build) -> None:
    build(corpus)
    chunk = corpus.parent / "out/work/read/000000-0000.parquet"
    chunk.write_bytes(b"damaged")
    settings = ["clean.enabled=false"]
    with pytest.raises(UserError, match=r"000000-0000\.parquet: damaged") as caught:
        build(corpus, *settings)
    assert "Remove this file" in str(caught.value.fix)
    chunk.unlink()
    assert build(corpus, *settings)["steps"]["read"]["books"]["documents_out"] == 20
